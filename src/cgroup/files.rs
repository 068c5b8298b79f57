//! Resources as the files of cgroup v2: which file gets which value, in which order.
//!
//! Everything here is a pure function of `linux.resources`. Properties without a v2 counterpart (kernel memory,
//! swappiness, disableOOMKiller, realtime scheduling, leaf weights) are passed over, as runc does; network classes do not
//! come this far. Zero stands for "not set" in memory, cpu and blockIO, and −1 for "no limit".

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Result, bail};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxRdma, LinuxResources,
    LinuxThrottleDevice,
};

/// One value for one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// A single component, such as `memory.max`.
    pub(super) file: Cow<'static, str>,
    /// Written with a single write(2).
    pub(super) value: String,
    pub(super) need: Need,
}

/// What it means when a value cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Any failure is an error.
    Required,
    /// The same, for an entry of `unified`, which has its own words.
    Unified,
    /// The limit asks for no more than what holds without the file.
    IfPresent,
    /// Where the file is absent, this one takes the value given beside it.
    Instead(&'static str, String),
    /// The kernel may find the value invalid now; the list has it again where it must be valid.
    IfValid,
}

impl Limit {
    pub(super) fn new(file: impl Into<Cow<'static, str>>, value: impl ToString) -> Self {
        Self {
            file: file.into(),
            value: value.to_string(),
            need: Need::Required,
        }
    }

    fn with(self, need: Need) -> Self {
        Self { need, ..self }
    }

    /// The controller that provides the file; `cgroup` for the core's own files.
    pub(super) fn controller(&self) -> &str {
        controller(&self.file)
    }

    /// Whether the limit can hold only in a domain cgroup, where processes and not threads are counted.
    pub(super) fn needs_domain(&self) -> bool {
        !matches!(
            self.controller(),
            "cgroup" | "cpu" | "cpuset" | "perf_event" | "pids"
        )
    }
}

fn controller(file: &str) -> &str {
    file.split_once('.')
        .map_or(file, |(controller, _)| controller)
}

/// The files to write for `resources`, in the order in which they must be written. Device rules are not among them.
///
/// Refuses contradictory and impossible values, naming the property.
pub(crate) fn limits(resources: &LinuxResources) -> Result<Vec<Limit>> {
    let mut limits = Vec::new();
    if let Some(pids) = resources.pids() {
        limits.push(pids_max(pids.limit()));
    }
    if let Some(settings) = resources.memory() {
        memory(settings, &mut limits)?;
    }
    if let Some(settings) = resources.block_io() {
        block_io(settings, &mut limits)?;
    }
    if let Some(settings) = resources.cpu() {
        cpu(settings, &mut limits)?;
        cpuset(settings, &mut limits);
    }
    if let Some(pages) = resources.hugepage_limits() {
        hugetlb(pages, &mut limits)?;
    }
    if let Some(devices) = resources.rdma() {
        rdma(devices, &mut limits)?;
    }
    // ORDER: last, so that what is given file by file overrides what was derived.
    if let Some(files) = resources.unified() {
        unified(files, &mut limits)?;
    }
    Ok(limits)
}

fn pids_max(limit: i64) -> Limit {
    Limit::new(
        "pids.max",
        match limit {
            // COMPAT: runc takes 0 as the smallest limit, since a cgroup with 0 could not hold the container at all.
            0 => "1".to_owned(),
            ..0 => "max".to_owned(),
            limit => limit.to_string(),
        },
    )
}

/// The text for an amount of memory, `None` where it is not set.
fn amount(value: Option<i64>, what: &str) -> Result<Option<String>> {
    Ok(match value {
        None | Some(0) => None,
        Some(-1) => Some("max".to_owned()),
        Some(value @ 1..) => Some(value.to_string()),
        Some(value) => bail!("invalid {what} value: {value}"),
    })
}

fn memory(memory: &LinuxMemory, limits: &mut Vec<Limit>) -> Result<()> {
    let max = amount(memory.limit(), "memory")?;
    // ORDER: swap first: lowering memory.max pushes pages to swap, which should find its new limit there.
    if let Some(value) = swap_max(memory.limit().unwrap_or(0), memory.swap().unwrap_or(0))? {
        // Without swap accounting in the kernel there is no file, and no swap to limit either.
        let need = if matches!(value.as_str(), "max" | "0") {
            Need::IfPresent
        } else {
            Need::Required
        };
        limits.push(Limit::new("memory.swap.max", value).with(need));
    }
    limits.extend(max.map(|value| Limit::new("memory.max", value)));
    let low = amount(memory.reservation(), "memory reservation")?;
    limits.extend(low.map(|value| Limit::new("memory.low", value)));
    Ok(())
}

/// The limit of swap alone, from the limits of memory and of memory and swap together.
fn swap_max(memory: i64, memory_and_swap: i64) -> Result<Option<String>> {
    Ok(match (memory, memory_and_swap) {
        (-1, 0) | (_, -1) => Some("max".to_owned()),
        (_, 0) => None,
        (_, ..-1) => bail!("invalid memory+swap value: {memory_and_swap}"),
        // Nothing of the sum is memory's.
        (-1, both) => Some(both.to_string()),
        (0, _) => bail!("unable to set swap limit without memory limit"),
        (..0, _) => bail!("invalid memory value: {memory}"),
        (memory, both) if both < memory => bail!("memory+swap limit should be >= memory limit"),
        (memory, both) => Some((both - memory).to_string()),
    })
}

fn cpu(cpu: &LinuxCpu, limits: &mut Vec<Limit>) -> Result<()> {
    match cpu.idle() {
        // KERNEL(5.15): cpu.idle
        Some(idle @ 0..=1) => limits.push(Limit::new("cpu.idle", idle)),
        Some(idle) => bail!("linux.resources.cpu.idle: {idle} is neither 0 nor 1"),
        None => {}
    }
    // The kernel refuses a weight for a cgroup that is idle.
    if cpu.idle() != Some(1)
        && let Some(weight) = cpu_weight(cpu.shares().unwrap_or(0))
    {
        limits.push(Limit::new("cpu.weight", weight));
    }

    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    let bandwidth = (quota.is_some() || period.is_some()).then(|| {
        let quota = quota
            .filter(|&quota| quota > 0)
            .map_or("max".to_owned(), |quota| quota.to_string());
        format!("{quota} {}", period.unwrap_or(100_000))
    });
    let burst = cpu.burst().map(|burst| Limit::new("cpu.max.burst", burst));
    match (burst, bandwidth) {
        // ORDER: a burst may not exceed the quota, so one that shrinks goes before the quota and one that grows after
        // it. The first write may fail for that reason alone, the second may not.
        (Some(burst), Some(max)) => {
            limits.extend([
                burst.clone().with(Need::IfValid),
                Limit::new("cpu.max", max),
                burst,
            ]);
        }
        (burst, max) => {
            limits.extend(burst);
            limits.extend(max.map(|max| Limit::new("cpu.max", max)));
        }
    }
    Ok(())
}

/// cgroup v1 shares (2 to 262144, 1024 by default) as a v2 weight (1 to 10000, 100 by default): a curve in the
/// logarithm through the three pairs of smallest, default and largest value. `None` for 0, which is "not set".
pub(super) fn cpu_weight(shares: u64) -> Option<u16> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        #[expect(clippy::cast_precision_loss, reason = "below 2^18, exact")]
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 10000"
        )]
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10f64.powf(exponent).ceil() as u16)
        }
    }
}

fn cpuset(cpu: &LinuxCpu, limits: &mut Vec<Limit>) {
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            limits.push(Limit::new(file, list));
        }
    }
}

fn block_io(settings: &LinuxBlockIo, limits: &mut Vec<Limit>) -> Result<()> {
    let checked = |weight: u16, property: &str| match weight {
        0 => Ok(None),
        10..=1000 => Ok(Some(weight)),
        _ => bail!("linux.resources.blockIO.{property}: {weight} is not within 10 and 1000"),
    };
    if let Some(weight) = checked(settings.weight().unwrap_or(0), "weight")? {
        let need = Need::Instead("io.weight", io_weight(weight).to_string());
        limits.push(Limit::new("io.bfq.weight", weight).with(need));
    }
    for device in settings.weight_device().iter().flatten() {
        if let Some(weight) = checked(device.weight().unwrap_or(0), "weightDevice")? {
            let device = device_number(device.major(), device.minor(), "weightDevice")?;
            // COMPAT: as in runc, a weight of a single device has no effect without the bfq scheduler.
            limits.push(
                Limit::new("io.bfq.weight", format!("{device} {weight}")).with(Need::IfPresent),
            );
        }
    }
    let throttles: [(_, _, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        (
            "rbps",
            "throttleReadBpsDevice",
            settings.throttle_read_bps_device(),
        ),
        (
            "wbps",
            "throttleWriteBpsDevice",
            settings.throttle_write_bps_device(),
        ),
        (
            "riops",
            "throttleReadIOPSDevice",
            settings.throttle_read_iops_device(),
        ),
        (
            "wiops",
            "throttleWriteIOPSDevice",
            settings.throttle_write_iops_device(),
        ),
    ];
    for (key, property, devices) in throttles {
        for device in devices.iter().flatten() {
            let number = device_number(device.major(), device.minor(), property)?;
            let rate = match device.rate() {
                // In v1, whose numbers these are, a rate of 0 takes the limit away; v2 would refuse it.
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            limits.push(Limit::new("io.max", format!("{number} {key}={rate}")));
        }
    }
    Ok(())
}

/// A v1 weight (10 to 1000) as a value of `io.weight` (1 to 10000).
fn io_weight(weight: u16) -> u32 {
    1 + (u32::from(weight) - 10) * 9999 / 990
}

fn device_number(major: i64, minor: i64, property: &str) -> Result<String> {
    if major < 0 || minor < 0 {
        bail!("linux.resources.blockIO.{property}: {major}:{minor} is not a device number");
    }
    Ok(format!("{major}:{minor}"))
}

fn hugetlb(pages: &[LinuxHugepageLimit], limits: &mut Vec<Limit>) -> Result<()> {
    for page in pages {
        let (size, limit) = (page.page_size(), page.limit());
        let number = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| size.strip_suffix(unit));
        if !number.is_some_and(|n| {
            !n.is_empty() && !n.starts_with('0') && n.bytes().all(|b| b.is_ascii_digit())
        }) {
            bail!(
                "linux.resources.hugepageLimits: page size {size:?} is not of the form 64KB, 2MB or 1GB"
            );
        }
        if limit < 0 {
            bail!("linux.resources.hugepageLimits: limit {limit} of {size} is negative");
        }
        limits.push(Limit::new(format!("hugetlb.{size}.max"), limit));
        limits.push(Limit::new(format!("hugetlb.{size}.rsvd.max"), limit));
    }
    Ok(())
}

fn rdma(devices: &HashMap<String, LinuxRdma>, limits: &mut Vec<Limit>) -> Result<()> {
    for (device, settings) in sorted(devices) {
        if device.is_empty() || device.contains(char::is_whitespace) {
            bail!("linux.resources.rdma: {device:?} is not a device name");
        }
        let mut value = device.clone();
        for (key, limit) in [
            ("hca_handle", settings.hca_handles()),
            ("hca_object", settings.hca_objects()),
        ] {
            if let Some(limit) = limit {
                value += &format!(" {key}={limit}");
            }
        }
        if value != *device {
            limits.push(Limit::new("rdma.max", value));
        }
    }
    Ok(())
}

fn unified(files: &HashMap<String, String>, limits: &mut Vec<Limit>) -> Result<()> {
    for (file, value) in sorted(files) {
        if file.contains('/') {
            bail!("unified resource {file:?} must be a file name (no slashes)");
        }
        if !file
            .split_once('.')
            .is_some_and(|(controller, parameter)| !controller.is_empty() && !parameter.is_empty())
        {
            bail!("unified resource {file:?} must be in the form CONTROLLER.PARAMETER");
        }
        // These are about processes and not about what they use: a frozen cgroup would never let its first one answer.
        if let Some("freeze" | "kill" | "procs" | "threads" | "type" | "subtree_control") =
            file.strip_prefix("cgroup.")
        {
            bail!("unified resource {file:?} is no limit");
        }
        // Files with one entry per device take one of them per write.
        for line in value.lines().filter(|line| !line.is_empty()) {
            limits.push(Limit::new(file.clone(), line).with(Need::Unified));
        }
    }
    Ok(())
}

/// The map's entries in an order that does not change from run to run.
fn sorted<V>(map: &HashMap<String, V>) -> Vec<(&String, &V)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn from_json(resources: Value) -> Result<Vec<Limit>> {
        limits(&serde_json::from_value(resources).unwrap())
    }

    fn pairs(resources: Value) -> Vec<(String, String)> {
        from_json(resources)
            .unwrap()
            .into_iter()
            .map(|limit| (limit.file.into_owned(), limit.value))
            .collect()
    }

    fn assert_files(resources: Value, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(f, v)| ((*f).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(pairs(resources.clone()), expected, "{resources}");
    }

    fn assert_refused(resources: Value, error: &str) {
        assert_eq!(
            from_json(resources.clone()).unwrap_err().to_string(),
            error,
            "{resources}"
        );
    }

    #[test]
    fn shares_become_weights_on_the_documented_curve() {
        for (shares, weight) in [
            (0, None),
            (1, Some(1)),
            (2, Some(1)),
            (3, Some(2)),
            (512, Some(59)),
            (1024, Some(100)),
            (2048, Some(174)),
            (4096, Some(303)),
            (262_143, Some(10_000)),
            (262_144, Some(10_000)),
            (u64::MAX, Some(10_000)),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        assert_files(json!({}), &[]);
        assert_files(
            json!({
                "memory": {"limit": 0, "swap": 0, "reservation": 0, "kernel": 5, "kernelTCP": 5, "swappiness": 10,
                    "disableOOMKiller": true, "useHierarchy": true},
                "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "", "realtimeRuntime": 9,
                    "realtimePeriod": 10},
                "blockIO": {"weight": 0, "leafWeight": 10, "weightDevice": [{"major": 8, "minor": 0, "leafWeight": 9}]},
                "network": {"classID": 5},
                "rdma": {"mlx5_0": {}},
                "unified": {},
            }),
            &[],
        );
    }

    #[test]
    fn memory_limits() {
        assert_files(
            json!({"memory": {"limit": 1000}}),
            &[("memory.max", "1000")],
        );
        assert_files(
            json!({"memory": {"reservation": 500}}),
            &[("memory.low", "500")],
        );
        assert_files(
            json!({"memory": {"reservation": -1}}),
            &[("memory.low", "max")],
        );
        assert_files(
            json!({"memory": {"limit": 1000, "swap": 3000, "reservation": 500}}),
            &[
                ("memory.swap.max", "2000"),
                ("memory.max", "1000"),
                ("memory.low", "500"),
            ],
        );
        // Both equal: no swap.
        assert_files(
            json!({"memory": {"limit": 7, "swap": 7}}),
            &[("memory.swap.max", "0"), ("memory.max", "7")],
        );
        assert_files(
            json!({"memory": {"limit": 7, "swap": -1}}),
            &[("memory.swap.max", "max"), ("memory.max", "7")],
        );
        assert_files(
            json!({"memory": {"swap": -1}}),
            &[("memory.swap.max", "max")],
        );
        // No limit of memory takes the limit of swap away as well.
        assert_files(
            json!({"memory": {"limit": -1}}),
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
        assert_files(
            json!({"memory": {"limit": -1, "swap": -1}}),
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
        // Then the limit of swap is the whole of the sum.
        assert_files(
            json!({"memory": {"limit": -1, "swap": 104_857_600}}),
            &[("memory.swap.max", "104857600"), ("memory.max", "max")],
        );
    }

    #[test]
    fn contradictory_memory_limits_are_refused() {
        for (memory, error) in [
            (
                json!({"swap": 5}),
                "unable to set swap limit without memory limit",
            ),
            (
                json!({"limit": 0, "swap": 5}),
                "unable to set swap limit without memory limit",
            ),
            (
                json!({"limit": 6, "swap": 5}),
                "memory+swap limit should be >= memory limit",
            ),
            (json!({"limit": -2, "swap": 5}), "invalid memory value: -2"),
            (json!({"limit": -2}), "invalid memory value: -2"),
            (
                json!({"limit": 6, "swap": -2}),
                "invalid memory+swap value: -2",
            ),
            (
                json!({"reservation": -2}),
                "invalid memory reservation value: -2",
            ),
        ] {
            assert_refused(json!({"memory": memory}), error);
        }
    }

    #[test]
    fn swap_values_that_change_nothing_do_not_need_the_file() {
        for (memory, need) in [
            (json!({"limit": 7, "swap": 7}), Need::IfPresent),
            (json!({"limit": 7, "swap": -1}), Need::IfPresent),
            (json!({"limit": 7, "swap": 8}), Need::Required),
        ] {
            assert_eq!(
                from_json(json!({"memory": memory})).unwrap()[0].need,
                need,
                "{memory}"
            );
        }
    }

    #[test]
    fn cpu_limits() {
        assert_files(json!({"cpu": {"shares": 1024}}), &[("cpu.weight", "100")]);
        assert_files(
            json!({"cpu": {"quota": 5000}}),
            &[("cpu.max", "5000 100000")],
        );
        assert_files(
            json!({"cpu": {"quota": 5000, "period": 20000}}),
            &[("cpu.max", "5000 20000")],
        );
        assert_files(
            json!({"cpu": {"quota": -1, "period": 20000}}),
            &[("cpu.max", "max 20000")],
        );
        assert_files(
            json!({"cpu": {"period": 20000}}),
            &[("cpu.max", "max 20000")],
        );
        assert_files(json!({"cpu": {"quota": -1}}), &[("cpu.max", "max 100000")]);
        assert_files(
            json!({"cpu": {"idle": 0, "shares": 2}}),
            &[("cpu.idle", "0"), ("cpu.weight", "1")],
        );
        assert_files(
            json!({"cpu": {"idle": 1, "shares": 2}}),
            &[("cpu.idle", "1")],
        );
        assert_files(
            json!({"cpu": {"cpus": "0-3", "mems": "0", "shares": 2}}),
            &[
                ("cpu.weight", "1"),
                ("cpuset.cpus", "0-3"),
                ("cpuset.mems", "0"),
            ],
        );
        assert_refused(
            json!({"cpu": {"idle": 2}}),
            "linux.resources.cpu.idle: 2 is neither 0 nor 1",
        );
    }

    #[test]
    fn a_burst_is_tried_on_both_sides_of_the_quota() {
        assert_files(json!({"cpu": {"burst": 0}}), &[("cpu.max.burst", "0")]);
        let limits = from_json(json!({"cpu": {"burst": 4000, "quota": 5000}})).unwrap();
        let burst = Limit::new("cpu.max.burst", 4000);
        let expected = [
            burst.clone().with(Need::IfValid),
            Limit::new("cpu.max", "5000 100000"),
            burst,
        ];
        assert_eq!(limits, expected);
    }

    #[test]
    fn block_io_limits() {
        for (weight, io_weight) in [(10, "1"), (100, "910"), (500, "4950"), (1000, "10000")] {
            let limits = from_json(json!({"blockIO": {"weight": weight}})).unwrap();
            let need = Need::Instead("io.weight", io_weight.to_owned());
            assert_eq!(limits, [Limit::new("io.bfq.weight", weight).with(need)]);
        }
        assert_files(
            json!({"blockIO": {
                "weightDevice": [{"major": 8, "minor": 0, "weight": 20}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2000}, {"major": 8, "minor": 16, "rate": 0}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 30}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 40}],
            }}),
            &[
                ("io.bfq.weight", "8:0 20"),
                ("io.max", "8:0 rbps=1000"),
                ("io.max", "8:0 wbps=2000"),
                ("io.max", "8:16 wbps=max"),
                ("io.max", "8:0 riops=30"),
                ("io.max", "8:0 wiops=40"),
            ],
        );
        assert_refused(
            json!({"blockIO": {"weight": 9}}),
            "linux.resources.blockIO.weight: 9 is not within 10 and 1000",
        );
        assert_refused(
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 0, "rate": 1}]}}),
            "linux.resources.blockIO.throttleReadBpsDevice: -1:0 is not a device number",
        );
    }

    #[test]
    fn pids_limits() {
        for (limit, value) in [(-1, "max"), (-7, "max"), (0, "1"), (1, "1"), (512, "512")] {
            assert_files(json!({"pids": {"limit": limit}}), &[("pids.max", value)]);
        }
    }

    #[test]
    fn hugepage_limits() {
        assert_files(
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}),
            &[
                ("hugetlb.2MB.max", "4194304"),
                ("hugetlb.2MB.rsvd.max", "4194304"),
            ],
        );
        for size in ["", "MB", "2M", "2TB", "02MB", "-2MB", "../2MB", "2MB/x"] {
            assert_refused(
                json!({"hugepageLimits": [{"pageSize": size, "limit": 0}]}),
                &format!(
                    "linux.resources.hugepageLimits: page size {size:?} is not of the form 64KB, 2MB or 1GB"
                ),
            );
        }
        assert_refused(
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}),
            "linux.resources.hugepageLimits: limit -1 of 2MB is negative",
        );
    }

    #[test]
    fn rdma_limits_name_only_what_is_set() {
        assert_files(
            json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 100}, "mlx4_0": {"hcaObjects": 5}}}),
            &[
                ("rdma.max", "mlx4_0 hca_object=5"),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=100"),
            ],
        );
        assert_refused(
            json!({"rdma": {"a b": {"hcaHandles": 3}}}),
            "linux.resources.rdma: \"a b\" is not a device name",
        );
    }

    #[test]
    fn unified_comes_last_and_line_by_line() {
        assert_files(
            json!({
                "pids": {"limit": 5},
                "unified": {"pids.max": "7", "io.max": "8:0 rbps=1\n8:16 rbps=2\n", "memory.high": "100"},
            }),
            &[
                ("pids.max", "5"),
                ("io.max", "8:0 rbps=1"),
                ("io.max", "8:16 rbps=2"),
                ("memory.high", "100"),
                ("pids.max", "7"),
            ],
        );
    }

    #[test]
    fn unified_takes_only_file_names() {
        for key in ["../memory.max", "a/b.c", "/memory.max"] {
            assert_refused(
                json!({"unified": {key: "1"}}),
                &format!("unified resource {key:?} must be a file name (no slashes)"),
            );
        }
        for key in ["", ".", "..", "memory", "memory.", ".max"] {
            assert_refused(
                json!({"unified": {key: "1"}}),
                &format!("unified resource {key:?} must be in the form CONTROLLER.PARAMETER"),
            );
        }
    }

    #[test]
    fn unified_takes_only_limits() {
        for key in [
            "cgroup.freeze",
            "cgroup.kill",
            "cgroup.procs",
            "cgroup.subtree_control",
        ] {
            let words = format!("unified resource {key:?} is no limit");
            assert_refused(json!({"unified": {key: "1"}}), &words);
        }
        let files = pairs(json!({"unified": {"cgroup.max.depth": "3"}}));
        assert_eq!(files, [("cgroup.max.depth".to_owned(), "3".to_owned())]);
    }

    #[test]
    fn the_order_is_pids_memory_io_cpu_cpuset_hugetlb_rdma_unified() {
        let files = pairs(json!({
            "unified": {"cpu.idle": "0"},
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "cpu": {"cpus": "0", "shares": 1024, "quota": 5},
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
            "memory": {"limit": 5},
            "pids": {"limit": 5},
        }));
        let files: Vec<_> = files.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(
            files,
            [
                "pids.max",
                "memory.max",
                "io.max",
                "cpu.weight",
                "cpu.max",
                "cpuset.cpus",
                "hugetlb.2MB.max",
                "hugetlb.2MB.rsvd.max",
                "rdma.max",
                "cpu.idle",
            ],
        );
    }

    #[test]
    fn only_thread_controllers_do_without_a_domain() {
        for (file, domain) in [
            ("pids.max", false),
            ("cpu.max", false),
            ("cpuset.cpus", false),
            ("cgroup.freeze", false),
            ("memory.max", true),
            ("io.max", true),
            ("hugetlb.2MB.max", true),
            ("rdma.max", true),
        ] {
            assert_eq!(Limit::new(file, 0).needs_domain(), domain, "{file}");
        }
    }
}
