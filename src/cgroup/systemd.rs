//! The systemd driver: a container's cgroup is a transient scope, which systemd makes and knows.
//!
//! Names and properties are worked out without asking anybody; what is said on the bus stands at the end. The manager is
//! asked twice at most: before the clone where its own cgroup is, and after it to make the scope, with all limits in the
//! one call. What it cannot express is written into the scope's directory afterwards, as the other driver would.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde::{Deserialize, Serialize};

use super::bus::{Address, Bus, Heard, Object, Value, addresses};
use super::devices::Devices;
use super::files::{Limit, Need};
use super::{Cgroup, Hierarchy, gvariant};

/// How long systemd may take to answer or to finish a job.
const PATIENCE: Duration = Duration::from_secs(30);
/// No limit, in properties that are numbers.
const INFINITY: u64 = u64::MAX;
/// What annotations of unit properties begin with.
const ANNOTATION: &str = "org.systemd.property.";

/// systemd's manager object.
const MANAGER: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const PROPERTIES: Object = Object {
    interface: "org.freedesktop.DBus.Properties",
    ..MANAGER
};
const MANAGER_NAME: &str = "org.freedesktop.systemd1.Manager";

/// A unit, by its name and the manager that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    name: String,
    /// Of the user's manager, not of the system's.
    user: bool,
}

/// The place that `linux.cgroupsPath` names: a unit, and the slice that it lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    slice: String,
    unit: String,
}

/// What `slice:prefix:name` means. An absent path is that of `id` in the default slice.
fn named(cgroups_path: Option<&Path>, id: &str, rootless: bool) -> Result<Named> {
    let default = if rootless {
        "user.slice"
    } else {
        "system.slice"
    };
    let path = cgroups_path.unwrap_or(Path::new(""));
    let text = path
        .to_str()
        .with_context(|| format!("linux.cgroupsPath {}: not UTF-8", path.display()))?;
    if text.is_empty() {
        return Ok(Named {
            slice: default.to_owned(),
            unit: format!("pelagos-{}.scope", escape(id)),
        });
    }
    let parts: Vec<_> = text.split(':').collect();
    let [slice, prefix, name] = parts.as_slice() else {
        bail!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
        );
    };
    if name.is_empty() {
        bail!("linux.cgroupsPath {text:?}: the name is empty");
    }
    if name.ends_with(".slice") {
        bail!("linux.cgroupsPath {text:?}: {name} is a slice, which holds no processes of its own");
    }
    let slice = match *slice {
        "" => default,
        "-" => "-.slice",
        slice => slice,
    };
    slice_path(slice).with_context(|| format!("linux.cgroupsPath {text:?}"))?;
    let unit = match *prefix {
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    // systemd.unit(5): what a name may consist of, and its length.
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    if unit.len() > 255 || !unit.chars().all(allowed) {
        bail!("linux.cgroupsPath {text:?}: {unit:?} is no name of a unit");
    }
    Ok(Named {
        slice: slice.to_owned(),
        unit,
    })
}

/// An id as a part of a unit's name (systemd.unit(5), "String Escaping"): of what ids may have, units have no `+`.
fn escape(id: &str) -> String {
    id.replace('+', "\\x2b")
}

/// The path of a slice below its manager's: `a-b.slice` lies in `a.slice`.
fn slice_path(slice: &str) -> Result<PathBuf> {
    let invalid = || anyhow!("invalid slice name: {slice}");
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let parts: Vec<_> = name.split('-').collect();
    if parts.iter().any(|part| part.is_empty()) || !name.chars().all(allowed) {
        return Err(invalid());
    }
    Ok((1..=parts.len())
        .map(|count| format!("{}.slice", parts[..count].join("-")))
        .collect())
}

type Property = (String, Value);

/// The properties that annotations ask for. COMPAT: runc's rules: a name of letters, at least three; one in seconds is
/// turned into systemd's own in microseconds.
fn annotated<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else {
            continue;
        };
        if name.len() < 3 || !name.chars().all(|c| c.is_ascii_alphabetic()) {
            bail!("annotation {key}: {name:?} is not a name of three letters or more");
        }
        let value = gvariant::parse(text)
            .with_context(|| format!("annotation {key}={text}: value parse error"))?;
        let seconds = name
            .strip_suffix("Sec")
            .filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
        properties.push(match seconds {
            Some(stem) => {
                let micros = microseconds(&value)
                    .with_context(|| format!("annotation {key}={text}: not a number of seconds"))?;
                (format!("{stem}USec"), Value::U64(micros))
            }
            None => (name.to_owned(), value),
        });
    }
    Ok(properties)
}

fn microseconds(seconds: &Value) -> Option<u64> {
    let whole: i128 = match *seconds {
        Value::Byte(n) => n.into(),
        Value::I16(n) => n.into(),
        Value::U16(n) => n.into(),
        Value::I32(n) => n.into(),
        Value::U32(n) => n.into(),
        Value::I64(n) => n.into(),
        Value::U64(n) => n.into(),
        Value::Double(n) if (0.0..1e12).contains(&n) => {
            return Duration::from_secs_f64(n).as_micros().try_into().ok();
        }
        _ => return None,
    };
    u64::try_from(whole.checked_mul(1_000_000)?).ok()
}

/// Limits as properties, as far as systemd knows them: it sets them again whenever it feels like it, a
/// `systemctl daemon-reload` among the reasons, and would otherwise put its own defaults there.
fn resources(limits: &[Limit], version: u32) -> Vec<Property> {
    let mut properties = BTreeMap::new();
    // A later limit overrides an earlier one of the same file, and so does a property.
    let mut put = |name: &str, value: Value| properties.insert(name.to_owned(), value);
    for limit in limits {
        let value = limit.value.trim();
        let amount = || match value {
            "max" => Some(INFINITY),
            value => value.parse().ok(),
        };
        let plain = match limit.file.as_ref() {
            "memory.max" => "MemoryMax",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            "io.weight" => "IOWeight",
            "io.bfq.weight" => {
                if let Need::Instead("io.weight", weight) = &limit.need
                    && let Ok(weight) = weight.parse()
                {
                    put("IOWeight", Value::U64(weight));
                }
                continue;
            }
            "cpu.idle" => {
                // systemd 252: a weight of 0 is idle.
                if value == "1" && version >= 252 {
                    put("CPUWeight", Value::U64(0));
                }
                continue;
            }
            "cpu.max" => {
                if let Some((per_second, period)) = bandwidth(value) {
                    put("CPUQuotaPerSecUSec", Value::U64(per_second));
                    put("CPUQuotaPeriodUSec", Value::U64(period));
                }
                continue;
            }
            file @ ("cpuset.cpus" | "cpuset.mems") => {
                let name = if file == "cpuset.cpus" {
                    "AllowedCPUs"
                } else {
                    "AllowedMemoryNodes"
                };
                if let Some(bits) = bits(value) {
                    let bytes = bits.into_iter().map(Value::Byte).collect();
                    put(name, Value::Array("y".into(), bytes));
                }
                continue;
            }
            _ => continue,
        };
        if let Some(amount) = amount() {
            put(plain, Value::U64(amount));
        }
    }
    properties.into_iter().collect()
}

/// The text of `cpu.max` as microseconds per second and the period. systemd counts in hundredths of a second: a part of
/// one is rounded up, lest the container get less than it was promised.
fn bandwidth(text: &str) -> Option<(u64, u64)> {
    const STEP: u64 = 10_000;
    let (quota, period) = text.split_once(' ').unwrap_or((text, "100000"));
    let period: u64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    if quota == "max" {
        return Some((INFINITY, period));
    }
    let quota: u64 = quota.parse().ok()?;
    let per_second = u64::try_from(u128::from(quota) * 1_000_000 / u128::from(period)).ok()?;
    Some((per_second.checked_next_multiple_of(STEP)?, period))
}

/// A list such as `0-3,7` as a bit for each number, the lowest first. None for what is no such list, or has a number that
/// no machine has.
fn bits(list: &str) -> Option<Vec<u8>> {
    const LARGEST: usize = 8191;
    let mut bits = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > LARGEST {
            return None;
        }
        if bits.len() <= last / 8 {
            bits.resize(last / 8 + 1, 0);
        }
        for number in first..=last {
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    (!bits.is_empty()).then_some(bits)
}

/// Device rules as properties. Without them systemd leaves devices to our own program; with them it has one that says the
/// same, and neither undoes the other.
fn device_policy(devices: &Devices) -> Vec<Property> {
    let Some(allowed) = devices.allowed() else {
        // Rules with exceptions, which systemd has no words for.
        return vec![("DevicePolicy".into(), Value::text("auto"))];
    };
    let list = allowed
        .into_iter()
        .map(|(device, access)| Value::Struct(vec![Value::Text(device), Value::Text(access)]))
        .collect();
    vec![
        ("DevicePolicy".into(), Value::text("strict")),
        ("DeviceAllow".into(), Value::Array("(ss)".into(), list)),
    ]
}

/// What every scope of ours has.
fn scope(named: &Named, pid: Pid, mark: &str) -> Vec<Property> {
    let on = || Value::Bool(true);
    vec![
        (
            "Description".into(),
            Value::Text(format!("pelagos container {mark}")),
        ),
        ("Slice".into(), Value::text(named.slice.as_str())),
        // Everything below is the container's, and systemd keeps away from it.
        ("Delegate".into(), on()),
        (
            "PIDs".into(),
            Value::Array("u".into(), vec![Value::U32(pid.as_raw().cast_unsigned())]),
        ),
        ("MemoryAccounting".into(), on()),
        ("CPUAccounting".into(), on()),
        ("IOAccounting".into(), on()),
        ("TasksAccounting".into(), on()),
        ("DefaultDependencies".into(), Value::Bool(false)),
        // A scope that failed is forgotten like one that ended: nothing is left to reset.
        ("CollectMode".into(), Value::text("inactive-or-failed")),
    ]
}

fn pairs(properties: Vec<Property>) -> Value {
    let pair = |(name, value)| Value::Struct(vec![Value::Text(name), Value::variant(value)]);
    Value::Array("(sv)".into(), properties.into_iter().map(pair).collect())
}

/// A scope that is to be.
#[derive(Debug)]
pub(crate) struct Scope {
    unit: Unit,
    named: Named,
    /// Where it will lie below the hierarchy.
    path: PathBuf,
    annotated: Vec<Property>,
    version: u32,
    /// Until the scope is made: a command that stays with its container would hold a connection for all of its life.
    manager: RefCell<Option<Manager>>,
}

impl Scope {
    /// Work out names and properties, and ask the manager where its cgroup is. Nothing is made.
    ///
    /// # Errors
    /// The host is not run by systemd, its v1 hierarchy is in use, a name or an annotation is wrong, or the manager
    /// cannot be reached.
    pub(crate) fn find<'a>(
        hierarchy: &Hierarchy,
        cgroups_path: Option<&Path>,
        id: &str,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
        rootless: bool,
    ) -> Result<Self> {
        let named = named(cgroups_path, id, rootless)?;
        let annotated = annotated(annotations)?;
        // sd_booted(3)
        if !Path::new("/run/systemd/system").is_dir() {
            bail!("systemd not running on this host, cannot use systemd cgroups manager");
        }
        if hierarchy.mount_point() != Path::new("/sys/fs/cgroup") {
            bail!(
                "systemd cgroups manager: systemd uses cgroup v1 on this host (cgroup v2 is on {}); use cgroupfs",
                hierarchy.mount_point().display()
            );
        }
        let mut manager = Manager::connect(rootless)?;
        let (root, version) = manager.about()?;
        let path = root.join(slice_path(&named.slice)?).join(&named.unit);
        Ok(Self {
            unit: Unit {
                name: named.unit.clone(),
                user: rootless,
            },
            named,
            path,
            annotated,
            version,
            manager: RefCell::new(Some(manager)),
        })
    }

    pub(crate) fn unit(&self) -> &Unit {
        &self.unit
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the connection, which is for the parent alone.
    pub(super) fn connection(&self) -> Option<RawFd> {
        let manager = self.manager.borrow();
        manager
            .as_ref()
            .map(|manager| manager.bus.as_fd().as_raw_fd())
    }

    /// Make the scope with `pid`, a child, in it, and with all limits; open its cgroup. On failure the child is killed and the
    /// scope taken back.
    pub(crate) fn start(
        &self,
        hierarchy: &Hierarchy,
        pid: Pid,
        limits: &[Limit],
        devices: Option<&Devices>,
        mark: &str,
    ) -> Result<Cgroup> {
        let mut properties = scope(&self.named, pid, mark);
        if let Some(devices) = devices {
            properties.extend(device_policy(devices));
        }
        properties.extend(resources(limits, self.version));
        // ORDER: last, so that they override ours.
        properties.extend(self.annotated.clone());
        let manager = self.manager.take();
        let started = manager
            .map_or_else(|| Manager::connect(self.unit.user), Ok)
            .and_then(|mut manager| manager.start(&self.unit.name, properties))
            .with_context(|| format!("start unit {}", self.unit.name));
        if let Err(error) = started {
            if error.is::<Refused>() {
                return Err(error);
            }
            // The job may still come to its end.
            self.take_back(pid);
            return Err(error);
        }
        let cgroup = Cgroup::adopt(hierarchy, &self.path, self.unit.clone(), limits);
        if cgroup.is_err() {
            self.take_back(pid);
        }
        cgroup
    }

    /// ORDER: killed first. systemd asks politely, to which the init of a pid namespace is deaf, and waits for its end.
    fn take_back(&self, child: Pid) {
        kill(child, Signal::SIGKILL).ok();
        self.unit.stop().ok();
    }
}

impl Unit {
    /// Set limits of a unit that runs, as far as systemd knows them; until it ends.
    pub(crate) fn update(&self, limits: &[Limit]) -> Result<()> {
        let update = || {
            let mut manager = Manager::connect(self.user)?;
            let (_, version) = manager.about()?;
            manager.set(&self.name, resources(limits, version))
        };
        update().with_context(|| format!("set properties of unit {}", self.name))
    }

    /// Have a process put into the unit's cgroup, or into `below` it: systemd may where we may not.
    pub(crate) fn attach(&self, pid: Pid, below: &Path) -> Result<()> {
        let attach = || {
            let below = match below.as_os_str().is_empty() {
                true => String::new(),
                false => format!("/{}", below.display()),
            };
            let pid = u32::try_from(pid.as_raw()).context("process id")?;
            let pids = Value::Array("u".into(), vec![Value::U32(pid)]);
            let body = [Value::text(self.name.as_str()), Value::text(below), pids];
            let mut manager = Manager::connect(self.user)?;
            let call = manager.bus.call(MANAGER, "AttachProcessesToUnit", &body);
            manager.answer(call, deadline()).map(drop)
        };
        attach().with_context(|| format!("attach process {pid} to unit {}", self.name))
    }

    /// Stop the unit, whose processes are dead or on their way out, and wait until it is gone. One that is not there is
    /// done.
    pub(crate) fn stop(&self) -> Result<()> {
        let stop = || Manager::connect(self.user)?.stop(&self.name);
        stop().with_context(|| format!("stop unit {}", self.name))
    }

    /// Forget a unit that failed, where systemd does not do so by itself.
    pub(crate) fn reset(&self) -> Result<()> {
        let reset = || {
            let mut manager = Manager::connect(self.user)?;
            let body = [Value::text(self.name.as_str())];
            let call = manager.bus.call(MANAGER, "ResetFailedUnit", &body);
            manager.answer(call, deadline()).map(drop)
        };
        match reset() {
            Err(error) if is_absent(&error) => Ok(()),
            other => other.with_context(|| format!("reset unit {}", self.name)),
        }
    }
}

/// Whether an annotation keeps systemd from forgetting a unit that failed.
pub(crate) fn keeps_failed<'a>(mut keys: impl Iterator<Item = &'a String>) -> bool {
    keys.any(|key| key.strip_prefix(ANNOTATION) == Some("CollectMode"))
}

/// systemd's refusal of a call.
#[derive(Debug)]
struct Refused {
    name: String,
    words: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.words.as_str() {
            "" => out.write_str(&self.name),
            words => write!(out, "systemd says: {}", words.trim_end_matches('.')),
        }
    }
}

impl std::error::Error for Refused {}

fn refused(error: &anyhow::Error, name: &str) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.name == name)
}

fn is_absent(error: &anyhow::Error) -> bool {
    refused(error, "org.freedesktop.systemd1.NoSuchUnit")
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A connection to the manager of the system or of the user.
#[derive(Debug)]
struct Manager {
    bus: Bus,
    /// The jobs that have ended, with their results.
    ended: Vec<(String, String)>,
}

impl Manager {
    fn connect(user: bool) -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let mut places: Vec<(Address, bool)> = Vec::new();
        let bus = |text: String| addresses(&text).into_iter().map(|address| (address, true));
        if user {
            places.extend(
                variable("DBUS_SESSION_BUS_ADDRESS")
                    .into_iter()
                    .flat_map(bus),
            );
            let dir = variable("XDG_RUNTIME_DIR")
                .unwrap_or_else(|| format!("/run/user/{}", Uid::current()));
            let dir = PathBuf::from(dir);
            places.push((Address::Path(dir.join("bus")), true));
            places.push((Address::Path(dir.join("systemd/private")), false));
        } else {
            places.extend(
                variable("DBUS_SYSTEM_BUS_ADDRESS")
                    .into_iter()
                    .flat_map(bus),
            );
            places.push((Address::Path("/run/dbus/system_bus_socket".into()), true));
            // systemd's own door, for a host without a bus.
            places.push((Address::Path("/run/systemd/private".into()), false));
        }
        let mut first_error = None;
        for (address, is_bus) in &places {
            match Bus::connect(address, *is_bus) {
                Ok(bus) => {
                    return Ok(Self {
                        bus,
                        ended: Vec::new(),
                    });
                }
                Err(error) => {
                    first_error.get_or_insert((address, error));
                }
            }
        }
        let whose = if user { "the user's" } else { "the system's" };
        match first_error {
            Some((Address::Path(path), error)) => {
                Err(error).with_context(|| format!("connect to {whose} bus {}", path.display()))
            }
            Some((Address::Abstract(_), error)) => {
                Err(error).with_context(|| format!("connect to {whose} bus"))
            }
            None => bail!("{whose} bus has no address"),
        }
    }

    /// The cgroup of the manager, and the release of systemd.
    fn about(&mut self) -> Result<(PathBuf, u32)> {
        let mut get = |name: &str| {
            let body = [Value::text(MANAGER_NAME), Value::text(name)];
            self.bus.call(PROPERTIES, "Get", &body)
        };
        let (root, version) = (get("ControlGroup"), get("Version"));
        let deadline = deadline();
        let text = |values: &[Value]| {
            values
                .first()
                .and_then(Value::as_text)
                .map(str::to_owned)
                .context("systemd's answer is no text")
        };
        let root = text(&self.answer(root, deadline)?)?;
        let version = text(&self.answer(version, deadline)?)?;
        Ok((
            Path::new("/").join(root.trim_start_matches('/')),
            release(&version),
        ))
    }

    /// Make a transient unit and wait until it is there. A failed one of this name is forgotten first.
    fn start(&mut self, unit: &str, properties: Vec<Property>) -> Result<()> {
        let body = [
            Value::text(unit),
            Value::text("replace"),
            pairs(properties),
            // Other units to be made with it.
            Value::Array("(sa(sv))".into(), Vec::new()),
        ];
        self.expect_job(unit);
        let deadline = deadline();
        let call = self.bus.call(MANAGER, "StartTransientUnit", &body);
        let answer = match self.answer(call, deadline) {
            Err(error) if refused(&error, "org.freedesktop.systemd1.UnitExists") => {
                let reset = self
                    .bus
                    .call(MANAGER, "ResetFailedUnit", &[Value::text(unit)]);
                match self.answer(reset, deadline) {
                    Err(error) if !is_absent(&error) => return Err(error),
                    _ => {}
                }
                let call = self.bus.call(MANAGER, "StartTransientUnit", &body);
                self.answer(call, deadline)?
            }
            other => other?,
        };
        self.finish(&answer, deadline)
    }

    fn stop(&mut self, unit: &str) -> Result<()> {
        self.expect_job(unit);
        let deadline = deadline();
        let body = [Value::text(unit), Value::text("replace")];
        let call = self.bus.call(MANAGER, "StopUnit", &body);
        let answer = match self.answer(call, deadline) {
            Err(error) if is_absent(&error) => return Ok(()),
            other => other?,
        };
        self.finish(&answer, deadline)
    }

    fn set(&mut self, unit: &str, properties: Vec<Property>) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        // Until the unit ends, not for ever.
        let body = [Value::text(unit), Value::Bool(true), pairs(properties)];
        let call = self.bus.call(MANAGER, "SetUnitProperties", &body);
        let deadline = deadline();
        self.answer(call, deadline)?;
        // ORDER: systemd answers first and writes to the cgroup then, but before it looks at the next call. What we write
        // ourselves comes after that.
        let body = [Value::text(MANAGER_NAME), Value::text("Version")];
        let call = self.bus.call(PROPERTIES, "Get", &body);
        self.answer(call, deadline).map(drop)
    }

    /// Be told of the jobs of `unit`. ORDER: before the call that starts one, whose end may come before its answer.
    fn expect_job(&mut self, unit: &str) {
        self.bus.listen(&format!(
            "type='signal',sender='{}',path='{}',interface='{}',member='JobRemoved',arg2='{unit}'",
            MANAGER.destination, MANAGER.path, MANAGER.interface
        ));
        self.bus.call(MANAGER, "Subscribe", &[]);
    }

    /// The answer to a call. The calls before it are answered first: a refusal of one of them is ours too.
    fn answer(&mut self, call: u32, deadline: Instant) -> Result<Vec<Value>> {
        loop {
            match self.hear(deadline)? {
                Heard::Return(number, values) if number == call => return Ok(values),
                // A private socket knows no subscriptions.
                Heard::Error(number, name, _)
                    if number != call && name == "org.freedesktop.systemd1.AlreadySubscribed" => {}
                Heard::Error(_, name, words) => bail!(Refused { name, words }),
                _ => {}
            }
        }
    }

    /// The next message; the ends of jobs are noted on the way.
    fn hear(&mut self, deadline: Instant) -> Result<Heard> {
        let heard = self.bus.hear(deadline).context("systemd's bus")?;
        if let Heard::Signal(member, values) = &heard
            && member == "JobRemoved"
            && let [_, job, _, result] = values.as_slice()
            && let (Some(job), Some(result)) = (job.as_text(), result.as_text())
        {
            self.ended.push((job.to_owned(), result.to_owned()));
        }
        Ok(heard)
    }

    /// Wait for the end of the job that an answer names.
    fn finish(&mut self, answer: &[Value], deadline: Instant) -> Result<()> {
        let job = answer
            .first()
            .and_then(Value::as_text)
            .context("systemd's answer names no job")?
            .to_owned();
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| *ended == job) {
                return match result.as_str() {
                    "done" | "skipped" => Ok(()),
                    other => bail!("the job of systemd ended with the result {other:?}"),
                };
            }
            self.hear(deadline)?;
        }
    }
}

/// `257.13-1` is 257.
fn release(version: &str) -> u32 {
    let digits: String = version
        .trim_start_matches('v')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::files::limits;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_of_three_parts_names_a_scope_in_a_slice() {
        for (path, rootless, slice, unit) in [
            (
                Some("a.slice:docker:web"),
                false,
                "a.slice",
                "docker-web.scope",
            ),
            (
                Some(":docker:web"),
                false,
                "system.slice",
                "docker-web.scope",
            ),
            (Some(":docker:web"), true, "user.slice", "docker-web.scope"),
            (Some("-:x:web"), false, "-.slice", "x-web.scope"),
            (Some("a-b.slice::web"), false, "a-b.slice", "web.scope"),
            (Some("::a.b"), false, "system.slice", "a.b.scope"),
            (Some(""), false, "system.slice", "pelagos-web+1.scope"),
            (None, true, "user.slice", "pelagos-web+1.scope"),
        ] {
            let unit = unit.replace('+', "\\x2b");
            assert_eq!(
                named(path.map(Path::new), "web+1", rootless).unwrap(),
                Named {
                    slice: slice.into(),
                    unit
                },
                "{path:?}"
            );
        }
        for (path, error) in [
            (
                "/a/b",
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/a/b\" instead",
            ),
            (
                "a:b:c:d",
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"a:b:c:d\" instead",
            ),
            ("::", "linux.cgroupsPath \"::\": the name is empty"),
            (
                "::a.slice",
                "linux.cgroupsPath \"::a.slice\": a.slice is a slice, which holds no processes of its own",
            ),
            (
                "a/b.slice:x:y",
                "linux.cgroupsPath \"a/b.slice:x:y\": invalid slice name: a/b.slice",
            ),
            (
                "a:x:y",
                "linux.cgroupsPath \"a:x:y\": invalid slice name: a",
            ),
            (
                "::a b",
                "linux.cgroupsPath \"::a b\": \"a b.scope\" is no name of a unit",
            ),
            (
                "::a'b",
                "linux.cgroupsPath \"::a'b\": \"a'b.scope\" is no name of a unit",
            ),
        ] {
            let found = named(Some(Path::new(path)), "web", false).unwrap_err();
            assert_eq!(format!("{found:#}"), error);
        }
    }

    #[test]
    fn slices_lie_in_each_other_by_their_names() {
        for (slice, path) in [
            ("a.slice", "a.slice"),
            ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
            ("user-1000.slice", "user.slice/user-1000.slice"),
            ("-.slice", ""),
        ] {
            assert_eq!(slice_path(slice).unwrap(), Path::new(path), "{slice}");
        }
        for slice in [
            "",
            ".slice",
            "a",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "a/b.slice",
            "--.slice",
        ] {
            assert_eq!(
                slice_path(slice).unwrap_err().to_string(),
                format!("invalid slice name: {slice}")
            );
        }
    }

    fn properties(resources: serde_json::Value, version: u32) -> Vec<Property> {
        let limits = limits(&serde_json::from_value(resources).unwrap()).unwrap();
        super::resources(&limits, version)
    }

    #[test]
    fn limits_become_properties() {
        let number = |name: &str, value| (name.to_owned(), Value::U64(value));
        let bytes = |name: &str, bytes: &[u8]| {
            let list = bytes.iter().copied().map(Value::Byte).collect();
            (name.to_owned(), Value::Array("y".into(), list))
        };
        for (resources, expected) in [
            (json!({}), vec![]),
            (
                json!({"memory": {"limit": 100, "swap": 300, "reservation": 50}}),
                vec![
                    number("MemoryLow", 50),
                    number("MemoryMax", 100),
                    number("MemorySwapMax", 200),
                ],
            ),
            (
                json!({"memory": {"limit": -1}}),
                vec![
                    number("MemoryMax", INFINITY),
                    number("MemorySwapMax", INFINITY),
                ],
            ),
            (json!({"pids": {"limit": 0}}), vec![number("TasksMax", 1)]),
            (
                json!({"pids": {"limit": -1}}),
                vec![number("TasksMax", INFINITY)],
            ),
            (
                json!({"cpu": {"shares": 2048}}),
                vec![number("CPUWeight", 174)],
            ),
            (json!({"cpu": {"idle": 1}}), vec![number("CPUWeight", 0)]),
            (
                json!({"cpu": {"quota": 12_345, "period": 100_000}}),
                vec![
                    number("CPUQuotaPerSecUSec", 130_000),
                    number("CPUQuotaPeriodUSec", 100_000),
                ],
            ),
            (
                json!({"cpu": {"quota": -1}}),
                vec![
                    number("CPUQuotaPerSecUSec", INFINITY),
                    number("CPUQuotaPeriodUSec", 100_000),
                ],
            ),
            (
                json!({"cpu": {"cpus": "0-2,9", "mems": "0"}}),
                vec![
                    bytes("AllowedCPUs", &[7, 2]),
                    bytes("AllowedMemoryNodes", &[1]),
                ],
            ),
            (
                json!({"blockIO": {"weight": 100}}),
                vec![number("IOWeight", 910)],
            ),
            (
                json!({"pids": {"limit": 5}, "unified": {
                    "pids.max": "7", "memory.high": "9", "memory.min": "max", "cpu.weight": "30",
                    "io.max": "8:0 rbps=1", "memory.oom.group": "1",
                }}),
                vec![
                    number("CPUWeight", 30),
                    number("MemoryHigh", 9),
                    number("MemoryMin", INFINITY),
                    number("TasksMax", 7),
                ],
            ),
        ] {
            assert_eq!(properties(resources.clone(), 257), expected, "{resources}");
        }
        assert_eq!(properties(json!({"cpu": {"idle": 1}}), 251), []);
    }

    #[test]
    fn bandwidth_is_rounded_up_to_hundredths_of_a_second() {
        for (text, expected) in [
            ("50000 100000", Some((500_000, 100_000))),
            ("1000 100000", Some((10_000, 100_000))),
            ("1001 100000", Some((20_000, 100_000))),
            ("200000 100000", Some((2_000_000, 100_000))),
            ("max 50000", Some((INFINITY, 50_000))),
            ("5000", Some((50_000, 100_000))),
            ("5 0", None),
            ("x 1", None),
        ] {
            assert_eq!(bandwidth(text), expected, "{text}");
        }
    }

    #[test]
    fn lists_of_numbers_are_bits_with_the_lowest_first() {
        for (list, expected) in [
            ("0", Some(vec![1])),
            ("0-3,7", Some(vec![0x8f])),
            ("8", Some(vec![0, 1])),
            (" 1 , 15-16", Some(vec![2, 0x80, 1])),
            ("", None),
            ("3-1", None),
            ("0-99999", None),
            ("a", None),
            ("0-7:2/4", None),
        ] {
            assert_eq!(bits(list), expected, "{list}");
        }
    }

    #[test]
    fn annotations_are_properties() {
        let one = |key: &str, text: &str| {
            annotated([(&key.to_owned(), &text.to_owned())]).map_err(|e| format!("{e:#}"))
        };
        for (name, text, property) in [
            (
                "CollectMode",
                "'inactive'",
                ("CollectMode", Value::text("inactive")),
            ),
            (
                "TimeoutStopSec",
                "2.5",
                ("TimeoutStopUSec", Value::U64(2_500_000)),
            ),
            (
                "TimeoutStopSec",
                "uint64 3",
                ("TimeoutStopUSec", Value::U64(3_000_000)),
            ),
            (
                "TimeoutStopUSec",
                "uint64 3",
                ("TimeoutStopUSec", Value::U64(3)),
            ),
            ("NSec", "1", ("NSec", Value::I32(1))),
            (
                "After",
                "['a.service']",
                (
                    "After",
                    Value::Array("s".into(), vec![Value::text("a.service")]),
                ),
            ),
        ] {
            assert_eq!(
                one(&format!("org.systemd.property.{name}"), text),
                Ok(vec![(property.0.to_owned(), property.1)]),
                "{name}={text}"
            );
        }
        assert_eq!(one("org.example", "x"), Ok(vec![]));
        for (name, text, error) in [
            (
                "ab",
                "1",
                "annotation org.systemd.property.ab: \"ab\" is not a name of three letters or more",
            ),
            (
                "a_bc",
                "1",
                "annotation org.systemd.property.a_bc: \"a_bc\" is not a name of three letters or more",
            ),
            (
                "Slice",
                "x.slice",
                "annotation org.systemd.property.Slice=x.slice: value parse error: \"x.slice\" is no value of type \"d\"",
            ),
            (
                "StopSec",
                "'x'",
                "annotation org.systemd.property.StopSec='x': not a number of seconds",
            ),
            (
                "StopSec",
                "-1",
                "annotation org.systemd.property.StopSec=-1: not a number of seconds",
            ),
        ] {
            assert_eq!(
                one(&format!("org.systemd.property.{name}"), text),
                Err(error.to_owned())
            );
        }
    }

    #[test]
    fn device_rules_are_a_list_unless_they_have_exceptions() {
        let rules = |text: serde_json::Value| {
            device_policy(
                &Devices::compile(&serde_json::from_value::<Vec<_>>(text).unwrap()).unwrap(),
            )
        };
        let pair = |device: &str, access: &str| {
            Value::Struct(vec![Value::text(device), Value::text(access)])
        };
        let found = rules(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "access": "rw"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
        ]));
        assert_eq!(found[0], ("DevicePolicy".into(), Value::text("strict")));
        let Value::Array(_, list) = &found[1].1 else {
            panic!("{found:?}");
        };
        assert_eq!(list[0], pair("block-8", "rw"));
        assert_eq!(list[1], pair("/dev/char/10:229", "r"));
        for more in [
            pair("char-*", "m"),
            pair("block-*", "m"),
            pair("char-136", "rwm"),
            pair("/dev/char/1:3", "rwm"),
        ] {
            assert!(list.contains(&more), "{more:?}");
        }
        for open in [
            json!([{"allow": true, "access": "rwm"}]),
            json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 1, "access": "w"}]),
            json!([{"allow": true, "type": "c", "minor": 1, "access": "w"}]),
        ] {
            assert_eq!(
                rules(open.clone()),
                [("DevicePolicy".to_owned(), Value::text("auto"))],
                "{open}"
            );
        }
    }

    #[test]
    fn releases_begin_with_a_number() {
        for (text, number) in [
            ("257.13-1~deb13u1", 257),
            ("v249", 249),
            ("252", 252),
            ("", 0),
        ] {
            assert_eq!(release(text), number);
        }
    }
}
