//! `update`: other limits for a container that is there.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::{Count, Global, Verb, only_id};
use crate::container::{self, Schemata};
use crate::report;
use crate::spec;

#[derive(Debug, Default, clap::Args)]
pub(super) struct Update {
    /// File with the resources as JSON, or - for standard input; the other options are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,

    /// Relative weight for block devices, 10 to 1000
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    blkio_weight: Option<String>,

    /// CPU CFS period in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_period: Option<String>,

    /// CPU CFS quota in microseconds for each period, -1 for none
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<String>,

    /// CPU CFS burst in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_burst: Option<String>,

    /// CPU shares, relative to other containers
    #[arg(long, value_name = "SHARES", allow_hyphen_values = true)]
    cpu_share: Option<String>,

    /// CPU realtime period; without effect in cgroup v2
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_rt_period: Option<String>,

    /// CPU realtime runtime; without effect in cgroup v2
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<String>,

    /// Processors to use, such as 0-2,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,

    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,

    /// 1 for processes that run only when no other wants to, else 0
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    cpu_idle: Option<String>,

    /// Memory limit in bytes or with a suffix such as M, -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,

    /// Memory reservation, or soft limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<String>,

    /// Limit of memory and swap together, -1 for no limit of swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,

    /// The most processes, -1 for no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<String>,

    /// Intel RDT schema of the L3 cache
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,

    /// Intel RDT schema of the memory bandwidth
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,

    /// Obsolete, and ignored
    #[arg(long, hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<String>,

    /// Obsolete, and ignored
    #[arg(long, hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,

    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Update {
    const NAME: &'static str = "update";
    const ABOUT: &'static str = "update container resource constraints";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        let id = only_id(&self.arguments)?;
        let raw = match &self.resources {
            Some(file) => container::read_input(file)
                .with_context(|| format!("read resources from {}", file.display()))?,
            None => {
                if self.kernel_memory.is_some() || self.kernel_memory_tcp.is_some() {
                    report::warn(format_args!(
                        "kernel memory settings are ignored and will be removed"
                    ));
                }
                self.to_json()?.to_string().into_bytes()
            }
        };
        let resources = spec::resources(&raw)?;
        container::update(&global.root, &id, &resources, &self.schemata())?;
        Ok(0)
    }
}

impl Update {
    /// COMPAT: with a file of resources all other options are ignored, and it has none of these.
    fn schemata(&self) -> Schemata {
        let given = |schema: &Option<String>| {
            let schema = schema.clone().filter(|schema| !schema.is_empty());
            schema.filter(|_| self.resources.is_none())
        };
        Schemata {
            l3_cache: given(&self.l3_cache_schema),
            memory_bandwidth: given(&self.mem_bw_schema),
        }
    }

    /// The options as `linux.resources`. What is not given is not there.
    fn to_json(&self) -> Result<Value> {
        let mut resources = Resources(Map::new());
        let number = |text: &Option<String>, name: &str| parsed::<i64>(text, name);
        let unsigned = |text: &Option<String>, name: &str| parsed::<u64>(text, name);
        let amount = |text: &Option<String>, name: &str| {
            given(text)
                .map(|text| bytes(text).with_context(|| format!("invalid value for {name}")))
                .transpose()
        };
        resources.put(
            "blockIO",
            "weight",
            parsed::<u16>(&self.blkio_weight, "blkio-weight")?,
        );
        resources.put("cpu", "period", unsigned(&self.cpu_period, "cpu-period")?);
        resources.put("cpu", "quota", number(&self.cpu_quota, "cpu-quota")?);
        resources.put("cpu", "burst", unsigned(&self.cpu_burst, "cpu-burst")?);
        resources.put("cpu", "shares", unsigned(&self.cpu_share, "cpu-share")?);
        resources.put(
            "cpu",
            "realtimePeriod",
            unsigned(&self.cpu_rt_period, "cpu-rt-period")?,
        );
        resources.put(
            "cpu",
            "realtimeRuntime",
            number(&self.cpu_rt_runtime, "cpu-rt-runtime")?,
        );
        resources.put("cpu", "idle", number(&self.cpu_idle, "cpu-idle")?);
        resources.put("cpu", "cpus", given(&self.cpuset_cpus));
        resources.put("cpu", "mems", given(&self.cpuset_mems));
        resources.put("memory", "limit", amount(&self.memory, "memory")?);
        resources.put(
            "memory",
            "reservation",
            amount(&self.memory_reservation, "memory-reservation")?,
        );
        resources.put("memory", "swap", amount(&self.memory_swap, "memory-swap")?);
        // COMPAT: 0 leaves it as it is, as all numbers do on this command line.
        let pids = number(&self.pids_limit, "pids-limit")?.filter(|&limit| limit != 0);
        resources.put("pids", "limit", pids);
        Ok(Value::Object(resources.0))
    }
}

/// `linux.resources`, member by member.
struct Resources(Map<String, Value>);

impl Resources {
    fn put(&mut self, section: &str, member: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            let section = self.0.entry(section).or_insert_with(|| json!({}));
            section[member] = value.into();
        }
    }
}

/// COMPAT: Go cannot tell an empty option from an absent one.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn parsed<T: FromStr>(text: &Option<String>, name: &str) -> Result<Option<T>> {
    let Some(text) = given(text) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => bail!("invalid value for {name}: {text:?} is not a number that it may be"),
    }
}

/// A size with a binary suffix, in any case and with or without B or iB; -1 is no limit.
fn bytes(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let suffix = suffix.trim_start().to_ascii_lowercase();
    let unit = match suffix.strip_suffix("ib").or(suffix.strip_suffix('b')) {
        Some(unit) => unit,
        None => suffix.as_str(),
    };
    let shift = ["", "k", "m", "g", "t", "p"]
        .iter()
        .position(|known| *known == unit && !(known.is_empty() && suffix == "ib"));
    let (Some(shift), Ok(number)) = (shift, number.parse::<f64>()) else {
        bail!("invalid size: '{text}'");
    };
    #[expect(clippy::cast_precision_loss, reason = "powers of two are exact")]
    let size = number * (1u64 << (10 * shift)) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "compared first")]
    match size {
        size if size < 9_223_372_036_854_775_808.0 => Ok(size as i64),
        _ => bail!("invalid size: '{text}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, size) in [
            ("-1", -1),
            ("0", 0),
            ("1024", 1024),
            ("50M", 50 << 20),
            ("50m", 50 << 20),
            ("50MB", 50 << 20),
            ("50MiB", 50 << 20),
            ("50 MiB", 50 << 20),
            ("1.5k", 1536),
            ("2G", 2 << 30),
            ("3t", 3 << 40),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text).unwrap(), size, "{text}");
        }
        for text in [
            "", "x", "-2", "1.2.3", "5Z", "5MM", "M", "9999999P", "5ib", "1e3",
        ] {
            assert_eq!(
                bytes(text).unwrap_err().to_string(),
                format!("invalid size: '{text}'")
            );
        }
    }

    #[test]
    fn only_options_that_are_given_become_members() {
        let some = |text: &str| Some(text.to_owned());
        let update = Update {
            cpu_quota: some("-1"),
            memory: some("50M"),
            memory_swap: some(""),
            pids_limit: some("7"),
            cpuset_cpus: some("0-1"),
            ..Update::default()
        };
        assert_eq!(
            update.to_json().unwrap(),
            json!({
                "cpu": {"quota": -1, "cpus": "0-1"},
                "memory": {"limit": 50 << 20},
                "pids": {"limit": 7},
            })
        );
        assert_eq!(Update::default().to_json().unwrap(), json!({}));
        for (update, error) in [
            (
                Update {
                    cpu_period: some("-5"),
                    ..Update::default()
                },
                "invalid value for cpu-period: \"-5\" is not a number that it may be",
            ),
            (
                Update {
                    memory: some("lots"),
                    ..Update::default()
                },
                "invalid value for memory: invalid size: 'lots'",
            ),
            (
                Update {
                    blkio_weight: some("70000"),
                    ..Update::default()
                },
                "invalid value for blkio-weight: \"70000\" is not a number that it may be",
            ),
        ] {
            assert_eq!(format!("{:#}", update.to_json().unwrap_err()), error);
        }
    }
}
