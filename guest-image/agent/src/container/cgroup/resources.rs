//! Resource limits as files of a cgroup: runtime-spec `config-linux.md`, "Control groups", from "Memory" to "Unified".
//!
//! The specification speaks of cgroup version 1. What version 2 has under another name or in another unit is converted, as crun does;
//! what it does not have is refused by its name.

use protocol::StartFailure;

use crate::spec::{BlockIo, Cpu, Memory, Pids, Resources};
use crate::step::{invalid, unsupported};

/// A period of the CPU controller when the config names none, as the kernel's default.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// A file and what is written into it.
pub(super) type Setting = (String, String);

/// Turns resources into the contents of files, in the order in which they are written.
///
/// # Errors
///
/// If a file's name could leave the cgroup, values contradict each other, or version 2 has no such limit.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>, StartFailure> {
    let mut settings = Settings::default();
    memory(&resources.memory, &mut settings)?;
    cpu(&resources.cpu, &mut settings)?;
    block_io(&resources.block_io, &mut settings)?;
    for limit in &resources.hugepage_limits {
        let size = &limit.page_size;
        if size.contains(['/', '.']) {
            return Err(invalid(
                "linux.resources.hugepageLimits.pageSize",
                format!("{size:?} is not the size of a page"),
            ));
        }
        // Both what is reserved and what is used, so that neither way leads past the limit.
        settings.set(format!("hugetlb.{size}.rsvd.max"), &limit.limit);
        settings.set(format!("hugetlb.{size}.max"), &limit.limit);
    }
    pids(&resources.pids, &mut settings);
    for (name, value) in &resources.unified {
        if name.contains('/') || !name.contains('.') {
            return Err(invalid(
                "linux.resources.unified",
                format!("{name} is not a controller's file"),
            ));
        }
        settings.set(name.as_str(), value);
    }
    Ok(settings.0)
}

#[derive(Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn set(&mut self, file: impl Into<String>, value: &(impl ToString + ?Sized)) {
        self.0.push((file.into(), value.to_string()));
    }
}

fn limit(bytes: i64) -> String {
    if bytes < 0 {
        "max".to_owned()
    } else {
        bytes.to_string()
    }
}

fn memory(memory: &Memory, settings: &mut Settings) -> Result<(), StartFailure> {
    for (field, value) in [
        ("linux.resources.memory.kernel", memory.kernel),
        ("linux.resources.memory.kernelTCP", memory.kernel_tcp),
    ] {
        // No limit is what there is.
        if value.is_some_and(|bytes| bytes >= 0) {
            return Err(unsupported(
                field,
                "cgroup version 2 counts the kernel's memory with all other",
            ));
        }
    }
    if let Some(bytes) = memory.limit {
        settings.set("memory.max", &limit(bytes));
    }
    if let Some(bytes) = memory.reservation {
        settings.set("memory.low", &limit(bytes));
    }
    // The spec's swap is memory and swap together, the kernel's is swap alone.
    let swap = match (memory.swap, memory.limit) {
        (None, _) => return Ok(()),
        (Some(total), _) if total < 0 => "max".to_owned(),
        (Some(total), Some(memory)) if memory >= 0 && total >= memory => {
            (total - memory).to_string()
        }
        (Some(_), _) => {
            return Err(invalid(
                "linux.resources.memory.swap",
                "a swap limit needs a memory limit that is not above it",
            ));
        }
    };
    settings.set("memory.swap.max", &swap);
    Ok(())
}

fn cpu(cpu: &Cpu, settings: &mut Settings) -> Result<(), StartFailure> {
    if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
        settings.set("cpu.weight", &weight(shares));
    }
    let quota = cpu.quota.and_then(|quota| u64::try_from(quota).ok());
    let quota = quota.filter(|quota| *quota > 0);
    if let (Some(quota), Some(burst)) = (quota, cpu.burst)
        && burst > quota
    {
        return Err(invalid(
            "linux.resources.cpu.burst",
            format!("{burst} is above the quota, {quota}"),
        ));
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let period = cpu.period.filter(|period| *period > 0);
        settings.set(
            "cpu.max",
            &format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD_US)),
        );
    }
    if let Some(burst) = cpu.burst {
        settings.set("cpu.max.burst", &burst);
    }
    if let Some(idle) = cpu.idle {
        settings.set("cpu.idle", &idle);
    }
    let lists = [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)];
    for (file, list) in lists {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.set(file, list);
        }
    }
    Ok(())
}

/// Maps shares (cgroup v1, 2 to 262144) to a weight (v2, 1 to 10000) on the line through both ends.
fn weight(shares: u64) -> u64 {
    on_line(shares, 2..=262_144)
}

/// Maps a weight of version 1's block controller (10 to 1000) to one of version 2 (1 to 10000) in the same way.
fn io_weight(weight: u16) -> u64 {
    on_line(weight.into(), 10..=1000)
}

fn on_line(value: u64, from: std::ops::RangeInclusive<u64>) -> u64 {
    let above_least = value.clamp(*from.start(), *from.end()) - from.start();
    1 + above_least * 9_999 / (from.end() - from.start())
}

fn block_io(block_io: &BlockIo, settings: &mut Settings) -> Result<(), StartFailure> {
    let leaf = block_io.leaf_weight.is_some_and(|weight| weight > 0)
        || block_io
            .weight_device
            .iter()
            .any(|device| device.leaf_weight.is_some_and(|weight| weight > 0));
    if leaf {
        return Err(unsupported(
            "linux.resources.blockIO.leafWeight",
            "cgroup version 2 has no processes beside inner cgroups, between which it would decide",
        ));
    }
    if let Some(weight) = block_io.weight.filter(|weight| *weight > 0) {
        settings.set("io.weight", &format!("default {}", io_weight(weight)));
    }
    for device in &block_io.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight > 0) {
            let (major, minor) = (device.major, device.minor);
            settings.set(
                "io.weight",
                &format!("{major}:{minor} {}", io_weight(weight)),
            );
        }
    }
    for (key, throttles) in [
        ("rbps", &block_io.throttle_read_bps_device),
        ("wbps", &block_io.throttle_write_bps_device),
        ("riops", &block_io.throttle_read_iops_device),
        ("wiops", &block_io.throttle_write_iops_device),
    ] {
        for throttle in throttles {
            let rate = match throttle.rate {
                // Version 1's way to say that there is none.
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let (major, minor) = (throttle.major, throttle.minor);
            settings.set("io.max", &format!("{major}:{minor} {key}={rate}"));
        }
    }
    Ok(())
}

fn pids(pids: &Pids, settings: &mut Settings) {
    if let Some(count) = pids.limit {
        let limit = match count {
            // What docker and podman send for none.
            ..=0 => "max".to_owned(),
            count => count.to_string(),
        };
        settings.set("pids.max", &limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(resources: &str) -> Result<Vec<(String, String)>, StartFailure> {
        super::settings(&serde_json::from_str(resources).unwrap())
    }

    fn pairs(expected: &[(&str, &str)]) -> Result<Vec<(String, String)>, StartFailure> {
        Ok(expected
            .iter()
            .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
            .collect())
    }

    fn refused(resources: &str) -> String {
        settings(resources).unwrap_err().step
    }

    #[test]
    fn memory_and_swap_become_two_limits() {
        let json = r#"{"memory":{"limit":1000,"reservation":500,"swap":3000}}"#;

        assert_eq!(
            settings(json),
            pairs(&[
                ("memory.max", "1000"),
                ("memory.low", "500"),
                ("memory.swap.max", "2000")
            ])
        );
    }

    #[test]
    fn a_swap_limit_without_a_memory_limit_is_refused() {
        assert_eq!(
            refused(r#"{"memory":{"swap":3000}}"#),
            "linux.resources.memory.swap"
        );
    }

    #[test]
    fn no_limit_of_the_kernels_memory_is_none() {
        assert_eq!(
            settings(r#"{"memory":{"kernel":-1,"kernelTCP":-1}}"#),
            pairs(&[])
        );
    }

    #[test]
    fn a_limit_of_the_kernels_memory_is_refused() {
        assert_eq!(
            refused(r#"{"memory":{"kernel":1000}}"#),
            "linux.resources.memory.kernel"
        );
    }

    #[test]
    fn a_quota_without_a_period_takes_the_kernels_period() {
        assert_eq!(
            settings(r#"{"cpu":{"quota":150000}}"#),
            pairs(&[("cpu.max", "150000 100000")])
        );
    }

    #[test]
    fn a_burst_above_the_quota_is_refused() {
        assert_eq!(
            refused(r#"{"cpu":{"quota":1000,"burst":1001}}"#),
            "linux.resources.cpu.burst"
        );
    }

    #[test]
    fn shares_become_a_weight_on_a_line() {
        assert_eq!(
            (
                weight(0),
                weight(2),
                weight(1024),
                weight(262_144),
                weight(u64::MAX)
            ),
            (1, 1, 39, 10_000, 10_000)
        );
    }

    #[test]
    fn weights_and_rates_of_block_devices_become_lines() {
        let json = r#"{"blockIO":{"weight":10,"weightDevice":[{"major":8,"minor":0,"weight":1000}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#;

        assert_eq!(
            settings(json),
            pairs(&[
                ("io.weight", "default 1"),
                ("io.weight", "8:0 10000"),
                ("io.max", "8:0 rbps=600"),
                ("io.max", "8:16 wiops=max"),
            ])
        );
    }

    #[test]
    fn a_leaf_weight_is_refused() {
        assert_eq!(
            refused(r#"{"blockIO":{"leafWeight":10}}"#),
            "linux.resources.blockIO.leafWeight"
        );
    }

    #[test]
    fn huge_pages_are_limited_when_reserved_and_when_used() {
        let json = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;

        assert_eq!(
            settings(json),
            pairs(&[
                ("hugetlb.2MB.rsvd.max", "4194304"),
                ("hugetlb.2MB.max", "4194304")
            ])
        );
    }

    #[test]
    fn a_unified_name_cannot_leave_the_cgroup() {
        assert_eq!(
            refused(r#"{"unified":{"../memory.max":"1"}}"#),
            "linux.resources.unified"
        );
    }
}
