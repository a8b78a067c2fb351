//! Mounts and propagation, seen from inside: runtime-spec `config.md`, "Mounts", and `config-linux.md`, "Rootfs Mount Propagation".

use std::os::unix::fs::PermissionsExt as _;

use protocol::FailureKind;
use serde_json::{Value, json};

use crate::harness::{Agent, Failure, Workload};
use crate::{Test, needs_containers, run, run_in};

/// A script in a container with one more mount.
fn with_mount(script: &str, mount: &Value) -> Workload {
    let workload = Workload::script(script);
    let mut mounts = workload.config["mounts"].clone();
    if let Value::Array(mounts) = &mut mounts {
        mounts.push(mount.clone());
    }
    workload.with("/mounts", mounts)
}

/// What `/proc/self/mountinfo` says of a mount: its options, and its propagation.
fn mount_info(destination: &str, options: &[&str]) -> Result<String, Failure> {
    let script = format!("grep ' {destination} ' /proc/self/mountinfo | cut -d' ' -f6-7");
    let mount = json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options });
    run(&with_mount(&script, &mount))?.output()
}

#[test]
fn flags_show_in_the_mount() -> Test {
    needs_containers!();

    let said = mount_info("/x", &["ro", "nosuid", "nodev", "noexec", "noatime"])?;

    assert_eq!(said, "ro,nosuid,nodev,noexec,noatime -\n");
    Ok(())
}

#[test]
fn a_mount_may_be_shared() -> Test {
    needs_containers!();

    assert!(mount_info("/x", &["shared"])?.contains("shared:"));
    Ok(())
}

#[test]
fn a_mount_may_be_unbindable() -> Test {
    needs_containers!();

    assert!(mount_info("/x", &["unbindable"])?.contains("unbindable"));
    Ok(())
}

#[test]
fn a_relative_destination_is_below_the_root() -> Test {
    needs_containers!();
    let mount = json!({ "destination": "x/y", "type": "tmpfs", "source": "tmpfs" });

    let said = run(&with_mount("grep -c ' /x/y ' /proc/self/mountinfo", &mount))?.output()?;

    assert_eq!(said, "1\n");
    Ok(())
}

#[test]
fn a_recursive_option_reaches_the_mounts_below() -> Test {
    needs_containers!();
    let workload =
        Workload::script("grep -E ' /(x|x/below) ' /proc/self/mountinfo | cut -d' ' -f5,6");
    let mut mounts = workload.config["mounts"].clone();
    if let Value::Array(mounts) = &mut mounts {
        mounts.push(json!({ "destination": "/x", "type": "tmpfs", "source": "tmpfs" }));
        mounts.push(json!({ "destination": "/x/below", "type": "tmpfs", "source": "tmpfs" }));
        mounts.push(json!({ "destination": "/x", "type": "none", "source": "none", "options": ["remount", "bind", "nosuid"] }));
        mounts.push(json!({ "destination": "/x/more", "type": "tmpfs", "source": "tmpfs", "options": ["rro", "rnoexec"] }));
    }

    let said = run(&workload.with("/mounts", mounts))?.output()?;

    assert_eq!(said, "/x rw,nosuid,relatime\n/x/below rw,relatime\n");
    Ok(())
}

#[test]
fn a_recursive_read_only_bind_makes_what_is_mounted_below_read_only() -> Test {
    needs_containers!();
    let mount = json!({ "destination": "/guest", "type": "bind", "source": "/sys", "options": ["rbind", "rro", "rnosuid"] });

    let said = run(&with_mount(
        "grep ' /guest' /proc/self/mountinfo | cut -d' ' -f6 | grep -vc '^ro,nosuid'; grep -c ' /guest/fs/cgroup' /proc/self/mountinfo",
        &mount,
    ))?;

    let crate::harness::Run::Exited { stdout, .. } = said else {
        return Err("it did not run".into());
    };
    let said = String::from_utf8(stdout)?;
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("0"));
    assert!(lines.next().is_some_and(|count| count != "0"), "{said}");
    Ok(())
}

#[test]
fn a_tmpfs_may_begin_with_what_it_hides() -> Test {
    needs_containers!();
    let mount = json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"] });
    let script = "cat /data/a/b/file; readlink /data/link; stat -c '%a %u' /data/a/b/file; stat -c %a /data; \
        touch /data/x 2>/dev/null || echo read-only";
    let prepare = |agent: &Agent| -> Test {
        let data = agent.image().join("data");
        std::fs::create_dir_all(data.join("a/b"))?;
        std::fs::write(data.join("a/b/file"), "kept\n")?;
        std::os::unix::fs::chown(data.join("a/b/file"), Some(7), Some(7))?;
        std::fs::set_permissions(
            data.join("a/b/file"),
            std::fs::Permissions::from_mode(0o4755),
        )?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o1770))?;
        Ok(std::os::unix::fs::symlink(
            "/etc/passwd",
            data.join("link"),
        )?)
    };

    let said = run_in(&with_mount(script, &mount), prepare)?.output()?;

    assert_eq!(said, "kept\n/etc/passwd\n4755 7\n1770\nread-only\n");
    Ok(())
}

#[test]
fn a_bind_mount_may_begin_with_what_it_hides_and_is_then_left_alone() -> Test {
    needs_containers!();
    let outside = tempfile::tempdir()?;
    let source = outside.path().to_str().ok_or("a path that is no text")?;
    let mount = json!({ "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "tmpcopyup"] });
    let prepare = |agent: &Agent| -> Test {
        let data = agent.image().join("data");
        std::fs::create_dir(&data)?;
        std::fs::write(data.join("file"), "of the image\n")?;
        let all = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(data.join("file"), all)?;
        std::os::unix::fs::chown(&data, Some(7), Some(8))?;
        Ok(std::fs::set_permissions(
            &data,
            std::fs::Permissions::from_mode(0o1757),
        )?)
    };
    let script = "cat /data/file; stat -c '%a %u:%g' /data; echo changed > /data/file";

    let first = run_in(&with_mount(script, &mount), prepare)?.output()?;
    let second = run_in(&with_mount(script, &mount), prepare)?.output()?;

    assert_eq!(first, "of the image\n1757 7:8\n");
    assert_eq!(second, "changed\n1757 7:8\n");
    // One that was not filled to the end.
    rustix::fs::setxattr(
        source,
        "trusted.vmm.filling",
        b"",
        rustix::fs::XattrFlags::empty(),
    )?;
    std::fs::write(outside.path().join("half"), "")?;
    let again = run_in(&with_mount("ls /data; cat /data/file", &mount), prepare)?.output()?;
    assert_eq!(again, "file\nof the image\n");
    Ok(())
}

#[test]
fn a_copy_that_does_not_fit_is_said() -> Test {
    needs_containers!();
    let mount = json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=64k"] });
    let prepare = |agent: &Agent| -> Test {
        std::fs::create_dir(agent.image().join("data"))?;
        Ok(std::fs::write(
            agent.image().join("data/large"),
            vec![1; 1 << 20],
        )?)
    };

    let failure = run_in(&with_mount("true", &mount), prepare)?.failure()?;

    assert_eq!(failure.step, "copying /data into its mount");
    Ok(())
}

#[test]
fn the_root_may_be_shared() -> Test {
    needs_containers!();
    let workload = Workload::script("grep ' / / ' /proc/self/mountinfo | cut -d' ' -f7")
        .with("/linux/rootfsPropagation", json!("shared"));

    assert!(run(&workload)?.output()?.starts_with("shared:"));
    Ok(())
}

#[test]
fn a_bind_mounts_missing_source_is_named() -> Test {
    needs_containers!();
    let mount = json!({ "destination": "/x", "type": "bind", "source": "/not/there", "options": ["rbind"] });

    let failure = run(&with_mount("true", &mount))?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (FailureKind::Failed, "opening /not/there to bind it")
    );
    Ok(())
}

#[test]
fn a_file_system_that_the_kernel_does_not_know_is_named() -> Test {
    needs_containers!();
    let mount = json!({ "destination": "/x", "type": "nofs", "source": "none" });

    let failure = run(&with_mount("true", &mount))?.failure()?;

    assert_eq!(failure.step, "mounting /x");
    Ok(())
}
