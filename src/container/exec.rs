//! `exec`: one process more in a container that is there already.
//!
//! Nothing of the container changes, so no lock is taken: an exec into a container that is deleted meanwhile fails, or its
//! process dies with the others.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxNamespaceType as Kind, Process, User,
};

use super::copying;
use super::create::{check_terminal, connect, inherited_fds};
use super::foreground;
use super::state::{ProcessStat, Record, Status, write_pid_file};
use super::{Container, Fault, Id, is_no_root, open_cgroup, read_input};
use crate::cgroup::{self, Cgroup, Hierarchy, Resctrl};
use crate::hooks;
use crate::idmap::Maps;
use crate::launch::{self, Joining, Launched, Stdio};
use crate::plan::host::Host;
use crate::plan::namespaces::Namespaces;
use crate::plan::{Options, Plan};
use crate::report::{self, debug};
use crate::spec::{self, Bundle};
use crate::sys::path::names;
use crate::sys::{fd, seal};

/// What `exec` was asked for. Paths are absolute, but for those of sockets and `-`.
#[derive(Clone, Debug)]
pub(crate) struct ExecOptions {
    pub(crate) id: Id,
    /// The state root.
    pub(crate) root: PathBuf,
    pub(crate) wanted: Wanted,
    /// Return once the process runs.
    pub(crate) detach: bool,
    /// Socket that gets the pty's master.
    pub(crate) console_socket: Option<PathBuf>,
    /// Socket that gets the process's pidfd.
    pub(crate) pidfd_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    /// How many fds above 2 the process keeps.
    pub(crate) preserve_fds: u32,
    /// `[controllers:]PATH`, below the container's cgroup.
    pub(crate) cgroup: Vec<String>,
    /// Also where the container is paused; the process begins when it goes on.
    pub(crate) ignore_paused: bool,
}

/// Where the process is described.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// A file with what config.json has as `process`, or `-` for standard input. COMPAT: the other options that describe it are ignored then.
    File(PathBuf),
    /// The container's own process, changed.
    Changed(ProcessOptions),
}

/// How the process differs from the container's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessOptions {
    pub(crate) args: Vec<String>,
    pub(crate) cwd: Option<PathBuf>,
    /// Added, so that they win over those of the configuration.
    pub(crate) env: Vec<String>,
    pub(crate) terminal: bool,
    /// The user, and the group if one is given.
    pub(crate) user: Option<(u32, Option<u32>)>,
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) selinux_label: Option<String>,
    pub(crate) apparmor: Option<String>,
    pub(crate) no_new_privileges: Option<bool>,
    /// Names of capabilities to add.
    pub(crate) capabilities: Vec<String>,
}

/// Runs a process in an existing container and, unless detached, waits for its end; returns the exit code.
///
/// # Errors
/// One line that names the option, the field or the step; the process is gone then.
pub(crate) fn exec(options: &ExecOptions) -> Result<u8> {
    // CVE-2019-5736: before anything of the container's is near.
    seal::ensure().context("protect the own executable file")?;
    // Never dropped, as the draft of a container is not.
    let draft = ManuallyDrop::new(Draft::new(options)?);
    let signals = match options.detach {
        true => None,
        false => Some(foreground::block_signals()?),
    };
    let (streams, copying) =
        copying::streams(&draft.plan.process, draft.maps.as_ref(), options.detach)?;
    let mut launched = draft
        .make(&streams)
        .map_err(|error| ended(&draft.record, error))?;
    // Or their end would never be seen.
    drop(streams);
    if let (Some((master, _)), Some(_)) = (&launched.console, &signals) {
        copying::fit(master.as_fd());
    }
    start(&launched)?;
    if let Some(path) = &options.pid_file {
        write_pid_file(path, launched.pid())?;
    }
    let console = launched.console.take().map(|(master, _)| master);
    let pid = launched.pid();
    debug!("process {pid} runs in container {}", options.id);
    let (_, pidfd) = launched.keep();
    let Some(signals) = signals else { return Ok(0) };
    let copying = copying.with_terminal(console)?;
    let ended = foreground::wait(pid, pidfd, copying, &signals, None)?;
    Ok(ended.code(&signals))
}

/// Let the process begin.
fn start(launched: &Launched) -> Result<()> {
    let talk = &launched.talk;
    talk.saved()
        .and_then(|()| talk.go())
        .context("unable to start container process: it died")?;
    if let Some(reason) = talk.hear_start().context("start the process")? {
        bail!("unable to start container process: {reason}");
    }
    // The end of the conversation can also be the end of a process that was killed before it executed anything.
    match ProcessStat::read(launched.pid().as_raw()) {
        Some(stat) if stat.never_executed => {
            bail!("unable to start container process: it was killed before it ran the program")
        }
        _ => Ok(()),
    }
}

/// Everything worked out for a process that does not exist yet.
struct Draft<'a> {
    options: &'a ExecOptions,
    record: Record,
    bundle: Bundle,
    plan: Plan,
    /// Of the container's user namespace, if that is not the caller's.
    maps: Option<Maps>,
    /// Where the container has no root of a mount namespace: the init's.
    chroot: bool,
    console: Option<UnixStream>,
    pidfd_socket: Option<UnixStream>,
}

impl<'a> Draft<'a> {
    /// Look at the container and work out the plan, refusing what cannot be. Nothing is created.
    fn new(options: &'a ExecOptions) -> Result<Self> {
        let container = Container::open(&options.root, &options.id)?;
        // COMPAT: runc's words.
        match container.status() {
            Status::Created | Status::Running => {}
            Status::Stopped => bail!("cannot exec in a stopped container"),
            Status::Paused if options.ignore_paused => {}
            Status::Paused => {
                bail!("cannot exec in a paused container (use --ignore-paused to override)")
            }
            Status::Creating => bail!("cannot exec in a container that is being created"),
        }
        let record = container.record().clone();
        let mut bundle = Bundle::kept(record.bundle.clone(), container.config()?)?;
        describe(&mut bundle, &options.wanted)?;
        let context = spec::Context {
            rootless: is_no_root(),
            ..spec::Context::default()
        };
        if let Some(fault) = bundle.check_process(&context) {
            bail!("{fault}");
        }
        let process = bundle.spec.process().as_ref();
        let terminal = process.and_then(Process::terminal).unwrap_or(false);
        check_terminal(options.detach, terminal, options.console_socket.is_some())?;
        let wanted = Options {
            id: options.id.to_string(),
            no_new_keyring: record.no_new_keyring,
            // COMPAT: those of the service manager are for the init alone.
            inherited_fds: inherited_fds(0, options.preserve_fds)?,
            root: record.rootfs.clone(),
            ..Options::default()
        };
        let differing =
            differing(record.init_process_pid).map_err(|error| ended(&record, error))?;
        let maps = match differing.contains(&Kind::User) {
            true => Some(Maps::of(record.init_process_pid).map_err(|error| ended(&record, error))?),
            false => None,
        };
        let plan = Plan::join(&bundle.spec, &wanted, &differing, &Host::probe()?)?;
        for warning in bundle.warnings.iter().chain(&plan.warnings) {
            report::warn(format_args!("{warning}"));
        }
        // COMPAT: runc goes into the bundle only to read the configuration.
        let base = match &options.wanted {
            Wanted::File(_) => Path::new(""),
            Wanted::Changed(_) => &record.bundle,
        };
        let to_socket = |path: &Option<PathBuf>, what| connect(base, path.as_deref(), what);
        let linux = bundle.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
        Ok(Self {
            console: to_socket(&options.console_socket, "console socket")?,
            pidfd_socket: to_socket(&options.pidfd_socket, "pidfd socket")?,
            chroot: !Namespaces::new(namespaces.unwrap_or_default()).is_new(Kind::Mount),
            options,
            record,
            bundle,
            plan,
            maps,
        })
    }

    /// Make the process, up to the point where only the word to start is missing, and hand over what callers wait for.
    fn make(&self, streams: &Stdio) -> Result<Launched> {
        let profile = self.bundle.spec.linux().as_ref();
        let profile = profile.and_then(|linux| linux.seccomp().as_ref());
        let cache = launch::cache_directory(&self.options.root);
        let filter = launch::filter(&self.plan, profile, &cache)?;
        let pid = self.record.init_process_pid;
        let below = sub_cgroup(&self.options.cgroup)?;
        let cgroups = self.cgroups(below.as_deref())?;
        let below = below.unwrap_or_default();
        let root = match self.chroot {
            true => Some(root_of(pid)?),
            false => None,
        };
        // ORDER: after everything that was looked up by the init's number. It is the init's still, or nobody's.
        let init = self.record.init();
        if init.is_none() {
            bail!("cannot exec in a stopped container");
        }
        let class = match &self.record.rdt {
            Some(traces) => Resctrl::probe()?.map(|resctrl| (resctrl, traces)),
            None => None,
        };
        let state = || self.state();
        let launched = launch::join(Joining {
            plan: &self.plan,
            filter,
            init,
            root,
            unit: self
                .record
                .unit
                .as_ref()
                .map(|unit| (unit, below.as_path())),
            cgroups,
            class,
            lenient: self.record.rootless,
            state: &state,
            streams,
        })?;
        if let (Some(socket), Some((master, slave))) = (&self.console, &launched.console) {
            fd::send(socket.as_fd(), slave.as_bytes(), &[master.as_raw_fd()])
                .context("send the terminal to the console socket")?;
        }
        if let Some(socket) = &self.pidfd_socket {
            fd::send(socket.as_fd(), b"setns", &[launched.pidfd().as_raw_fd()])
                .context("send to the pidfd socket")?;
        }
        Ok(launched)
    }

    /// Where the process may go, the first choice first.
    fn cgroups(&self, below: Option<&Path>) -> Result<Vec<Cgroup>> {
        let Some(path) = &self.record.cgroup else {
            return match below {
                None => Ok(Vec::new()),
                Some(_) => bail!("--cgroup: the container has no cgroup of its own"),
            };
        };
        let hierarchy = Hierarchy::probe()?;
        if let Some(below) = below {
            let path = path.join(below);
            return match Cgroup::open(&hierarchy, &path)? {
                Some(cgroup) => Ok(vec![cgroup]),
                None => bail!(
                    "adding pid to cgroup {}: no such file or directory",
                    path.display()
                ),
            };
        }
        let mut cgroups = Vec::new();
        let [first, last] = self.plan.extensions.below(self.record.unit.is_some());
        if let Some(below) = last.or(first) {
            cgroups.extend(Cgroup::open(&hierarchy, &path.join(below))?);
        }
        cgroups.extend(open_cgroup(&self.record)?);
        // An init that has moved to a cgroup below, with controllers enabled for it: the container's own can hold no
        // process any more.
        let init = cgroup::of(self.record.init_process_pid)?;
        if init != *path && init.parent().is_some() {
            cgroups.extend(Cgroup::open(&hierarchy, &init)?);
        }
        Ok(cgroups)
    }

    /// The container's state as the agent of its seccomp filter gets it: the pid is the init's.
    fn state(&self) -> Vec<u8> {
        let annotations: BTreeMap<String, String> = self.record.annotations.clone();
        let state = hooks::State {
            oci_version: &self.record.oci_version,
            id: &self.record.id,
            status: Status::Running.as_str(),
            pid: Some(self.record.init_process_pid),
            bundle: &self.record.bundle,
            annotations: &annotations,
        };
        // A path that is no text is the one failure, and the bundle's was refused when the record was written.
        hooks::state_json(&state).unwrap_or_default()
    }
}

/// The error, unless the container has ended meanwhile, which is the reason then for whatever was not found.
fn ended(record: &Record, error: anyhow::Error) -> anyhow::Error {
    match record.init() {
        Some(_) if !error.is::<Fault>() => error,
        // COMPAT: runc's words; those of the kernel would be taken for the program's absence.
        _ => anyhow!("cannot exec in a stopped container"),
    }
}

/// Put the process that is wanted into the container's configuration.
fn describe(bundle: &mut Bundle, wanted: &Wanted) -> Result<()> {
    let containers = bundle.spec.process().clone();
    match wanted {
        Wanted::File(path) => {
            let text = read_input(path).with_context(|| format!("read {}", path.display()))?;
            bundle
                .take_process(&text)
                .with_context(|| path.display().to_string())?;
            bundle.edit_process(|process| inherit(process, containers.as_ref()));
        }
        Wanted::Changed(options) => {
            if options.args.is_empty() {
                // COMPAT: runc's words.
                bail!("exec args cannot be empty");
            }
            bundle.edit_process(|process| change(process, options));
        }
    }
    Ok(())
}

/// What a process file does not say, the container's configuration does. COMPAT: with runc that is all but the limits.
fn inherit(process: &mut Process, containers: Option<&Process>) {
    let Some(containers) = containers else { return };
    if process.user().umask().is_none() {
        process.user_mut().set_umask(containers.user().umask());
    }
    if process.capabilities().is_none() {
        process.set_capabilities(containers.capabilities().clone());
    }
    if process.apparmor_profile().as_deref().unwrap_or_default() == "" {
        process.set_apparmor_profile(containers.apparmor_profile().clone());
    }
    if process.selinux_label().as_deref().unwrap_or_default() == "" {
        process.set_selinux_label(containers.selinux_label().clone());
    }
    if process.rlimits().as_deref().unwrap_or_default().is_empty() {
        process.set_rlimits(containers.rlimits().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(containers.oom_score_adj());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(containers.scheduler().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*containers.io_priority());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(containers.exec_cpu_affinity().clone());
    }
}

fn change(process: &mut Process, options: &ProcessOptions) {
    process.set_args(Some(options.args.clone()));
    process.set_terminal(Some(options.terminal));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(label) = &options.selinux_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if options.no_new_privileges.is_some() {
        process.set_no_new_privileges(options.no_new_privileges);
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    change_user(process.user_mut(), options);
    if !options.capabilities.is_empty() {
        let capabilities = with_capabilities(process.capabilities(), &options.capabilities);
        process.set_capabilities(Some(capabilities));
    }
}

fn change_user(user: &mut User, options: &ProcessOptions) {
    if let Some((uid, gid)) = options.user {
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !options.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&options.additional_gids);
        user.set_additional_gids(Some(groups));
    }
}

/// Capabilities are added to what the process may have and has, and to the ambient set only where something was
/// inheritable before.
// CVE-2022-29162, CVE-2022-27650: never to the inheritable set, which would give them back through a file's own.
fn with_capabilities(before: &Option<LinuxCapabilities>, names: &[String]) -> LinuxCapabilities {
    let mut capabilities = before.clone().unwrap_or_else(no_capabilities);
    let known: Capabilities = names
        .iter()
        .filter_map(|name| {
            let word = serde_json::Value::from(name.to_ascii_uppercase());
            let known = serde_json::from_value(word).ok();
            if known.is_none() {
                report::warn(format_args!("--cap: unknown capability {name:?} ignored"));
            }
            known
        })
        .collect();
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(known.iter().copied());
        Some(set)
    };
    let (bounding, effective) = (
        with(capabilities.bounding()),
        with(capabilities.effective()),
    );
    let (permitted, ambient) = (with(capabilities.permitted()), with(capabilities.ambient()));
    capabilities.set_bounding(bounding);
    capabilities.set_effective(effective);
    capabilities.set_permitted(permitted);
    let inheritable = capabilities.inheritable().as_ref();
    if inheritable.is_some_and(|set| !set.is_empty()) {
        capabilities.set_ambient(ambient);
    }
    capabilities
}

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None);
    none.set_effective(None);
    none.set_permitted(None);
    none.set_inheritable(None);
    none.set_ambient(None);
    none
}

/// The one path below the container's cgroup that `--cgroup` names. COMPAT: the words are runc's, where v1 has a path for
/// each controller; v2 has but one.
fn sub_cgroup(given: &[String]) -> Result<Option<PathBuf>> {
    let mut found = None;
    for argument in given {
        let path = match argument.split_once(':') {
            None if given.len() > 1 => {
                bail!("invalid --cgroup argument: {argument} (missing <controller>: prefix)")
            }
            None => argument.as_str(),
            Some((controllers, path)) if !path.contains(':') => {
                if controllers.split(',').any(str::is_empty) {
                    bail!("invalid --cgroup argument: {argument} (empty <controller> prefix)");
                }
                bail!(
                    "unknown controller {controllers} in --cgroup {argument}: cgroup v2 has one path for all"
                );
            }
            Some(_) => bail!("invalid --cgroup argument: {argument}"),
        };
        // By components: a prefix of the text could be another cgroup's name.
        let Some(below) = names(Path::new(path)) else {
            bail!("bad sub cgroup path: {path}");
        };
        found = Some(below);
    }
    Ok(found)
}

/// The kinds of namespaces in which process `pid` is not where we are. Joining our own again would need rights for
/// nothing, and is an error for the user namespace.
pub(super) fn differing(pid: i32) -> Result<Vec<Kind>> {
    let mut differing = Vec::new();
    for (kind, file) in [
        (Kind::User, "user"),
        (Kind::Ipc, "ipc"),
        (Kind::Uts, "uts"),
        (Kind::Network, "net"),
        (Kind::Cgroup, "cgroup"),
        (Kind::Time, "time"),
        (Kind::Pid, "pid"),
        (Kind::Mount, "mnt"),
    ] {
        let identity = |process: &str| -> Result<(u64, u64)> {
            let path = format!("/proc/{process}/ns/{file}");
            match fs::metadata(&path) {
                Ok(found) => Ok((found.dev(), found.ino())),
                // KERNEL: a process that is ending has no namespaces any more, before it counts as dead.
                Err(error) if error.kind() == ErrorKind::NotFound => bail!(Fault::NotRunning),
                Err(error) => Err(error).with_context(|| format!("look at {path}")),
            }
        };
        if identity(&pid.to_string())? != identity("self")? {
            differing.push(kind);
        }
    }
    Ok(differing)
}

/// The root directory of process `pid`.
pub(super) fn root_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).with_context(|| format!("open {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(given: &[&str]) -> Result<Option<PathBuf>> {
        let given: Vec<_> = given.iter().map(|word| (*word).to_owned()).collect();
        sub_cgroup(&given)
    }

    #[test]
    fn a_sub_cgroup_is_one_path_below() {
        assert_eq!(words(&[]).unwrap(), None);
        for (given, path) in [("a/b", "a/b"), ("/a", "a"), ("/", ""), ("./a//b/", "a/b")] {
            assert_eq!(
                words(&[given]).unwrap(),
                Some(PathBuf::from(path)),
                "{given}"
            );
        }
        for (given, error) in [
            (&["../x"][..], "bad sub cgroup path: ../x"),
            (&["a/../../x"], "bad sub cgroup path: a/../../x"),
            (
                &["a", "b"],
                "invalid --cgroup argument: a (missing <controller>: prefix)",
            ),
            (
                &["cpu:a"],
                "unknown controller cpu in --cgroup cpu:a: cgroup v2 has one path for all",
            ),
            (
                &[":a"],
                "invalid --cgroup argument: :a (empty <controller> prefix)",
            ),
            (&["a:b:c"], "invalid --cgroup argument: a:b:c"),
        ] {
            assert_eq!(words(given).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn added_capabilities_are_never_inheritable() {
        let before: LinuxCapabilities =
            serde_json::from_str(r#"{"bounding": ["CAP_KILL"], "inheritable": []}"#).unwrap();
        let after = with_capabilities(&Some(before), &["CAP_NET_ADMIN".to_owned()]);
        assert_eq!(after.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(after.permitted().as_ref().unwrap().len(), 1);
        assert_eq!(after.inheritable().as_ref().map(|set| set.len()), Some(0));
        assert_eq!(after.ambient().as_ref().map_or(0, |set| set.len()), 0);
        let after = with_capabilities(&None, &["CAP_NET_ADMIN".to_owned()]);
        assert_eq!(after.inheritable(), &None);
        assert_eq!(after.bounding().as_ref().unwrap().len(), 1);
    }
}
