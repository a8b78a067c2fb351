//! What a user types and gets told, without a machine.

use tests::guest_image::GuestImage;
use tests::{Finished, Fixture, Invocation, binary};

fn vmm(arguments: &[&str]) -> Finished {
    Fixture::new().vmm(arguments).run()
}

#[test]
fn help_goes_to_standard_output_and_names_every_command() {
    let help = vmm(&["--help"]);
    help.succeeded().stderr_is("");
    for command in [
        "run", "ps", "logs", "inspect", "stop", "kill", "wait", "rename", "load", "save", "tag",
        "images", "history", "rmi", "prune", "system", "guest", "doctor", "bench",
    ] {
        help.stdout_has(&format!("\n  {command} "));
    }
    help.stdout_has("Examples:");
}

#[test]
fn every_command_has_help_with_nothing_on_standard_error() {
    let commands: [&[&str]; 22] = [
        &["run"],
        &["ps"],
        &["logs"],
        &["inspect"],
        &["stop"],
        &["kill"],
        &["wait"],
        &["rename"],
        &["load"],
        &["save"],
        &["tag"],
        &["images"],
        &["history"],
        &["rmi"],
        &["prune"],
        &["system"],
        &["system", "df"],
        &["guest"],
        &["guest", "list"],
        &["guest", "use"],
        &["doctor"],
        &["bench"],
    ];
    for command in commands {
        let fixture = Fixture::new();
        let help = fixture.vmm(command).arg("--help").run();
        help.succeeded().stderr_is("").stdout_has("Usage:");
    }
}

#[test]
fn the_help_of_run_names_every_flag_with_examples() {
    let help = vmm(&["run", "--help"]);
    for flag in [
        "--image",
        "--cpus",
        "--memory",
        "--env",
        "--env-file",
        "--workdir",
        "--user",
        "--entrypoint",
        "--hostname",
        "--name",
        "--read-only",
        "--interactive",
        "--tty",
        "--detach",
        "--detach-keys",
        "--label",
        "--cidfile",
        "--stop-timeout",
        "--log-driver",
        "--timings",
    ] {
        help.stdout_has(flag);
    }
    help.succeeded().stdout_has("Examples:").stderr_is("");
}

#[test]
fn version_is_the_name_and_a_number() {
    let version = vmm(&["--version"]);
    let text = version.succeeded().stderr_is("").stdout_text();
    let number = text
        .strip_prefix("vmm ")
        .expect("the name comes first")
        .trim_end();
    assert!(
        number
            .split('.')
            .take(2)
            .all(|part| part.parse::<u32>().is_ok()),
        "{text:?}"
    );
}

#[test]
fn an_unknown_flag_is_named() {
    vmm(&["run", "--no-such-flag", "--image", "x"]).refused(&["--no-such-flag"]);
}

#[test]
fn an_unknown_command_is_named() {
    vmm(&["frobnicate"]).refused(&["frobnicate"]);
}

#[test]
fn a_misspelt_flag_gets_a_suggestion() {
    vmm(&["run", "--imgae", "x"])
        .refused(&["--imgae"])
        .helped()
        .stderr_has("--image");
}

#[test]
fn run_without_an_image_says_what_is_missing() {
    vmm(&["run"]).refused(&["image"]).helped();
}

#[test]
fn no_command_at_all_is_refused_with_the_list_of_commands() {
    vmm(&[]).refused(&["run"]).helped();
}

#[test]
fn help_into_a_closed_pipe_is_no_crash() {
    let done = Fixture::new()
        .vmm(["run", "--help"])
        .output_to_closed_pipe()
        .run();
    done.stderr_lacks("panicked");
}

#[test]
fn completions_are_made_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        vmm(&["completion", shell])
            .succeeded()
            .stderr_is("")
            .stdout_has("vmm");
    }
}

#[test]
fn doctor_tells_people_and_programs_about_the_host() {
    let fixture = Fixture::new();
    fixture.vmm(["doctor"]).run().stdout_has("/dev/kvm");
    let told = fixture.vmm(["doctor", "--json"]).run();
    let document: serde_json::Value =
        serde_json::from_slice(&told.stdout).expect("doctor --json prints one document");
    assert!(document.is_object(), "{document}");
}

#[test]
fn doctor_without_kvm_fails_and_says_so() {
    let fixture = Fixture::new();
    let script = "mount -t tmpfs none /dev; exec \"$VMM_BINARY\" doctor";
    let done = fixture.in_private_mounts(script).run();
    assert_ne!(done.code(), Some(0), "{done:?}");
    done.stdout_has("/dev/kvm");
}

#[test]
fn the_installed_guest_image_is_listed() {
    let guest = binary::guest_directory();
    let version = std::fs::read_link(guest.join("current")).unwrap();
    let listed = vmm(&["guest", "list"]);
    let version = version.file_name().unwrap().to_str().unwrap();
    listed
        .succeeded()
        .stdout_has(&version[..version.len().min(12)]);
}

#[test]
fn the_version_needs_no_home_and_no_root_directory() {
    let done = Invocation::new(binary::vmm())
        .arg("--version")
        .without_env("HOME")
        .without_env("VMM_ROOT")
        .run();
    done.succeeded();
}

#[test]
fn guest_images_are_listed_used_and_rolled_back() {
    let fixture = Fixture::new();
    let guest = GuestImage::copied(&fixture);
    let directory = guest.directory();
    let first = guest.current();
    let config = fixture.file("config", "# another configuration\n");
    let agent = fixture.file("agent", tests::host::busybox());
    let packed = fixture
        .vmm([
            "guest",
            "pack",
            "--kernel-release",
            "6.1.0-other",
            "--output",
        ])
        .arg(directory)
        .arg("--kernel")
        .arg(directory.join("current/vmlinux"))
        .arg("--config")
        .arg(config)
        .arg("--agent")
        .arg(agent)
        .run();
    packed.succeeded();
    let second = guest.current();
    assert_ne!(second, first, "a new version becomes the current one");

    let guest_command = |arguments: &[&str]| {
        fixture
            .vmm(["guest"])
            .args(arguments)
            .env("VMM_GUEST_DIR", directory)
            .run()
    };
    guest_command(&["list"])
        .succeeded()
        .stdout_has(&first)
        .stdout_has(&second);
    guest_command(&["rollback"]).succeeded();
    assert_eq!(guest.current(), first);
    guest_command(&["use", &second]).succeeded();
    assert_eq!(guest.current(), second);
    guest_command(&["use", "no-such-version"]).failed(&["no-such-version"]);
    assert_eq!(guest.current(), second);
}
