//! What a cgroup has used, in the shape in which runc's `events` tells it; and the events that a cgroup announces.
//!
//! COMPAT: names, order, and which members are left out when they are zero are those of runc's types/events.go, which
//! engines decode. Members of cgroup v1 that have no counterpart stay at zero. Times are in nanoseconds, sizes in bytes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::{Cgroup, Events, is_gone, open_file, processes_of, read_long};

/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// Everything that is told of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stats {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, Hugetlb>,
    intel_rdt: Nothing,
    network_interfaces: Option<Nothing>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Nothing {}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// The kernel lists the processors that may be used; the rest is cgroup v1's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    /// Memory and swap together, as cgroup v1 counted.
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    /// 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

/// Pressure stall information: shares of time in percent, and the total in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Pressure {
    some: Stall,
    full: Stall,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Stall {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The numbers of a file with a word and a number in each line.
fn table(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key, value.trim().parse().ok()?))
        })
        .collect()
}

fn amount(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(UNLIMITED),
        number => number.parse().ok(),
    }
}

impl Cpu {
    fn read(text: &str, psi: Option<&str>) -> Self {
        let found = table(text);
        let nanoseconds = |key| found.get(key).copied().unwrap_or(0).saturating_mul(1000);
        let count = |key| found.get(key).copied().unwrap_or(0);
        Self {
            usage: CpuUsage {
                total: nanoseconds("usage_usec"),
                kernel: nanoseconds("system_usec"),
                user: nanoseconds("user_usec"),
            },
            throttling: Throttling {
                periods: count("nr_periods"),
                throttled_periods: count("nr_throttled"),
                throttled_time: nanoseconds("throttled_usec"),
            },
            psi: psi.and_then(Pressure::read),
        }
    }
}

impl Pressure {
    /// None where the kernel has it switched off.
    fn read(text: &str) -> Option<Self> {
        let mut pressure = Self::default();
        let mut any = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let stall = match words.next()? {
                "some" => &mut pressure.some,
                "full" => &mut pressure.full,
                _ => continue,
            };
            any = true;
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                match key {
                    "avg10" => stall.avg10 = value.parse().ok()?,
                    "avg60" => stall.avg60 = value.parse().ok()?,
                    "avg300" => stall.avg300 = value.parse().ok()?,
                    "total" => stall.total = value.parse().ok()?,
                    _ => {}
                }
            }
        }
        any.then_some(pressure)
    }
}

impl BlockIo {
    fn read(text: &str, psi: Option<&str>) -> Self {
        let mut found = Self {
            psi: psi.and_then(Pressure::read),
            ..Self::default()
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let numbers = words.next().and_then(|device| {
                let (major, minor) = device.split_once(':')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            });
            let Some((major, minor)) = numbers else {
                continue;
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let (list, op) = match key {
                    "rbytes" => (&mut found.io_service_bytes_recursive, "Read"),
                    "wbytes" => (&mut found.io_service_bytes_recursive, "Write"),
                    "rios" => (&mut found.io_serviced_recursive, "Read"),
                    "wios" => (&mut found.io_serviced_recursive, "Write"),
                    _ => continue,
                };
                list.push(BlockIoEntry {
                    major,
                    minor,
                    op,
                    value: value.parse().unwrap_or(0),
                });
            }
        }
        found
    }
}

/// The files that memory statistics are made of.
#[derive(Default)]
struct MemoryFiles {
    stat: String,
    current: Option<u64>,
    peak: Option<u64>,
    max: Option<u64>,
    swap_current: Option<u64>,
    swap_max: Option<u64>,
    events: String,
    psi: Option<String>,
}

impl Memory {
    fn of(files: &MemoryFiles) -> Self {
        let raw: BTreeMap<String, u64> = table(&files.stat)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let events = table(&files.events);
        let limit = files.max.unwrap_or(0);
        let usage = MemoryEntry {
            limit,
            usage: files.current.unwrap_or(0),
            max: files.peak.unwrap_or(0),
            failcnt: events.get("max").copied().unwrap_or(0),
        };
        let swap = match files.swap_current {
            None => MemoryEntry::default(),
            Some(swapped) => MemoryEntry {
                limit: files.swap_max.unwrap_or(0).saturating_add(limit),
                usage: swapped + usage.usage,
                ..MemoryEntry::default()
            },
        };
        Self {
            cache: raw.get("file").copied().unwrap_or(0),
            usage,
            swap,
            raw,
            psi: files.psi.as_deref().and_then(Pressure::read),
            ..Self::default()
        }
    }
}

impl Cgroup {
    /// What the cgroup has used. Files of controllers that it does not have are passed over.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let text = |file: &str| -> Result<Option<String>> {
            match read_long(&self.dir, file) {
                Ok(text) => Ok(Some(text)),
                // Not there, or pressure that the kernel does not count.
                Err(errno) if is_gone(errno) || errno == Errno::EOPNOTSUPP => Ok(None),
                Err(errno) => Err(errno).with_context(|| self.says(&format!("read {file} of"))),
            }
        };
        let number = |file: &str| Ok::<_, anyhow::Error>(text(file)?.as_deref().and_then(amount));
        let all = |file: &str| Ok::<_, anyhow::Error>(text(file)?.unwrap_or_default());
        let memory = MemoryFiles {
            stat: all("memory.stat")?,
            current: number("memory.current")?,
            peak: number("memory.peak")?,
            max: number("memory.max")?,
            swap_current: number("memory.swap.current")?,
            swap_max: number("memory.swap.max")?,
            events: all("memory.events")?,
            psi: text("memory.pressure")?,
        };
        let mut hugetlb = BTreeMap::new();
        for size in page_sizes() {
            if let Some(usage) = number(&format!("hugetlb.{size}.current"))? {
                let events = all(&format!("hugetlb.{size}.events"))?;
                let failcnt = table(&events).get("max").copied().unwrap_or(0);
                hugetlb.insert(
                    size,
                    Hugetlb {
                        usage,
                        max: 0,
                        failcnt,
                    },
                );
            }
        }
        Ok(Stats {
            cpu: Cpu::read(&all("cpu.stat")?, text("cpu.pressure")?.as_deref()),
            memory: Memory::of(&memory),
            pids: Pids {
                current: match number("pids.current")? {
                    Some(current) => current,
                    // COMPAT: without the controller they are counted.
                    None => processes_of(&self.dir).map_or(0, |all| all.len() as u64),
                },
                limit: number("pids.max")?
                    .filter(|&limit| limit != UNLIMITED)
                    .unwrap_or(0),
            },
            blkio: BlockIo::read(&all("io.stat")?, text("io.pressure")?.as_deref()),
            hugetlb,
            ..Stats::default()
        })
    }

    /// Wait for what happens in the cgroup from now on.
    pub(crate) fn watch(&self) -> Result<Watch> {
        let open = |file: &str| open_file(&self.dir, Path::new(file), OFlag::O_RDONLY);
        let events = open("cgroup.events").with_context(|| self.says("open cgroup.events of"))?;
        let memory = match open("memory.events") {
            Ok(file) => Some(file),
            // No memory controller, no notice.
            Err(Errno::ENOENT) => None,
            Err(errno) => {
                return Err(errno).with_context(|| self.says("open memory.events of"));
            }
        };
        let mut watch = Watch {
            events,
            memory,
            kills: 0,
        };
        watch.kills = watch.kills_now();
        Ok(watch)
    }
}

/// The sizes of huge pages that the kernel has, as cgroup files spell them.
fn page_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages");
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let kilobytes = name.to_str()?.strip_prefix("hugepages-")?;
            Some(page_size(kilobytes.strip_suffix("kB")?.parse().ok()?))
        })
        .collect()
}

fn page_size(kilobytes: u64) -> String {
    match kilobytes {
        size if size % (1 << 20) == 0 => format!("{}GB", size >> 20),
        size if size % (1 << 10) == 0 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    }
}

/// An open watch on a cgroup.
#[derive(Debug)]
pub(crate) struct Watch {
    events: OwnedFd,
    memory: Option<OwnedFd>,
    /// How many processes the kernel had killed for want of memory when it was last asked.
    kills: u64,
}

/// What a watch has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The kernel has killed a process for want of memory.
    Oom,
    /// The last process has left.
    Ended,
    /// Nothing, up to the deadline.
    Nothing,
}

impl Watch {
    /// Wait for the next event, or for the deadline.
    pub(crate) fn next(&mut self, deadline: Instant) -> Result<Happened> {
        loop {
            // ORDER: read, then poll: the kernel reports a change since the last read of this descriptor.
            let kills = self.kills_now();
            if kills > self.kills {
                self.kills = kills;
                return Ok(Happened::Oom);
            }
            if !self.is_populated().context("read cgroup.events")? {
                // A kill and the end that it brought may have come between the two looks.
                let kills = self.kills_now();
                let oom = kills > self.kills;
                self.kills = kills;
                return Ok(if oom { Happened::Oom } else { Happened::Ended });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Happened::Nothing);
            }
            let timeout = PollTimeout::try_from(left + std::time::Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX);
            let files = [Some(&self.events), self.memory.as_ref()];
            let mut fds: Vec<_> = files
                .into_iter()
                .flatten()
                .map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI))
                .collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("wait for events"),
            }
        }
    }

    fn kills_now(&self) -> u64 {
        let text = self.memory.as_ref().and_then(|file| read_again(file).ok());
        let text = text.unwrap_or_default();
        table(&text).get("oom_kill").copied().unwrap_or(self.kills)
    }

    fn is_populated(&self) -> nix::Result<bool> {
        match read_again(&self.events) {
            Ok(text) => Ok(Events::parse(text.as_bytes()).populated),
            Err(errno) if is_gone(errno) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// The whole of a short file that is open already.
fn read_again(file: &OwnedFd) -> nix::Result<String> {
    let mut text = [0; 1024];
    loop {
        match nix::sys::uio::pread(file, &mut text, 0) {
            Ok(length) => return Ok(String::from_utf8_lossy(&text[..length]).into_owned()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn shown(what: impl Serialize) -> Value {
        serde_json::to_value(what).unwrap()
    }

    #[test]
    fn members_that_are_zero_are_left_out_where_runc_leaves_them_out() {
        assert_eq!(
            serde_json::to_string(&Stats::default()).unwrap(),
            r#"{"cpu":{"usage":{"kernel":0,"user":0},"throttling":{}},"cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"sched_load_balance":0,"sched_relax_domain_level":0},"memory":{"usage":{"limit":0,"failcnt":0},"swap":{"limit":0,"failcnt":0},"kernel":{"limit":0,"failcnt":0},"kernelTCP":{"limit":0,"failcnt":0}},"pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}"#
        );
    }

    #[test]
    fn cpu_times_are_in_nanoseconds() {
        let text = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 6\nthrottled_usec 9\nnr_bursts 1\n";
        let psi = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=8\n";
        assert_eq!(
            shown(Cpu::read(text, Some(psi))),
            json!({
                "usage": {"total": 5000, "kernel": 2000, "user": 3000},
                "throttling": {"periods": 7, "throttledPeriods": 6, "throttledTime": 9000},
                "psi": {
                    "some": {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 77},
                    "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 8},
                },
            })
        );
        assert_eq!(Pressure::read(""), None);
    }

    #[test]
    fn memory_and_swap_are_told_together() {
        let files = MemoryFiles {
            stat: "anon 1\nfile 20\n".into(),
            current: Some(30),
            peak: Some(40),
            max: Some(50),
            swap_current: Some(5),
            swap_max: Some(7),
            events: "low 0\nmax 3\noom_kill 1\n".into(),
            psi: None,
        };
        assert_eq!(
            shown(Memory::of(&files)),
            json!({
                "cache": 20,
                "usage": {"limit": 50, "usage": 30, "max": 40, "failcnt": 3},
                "swap": {"limit": 57, "usage": 35, "failcnt": 0},
                "kernel": {"limit": 0, "failcnt": 0},
                "kernelTCP": {"limit": 0, "failcnt": 0},
                "raw": {"anon": 1, "file": 20},
            })
        );
        let unlimited = MemoryFiles {
            max: Some(50),
            swap_current: Some(0),
            swap_max: Some(UNLIMITED),
            ..MemoryFiles::default()
        };
        assert_eq!(Memory::of(&unlimited).swap.limit, UNLIMITED);
    }

    #[test]
    fn transfers_are_told_by_device_and_direction() {
        let text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=0\nbad\n";
        assert_eq!(
            shown(BlockIo::read(text, None)),
            json!({
                "ioServiceBytesRecursive": [
                    {"major": 254, "op": "Read", "value": 1},
                    {"major": 254, "op": "Write", "value": 2},
                    {"major": 8, "minor": 16, "op": "Read"},
                ],
                "ioServicedRecursive": [
                    {"major": 254, "op": "Read", "value": 3},
                    {"major": 254, "op": "Write", "value": 4},
                ],
            })
        );
    }

    #[test]
    fn page_sizes_are_spelled_as_in_file_names() {
        for (kilobytes, name) in [
            (64, "64KB"),
            (2048, "2MB"),
            (1 << 20, "1GB"),
            (16 << 20, "16GB"),
        ] {
            assert_eq!(page_size(kilobytes), name);
        }
    }
}
