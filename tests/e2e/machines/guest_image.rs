//! The guest image: missing, changed, or dying under us.

use std::fs;

use tests::guest_image::GuestImage;
use tests::{Fixture, Invocation, binary};

use super::busybox;

/// Asserts that a guest image with a changed byte is refused, though it ran unchanged just before.
#[track_caller]
fn refused_when_changed(file: &str) {
    let fixture = Fixture::with_machines();
    let guest = GuestImage::copied(&fixture);
    let image = busybox(&fixture);
    fixture
        .run(&image, &[], &[])
        .env("VMM_GUEST_DIR", guest.directory())
        .run()
        .code_is(0);
    guest.change_a_byte(file);
    let done = fixture
        .run(&image, &[], &[])
        .env("VMM_GUEST_DIR", guest.directory())
        .run();
    done.refused(&[file]);
}

#[test]
fn a_kernel_with_a_changed_byte_is_refused() {
    refused_when_changed("vmlinux");
}

#[test]
fn an_agent_image_with_a_changed_byte_is_refused() {
    refused_when_changed("agent.erofs");
}

#[test]
fn a_manifest_that_is_no_manifest_is_refused() {
    let fixture = Fixture::with_machines();
    let guest = GuestImage::copied(&fixture);
    guest.write("manifest.json", b"{");
    let done = fixture
        .run(&busybox(&fixture), &[], &[])
        .env("VMM_GUEST_DIR", guest.directory())
        .run();
    done.refused(&["manifest.json"]);
}

#[test]
fn no_guest_image_at_all_is_said_with_help() {
    let fixture = Fixture::with_machines();
    let empty = fixture.path("empty");
    fs::create_dir(&empty).unwrap();
    // A copy of the binary has nothing beside it.
    let alone = fixture.path("vmm");
    fs::copy(binary::vmm(), &alone).unwrap();
    let done = Invocation::new(alone)
        .args(["run", "--image"])
        .arg(busybox(&fixture))
        .env("VMM_ROOT", fixture.root())
        .env("VMM_GUEST_DIR", &empty)
        .env("XDG_DATA_HOME", &empty)
        .run();
    done.refused(&["guest image"]).helped();
}

#[test]
fn a_guest_kernel_that_panics_is_reported_with_its_last_words() {
    let fixture = Fixture::with_machines();
    let script = "echo before; sleep 0.2; mount -t proc proc /mnt 2>/dev/null; echo c > /proc/sysrq-trigger; sleep 2; exit 77";
    let done = fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", script])
        .run();
    // Either the workload is kept from the trigger (and exits 77), or the kernel dies and that is told.
    assert!(matches!(done.code(), Some(77 | 125)), "{done:?}");
    fixture.nothing_runs();
}

#[test]
fn a_kernel_that_never_comes_to_its_agent_is_reported_with_its_last_words() {
    let fixture = Fixture::with_machines();
    let guest = GuestImage::copied(&fixture);
    guest.replace_agent_by_zeros();
    let done = fixture
        .run(&busybox(&fixture), &[], &[])
        .env("VMM_GUEST_DIR", guest.directory())
        .run();
    done.code_is(125)
        .stdout_is("")
        .stderr_has("vmm: ")
        .stderr_has("Kernel panic");
    fixture.nothing_runs();
}
