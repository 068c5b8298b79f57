//! Other limits for a cgroup in use: what is not spoken of stays, and a limit that cannot be takes back those before it.

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;

use super::files::{Limit, Need, limits};
use super::{Cgroup, Unit, read_long};

/// What the kernel has now of the limits that are written together with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Present {
    /// Of `cpu.max`, in microseconds; none where it is not limited.
    quota: Option<i64>,
    period: Option<u64>,
    /// Of `memory.max`, in bytes; none where it is not limited.
    memory: Option<i64>,
}

impl Present {
    fn parse(cpu: &str, memory: &str) -> Self {
        let mut cpu = cpu.split_whitespace();
        Self {
            quota: cpu.next().and_then(|text| text.parse().ok()),
            period: cpu.next().and_then(|text| text.parse().ok()),
            memory: memory.trim().parse().ok(),
        }
    }
}

/// `resources` with what belongs to a value that they give: the quota to a period and the reverse, the memory to memory
/// and swap.
fn complete(resources: &LinuxResources, present: Present) -> LinuxResources {
    let mut whole = resources.clone();
    if let Some(cpu) = whole.cpu_mut() {
        let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
        if quota == 0 && period != 0 {
            cpu.set_quota(present.quota);
        }
        if period == 0 && quota != 0 {
            cpu.set_period(present.period);
        }
    }
    if let Some(memory) = whole.memory_mut() {
        let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
        if limit == 0 && swap > 0 {
            memory.set_limit(present.memory);
        }
    }
    whole
}

/// COMPAT: runc's rule and words for `checkBeforeUpdate`. The kernel would kill until what is left fits.
fn check_usage(resources: &LinuxResources, usage: u64) -> Result<()> {
    let Some(memory) = resources.memory() else {
        return Ok(());
    };
    if !memory.check_before_update().unwrap_or(false) {
        return Ok(());
    }
    let exceeds = |limit: Option<i64>| {
        limit
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|&limit| limit > 0 && limit <= usage)
    };
    if let Some(limit) = exceeds(memory.swap()) {
        bail!("rejecting memory+swap limit {limit} <= usage {usage}");
    }
    if let Some(limit) = exceeds(memory.limit()) {
        bail!("rejecting memory limit {limit} <= usage {usage}");
    }
    Ok(())
}

/// The limit that would put back what `limit` changes, from the text of its file.
fn opposite(limit: &Limit, file: &str, text: &str) -> Limit {
    let back = |value: String| Limit::new(file.to_owned(), value);
    // One device in each line: `8:0 rbps=1000`, `mlx5_0 hca_handle=2`, `8:0 50` after a `default 100`.
    if let Some((device, settings)) = limit.value.split_once(' ')
        && let Some(unset) = unset(file)
    {
        let line = text
            .lines()
            .find(|line| line.split_once(' ').is_some_and(|(key, _)| key == device));
        return back(match line {
            Some(line) => line.to_owned(),
            None => {
                let settings = settings.split_whitespace();
                let settings = settings.map(|setting| match setting.split_once('=') {
                    Some((key, _)) => format!(" {key}={unset}"),
                    None => format!(" {unset}"),
                });
                device.to_owned() + &settings.collect::<String>()
            }
        });
    }
    let first = text.lines().next().unwrap_or_default();
    // An empty list cannot be written as nothing.
    back(if first.is_empty() {
        "\n".into()
    } else {
        first.to_owned()
    })
}

/// The weight of a cgroup that is not to be idle where none is given, and its place among `wanted`. The kernel knows it
/// without being told, but systemd has one property for both.
fn weight_beside_idle(wanted: &[Limit], idle: &str, weight: &str) -> Option<(usize, Limit)> {
    let given = |file: &str| wanted.iter().position(|limit| limit.file == file);
    let place = given("cpu.idle").filter(|&place| wanted[place].value == "0")?;
    if given("cpu.weight").is_some() {
        return None;
    }
    // One that was idle begins again with the default.
    let weight = match idle.trim_end() {
        "1" => "100",
        _ => weight.trim_end(),
    };
    Some((place + 1, Limit::new("cpu.weight", weight)))
}

/// Files that systemd writes to when it is told of other limits.
const SYSTEMDS: [&str; 12] = [
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "io.max",
    "io.weight",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.swap.max",
    "pids.max",
];

/// What stands for no setting of a device, in the files that have a line for each.
fn unset(file: &str) -> Option<&'static str> {
    match file {
        "io.max" | "rdma.max" | "misc.max" | "dmem.max" => Some("max"),
        "io.latency" | "dmem.low" | "dmem.min" => Some("0"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        _ => None,
    }
}

/// The update of a container without a cgroup: every limit is an error.
pub(crate) fn update_nothing(resources: &LinuxResources) -> Result<()> {
    match limits(resources)?.first() {
        None => Ok(()),
        // COMPAT: the shape of runc's words.
        Some(limit) => bail!(
            "cannot set {} limit: container could not join or create cgroup",
            limit.controller()
        ),
    }
}

impl Cgroup {
    /// Set the limits that `resources` speak of, in `unit` too where systemd has the cgroup.
    ///
    /// # Errors
    /// The first limit that cannot be set, after which the earlier ones are as they were.
    pub(crate) fn update(&self, resources: &LinuxResources, unit: Option<&Unit>) -> Result<()> {
        let text = |file: &str| match read_long(&self.dir, file) {
            Err(Errno::ENOENT) => Ok(String::new()),
            other => other.with_context(|| self.says(&format!("read {file} of"))),
        };
        let present = Present::parse(&text("cpu.max")?, &text("memory.max")?);
        let resources = complete(resources, present);
        let mut wanted = limits(&resources)?;
        let idle = weight_beside_idle(&wanted, &text("cpu.idle")?, &text("cpu.weight")?);
        if let Some((place, weight)) = idle {
            wanted.insert(place, weight);
        }
        check_usage(
            &resources,
            text("memory.current")?.trim().parse().unwrap_or(0),
        )?;
        // ORDER: looked at before the unit is changed, which writes to the same files.
        let mut before = Vec::with_capacity(wanted.len());
        for limit in &wanted {
            if limit.file == "cpu.idle" {
                // To become idle is to lose the weight. What comes first here is put back last.
                before.extend(self.before(&Limit::new("cpu.weight", "")));
            }
            before.extend(self.before(limit));
        }
        let done = unit
            .map_or(Ok(()), |unit| self.update_unit(unit, &wanted))
            .and_then(|()| self.set(&wanted));
        if done.is_err() {
            before.reverse();
            if let Some(unit) = unit {
                self.update_unit(unit, &before).ok();
            }
            for limit in &before {
                // The reason why the limits could not be set matters more.
                self.set(std::slice::from_ref(limit)).ok();
            }
        }
        done
    }

    /// Set what systemd knows of the limits. It writes whatever else it has for the same controllers too, in its own
    /// precision and with its own defaults: that is put back.
    fn update_unit(&self, unit: &Unit, limits: &[Limit]) -> Result<()> {
        let now = |file: &&str| read_long(&self.dir, file).ok();
        let before: Vec<_> = SYSTEMDS.iter().map(now).collect();
        unit.update(limits)?;
        for (file, before) in SYSTEMDS.iter().zip(before) {
            let Some(before) = before.filter(|before| now(file).as_ref() != Some(before)) else {
                continue;
            };
            for line in before.lines() {
                // What is wanted otherwise is written next, and tells what cannot be.
                self.set(&[Limit::new(*file, line)]).ok();
            }
        }
        Ok(())
    }

    fn before(&self, limit: &Limit) -> Option<Limit> {
        // One that is idle has no weight of its own, whatever the file says.
        let is_idle = || read_long(&self.dir, "cpu.idle").is_ok_and(|text| text == "1\n");
        if limit.file == "cpu.weight" && is_idle() {
            return None;
        }
        let instead = match &limit.need {
            Need::Instead(file, _) => Some(*file),
            _ => None,
        };
        let files = [Some(limit.file.as_ref()), instead];
        files.into_iter().flatten().find_map(|file| {
            let text = read_long(&self.dir, file).ok()?;
            Some(opposite(limit, file, &text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resources(value: Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn one_half_of_a_pair_is_completed_from_what_there_is() {
        let limited = Present::parse("5000 20000\n", "1000\n");
        let unlimited = Present::parse("max 100000\n", "max\n");
        let none = Present::parse("", "");
        for (present, given, whole) in [
            (
                limited,
                json!({"cpu": {"quota": 7}}),
                json!({"cpu": {"quota": 7, "period": 20_000}}),
            ),
            (
                limited,
                json!({"cpu": {"period": 9}}),
                json!({"cpu": {"quota": 5000, "period": 9}}),
            ),
            (
                limited,
                json!({"cpu": {"quota": -1}}),
                json!({"cpu": {"quota": -1, "period": 20_000}}),
            ),
            (
                limited,
                json!({"cpu": {"shares": 9}}),
                json!({"cpu": {"shares": 9}}),
            ),
            (
                unlimited,
                json!({"cpu": {"period": 9}}),
                json!({"cpu": {"period": 9}}),
            ),
            (
                none,
                json!({"cpu": {"quota": 7}}),
                json!({"cpu": {"quota": 7}}),
            ),
            (
                limited,
                json!({"memory": {"swap": 3000}}),
                json!({"memory": {"limit": 1000, "swap": 3000}}),
            ),
            (
                limited,
                json!({"memory": {"swap": -1}}),
                json!({"memory": {"swap": -1}}),
            ),
            (
                limited,
                json!({"memory": {"limit": 50}}),
                json!({"memory": {"limit": 50}}),
            ),
            (
                unlimited,
                json!({"memory": {"swap": 3000}}),
                json!({"memory": {"swap": 3000}}),
            ),
        ] {
            assert_eq!(
                complete(&resources(given.clone()), present),
                resources(whole),
                "{given}"
            );
        }
    }

    #[test]
    fn a_limit_below_the_usage_is_refused_where_that_is_asked_for() {
        let check = |memory: Value| {
            check_usage(&resources(json!({ "memory": memory })), 1000).map_err(|e| e.to_string())
        };
        for (memory, error) in [
            (json!({"limit": 10}), None),
            (json!({"limit": 10, "checkBeforeUpdate": false}), None),
            (json!({"limit": 1001, "checkBeforeUpdate": true}), None),
            (
                json!({"limit": -1, "swap": -1, "checkBeforeUpdate": true}),
                None,
            ),
            (
                json!({"limit": 1000, "checkBeforeUpdate": true}),
                Some("rejecting memory limit 1000 <= usage 1000"),
            ),
            (
                json!({"limit": 5, "swap": 7, "checkBeforeUpdate": true}),
                Some("rejecting memory+swap limit 7 <= usage 1000"),
            ),
        ] {
            assert_eq!(check(memory.clone()).err().as_deref(), error, "{memory}");
        }
    }

    #[test]
    fn what_a_limit_changes_can_be_put_back() {
        let limit = |file: &'static str, value: &str| Limit::new(file, value);
        for (file, value, text, back) in [
            ("memory.max", "5", "max\n", "max"),
            ("cpu.max", "5 6", "max 100000\n", "max 100000"),
            ("cpuset.cpus", "0", "\n", "\n"),
            ("io.max", "8:0 rbps=5", "", "8:0 rbps=max"),
            (
                "io.max",
                "8:0 rbps=5",
                "8:16 rbps=1\n8:0 rbps=7 wbps=max riops=max wiops=max\n",
                "8:0 rbps=7 wbps=max riops=max wiops=max",
            ),
            (
                "rdma.max",
                "a hca_handle=1 hca_object=2",
                "",
                "a hca_handle=max hca_object=max",
            ),
            ("io.weight", "5", "default 100\n8:0 50\n", "default 100"),
            ("io.weight", "8:0 5", "default 100\n8:0 50\n", "8:0 50"),
            ("io.weight", "8:16 5", "default 100\n", "8:16 default"),
            ("dmem.max", "drm/a 5", "drm/a max\ndrm/b 7\n", "drm/a max"),
            ("dmem.low", "drm/a 5", "", "drm/a 0"),
        ] {
            assert_eq!(opposite(&limit(file, value), file, text), limit(file, back));
        }
    }

    #[test]
    fn a_cgroup_that_is_no_longer_idle_has_a_weight_that_systemd_can_be_told() {
        let weight = |cpu: Value, idle: &str, weight: &str| {
            let wanted = limits(&resources(json!({ "cpu": cpu }))).unwrap();
            weight_beside_idle(&wanted, idle, weight).map(|(place, limit)| (place, limit.value))
        };
        let some = |weight: &str| Some((1, weight.to_owned()));
        assert_eq!(weight(json!({"idle": 0}), "1\n", "0\n"), some("100"));
        assert_eq!(weight(json!({"idle": 0}), "0\n", "79\n"), some("79"));
        assert_eq!(weight(json!({"idle": 0, "shares": 9}), "1\n", "0\n"), None);
        assert_eq!(weight(json!({"idle": 1}), "0\n", "79\n"), None);
        assert_eq!(weight(json!({"shares": 9}), "1\n", "0\n"), None);
    }

    #[test]
    fn without_a_cgroup_a_limit_cannot_be_set() {
        let words = |value| update_nothing(&resources(value)).map_err(|e| e.to_string());
        assert_eq!(words(json!({})), Ok(()));
        assert_eq!(
            words(json!({"pids": {"limit": 5}})),
            Err("cannot set pids limit: container could not join or create cgroup".to_owned())
        );
    }
}
