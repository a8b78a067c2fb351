//! Everything that boots a machine. Each boot costs seconds under software KVM, so a test asserts in one boot what
//! belongs to one subject.

mod attach;
mod background;
mod bench;
mod complete_kvm;
mod containers;
mod copying;
mod crun;
mod disks;
mod environment;
mod events;
mod exec;
mod exit_codes;
mod files;
mod foreground;
mod guest_image;
mod images;
mod kernels;
mod lab;
mod lifecycle;
mod limits;
mod logs;
mod network;
mod policies;
mod races;
mod signals;
mod snapshots;
mod statistics;
mod storage;
mod streams;
mod templates;
mod terminal;
mod volumes;

use std::path::PathBuf;

use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

/// Writes the archive of busybox that most tests here run; its own command is `echo hello`.
fn busybox(fixture: &Fixture) -> PathBuf {
    fixture.file(
        "busybox.oci",
        ImageMaker::busybox()
            .name("busybox:test")
            .layout()
            .archive(),
    )
}

/// A fixture with busybox in its store.
fn with_busybox() -> Fixture {
    let fixture = Fixture::with_machines();
    fixture.load(&busybox(&fixture)).run().succeeded();
    fixture
}

/// Writes an archive of busybox with the static program `probe` of `tests/workloads`.
fn busybox_with_probe(fixture: &Fixture) -> PathBuf {
    let probe = Layer::new().executable("bin/probe", tests::workload::program("probe"));
    fixture.file(
        "probe.oci",
        ImageMaker::busybox().layer(probe).layout().archive(),
    )
}
