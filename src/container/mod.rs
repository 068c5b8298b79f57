//! A container as its callers know it: the operations, each one command of the runtime.
//!
//! ```text
//!            create                start                  payload ends, kill
//!  (nothing) ──────► creating ──► created ──────► running ───────────────────► stopped
//!                        │           │            │    ▲                          │
//!                        │           │      pause ▼    │ resume                   │ delete
//!                        │           │            paused                          ▼
//!                        └─ failure ─┴─ kill, delete ────────────────────────► (nothing)
//! ```
//!
//! The order in which engines call us:
//!
//! * containerd's shim: `create`, then `start`; `kill` with a number; `delete` once the init's exit was reaped, with
//!   `--force` after a failed start. `state` and `ps` at any time.
//! * conmon (Podman, CRI-O): `create` with a pid file, read when `create` has ended; `start`; `kill`; `delete --force`.
//!   Podman runs `state` without any of its runtime flags.
//! * A person: `run`, which is create, start, wait and delete in one process.
//!
//! A verb that changes a container holds the lock of its state directory. `state`, `list` and `kill` do not look at the
//! lock, so a create that hangs holds up none of them. Status is never stored (`state.rs` derives it).

mod checkpoint;
mod copying;
mod create;
mod exec;
pub(crate) mod foreground;
#[cfg(feature = "_fuzz")]
pub(crate) mod fuzz;
mod live;
pub(crate) mod readiness;
mod restore;
pub(crate) mod state;

use std::fmt;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, UnlinkatFlags, read, unlinkat, write};
use oci_spec::runtime::LinuxResources;

pub(crate) use checkpoint::{CheckpointOptions, Images, checkpoint};
pub(crate) use create::{create, run};
pub(crate) use exec::{ExecOptions, ProcessOptions, Wanted, exec};
pub(crate) use live::change_mounts;
use readiness::Relay;
pub(crate) use restore::{RestoreOptions, restore};
use state::{Busy, Dir, EXEC_FIFO, Locked, ProcessStat, RESULT_FIFO, Record, Status};

use crate::cgroup::{Cgroup, Hierarchy, Resctrl, Traces, Watch, keeps_failed};
pub(crate) use crate::cgroup::{Driver, Happened, Schemata, Stats};
pub(crate) use crate::criu::{CgroupsMode, NetworkLock, Switch};
use crate::hooks::{self, Output, Prepared};
use crate::launch;
pub(crate) use crate::launch::Live;
use crate::plan::extensions::hook_output;
use crate::report;
use crate::spec;
use crate::sys::pidfd;

/// How long a verb waits for another one on the same container.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed init may take to die.
const DEATH: Duration = Duration::from_secs(10);

/// A container's name: letters, digits and `_ + - .`, but not `.` or `..`, since it is a directory's name too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(String);

impl Id {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            bail!("container id cannot be empty");
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        // COMPAT: `.cache` is a name of runc's too; here it is the cache of compiled seccomp filters.
        if matches!(text, "." | ".." | ".cache") || !text.bytes().all(allowed) {
            bail!("invalid container ID format");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Conditions that callers tell apart. COMPAT: the words are libcontainer's, which engines search for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Exists,
    NotFound,
    NotRunning,
    NotPaused,
    NoCgroup,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Exists => "container with given ID already exists",
            Self::NotFound => "container does not exist",
            Self::NotRunning => "container not running",
            Self::NotPaused => "container not paused",
            Self::NoCgroup => "the container has no cgroup of its own",
        })
    }
}

impl std::error::Error for Fault {}

/// Whether the runtime should count itself as rootless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rootless {
    Yes,
    No,
    /// Decide from the effective uid and the user namespace.
    #[default]
    Auto,
}

/// What `create` was asked for. Paths are absolute, but for those of sockets.
#[derive(Clone, Debug)]
pub(crate) struct CreateOptions {
    pub(crate) id: Id,
    /// The state root.
    pub(crate) root: PathBuf,
    pub(crate) bundle: PathBuf,
    /// The configuration, where it is not the bundle's config.json.
    pub(crate) config: Option<PathBuf>,
    /// Socket that gets the pty's master.
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    /// Socket that gets the init's pidfd.
    pub(crate) pidfd_socket: Option<PathBuf>,
    pub(crate) no_pivot: bool,
    pub(crate) no_new_keyring: bool,
    /// How many fds above 2 and those of `LISTEN_FDS` the payload keeps.
    pub(crate) preserve_fds: u32,
    pub(crate) rootless: Rootless,
    pub(crate) driver: Driver,
}

/// What `run` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    pub(crate) create: CreateOptions,
    /// Return once the payload runs.
    pub(crate) detach: bool,
    /// Do not delete the container at the end.
    pub(crate) keep: bool,
    /// Do not adopt the payload's orphans.
    pub(crate) no_subreaper: bool,
}

/// An existing container, as it was when it was opened.
#[derive(Debug)]
pub(crate) struct Container {
    dir: Dir,
    record: Record,
}

impl Container {
    /// Errors: [`Fault::NotFound`], or a record this release cannot read.
    pub(crate) fn open(root: &Path, id: &Id) -> Result<Self> {
        let dir = Dir::open(root, id)?;
        let record = dir.record()?.ok_or(Fault::NotFound)?;
        Ok(Self { dir, record })
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn status(&self) -> Status {
        self.dir.status(&self.record)
    }

    /// The configuration that it was made from.
    fn config(&self) -> Result<Vec<u8>> {
        self.dir.config()
    }
}

/// All containers below `root` by name; those that cannot be read are warned of and left out.
///
/// Errors: the root cannot be read, its absence included.
pub(crate) fn list(root: &Path) -> Result<Vec<Container>> {
    let mut names = Vec::new();
    let read = || format!("read state root {}", root.display());
    for entry in fs::read_dir(root).with_context(read)? {
        let entry = entry.with_context(read)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| Id::from_str(name).ok())
        {
            names.push(id);
        }
    }
    names.sort();
    let mut containers = Vec::with_capacity(names.len());
    for id in names {
        match Container::open(root, &id) {
            Ok(container) => containers.push(container),
            // Deleted since the directory was read.
            Err(_) if !fs::exists(root.join(id.as_str())).unwrap_or(true) => {}
            // COMPAT: runc's words, for a record that is not there, or not yet.
            Err(error) => {
                let reason = report::sentence(&error);
                report::remark(format_args!("load container {id}: {reason}"));
            }
        }
    }
    Ok(containers)
}

/// Opens and locks a container that is in a status that `able` takes.
fn held(root: &Path, id: &Id, able: impl Fn(Status) -> Result<()>) -> Result<(Locked, Record)> {
    let container = Container::open(root, id)?;
    // Asked before the lock too: a hung create holds it, and must not hold up this answer.
    able(container.status())?;
    let locked = container.dir.lock(PATIENCE)?;
    let record = locked.record()?.ok_or(Fault::NotFound)?;
    able(locked.status(&record))?;
    Ok((locked, record))
}

/// It has processes, whether they run or not. Errors: [`Fault::NotRunning`].
fn alive(status: Status) -> Result<()> {
    match status {
        Status::Created | Status::Running | Status::Paused => Ok(()),
        _ => bail!(Fault::NotRunning),
    }
}

/// Lets a created container's payload begin; where the service manager is to hear of its readiness, waits for that or for
/// the payload's end. Errors: any other status, in runc's words.
pub(crate) fn start(root: &Path, id: &Id) -> Result<()> {
    let (locked, record) = held(root, id, startable)?;
    let relay = Relay::open(&locked)?;
    let init = record.init();
    release(&locked, &record)?;
    // Others may work on the container while it gets ready.
    drop(locked);
    match relay.zip(init) {
        Some((relay, init)) => relay.wait(record.init_process_pid, init.as_fd()),
        None => Ok(()),
    }
}

/// The end of the answer can also be the end of a process that was killed before it executed anything.
fn began(record: &Record) -> Result<()> {
    match ProcessStat::read(record.init_process_pid) {
        Some(stat) if stat.start == record.init_process_start && stat.never_executed => {
            bail!("unable to start container process: it was killed before it ran the program")
        }
        _ => Ok(()),
    }
}

fn startable(status: Status) -> Result<()> {
    match status {
        Status::Created => Ok(()),
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        other => bail!("cannot start a container in the {other} state"),
    }
}

/// The start protocol for a created container, then its poststart hooks.
///
/// The init sleeps in a read of the exec fifo and holds the result fifo open for writing. One byte wakes it. From then on
/// the result fifo tells: its end without data is the payload's execve (the fd closes on exec), data is the sentence why
/// there was none. Returns when the payload runs.
pub(crate) fn release(container: &Locked, record: &Record) -> Result<()> {
    report::debug!("start {}: wake the init", record.id);
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let init = record
        .init()
        .ok_or_else(|| anyhow!("cannot start a container that has stopped"))?;
    // ORDER: opened before the byte is written, or an init that is quick could be gone before we listen.
    let result = openat(
        container,
        RESULT_FIFO,
        flags | OFlag::O_RDONLY,
        Mode::empty(),
    )
    .with_context(|| format!("open {RESULT_FIFO}"))?;
    let exec = match openat(container, EXEC_FIFO, flags | OFlag::O_WRONLY, Mode::empty()) {
        // No reader: the init has died since the status was derived.
        Err(Errno::ENXIO) => bail!("cannot start a container that has stopped"),
        other => other.with_context(|| format!("open {EXEC_FIFO}"))?,
    };
    write(&exec, b"0").with_context(|| format!("write {EXEC_FIFO}"))?;
    drop(exec);

    let message = read_to_end(&result, &init)?;
    for fifo in [EXEC_FIFO, RESULT_FIFO] {
        unlinkat(container, fifo, UnlinkatFlags::NoRemoveDir)
            .with_context(|| format!("remove {fifo}"))?;
    }
    if !message.is_empty() {
        // Its last word; wait for the death that follows, so that `state` says stopped from here on.
        pidfd::wait_dead(&init, DEATH).context("wait for the container's init")?;
        bail!(
            "unable to start container process: {}",
            String::from_utf8_lossy(&message)
        );
    }

    began(record)?;
    if let Err(error) = run_hooks("poststart", &record.poststart, record, Status::Running) {
        // runtime-spec 1.3, runtime.md "Lifecycle": a failing poststart hook ends the container.
        report::debug!("start {}: poststart failed, kill", record.id);
        return Err(match end(record) {
            Ok(()) => error,
            Err(more) => gathered(vec![error, more]),
        });
    }
    Ok(())
}

/// Reads the result fifo up to its end, which comes at the latest with the init's death.
fn read_to_end(result: &OwnedFd, init: &OwnedFd) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(result.as_fd(), PollFlags::POLLIN),
            PollFd::new(init.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("wait for the payload")?,
        };
        let mut chunk = [0; 4096];
        match read(result, &mut chunk) {
            Ok(0) => return Ok(message),
            Ok(length) => message.extend_from_slice(&chunk[..length]),
            Err(Errno::EINTR) => {}
            // Another process still holds it although the init is dead: nothing more will come.
            Err(Errno::EAGAIN) if fds[1].any() == Some(true) => return Ok(message),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno).with_context(|| format!("read {RESULT_FIFO}")),
        }
    }
}

fn run_hooks(
    kind: &'static str,
    hooks: &[oci_spec::runtime::Hook],
    record: &Record,
    status: Status,
) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = hooks::state_json(&hooks::State {
        oci_version: &record.oci_version,
        id: &record.id,
        status: status.as_str(),
        pid: (status != Status::Stopped).then_some(record.init_process_pid),
        bundle: &record.bundle,
        annotations: &record.annotations,
    })?;
    let mut errors = Vec::new();
    let named = |name: &str| record.annotations.get(name);
    let output = Output::open(&hook_output(named, &record.bundle)).unwrap_or_else(|error| {
        // The hooks matter more than where their words go.
        report::warn(format_args!("{}", report::sentence(&error)));
        Output::default()
    });
    for hook in Prepared::list(kind, hooks, &output)? {
        report::debug!("run a {kind} hook");
        if let Err(failure) = hook.run(&state, None) {
            errors.push(anyhow!(failure));
            if kind != "poststop" {
                break;
            }
        }
    }
    all_well(errors)
}

/// Sends `signal` to the container's init.
///
/// KILL of a container without a pid namespace of its own goes to every process in its cgroup, since its other processes
/// would outlive the init. Errors: [`Fault::NotRunning`], [`Fault::NotFound`].
pub(crate) fn kill(root: &Path, id: &Id, signal: i32) -> Result<()> {
    let container = Container::open(root, id)?;
    let record = container.record();
    let init = record.init();
    if signal == nix::libc::SIGKILL
        && !record.own_pid_namespace
        && let Some(cgroup) = open_cgroup(record)?
    {
        // COMPAT: also when the init is gone and others are left, which is how an engine ends them.
        report::debug!("kill {id}: every process in its cgroup");
        return kill_everything(&cgroup, init.as_ref());
    }
    let init = init.ok_or(Fault::NotRunning)?;
    report::debug!(
        "kill {id}: signal {signal} to process {}",
        record.init_process_pid
    );
    match pidfd::send_signal(&init, signal) {
        Err(Errno::ESRCH) => bail!(Fault::NotRunning),
        other => other.with_context(|| format!("send signal {signal}"))?,
    }
    if signal == nix::libc::SIGKILL
        && record.is_frozen()
        && let Some(cgroup) = open_cgroup(record)?
    {
        // COMPAT: as for all of them.
        cgroup.thaw()?;
    }
    Ok(())
}

/// Kills every process of the cgroup, and an init that has left it.
fn kill_everything(cgroup: &Cgroup, init: Option<&OwnedFd>) -> Result<()> {
    let killed = cgroup.kill();
    if let Some(init) = init {
        pidfd::send_signal(init, nix::libc::SIGKILL).ok();
    }
    // COMPAT: a killed container is not paused any more. Its status would be read from the freezer.
    killed.and(cgroup.thaw())
}

/// Sends `signal` to every process of the container, its init among them. Errors: [`Fault::NotRunning`] where there is
/// none, [`Fault::NotFound`].
pub(crate) fn kill_all(root: &Path, id: &Id, signal: i32) -> Result<()> {
    let container = Container::open(root, id)?;
    let Some(cgroup) = open_cgroup(container.record())? else {
        return kill(root, id, signal);
    };
    let init = container.record().init();
    if init.is_none() && !cgroup.is_populated()? {
        bail!(Fault::NotRunning);
    }
    report::debug!("kill {id}: signal {signal} to every process in its cgroup");
    if signal == nix::libc::SIGKILL {
        return kill_everything(&cgroup, init.as_ref());
    }
    let first = Pid::from_raw(container.record().init_process_pid);
    // One that has left the cgroup is the container's all the same.
    let outside = !cgroup.processes()?.contains(&first);
    cgroup.signal(signal)?;
    if outside && let Some(init) = init {
        match pidfd::send_signal(&init, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).with_context(|| format!("send signal {signal}")),
        }
    }
    Ok(())
}

/// The ids below `root` that match `expression` anywhere, in order.
///
/// Errors: it is no regular expression; the root cannot be read.
pub(crate) fn matching(root: &Path, expression: &str) -> Result<Vec<Id>> {
    let expression = regex::Regex::new(expression)
        .map_err(|_| anyhow!("--regex: {expression:?} is not a regular expression"))?;
    Ok(list(root)?
        .into_iter()
        .filter_map(|container| Id::from_str(&container.record().id).ok())
        .filter(|id| expression.is_match(id.as_str()))
        .collect())
}

/// Stops every process of a created or running container, and returns when they stand still. Errors:
/// [`Fault::NotRunning`], [`Fault::NoCgroup`].
pub(crate) fn pause(root: &Path, id: &Id) -> Result<()> {
    let able = |status| match status {
        Status::Created | Status::Running => Ok(()),
        _ => bail!(Fault::NotRunning),
    };
    let (_locked, record) = held(root, id, able)?;
    report::debug!("pause {id}");
    let cgroup = open_cgroup(&record)?.ok_or(Fault::NoCgroup)?;
    cgroup.freeze()?;
    if record.init().is_none() {
        // It was killed meanwhile, and is not to count as paused.
        cgroup.thaw()?;
        bail!(Fault::NotRunning);
    }
    Ok(())
}

/// Lets the processes of a paused container go on. Errors: [`Fault::NotPaused`].
pub(crate) fn resume(root: &Path, id: &Id) -> Result<()> {
    let able = |status| match status {
        Status::Paused => Ok(()),
        _ => bail!(Fault::NotPaused),
    };
    let (_locked, record) = held(root, id, able)?;
    report::debug!("resume {id}");
    open_cgroup(&record)?.ok_or(Fault::NoCgroup)?.thaw()
}

/// Gives the container other limits; those that `resources` does not speak of stay. Device rules are left as they are.
///
/// Errors: [`Fault::NotRunning`]; a limit that cannot be, after which the earlier ones hold again.
pub(crate) fn update(
    root: &Path,
    id: &Id,
    resources: &LinuxResources,
    schemata: &Schemata,
) -> Result<()> {
    let (_locked, record) = held(root, id, alive)?;
    report::debug!("update {id}");
    let class = match schemata.is_empty() {
        true => None,
        false => Some(class_of(&record, schemata)?),
    };
    match open_cgroup(&record)? {
        Some(cgroup) => cgroup.update(resources, record.unit.as_ref()),
        None => crate::cgroup::update_nothing(resources),
    }?;
    class.map_or(Ok(()), |(traces, resctrl)| {
        traces.update(&resctrl, schemata)
    })
}

/// The class in resctrl that a container has asked for, where it can have these schemata.
fn class_of<'a>(record: &'a Record, schemata: &Schemata) -> Result<(&'a Traces, Resctrl)> {
    let resctrl = Resctrl::probe()?;
    schemata.are_possible(resctrl.as_ref())?;
    record.rdt.as_ref().zip(resctrl).context(
        "the container's config.json has no linux.intelRdt, so that it has no class to change",
    )
}

/// What a running container uses and what happens to it.
#[derive(Debug)]
pub(crate) struct Events(Cgroup);

/// Errors: a container that has stopped, in runc's words; [`Fault::NoCgroup`].
pub(crate) fn events(root: &Path, id: &Id) -> Result<Events> {
    let container = Container::open(root, id)?;
    if matches!(container.status(), Status::Stopped | Status::Creating) {
        bail!("container with id {id} is not running");
    }
    Ok(Events(
        open_cgroup(container.record())?.ok_or(Fault::NoCgroup)?,
    ))
}

impl Events {
    pub(crate) fn stats(&self) -> Result<Stats> {
        self.0.stats()
    }

    pub(crate) fn watch(&self) -> Result<Watch> {
        self.0.watch()
    }
}

/// The whole of a file that a caller names, where `-` is standard input.
pub(crate) fn read_input(path: &Path) -> std::io::Result<Vec<u8>> {
    if path.as_os_str() != "-" {
        return spec::read_file(AT_FDCWD, path);
    }
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map(|_| text)
}

/// The processes of the container, by their numbers in our pid namespace: those in its cgroup, which an init may have left
/// behind, or the init alone where it has none.
pub(crate) fn processes(root: &Path, id: &Id) -> Result<Vec<Pid>> {
    let container = Container::open(root, id)?;
    let record = container.record();
    match open_cgroup(record)? {
        Some(cgroup) => cgroup.processes(),
        // Its number may be another's by now.
        None if record.init().is_none() => Ok(Vec::new()),
        None => Ok(vec![Pid::from_raw(record.init_process_pid)]),
    }
}

/// Removes a container: what is left of its processes, its cgroup, and at last its state directory.
///
/// A stopped or created container is removed, any other only with `force`. What an earlier delete or a killed create left
/// half done is finished. Errors: [`Fault::NotFound`] without `force`; a status that needs it. When several steps fail
/// the rest is still tried, all errors are told, and the state directory stays, so that delete can be repeated.
pub(crate) fn delete(root: &Path, id: &Id, force: bool) -> Result<()> {
    match delete_existing(root, id, force) {
        // COMPAT: deleting the absent is done already when forced.
        Err(error) if force && matches!(error.downcast_ref(), Some(Fault::NotFound)) => Ok(()),
        other => other,
    }
}

fn delete_existing(root: &Path, id: &Id, force: bool) -> Result<()> {
    let dir = Dir::open(root, id)?;
    if let Some(record) = dir.record()? {
        // Asked before the lock too: a hung create holds it, and must not hold up this answer.
        deletable(id, dir.status(&record), force)?;
    }
    let locked = match dir.lock(if force {
        Duration::from_secs(1)
    } else {
        PATIENCE
    }) {
        Err(error) if force && error.is::<Busy>() => {
            // A create or start that hangs. Without its init it fails and cleans up by itself.
            report::debug!("delete {id}: locked, end its processes first");
            let record = Dir::open(root, id)?.record()?.ok_or(Fault::NotFound)?;
            end(&record)?;
            Dir::open(root, id)?
                .lock(PATIENCE)
                .with_context(|| format!("delete {id}: its processes were killed"))?
        }
        other => other?,
    };
    // Whoever had the lock before may have changed it.
    let Some(record) = locked.record()? else {
        // A create killed before its first side effect, or a delete killed in its last step.
        locked.remove()?;
        bail!(Fault::NotFound);
    };
    deletable(id, locked.status(&record), force)?;
    destroy(locked, &record)
}

fn deletable(id: &Id, status: Status, force: bool) -> Result<()> {
    match status {
        Status::Stopped | Status::Created => Ok(()),
        _ if force => Ok(()),
        other => bail!("cannot delete container {id} that is not stopped: {other}"),
    }
}

/// Ends and removes a container whose lock is held, whatever its status.
pub(crate) fn destroy(container: Locked, record: &Record) -> Result<()> {
    let mut errors = Vec::new();
    errors.extend(end(record).err());
    report::debug!("delete {}: remove its cgroup", record.id);
    errors.extend(remove_cgroup(record).err());
    errors.extend(leave_class(record).err());
    if let Some(mount) = &record.root_mount {
        errors.extend(launch::take_away(&record.rootfs, mount).err());
    }
    all_well(errors)?;
    if let Err(error) = run_hooks("poststop", &record.poststop, record, Status::Stopped) {
        // runtime-spec, config.md "Poststop": logged, and the delete goes on.
        report::warn(format_args!("{}", report::sentence(&error)));
    }
    report::debug!("delete {}: remove its state directory", record.id);
    container.remove()
}

/// Removes what the container has in a resctrl file system, unless that is not mounted any more.
fn leave_class(record: &Record) -> Result<()> {
    let Some(traces) = &record.rdt else {
        return Ok(());
    };
    report::debug!("delete {}: leave its class in resctrl", record.id);
    Resctrl::probe()?.map_or(Ok(()), |resctrl| traces.remove(&resctrl))
}

/// Removes the container's cgroup, which its processes are leaving, and the unit that has it.
fn remove_cgroup(record: &Record) -> Result<()> {
    match (open_cgroup(record)?, &record.unit) {
        (Some(cgroup), Some(unit)) => {
            unit.stop()?;
            cgroup.remove()
        }
        (Some(cgroup), None) => cgroup.remove(),
        // Ended by itself: systemd forgets it, unless it was told not to.
        (None, Some(unit)) if keeps_failed(record.annotations.keys()) => unit.reset(),
        (None, _) => Ok(()),
    }
}

/// Whether the rules for a configuration of an ordinary user hold. Not the question whether cgroups are the machine's: root
/// of a user namespace, as which Podman calls for an ordinary user, may have a container in that very namespace.
fn is_no_root() -> bool {
    !nix::unistd::Uid::effective().is_root()
}

/// Kills every process of the container and waits for the init's death.
fn end(record: &Record) -> Result<()> {
    let mut errors = Vec::new();
    let init = record.init();
    if let Some(init) = &init {
        match pidfd::send_signal(init, nix::libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => errors.push(anyhow!(errno).context("kill the container's init")),
        }
    }
    // With its own pid namespace the init takes the others along, except those that joined only the cgroup.
    match open_cgroup(record) {
        Ok(None) => {}
        Ok(Some(cgroup)) => errors.extend(cgroup.kill().err()),
        Err(error) => errors.push(error),
    }
    if let Some(init) = init {
        match pidfd::wait_dead(&init, DEATH) {
            Ok(true) => {}
            Ok(false) => errors.push(anyhow!("container init still running")),
            Err(errno) => errors.push(anyhow!(errno).context("wait for the container's init")),
        }
    }
    all_well(errors)
}

/// The container's cgroup, unless it is another's by now: a path can be used again once its container has ended.
fn open_cgroup(record: &Record) -> Result<Option<Cgroup>> {
    let Some(path) = &record.cgroup else {
        return Ok(None);
    };
    let Some(cgroup) = Cgroup::open(&Hierarchy::probe()?, path)? else {
        return Ok(None);
    };
    match cgroup.owner() {
        Some(owner) if owner != record.mark().as_bytes() && !holds_init(path, record) => Ok(None),
        None if record.init_process_pid == 0 => {
            // A create that was killed before it wrote its mark had put no process there.
            cgroup.remove_if_empty();
            Ok(None)
        }
        _ => Ok(Some(cgroup)),
    }
}

/// Whether the container's init is in this cgroup or below: then it is its own, whatever is written on it.
fn holds_init(path: &Path, record: &Record) -> bool {
    record.init().is_some()
        && crate::cgroup::of(record.init_process_pid).is_ok_and(|there| there.starts_with(path))
}

fn all_well(errors: Vec<anyhow::Error>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(gathered(errors))
}

/// Several errors as one; a single one stays what it is.
fn gathered(mut errors: Vec<anyhow::Error>) -> anyhow::Error {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let texts: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
    anyhow!(texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{Gid, Uid};
    use std::process::{Child, Command};
    use std::time::Instant;

    use state::{ProcessStat, SCHEMA};

    /// A state directory with a shell for an init (bash, whose `read` takes one byte without another process): it speaks the start protocol and then runs `rest`.
    struct Fake {
        root: tempfile::TempDir,
        child: Child,
        pid: i32,
    }

    impl Fake {
        fn new(rest: &str, change: impl FnOnce(&mut Record)) -> Self {
            let root = tempfile::tempdir().unwrap();
            let locked = Dir::create(root.path(), &web()).unwrap();
            locked
                .make_fifos(Uid::effective(), Gid::effective())
                .unwrap();
            let wait = "exec 3<>result.fifo 4<>exec.fifo; read -r -n 1 <&4;";
            let child = Command::new("bash")
                .args(["-c", &format!("{wait} {rest}")])
                .current_dir(locked.path())
                .spawn()
                .unwrap();
            let pid = child.id().cast_signed();
            wait_until(|| fs::exists(format!("/proc/{pid}/fd/4")).unwrap_or(false));
            let mut record = Record {
                id: "web".into(),
                init_process_pid: pid,
                init_process_start: ProcessStat::read(pid).unwrap().start,
                schema: SCHEMA,
                oci_version: "1.3.0".into(),
                own_pid_namespace: true,
                ..Record::default()
            };
            change(&mut record);
            locked.save(&record).unwrap();
            drop(locked);
            Self { root, child, pid }
        }

        fn status(&self) -> Status {
            Container::open(self.root.path(), &web()).unwrap().status()
        }

        fn start(&self) -> Result<(), String> {
            start(self.root.path(), &web()).map_err(|error| format!("{error:#}"))
        }

        fn delete(&self, force: bool) -> Result<(), String> {
            delete(self.root.path(), &web(), force).map_err(|error| format!("{error:#}"))
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }

    const RUN: &str = "exec 3>&- 4>&-; exec sleep 60";

    fn web() -> Id {
        "web".parse().unwrap()
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn ids_follow_the_rule() {
        for good in ["a", "A_b+c-d.e0", "...", "-x"] {
            assert!(good.parse::<Id>().is_ok(), "{good}");
        }
        for (bad, words) in [
            ("", "container id cannot be empty"),
            (".", "invalid container ID format"),
            ("..", "invalid container ID format"),
            ("a/b", "invalid container ID format"),
            ("a b", "invalid container ID format"),
            ("ä", "invalid container ID format"),
        ] {
            assert_eq!(bad.parse::<Id>().unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn created_container_runs_after_start_and_not_twice() {
        let fake = Fake::new(RUN, |_| {});
        assert_eq!(fake.status(), Status::Created);
        assert_eq!(fake.start(), Ok(()));
        assert_eq!(fake.status(), Status::Running);
        assert!(!fs::exists(fake.root.path().join("web/exec.fifo")).unwrap());
        assert_eq!(
            fake.start(),
            Err("cannot start an already running container".into())
        );
        assert_eq!(
            fake.delete(false),
            Err("cannot delete container web that is not stopped: running".into())
        );
    }

    #[test]
    fn reason_of_a_payload_that_cannot_run_is_the_error_of_start() {
        let fake = Fake::new("printf 'exec: no such file' >&3; exit 1", |_| {});
        assert_eq!(
            fake.start(),
            Err("unable to start container process: exec: no such file".into())
        );
        assert_eq!(fake.status(), Status::Stopped);
        assert_eq!(
            fake.start(),
            Err("cannot start a container that has stopped".into())
        );
    }

    #[test]
    fn failing_poststart_hook_kills_the_container() {
        let mut fake = Fake::new(RUN, |record| {
            let hook = r#"[{"path": "/bin/sh", "args": ["sh", "-c", "echo no; exit 3"]}]"#;
            record.poststart = serde_json::from_str(hook).unwrap();
        });
        assert_eq!(
            fake.start(),
            Err("error running poststart hook #0: exit status 3, stdout: no, stderr: ".into())
        );
        assert_eq!(fake.status(), Status::Stopped);
        assert!(!fake.child.wait().unwrap().success());
    }

    #[test]
    fn delete_kills_a_created_container_runs_poststop_and_frees_the_id() {
        let told = tempfile::tempdir().unwrap();
        let script = format!("cat > {}/told", told.path().display());
        let fake = Fake::new(RUN, |record| {
            let hook = serde_json::json!([{"path": "/bin/false"}, {"path": "/bin/sh", "args": ["sh", "-c", script]}]);
            record.poststop = serde_json::from_value(hook).unwrap();
        });
        assert_eq!(fake.delete(false), Ok(()));
        assert!(!ProcessStat::read(fake.pid).is_some_and(ProcessStat::is_alive));
        assert_eq!(
            fs::read_to_string(told.path().join("told")).unwrap(),
            r#"{"ociVersion":"1.3.0","id":"web","status":"stopped","bundle":""}"#
        );
        assert_eq!(fake.delete(false), Err("container does not exist".into()));
        assert_eq!(fake.delete(true), Ok(()));
        Dir::create(fake.root.path(), &web()).unwrap();
    }

    #[test]
    fn kill_reaches_the_init_and_a_dead_one_is_not_running() {
        let mut fake = Fake::new(RUN, |_| {});
        assert_eq!(fake.start(), Ok(()));
        kill(fake.root.path(), &web(), nix::libc::SIGTERM).unwrap();
        fake.child.wait().unwrap();
        let error = kill(fake.root.path(), &web(), nix::libc::SIGTERM).unwrap_err();
        assert_eq!(error.to_string(), "container not running");
    }

    #[test]
    fn leftover_directory_without_a_record_is_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("web")).unwrap();
        let error = delete(root.path(), &web(), false).unwrap_err();
        assert_eq!(error.to_string(), "container does not exist");
        assert!(!fs::exists(root.path().join("web")).unwrap());
    }

    #[test]
    fn create_that_hangs_holds_up_neither_state_nor_list_nor_forced_delete() {
        let fake = Fake::new(RUN, |_| {});
        let hung = Dir::open(fake.root.path(), &web())
            .unwrap()
            .lock(PATIENCE)
            .unwrap();
        let mut intent = hung.record().unwrap().unwrap();
        intent.init_process_pid = 0;
        hung.save(&intent).unwrap();
        let begun = Instant::now();
        assert_eq!(fake.status(), Status::Creating);
        assert_eq!(list(fake.root.path()).unwrap().len(), 1);
        assert_eq!(
            fake.start(),
            Err("cannot start a container in the creating state".into())
        );
        assert_eq!(
            fake.delete(false),
            Err("cannot delete container web that is not stopped: creating".into())
        );
        assert!(begun.elapsed() < Duration::from_secs(1));
        let creator = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1500));
            hung.remove().unwrap();
        });
        assert_eq!(fake.delete(true), Ok(()));
        creator.join().unwrap();
    }

    #[test]
    fn record_of_another_release_is_left_alone() {
        let fake = Fake::new(RUN, |record| record.schema = 99);
        for force in [false, true] {
            assert!(fake.delete(force).unwrap_err().contains("state version 99"));
        }
        assert!(fs::exists(fake.root.path().join("web/state.json")).unwrap());
        assert!(ProcessStat::read(fake.pid).unwrap().is_alive());
    }
}
