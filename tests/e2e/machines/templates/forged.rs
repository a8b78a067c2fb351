//! Templates that pass every check and hold a machine that cannot go on: what an error of ours could leave, or whoever may write to
//! the account's files. The clone is given up, and a machine boots.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use super::Home;

/// The header of a state: magic and format, which stay as they are, then length and checksum of the body.
const LENGTH_AT: usize = 12;
const BODY_AT: usize = 20;
/// How a state has what CPUID answers for leaf 1 (`kvm_cpuid_entry2` of the KVM API): a length; leaf, sub-leaf and flags; EAX to EDX.
const FEATURES: [u8; 13] = [40, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ECX_AT: usize = FEATURES.len() + 8;
const MINE: &str = "a fixture's files are this test's own";

/// How postcard writes an `i64`: zigzag, then seven bits a byte, the lowest first (postcard's wire format, "varint").
fn varint(number: i64) -> Vec<u8> {
    let zigzag = (number << 1 ^ number >> 63).cast_unsigned();
    let needed_bits = (64 - zigzag.leading_zeros()).max(1);
    (0..needed_bits.div_ceil(7))
        .map(|index| {
            let [low, ..] = (zigzag >> (7 * index)).to_le_bytes();
            let goes_on = u8::from((index + 1) * 7 < needed_bits) << 7;
            low & 0x7f | goes_on
        })
        .collect()
}

/// The times of a file as a state has them.
fn times(path: &Path) -> Vec<u8> {
    let file = fs::metadata(path).expect(MINE);
    let times = [
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ];
    times.into_iter().flat_map(varint).collect()
}

/// Alters the body of a template's state, whose header then agrees with it.
fn forge_state(template: &Path, alter: impl FnOnce(&mut Vec<u8>)) {
    let path = template.join("state");
    let state = fs::read(&path).expect(MINE);
    let (header, body) = state.split_at(BODY_AT);
    let mut body = body.to_vec();
    alter(&mut body);
    let length = u32::try_from(body.len()).expect("a state is short");
    let checksum = crc32fast::hash(&body).to_le_bytes();
    let forged = [
        &header[..LENGTH_AT],
        &length.to_le_bytes(),
        &checksum,
        &body,
    ];
    fs::write(path, forged.concat()).expect(MINE);
}

/// Where these bytes are in the body of a state.
fn place_of(body: &[u8], sought: &[u8]) -> usize {
    body.windows(sought.len())
        .position(|window| window == sought)
        .expect("a state has what is sought in it")
}

/// Alters a template's memory, and its state so that it belongs to that memory.
fn forge(template: &Path, alter: impl FnOnce(&File)) {
    let memory = template.join("memory");
    let before = times(&memory);
    let file = File::options().read(true).write(true).open(&memory);
    alter(&file.expect(MINE));
    forge_state(template, |body| {
        let place = place_of(body, &before);
        body.splice(place..place + before.len(), times(&memory));
    });
}

/// Fills what holds data between two addresses of RAM.
fn fill(memory: &File, from: u64, to: u64, pattern: [u8; 2]) {
    let mut place = from;
    while let Ok(start) = seek(memory, SeekFrom::Data(place)) {
        let end = seek(memory, SeekFrom::Hole(start)).expect(MINE).min(to);
        let Some(length) = end.checked_sub(start) else {
            break;
        };
        let bytes = pattern.repeat(usize::try_from(length / 2).expect("RAM is small"));
        memory.write_all_at(&bytes, start).expect(MINE);
        place = end;
        if place >= to {
            break;
        }
    }
}

#[test]
fn a_clone_is_made_of_a_template_that_was_forged_without_a_change() {
    let home = Home::prepared();
    forge(&home.template(), |memory| {
        memory
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
    });
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
}

#[test]
fn a_clone_that_dies_is_given_up_and_its_template_with_it() {
    let home = Home::prepared();
    let template = home.template();
    forge(&template, |memory| fill(memory, 0, u64::MAX, [0, 0]));

    let ran = home.run(&[], &["echo", "hello"]);

    ran.booted()
        .warns_once("a clone did not start")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.is_well_again();
}

#[test]
fn a_clone_that_does_not_answer_is_given_up_and_its_template_with_it() {
    let home = Home::prepared();
    // The kernel's code (CONFIG_PHYSICAL_START) becomes "1: jmp 1b".
    forge(&home.template(), |memory| {
        fill(memory, 16 << 20, 18 << 20, [0xeb, 0xfe]);
    });

    let ran = home.run(&[], &["echo", "hello"]);

    ran.booted()
        .warns_once("its agent does not answer")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.is_well_again();
}

#[test]
fn a_template_of_a_processor_with_another_feature_is_replaced() {
    let home = Home::prepared();
    let template = home.template();
    forge_state(&template, |body| {
        // ECX bit 16, which is reserved (Intel SDM 2A, CPUID): no processor here has it.
        let ecx = place_of(body, &FEATURES) + ECX_AT;
        body[ecx + 2] ^= 1;
    });

    let ran = home.run(&[], &["echo", "hello"]);

    ran.booted()
        .warns_once("the processor's features")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.fixture.nothing_runs();
    assert!(template.exists(), "the run has left another");
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
}
