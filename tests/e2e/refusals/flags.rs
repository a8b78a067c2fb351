//! Flags and hosts that cannot work.

use serde_json::json;
use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

use super::{good, with_something_in_the_store};

/// Asserts that `vmm run` of a good image refuses these options, naming `names`, and leaves the store alone.
#[track_caller]
fn options_refused(options: &[&str], names: &[&str]) {
    let fixture = with_something_in_the_store();
    let file = fixture.file("good.oci", good().layout().archive());
    let before = fixture.store_listing();
    fixture.run(&file, options, &[]).run().refused(names);
    tests::snapshot::assert_unchanged(&before, &fixture.store_listing());
}

#[test]
fn memory_of_one_byte_is_refused() {
    options_refused(&["--memory", "1"], &["--memory"]);
}

#[test]
fn memory_that_is_no_number_is_refused() {
    options_refused(&["--memory", "lots"], &["--memory", "lots"]);
}

#[test]
fn negative_memory_is_refused() {
    options_refused(&["--memory=-1"], &["--memory"]);
}

#[test]
fn memory_beyond_every_machine_is_refused() {
    options_refused(&["--memory", "99999999g"], &["--memory"]);
}

#[test]
fn no_processors_are_refused() {
    options_refused(&["--cpus", "0"], &["--cpus"]);
}

#[test]
fn a_thousand_processors_are_refused() {
    options_refused(&["--cpus", "1000"], &["--cpus"]);
}

#[test]
fn processors_that_are_no_number_are_refused() {
    options_refused(&["--cpus", "NaN"], &["--cpus"]);
}

#[test]
fn an_env_file_that_does_not_exist_is_named() {
    options_refused(&["--env-file", "/no/such/env"], &["/no/such/env"]);
}

#[test]
fn a_variable_without_a_name_is_refused() {
    options_refused(&["--env", "=value"], &["=value"]);
}

#[test]
fn a_relative_workdir_is_refused() {
    options_refused(&["--workdir", "relative/dir"], &["relative/dir"]);
}

#[test]
fn a_host_name_that_cannot_be_one_is_refused() {
    options_refused(&["--hostname", "no spaces"], &["no spaces"]);
}

#[test]
fn a_machine_name_that_is_a_path_is_refused() {
    options_refused(&["--name", "../../escaped"], &["../../escaped"]);
}

#[test]
fn a_line_of_an_env_file_without_a_name_is_refused_with_its_file() {
    let fixture = with_something_in_the_store();
    let file = fixture.file("good.oci", good().layout().archive());
    let variables = fixture.file("variables.env", "GOOD=1\n=bad\n");
    let done = fixture
        .run(&file, &["--env-file", variables.to_str().unwrap()], &[])
        .run();
    done.refused(&["variables.env"]);
}

#[test]
fn an_image_without_a_command_needs_one_typed() {
    let fixture = Fixture::new();
    let image = ImageMaker::empty()
        .layer(Layer::new().file("x", "x"))
        .name("mute:1");
    let file = fixture.file("mute.oci", image.layout().archive());
    fixture
        .run(&file, &[], &[])
        .run()
        .refused(&["command"])
        .helped();
}

#[test]
fn an_image_with_an_empty_command_needs_one_typed() {
    let fixture = Fixture::new();
    let image = ImageMaker::empty()
        .layer(Layer::new().file("x", "x"))
        .config("Cmd", json!([]));
    let file = fixture.file("mute.oci", image.layout().archive());
    fixture
        .run(&file, &[], &[])
        .run()
        .refused(&["command"])
        .helped();
}

#[test]
fn no_kvm_device_is_said_with_help() {
    let fixture = Fixture::new();
    let file = fixture.file("good.oci", good().layout().archive());
    let script = "mount -t tmpfs none /dev; exec \"$VMM_BINARY\" run --image \"$1\"";
    fixture
        .in_private_mounts(script)
        .arg("sh")
        .arg(&file)
        .run()
        .refused(&["/dev/kvm"])
        .helped();
}

#[test]
fn a_kvm_device_that_is_none_is_said_with_help() {
    let fixture = Fixture::new();
    let file = fixture.file("good.oci", good().layout().archive());
    let script = "mount --bind /dev/null /dev/kvm; exec \"$VMM_BINARY\" run --image \"$1\"";
    let done = fixture.in_private_mounts(script).arg("sh").arg(&file).run();
    done.refused(&["/dev/kvm"]).helped();
}

#[test]
fn no_right_to_the_kvm_device_is_said_with_help() {
    let fixture = Fixture::new();
    let file = fixture.file("good.oci", good().layout().archive());
    // Everything that the stranger needs lies on a filesystem of this test's own; its uid is Debian's `nobody`.
    let script = r#"
        exec 3<"$1"
        mount -t tmpfs none /mnt
        cp "$VMM_BINARY" /mnt/vmm
        cp -r "$2" /mnt/guest
        mkdir -m 777 /mnt/root
        chmod -R go+rX /mnt
        export VMM_ROOT=/mnt/root VMM_GUEST_DIR=/mnt/guest HOME=/mnt/root
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all /mnt/vmm run --image - <&3"#;
    let guest = tests::binary::guest_directory();
    let done = fixture
        .in_private_mounts(script)
        .arg("sh")
        .arg(&file)
        .arg(guest)
        .run();
    done.refused(&["/dev/kvm"]).helped();
}

#[test]
fn a_root_directory_that_cannot_be_made_is_named() {
    let fixture = Fixture::new();
    let file = fixture.file("a-file", "x");
    let below = file.join("below");
    fixture
        .vmm(["images"])
        .env("VMM_ROOT", &below)
        .run()
        .failed(&["a-file"]);
}

#[test]
fn a_limit_on_open_files_that_is_too_small_is_no_crash() {
    let fixture = Fixture::new();
    let file = fixture.file("good.oci", good().layout().archive());
    let script = "ulimit -n 6; exec \"$VMM_BINARY\" load -i \"$1\"";
    let done = fixture.in_private_mounts(script).arg("sh").arg(&file).run();
    done.stderr_lacks("panicked");
}

#[test]
fn devices_of_the_host_are_refused_with_that_reason() {
    options_refused(&["--device", "/dev/sda"], &["/dev/sda", "host's devices"]);
}

#[test]
fn namespaces_of_the_host_are_refused_with_that_reason() {
    options_refused(&["--pid", "host"], &["--pid", "the host's"]);
    options_refused(&["--ipc", "host"], &["--ipc", "the host's"]);
    options_refused(&["--uts", "host"], &["--uts", "the host's"]);
    options_refused(&["--userns", "host"], &["--userns", "the host's"]);
    options_refused(&["--pid", "container:web"], &["another container's"]);
}

#[test]
fn processors_of_the_host_are_refused_with_that_reason() {
    options_refused(
        &["--cpuset-cpus", "1"],
        &["processor 1", "those of the host"],
    );
}

#[test]
fn an_unknown_capability_is_refused() {
    options_refused(&["--cap-add", "FLY"], &["--cap-add", "FLY"]);
}

#[test]
fn a_limit_that_is_none_is_refused() {
    options_refused(&["--ulimit", "nofile=9:1"], &["--ulimit", "nofile=9:1"]);
}

#[test]
fn a_security_module_that_the_guest_lacks_is_said() {
    options_refused(&["--security-opt", "apparmor=mine"], &["AppArmor"]);
}

#[test]
fn a_profile_that_does_not_exist_is_named() {
    options_refused(
        &["--security-opt", "seccomp=/no/such.json"],
        &["/no/such.json"],
    );
}

#[test]
fn a_configuration_that_does_not_exist_is_named() {
    options_refused(
        &["--config", "/no/such/config.json"],
        &["/no/such/config.json"],
    );
}

#[test]
fn a_configuration_goes_with_no_flag_that_it_says_itself() {
    options_refused(
        &["--config", "c.json", "--user", "7"],
        &["--config", "--user"],
    );
}

#[test]
fn a_restart_policy_that_is_none_or_cannot_be_kept_is_refused() {
    options_refused(&["--restart", "often"], &["--restart", "often"]);
    options_refused(&["-d", "--restart", "always:3"], &["always"]);
    options_refused(&["-d", "--restart", "on-failure:-1"], &["-1"]);
    options_refused(&["-d", "--rm", "--restart", "always"], &["--rm"]);
    options_refused(&["--restart", "always"], &["--restart", "-d"]);
}

#[test]
fn a_health_check_that_makes_no_sense_is_refused() {
    options_refused(&["--health-interval", "soon"], &["soon"]);
    options_refused(&["--health-timeout", "1us"], &["1us"]);
    options_refused(&["--health-retries=-1"], &["-1"]);
    options_refused(
        &["--no-healthcheck", "--health-cmd", "true"],
        &["--no-healthcheck"],
    );
}
