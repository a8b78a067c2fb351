//! Workloads from images and choices.

use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use protocol::{ContainerId, Filesystem, ProcessId, Upper};
use serde_json::{Value, json};

use super::environment::OwnEnvironment;
use super::*;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn image(entrypoint: &[&str], command: &[&str]) -> ImageConfiguration {
    let config = ConfigBuilder::default()
        .entrypoint(words(entrypoint))
        .cmd(words(command))
        .build()
        .unwrap();
    ImageConfigurationBuilder::default()
        .config(config)
        .build()
        .unwrap()
}

fn with_config(config: ConfigBuilder) -> ImageConfiguration {
    let config = config.cmd(words(&["sh"])).build().unwrap();
    ImageConfigurationBuilder::default()
        .config(config)
        .build()
        .unwrap()
}

fn arguments_of(
    image: &ImageConfiguration,
    choices: &Choices,
) -> Result<Vec<String>, WorkloadError> {
    let workload = Workload::new(image, choices, &OwnEnvironment)?;
    Ok(workload.command())
}

fn json_of(image: &ImageConfiguration, choices: &Choices) -> Value {
    let workload = Workload::new(image, choices, &OwnEnvironment).unwrap();
    workload.config().clone()
}

fn command(command: &[&str]) -> Choices {
    Choices {
        command: words(command),
        ..Choices::default()
    }
}

#[test]
fn a_command_alone_is_the_program() {
    let arguments = arguments_of(&image(&[], &["top", "-b"]), &Choices::default());

    assert_eq!(arguments.unwrap(), ["top", "-b"]);
}

#[test]
fn an_entrypoint_alone_is_the_program() {
    let arguments = arguments_of(&image(&["top", "-b"], &[]), &Choices::default());

    assert_eq!(arguments.unwrap(), ["top", "-b"]);
}

#[test]
fn the_images_command_follows_its_entrypoint() {
    let arguments = arguments_of(&image(&["top", "-b"], &["-c"]), &Choices::default());

    assert_eq!(arguments.unwrap(), ["top", "-b", "-c"]);
}

#[test]
fn a_typed_command_replaces_the_images_command_only() {
    let arguments = arguments_of(&image(&["top", "-b"], &["-c"]), &command(&["-H"]));

    assert_eq!(arguments.unwrap(), ["top", "-b", "-H"]);
}

#[test]
fn a_typed_entrypoint_takes_the_images_command_away() {
    let choices = Choices {
        entrypoint: Some("ls".to_owned()),
        ..Choices::default()
    };

    assert_eq!(
        arguments_of(&image(&["top"], &["-c"]), &choices).unwrap(),
        ["ls"]
    );
}

#[test]
fn a_typed_entrypoint_gets_the_typed_command() {
    let choices = Choices {
        entrypoint: Some("ls".to_owned()),
        ..command(&["-l"])
    };

    assert_eq!(
        arguments_of(&image(&["top"], &["-c"]), &choices).unwrap(),
        ["ls", "-l"]
    );
}

#[test]
fn an_empty_entrypoint_leaves_the_typed_command() {
    let choices = Choices {
        entrypoint: Some(String::new()),
        ..command(&["id"])
    };

    assert_eq!(
        arguments_of(&image(&["top"], &["-c"]), &choices).unwrap(),
        ["id"]
    );
}

#[test]
fn an_empty_entrypoint_without_a_command_is_no_command() {
    let choices = Choices {
        entrypoint: Some(String::new()),
        ..Choices::default()
    };

    assert!(matches!(
        arguments_of(&image(&["top"], &["-c"]), &choices),
        Err(WorkloadError::NoCommand)
    ));
}

#[test]
fn an_image_without_a_command_needs_one_and_says_how() {
    let error = arguments_of(&ImageConfiguration::default(), &Choices::default()).unwrap_err();

    assert!(matches!(error, WorkloadError::NoCommand));
    assert!(error.help().unwrap().contains("vmm run"));
}

#[test]
fn the_user_is_the_typed_one_or_the_images() {
    let image = with_config(ConfigBuilder::default().user("app:staff"));
    let typed = Choices {
        user: Some("7".to_owned()),
        ..Choices::default()
    };

    let of_image = Workload::new(&image, &Choices::default(), &OwnEnvironment).unwrap();
    let of_user = Workload::new(&image, &typed, &OwnEnvironment).unwrap();

    assert_eq!((of_image.user(), of_user.user()), ("app:staff", "7"));
}

#[test]
fn a_relative_working_directory_of_the_image_is_below_the_root() {
    let image = with_config(ConfigBuilder::default().working_dir("srv/app"));

    assert_eq!(
        json_of(&image, &Choices::default())["process"]["cwd"],
        "/srv/app"
    );
}

#[test]
fn limits_become_resources() {
    let limits = Limits {
        memory_bytes: Some(1 << 20),
        cpu: Some(CpuTime {
            quota_us: 150_000,
            period_us: 100_000,
        }),
        pids: Some(64),
    };

    let json = json_of(
        &image(&[], &["sh"]),
        &Choices {
            limits,
            ..Choices::default()
        },
    );

    assert_eq!(
        json["linux"]["resources"],
        json!({
            "memory": { "limit": 1 << 20 },
            "cpu": { "quota": 150_000, "period": 100_000 },
            "pids": { "limit": 64 },
            "devices": [{ "allow": false, "access": "rwm" }]
        })
    );
}

#[test]
fn a_terminal_has_its_first_size() {
    let size = WindowSize {
        rows: 24,
        columns: 80,
    };
    let choices = Choices {
        terminal: Some(Terminal { size: Some(size) }),
        ..Choices::default()
    };

    let json = json_of(&image(&[], &["sh"]), &choices);

    assert_eq!(json["process"]["terminal"], true);
    assert_eq!(
        json["process"]["consoleSize"],
        json!({ "height": 24, "width": 80 })
    );
}

#[test]
fn the_profile_is_dockers() {
    let json = json_of(
        &image(&[], &["sh"]),
        &Choices {
            read_only: true,
            ..Choices::default()
        },
    );

    assert_eq!(json["root"]["readonly"], true);
    assert_eq!(
        json["process"]["capabilities"]["bounding"]
            .as_array()
            .map(Vec::len),
        Some(14)
    );
    assert_eq!(json["mounts"].as_array().map(Vec::len), Some(7));
    assert_eq!(json["linux"].get("seccomp"), None);
    assert_eq!(json["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
    assert_eq!(
        json["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"],
        "0"
    );
}

#[test]
fn the_container_of_a_workload_is_the_same_whatever_runs_in_it() {
    let root = || RootSource {
        source: "/dev/pmem1".to_owned(),
        filesystem: Filesystem::ErofsDax,
        upper: Upper::Tmpfs {
            size_bytes: 1 << 20,
        },
    };
    let process = Process {
        container: ContainerId(0),
        process: ProcessId(0),
    };
    let plain = Choices {
        command: vec!["true".to_owned()],
        ..Choices::default()
    };
    let other = Choices {
        command: vec!["sh".to_owned()],
        environment: vec![Variable::Set {
            name: "WORD".to_owned(),
            value: "1".to_owned(),
        }],
        user: Some("7".to_owned()),
        working_directory: Some("/made".to_owned()),
        hostname: "called".to_owned(),
        read_only: true,
        terminal: Some(Terminal { size: None }),
        ..Choices::default()
    };
    let container = |choices: &Choices| {
        Workload::new(&ImageConfiguration::default(), choices, &OwnEnvironment)
            .and_then(|workload| workload.container(process, root()))
            .unwrap()
    };

    // Maps of two runs have different orders.
    for _ in 0..8 {
        assert_eq!(container(&plain), container(&other));
    }
    let limited = Choices {
        limits: Limits {
            pids: Some(7),
            ..Limits::default()
        },
        ..plain.clone()
    };
    assert_ne!(container(&plain), container(&limited));
}

/// Where a workload with names of its own mounts something of theirs.
fn places_of_names(workload: &Workload) -> Vec<String> {
    let mounts = workload.config()["mounts"].as_array().unwrap();
    mounts
        .iter()
        .filter(|mount| {
            let source = mount["source"].as_str().unwrap();
            source.starts_with(protocol::VOLUMES)
        })
        .map(|mount| mount["destination"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn names_are_mounted_over_the_images() {
    let image = image(&[], &["sh"]);
    let mut workload = Workload::new(&image, &Choices::default(), &OwnEnvironment).unwrap();

    workload.connect(Some(protocol::Network::default()), Some(Names::default()));

    let places = places_of_names(&workload);
    assert_eq!(places, ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]);
    assert!(workload.has_usual_container());
}

#[test]
fn what_a_person_mounts_in_place_of_names_stays() {
    let image = image(&[], &["sh"]);
    let mut workload = Workload::new(&image, &Choices::default(), &OwnEnvironment).unwrap();
    let hosts = json!({ "destination": "/etc/hosts", "type": "bind", "source": "/mine" });
    let mounts = workload.config["mounts"].as_array_mut().unwrap();
    mounts.push(hosts);

    workload.connect(None, Some(Names::default()));

    let places = places_of_names(&workload);
    assert_eq!(places, ["/etc/hostname", "/etc/resolv.conf"]);
}

#[test]
fn a_container_is_the_same_whatever_its_names_and_addresses_are() {
    let root = RootSource {
        source: "/dev/pmem1".to_owned(),
        filesystem: Filesystem::ErofsDax,
        upper: Upper::Tmpfs { size_bytes: 1 },
    };
    let process = Process {
        container: ContainerId(0),
        process: ProcessId(0),
    };
    let container = |mac: u8, hosts: &str| {
        let image = image(&[], &["sh"]);
        let mut workload = Workload::new(&image, &Choices::default(), &OwnEnvironment).unwrap();
        let network = protocol::Network {
            mac: [mac; 6],
            ..protocol::Network::default()
        };
        let names = Names {
            hosts: hosts.to_owned(),
            ..Names::default()
        };
        workload.connect(Some(network), Some(names));
        workload.container(process, root.clone()).unwrap()
    };

    assert_eq!(container(2, "one"), container(4, "another"));
}
