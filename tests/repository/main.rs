//! What ARCHITECTURE.md says about the sources, held against them: which files may contain `unsafe`, and who may know
//! whom. And that the tests exist which the agent's CONFORMANCE.md names.

mod sources;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use sources::{Source, rust_sources};
use tests::binary::checkout;

#[test]
fn the_files_that_contain_unsafe_are_those_that_the_architecture_lists() {
    let listed = files_listed_as_unsafe();
    let found: BTreeSet<String> = rust_sources(&checkout())
        .into_iter()
        .filter(|source| source.has_word("unsafe"))
        .map(|source| source.path)
        .collect();

    let unlisted: Vec<&String> = found.difference(&listed).collect();
    let needless: Vec<&String> = listed.difference(&found).collect();
    assert!(
        unlisted.is_empty(),
        "ARCHITECTURE.md does not list {unlisted:?}"
    );
    assert!(
        needless.is_empty(),
        "ARCHITECTURE.md lists {needless:?}, which need not be"
    );
}

#[test]
fn protocol_depends_on_no_crate_of_ours() {
    assert_eq!(our_dependencies_of("protocol"), NOBODY);
}

#[test]
fn devices_depends_on_no_crate_of_ours() {
    assert_eq!(our_dependencies_of("devices"), NOBODY);
}

#[test]
fn archive_depends_on_no_crate_of_ours() {
    assert_eq!(our_dependencies_of("archive"), NOBODY);
}

#[test]
fn netlink_depends_on_no_crate_of_ours() {
    assert_eq!(our_dependencies_of("netlink"), NOBODY);
}

#[test]
fn agent_depends_on_archive_netlink_and_protocol() {
    assert_eq!(
        our_dependencies_of("agent"),
        ["archive", "netlink", "protocol"]
    );
}

#[test]
fn vmm_depends_on_archive_devices_netlink_and_protocol() {
    assert_eq!(
        our_dependencies_of("vmm"),
        ["archive", "devices", "netlink", "protocol"]
    );
}

#[test]
fn the_end_to_end_tests_know_the_binary_and_the_lab_alone() {
    assert_eq!(our_dependencies_of("tests"), ["lab"]);
    assert_eq!(our_dependencies_of("lab"), NOBODY);
}

#[test]
fn devices_knows_no_kvm_no_oci_and_no_command_line() {
    let known = dependencies_of("devices");

    assert_eq!(
        among(&known, &["kvm-bindings", "kvm-ioctls", "oci-spec", "clap"]),
        NOBODY
    );
}

#[test]
fn image_knows_no_kvm_and_no_command_line() {
    let image = sources_below("vmm/src/image");

    assert_eq!(
        naming_a_crate(&image, &["kvm_bindings", "kvm_ioctls", "clap"]),
        NOBODY
    );
    assert_eq!(
        naming_a_module(&image, &["machine", "vm_process", "cli", "commands"]),
        NOBODY
    );
}

#[test]
fn machine_knows_no_command_line_and_no_oci() {
    let machine = sources_below("vmm/src/machine");

    assert_eq!(naming_a_crate(&machine, &["clap", "oci_spec"]), NOBODY);
    assert_eq!(
        naming_a_module(&machine, &["image", "workload", "cli", "commands"]),
        NOBODY
    );
}

#[test]
fn the_tests_exist_that_show_conformance() {
    let sources = rust_sources(&checkout());
    let named = tests_that_show_conformance();
    let exists = |(path, name): &(String, String)| {
        let mut found = sources.iter().filter(|source| source.path == *path);
        found.any(|source| source.has_word(name))
    };

    let missing: Vec<_> = named.iter().filter(|test| !exists(test)).collect();

    assert!(
        missing.is_empty(),
        "CONFORMANCE.md names {missing:?}, which are not there"
    );
    assert!(named.len() > 50, "CONFORMANCE.md names few: {named:?}");
}

const NOBODY: [String; 0] = [];

/// Where the files lie that CONFORMANCE.md names by the beginnings of their paths.
const PLACES: [(&str, &str); 4] = [
    ("crun/", "tests/e2e/machines/crun/"),
    ("agent/", "guest-image/agent/tests/containers/"),
    ("src/", "guest-image/agent/src/"),
    ("host/", "vmm/src/workload/"),
];

/// Returns file and name of each test in the last column of the tables of CONFORMANCE.md.
fn tests_that_show_conformance() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(checkout().join("guest-image/agent/CONFORMANCE.md"))
        .expect("CONFORMANCE.md can be read");
    let cells = text.lines().filter_map(|line| {
        line.strip_prefix("| ")?
            .strip_suffix(" |")?
            .rsplit(" | ")
            .next()
    });
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter_map(|test| test.split_once("::"))
        .map(|(file, name)| {
            let place = PLACES
                .iter()
                .find_map(|(short, long)| Some(format!("{long}{}", file.strip_prefix(short)?)));
            (place.unwrap_or_else(|| file.to_owned()), name.to_owned())
        })
        .collect()
}

/// Returns the paths in the table of the architecture's section on `unsafe`.
fn files_listed_as_unsafe() -> BTreeSet<String> {
    let text = std::fs::read_to_string(checkout().join("ARCHITECTURE.md"))
        .expect("ARCHITECTURE.md can be read");
    let (_, section) = text
        .split_once("\n## Files that may contain `unsafe`\n")
        .expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect()
}

/// Returns the packages that `package` depends on directly, in any way, sorted.
fn dependencies_of(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--locked",
            "--format-version",
            "1",
        ])
        .current_dir(checkout())
        .output()
        .expect("cargo can be run");
    assert!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"]
        .as_array()
        .expect("cargo metadata lists packages");
    let found = packages
        .iter()
        .find(|found| found["name"] == package)
        .expect("the package is in the workspace");
    let dependencies = found["dependencies"]
        .as_array()
        .expect("a package lists its dependencies");
    let names: BTreeSet<&str> = dependencies
        .iter()
        .filter_map(|dependency| dependency["name"].as_str())
        .collect();
    names.into_iter().map(str::to_owned).collect()
}

fn our_dependencies_of(package: &str) -> Vec<String> {
    among(
        &dependencies_of(package),
        &[
            "agent", "archive", "devices", "lab", "netlink", "protocol", "tests", "vmm",
        ],
    )
}

fn among(names: &[String], wanted: &[&str]) -> Vec<String> {
    names
        .iter()
        .filter(|name| wanted.contains(&name.as_str()))
        .cloned()
        .collect()
}

fn sources_below(directory: &str) -> Vec<Source> {
    let mut sources = rust_sources(&checkout());
    sources.retain(|source| Path::new(&source.path).starts_with(directory));
    assert!(
        !sources.is_empty(),
        "there are no sources below {directory}"
    );
    sources
}

/// Returns the paths of those sources that name one of these crates.
fn naming_a_crate(sources: &[Source], crates: &[&str]) -> Vec<String> {
    paths_of(sources, |source| {
        crates.iter().any(|name| source.has_word(name))
    })
}

/// Returns the paths of those sources that name one of these modules of their own crate.
fn naming_a_module(sources: &[Source], modules: &[&str]) -> Vec<String> {
    paths_of(sources, |source| {
        modules.iter().any(|module| source.names_module(module))
    })
}

fn paths_of(sources: &[Source], filter: impl Fn(&Source) -> bool) -> Vec<String> {
    sources
        .iter()
        .filter(|source| filter(source))
        .map(|source| source.path.clone())
        .collect()
}
