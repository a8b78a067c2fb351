//! Layers on top of each other, and what they may contain.

use super::maker::{Header, Image, Tar};
use super::{Fixture, paths, walk};

#[test]
fn a_whiteout_removes_what_lower_layers_left() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .directory("d")
            .file("d/gone", "1")
            .file("d/kept", "2"),
    )
    .layer(Tar::new().file("d/.wh.gone", ""));
    assert_eq!(
        paths(&fixture.import(image.archive()).unwrap()),
        ["/d", "/d/kept"]
    );
}

#[test]
fn a_whiteout_spares_what_its_own_layer_brought_before() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().directory("d").file("d/old", "1")).layer(
        Tar::new()
            .directory("d")
            .file("d/new", "2")
            .file(".wh.d", ""),
    );
    assert_eq!(
        paths(&fixture.import(image.archive()).unwrap()),
        ["/d", "/d/new"]
    );
}

#[test]
fn an_opaque_directory_hides_lower_layers_wherever_the_mark_stands() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .directory("d")
            .directory("d/sub")
            .file("d/sub/old", "1"),
    )
    .layer(
        Tar::new()
            .directory("d")
            .file("d/a", "2")
            .file("d/.wh..wh..opq", "")
            .file("d/z", "3"),
    );
    assert_eq!(
        paths(&fixture.import(image.archive()).unwrap()),
        ["/d", "/d/a", "/d/z"]
    );
}

#[test]
fn a_whiteout_of_nothing_that_exists_is_harmless() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file("a", "")).layer(Tar::new().file("x/y/.wh.z", ""));
    assert_eq!(paths(&fixture.import(image.archive()).unwrap()), ["/a"]);
}

#[test]
fn a_whiteout_of_a_hard_linked_name_spares_the_other_name() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file("a", "1"))
        .layer(Tar::new().hard_link("b", "a").file(".wh.a", ""));
    let image = fixture.import(image.archive()).unwrap();
    assert_eq!(paths(&image), ["/b"]);
    assert_eq!(walk(&image)[&b"/b"[..]].links, 1);
}

#[test]
fn a_file_becomes_a_directory_and_a_file_again() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file("x", "file"))
        .layer(Tar::new().directory("x").file("x/inner", ""))
        .layer(Tar::new().file("x", "file again"));
    let image = fixture.import(image.archive()).unwrap();
    assert_eq!(paths(&image), ["/x"]);
    assert_eq!(walk(&image)[&b"/x"[..]].contents, b"file again");
}

#[test]
fn a_hard_link_reaches_into_a_lower_layer() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file("a", "shared")).layer(Tar::new().hard_link("d/b", "./a"));
    let files = walk(&fixture.import(image.archive()).unwrap());
    let (a, b) = (&files[&b"/a"[..]], &files[&b"/d/b"[..]]);
    assert_eq!((a.nid, a.links), (b.nid, 2));
    assert_eq!(b.contents, b"shared");
}

#[test]
fn a_path_through_a_symbolic_link_lands_behind_it() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .directory("usr")
            .directory("usr/lib")
            .symlink("lib", "usr/lib"),
    )
    .layer(Tar::new().file("lib/new", "x"));
    assert_eq!(
        paths(&fixture.import(image.archive()).unwrap()),
        ["/lib", "/usr", "/usr/lib", "/usr/lib/new"]
    );
}

#[test]
fn a_path_through_an_absolute_symbolic_link_stays_below_the_root() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().symlink("abs", "/srv").directory("srv"))
        .layer(Tar::new().file("abs/b", "2"));
    let image = fixture.import(image.archive()).unwrap();
    assert_eq!(paths(&image), ["/abs", "/srv", "/srv/b"]);
}

#[test]
fn a_path_through_a_symbolic_link_out_of_the_root_is_refused() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .symlink("out", "../../../../tmp")
            .file("out/a", "1"),
    );
    let error = fixture.import(image.archive()).unwrap_err();
    assert!(
        crate::report::chain(&error).contains("`/out/a` leads out"),
        "{error}"
    );
}

#[test]
fn an_absolute_path_is_refused() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file("/etc/passwd", "x"));
    let error = fixture.import(image.archive()).unwrap_err();
    assert!(
        crate::report::chain(&error).contains("/etc/passwd"),
        "{error}"
    );
}

#[test]
fn the_last_of_equal_entries_wins() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .file("a", "first")
            .hard_link("b", "a")
            .file("a", "second"),
    );
    let files = walk(&fixture.import(image.archive()).unwrap());
    assert_eq!(files[&b"/a"[..]].contents, b"second");
    assert_eq!(
        (&files[&b"/b"[..]].contents[..], files[&b"/b"[..]].links),
        (&b"first"[..], 1)
    );
}

#[test]
fn names_that_are_not_utf8_stay_as_they_are() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file(b"\xff\xfe name", "x"));
    assert_eq!(
        walk(&fixture.import(image.archive()).unwrap())[&b"/\xff\xfe name"[..]].contents,
        b"x"
    );
}

#[test]
fn owner_mode_and_time_are_kept() {
    let fixture = Fixture::new();
    let header = Header {
        mode: 0o106_755,
        uid: 1000,
        gid: 70_000,
        mtime: 12_345,
        ..Header::new(b'0', "x")
    };
    let image = Image::of(
        Tar::new()
            .pax(&[("mtime", b"12345.678901234")])
            .member(&header, b""),
    );
    let files = walk(&fixture.import(image.archive()).unwrap());
    let found = &files[&b"/x"[..]];
    assert_eq!(
        (found.mode, found.uid, found.gid),
        (0o106_755, 1000, 70_000)
    );
    assert_eq!(found.mtime, (12_345, 678_901_234));
}

#[test]
fn owners_above_octal_come_from_pax() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .pax(&[("uid", b"3000000000"), ("gid", b"4000000000")])
            .file("x", ""),
    );
    let files = walk(&fixture.import(image.archive()).unwrap());
    assert_eq!(
        (files[&b"/x"[..]].uid, files[&b"/x"[..]].gid),
        (3_000_000_000, 4_000_000_000)
    );
}

#[test]
fn capabilities_and_user_attributes_are_kept() {
    let fixture = Fixture::new();
    let capability =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let records: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.note", b"a=b\n"),
        ("SCHILY.xattr.system.posix_acl_access", b"acl"),
    ];
    let image = Image::of(Tar::new().pax(&records).file("x", ""));
    let files = walk(&fixture.import(image.archive()).unwrap());
    let xattrs = &files[&b"/x"[..]].xattrs;
    assert_eq!(xattrs[&b"security.capability"[..]], capability);
    assert_eq!(xattrs[&b"user.note"[..]], b"a=b\n");
    assert_eq!(xattrs[&b"system.posix_acl_access"[..]], b"acl");
}

#[test]
fn what_overlayfs_would_interpret_does_not_get_in() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.a", b"b"),
            ])
            .directory("d"),
    );
    let files = walk(&fixture.import(image.archive()).unwrap());
    assert_eq!(
        files[&b"/d"[..]].xattrs.keys().collect::<Vec<_>>(),
        [b"user.a"]
    );
}

#[test]
fn devices_and_fifos_are_kept() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .device("null", b'3', 1, 3)
            .device("disk", b'4', 259, 300)
            .member(&Header::new(b'6', "fifo"), b""),
    );
    let files = walk(&fixture.import(image.archive()).unwrap());
    assert_eq!(
        (files[&b"/null"[..]].mode, files[&b"/null"[..]].device),
        (0o020_644, 0x103)
    );
    assert_eq!(
        (files[&b"/disk"[..]].mode, files[&b"/disk"[..]].device),
        (0o060_644, 44 | 259 << 8 | 0x100 << 12)
    );
    assert_eq!(files[&b"/fifo"[..]].mode, 0o010_644);
}

#[test]
fn long_names_come_from_pax_and_from_gnu_headers() {
    let fixture = Fixture::new();
    let long = "n".repeat(200);
    let target = "t".repeat(150);
    let gnu = |kind: u8, text: &str| {
        let body = format!("{text}\0");
        (
            Header {
                size: body.len() as u64,
                ..Header::new(kind, "././@LongLink")
            },
            body,
        )
    };
    let (name, name_body) = gnu(b'L', &long);
    let (link, link_body) = gnu(b'K', &target);
    let tar = Tar::new()
        .member(&name, name_body.as_bytes())
        .member(&link, link_body.as_bytes())
        .symlink("short", "short")
        .pax(&[("path", format!("p/{long}").as_bytes())])
        .file("short", "x");
    let files = walk(&fixture.import(Image::of(tar).archive()).unwrap());
    assert_eq!(
        files[format!("/{long}").as_bytes()].contents,
        target.as_bytes()
    );
    assert_eq!(files[format!("/p/{long}").as_bytes()].contents, b"x");
}

#[test]
fn a_long_symbolic_link_is_kept_whole() {
    let fixture = Fixture::new();
    let target = "t/".repeat(2047);
    let tar = Tar::new()
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("link", "x");
    let files = walk(&fixture.import(Image::of(tar).archive()).unwrap());
    assert_eq!(files[&b"/link"[..]].contents, target.as_bytes());
}

#[test]
fn the_root_itself_can_be_described() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().member(
        &Header {
            mode: 0o700,
            uid: 5,
            ..Header::new(b'5', "./")
        },
        b"",
    ));
    let files = walk(&fixture.import(image.archive()).unwrap());
    assert_eq!(
        (files[&b"/"[..]].mode, files[&b"/"[..]].uid),
        (0o040_700, 5)
    );
}

#[test]
fn directories_of_later_layers_keep_what_is_in_them() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().directory("d").file("d/a", "")).layer(Tar::new().member(
        &Header {
            mode: 0o500,
            ..Header::new(b'5', "d/")
        },
        b"",
    ));
    let image = fixture.import(image.archive()).unwrap();
    assert_eq!(paths(&image), ["/d", "/d/a"]);
    assert_eq!(walk(&image)[&b"/d"[..]].mode, 0o040_500);
}

#[test]
fn a_directory_entry_replaces_a_symbolic_link() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().directory("real").symlink("d", "real"))
        .layer(Tar::new().directory("d").file("d/x", ""));
    assert_eq!(
        paths(&fixture.import(image.archive()).unwrap()),
        ["/d", "/d/x", "/real"]
    );
}

#[test]
fn a_layer_without_its_last_padding_is_taken_as_unpacking_runtimes_take_it() {
    let fixture = Fixture::new();
    let mut image = Image::of(Tar::new().file("a", "first").file("b", "last"));
    let bytes = image.layers[0].0[..512 * 3 + 4].to_vec();
    image.layers[0].2 = crate::image::Digest::of(&bytes);
    image.layers[0].0 = bytes;
    let stored = fixture.import(image.archive()).unwrap();
    assert_eq!(walk(&stored)[&b"/b"[..]].contents, b"last");
    fixture
        .store
        .save(&stored.id.to_string(), &mut Vec::new())
        .unwrap();
}
