//! The parent side of one clone: open what the child will need, make its cgroup, clone, answer it, and take everything
//! back when anything fails. Every container process comes through here.

pub(crate) mod cache;
mod carrier;
mod join;
mod live;
mod network;
mod notify;
mod restored;
mod sources;

pub(crate) use carrier::{Carrier, Mark, take_away};
pub(crate) use join::{Joining, join};
pub(crate) use live::{Live, change_mounts};
pub(crate) use restored::{Restored, house};

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::setns;
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, Uid};
use oci_spec::runtime::{Hook, Hooks, LinuxNamespaceType as Kind, LinuxSeccomp};

use crate::cgroup::{self, Cgroup, Devices, Hierarchy, Membership, Place, Resctrl};
pub(crate) use crate::child::Stdio;
use crate::child::{self, Given};
use crate::handshake::{self, Failure, Heard, ParentEnd, Step};
use crate::hooks::{Output, Prepared};
use crate::plan::namespaces::{clone_flag, name};
use crate::plan::seccomp::{self, Filter};
use crate::plan::{Plan, Rdt};
use crate::report::{self, debug};
use crate::sys::errno::Words;
use crate::sys::pidfd;
use crate::sys::process::{self, Cloned, getrlimit, namespace_type, setrlimit};

/// What a launch needs besides the plan.
pub(crate) struct Request<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) hierarchy: &'a Hierarchy,
    /// Where the container's cgroup is to be.
    pub(crate) place: &'a Place,
    /// The container's state for its hooks, from a status and a pid.
    pub(crate) state: &'a dyn Fn(&str, i32) -> Vec<u8>,
    pub(crate) rootless: bool,
    /// The lock that the caller holds, which the child must not hold with it.
    pub(crate) lock: BorrowedFd<'a>,
    /// What is written on the cgroup as its owner.
    pub(crate) mark: &'a str,
    pub(crate) streams: &'a Stdio,
}

/// All that can be worked out, and can fail, before the first side effect.
pub(crate) struct Provisions {
    limits: Vec<cgroup::Limit>,
    devices: Option<Devices>,
    rdt: Option<Membership>,
    carrier: Option<Carrier>,
    filter: Option<Filter>,
    runtime_hooks: Vec<Prepared>,
    create_container: Vec<Prepared>,
    start_container: Vec<Prepared>,
}

impl Provisions {
    /// The container's place in a resctrl file system, if it asks for one.
    pub(crate) fn rdt(&self) -> Option<&Membership> {
        self.rdt.as_ref()
    }

    /// The mount that carries the container's own, if they are the caller's too.
    pub(crate) fn carrier(&self) -> Option<&Carrier> {
        self.carrier.as_ref()
    }
}

/// A process that waits for the word to start. Dropped, it is undone; [`Launched::keep`] lets it live.
pub(crate) struct Launched {
    pub(crate) talk: ParentEnd,
    /// The master of the payload's terminal, and the slave's path inside.
    pub(crate) console: Option<(OwnedFd, String)>,
    undo: Undo,
}

/// A hook of the creating phase failed: the specification wants the poststop hooks run after the undoing.
#[derive(Debug)]
pub(crate) struct HookFailed(String);

impl fmt::Display for HookFailed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for HookFailed {}

/// What a failed launch takes back: the process, then its network devices, its cgroup and its class in resctrl.
struct Undo {
    process: Option<Cloned>,
    devices: Option<network::Moved>,
    carrier: Option<Carrier>,
    cgroup: Option<Cgroup>,
    rdt: Option<Membership>,
}

impl Undo {
    /// Run the hooks that see the container's namespaces before its programs run, with its state from a status, as long as
    /// the process is there for which they are run.
    fn run_hooks(&self, hooks: &[Prepared], state: &dyn Fn(&str) -> Vec<u8>) -> Result<()> {
        let process = self.process.as_ref().map(|process| process.pidfd.as_fd());
        for hook in hooks {
            // runtime.md, State: created is what a container is after step 2 of its life, and prestart hooks are step 3;
            // those that came later say that it is being created.
            let status = match hook.is_prestart() {
                true => "created",
                false => "creating",
            };
            hook.run(&state(status), process)
                .map_err(|failure| HookFailed(failure.to_string()))?;
        }
        Ok(())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            pidfd::send_signal(&process.pidfd, libc::SIGKILL).ok();
            if let Some(cgroup) = &self.cgroup {
                // Whatever it may have started besides itself.
                cgroup.kill().ok();
            }
            while waitid(Id::PIDFd(process.pidfd.as_fd()), WaitPidFlag::WEXITED)
                == Err(Errno::EINTR)
            {}
        }
        drop(self.carrier.take());
        if let Some(mut devices) = self.devices.take()
            && let Err(error) = devices.take_back()
        {
            report::warn(format_args!("{}", report::sentence(&error)));
        }
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.undo()
        {
            report::warn(format_args!(
                "remove cgroup {}: {}",
                cgroup.path().display(),
                report::sentence(&error)
            ));
        }
        if let Some(rdt) = self.rdt.take()
            && let Err(error) = rdt.undo()
        {
            report::warn(format_args!("{}", report::sentence(&error)));
        }
    }
}

impl Launched {
    pub(crate) fn pid(&self) -> Pid {
        self.undo
            .process
            .as_ref()
            .map_or(Pid::from_raw(0), |process| process.pid)
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.undo
            .process
            .as_ref()
            .expect("a launched process is there until it is kept")
            .pidfd
            .as_fd()
    }

    /// Whether the process has a cgroup of its own.
    pub(crate) fn has_cgroup(&self) -> bool {
        self.undo.cgroup.is_some()
    }

    /// Nothing is taken back any more. Returns the process.
    pub(crate) fn keep(mut self) -> (ParentEnd, OwnedFd) {
        self.undo.devices = None;
        if let Some(carrier) = self.undo.carrier.take() {
            carrier.keep();
        }
        self.undo.cgroup = None;
        self.undo.rdt = None;
        let process = self
            .undo
            .process
            .take()
            .expect("a launched process is there until it is kept");
        (self.talk, process.pidfd)
    }
}

/// Do everything that can fail without touching the host, the compiling of the seccomp `profile` with it. Compiled seccomp filters are kept in `cache`.
///
/// # Errors
/// Names the network device, limit, device rule, class of service, seccomp rule or hook at fault.
pub(crate) fn prepare(
    plan: &Plan,
    profile: Option<&LinuxSeccomp>,
    cache: &Path,
) -> Result<Provisions> {
    network::look(&plan.net_devices)?;
    let control = &plan.control;
    let rules = control.resources.devices().as_deref().unwrap_or_default();
    let output = match plan.hooks == Hooks::default() {
        true => Output::default(),
        false => Output::open(&plan.hook_output)?,
    };
    let list = |kind, hooks: &Option<Vec<Hook>>| {
        let hooks = hooks.as_deref().unwrap_or_default();
        Prepared::list(kind, hooks, &output)
    };
    let mut runtime_hooks = list("prestart", plan.hooks.prestart())?;
    runtime_hooks.extend(list("createRuntime", plan.hooks.create_runtime())?);
    Ok(Provisions {
        limits: cgroup::limits(&control.resources)?,
        devices: control
            .restrict_devices
            .then(|| Devices::compile(rules))
            .transpose()?,
        rdt: control.rdt.as_ref().map(rdt).transpose()?,
        carrier: plan
            .root
            .carrier
            .then(|| {
                let joined = joined_mounts(plan);
                joined.map_or(Ok(()), |path| open_namespace(Kind::Mount, path).map(drop))?;
                Carrier::new(&plan.root.path, joined)
            })
            .transpose()
            .context("unable to start container process")?,
        filter: filter(plan, profile, cache)?,
        runtime_hooks,
        create_container: list("createContainer", plan.hooks.create_container())?,
        start_container: list("startContainer", plan.hooks.start_container())?,
    })
}

/// The mount namespace that is joined, if one is.
fn joined_mounts(plan: &Plan) -> Option<&Path> {
    let mut joins = plan.namespaces.joins.iter();
    let mounts = joins.find(|join| join.kind == Kind::Mount);
    mounts.map(|join| join.path.as_path())
}

/// The filter of a process: compiled from the profile, or the program that stands in its place.
pub(crate) fn filter(
    plan: &Plan,
    profile: Option<&LinuxSeccomp>,
    cache: &Path,
) -> Result<Option<Filter>> {
    let extensions = &plan.extensions;
    if let Some(program) = &extensions.seccomp_program {
        return Ok(Some(Filter {
            bpf: program.clone(),
            flags: profile.map_or(0, seccomp::flags),
        }));
    }
    if let Some(profile) = profile.filter(|_| extensions.only_known_calls) {
        seccomp::all_calls_are_known(profile)?;
    }
    profile
        .map(|profile| cache::filter(profile, cache))
        .transpose()
}

fn rdt(rdt: &Rdt) -> Result<Membership> {
    // COMPAT: runc's words.
    let resctrl = Resctrl::probe()?.context(
        "linux.intelRdt: intelRdt is specified in config, but Intel RDT is not enabled: no resctrl file system is mounted",
    )?;
    Membership::look(resctrl, &rdt.wanted, &rdt.id)
}

/// Make the container's process, up to the point where only the word to start is missing.
///
/// `fifos` are the go and the answer descriptor; without them the conversation's socket is both. `meanwhile` is work of
/// the caller's that can be done while the child builds its tree.
///
/// # Errors
/// One sentence in the shape that engines look into: `unable to start container process: …`. Nothing is left behind.
pub(crate) fn launch(
    request: &Request,
    prepared: Provisions,
    fifos: Option<(OwnedFd, OwnedFd)>,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Launched> {
    let Request {
        plan, hierarchy, ..
    } = request;
    let Provisions {
        limits,
        devices,
        rdt,
        carrier,
        filter,
        runtime_hooks,
        create_container,
        start_container,
    } = prepared;
    let mut undo = Undo {
        process: None,
        devices: None,
        carrier,
        cgroup: None,
        rdt,
    };
    undo.cgroup = make_cgroup(request, &limits)?;
    if let Some(rdt) = &mut undo.rdt {
        rdt.make().context("linux.intelRdt")?;
    }
    raise_limits(plan)?;
    let root_tree = undo.carrier.as_mut().map(Carrier::attach).transpose();

    let (talk, child_end) = handshake::pair().context("make a socket pair")?;
    let mut given = Given {
        plan,
        parents_own: [talk.as_fd().as_raw_fd(), request.lock.as_raw_fd()]
            .into_iter()
            .chain(request.place.connection())
            .chain(
                undo.carrier
                    .as_ref()
                    .map(|carrier| carrier.as_fd().as_raw_fd()),
            )
            .collect(),
        talk: child_end,
        streams: Some(request.streams),
        wait_mapped: plan.maps.is_some() && !plan.namespaces.user_after_joins,
        unshare: plan.namespaces.unshare,
        joins: plan
            .namespaces
            .joins
            .iter()
            .map(|join| open_namespace(join.kind, &join.path))
            .collect::<Result<_>>()?,
        pid_namespace: plan
            .namespaces
            .pid
            .as_deref()
            .map(|path| open_namespace(Kind::Pid, path))
            .transpose()?,
        host_proc: Some(open_path("/proc")?),
        root_tree: root_tree.context("unable to start container process")?,
        trees: Vec::new(),
        root_name: PathBuf::new(),
        kernel_trees: Vec::new(),
        late: Vec::new(),
        hierarchy: hierarchy.mount_point().to_owned(),
        cgroup: match (request.place, &undo.cgroup) {
            (Place::Scope(_), _) | (_, Some(_)) => request.place.path().map(Path::to_owned),
            _ => None,
        }
        .map_or_else(cgroup::own, Ok)?,
        // createContainer hooks are the container's first programs: the device rules have to be there.
        stop_when_rooted: !runtime_hooks.is_empty() || !create_container.is_empty(),
        create_container,
        start_container,
        state: request.state,
        filter,
        fifos,
    };
    for (join, file) in plan.namespaces.joins.iter().zip(&given.joins) {
        check_joined(plan, join.kind, file.as_fd())?;
        if join.kind == Kind::User {
            check_maps(plan, file)?;
        }
    }
    let id_maps = sources::clone(plan, &mut given).context("unable to start container process")?;

    // COMPAT: runc's words for these stages begin the lines.
    debug!("nsexec container setup: clone the container's process");
    let (cloned, placed) = clone_process(&mut given, undo.cgroup.as_ref(), request.place)?;
    let pid = cloned.pid;
    debug!("child process in init() has the number {pid}");
    undo.process = Some(cloned);
    // The child has its copies; ours would keep the host's mounts and the conversation alive.
    let wait_mapped = given.wait_mapped;
    drop(given);

    if let Some(adjustment) = plan.process.oom_score_adj {
        adjust_oom_score(pid, adjustment)?;
    }
    if let (false, Some(cgroup)) = (placed, &undo.cgroup) {
        cgroup
            .add(pid)
            .context("unable to apply cgroup configuration")?;
    }
    if let Place::Scope(scope) = request.place {
        let cgroup = scope
            .start(hierarchy, pid, &limits, devices.as_ref(), request.mark)
            .context("unable to apply cgroup configuration")?;
        debug!("made cgroup {}", cgroup.path().display());
        cgroup.claim(request.mark);
        undo.cgroup = Some(cgroup);
    }
    // ORDER: before it has its cgroup namespace, whose root is where it is then.
    let [first, last] = plan.extensions.below(request.place.unit().is_some());
    hold(request, &undo, first.as_deref(), pid)?;
    enter_class(&undo, pid)?;
    if wait_mapped {
        // One that has its user namespace only after joining others asks for the maps itself.
        if !plan.namespaces.user_after_joins {
            map(plan, pid)?;
        }
        go_on(talk.mapped())?;
    }
    // ORDER: the child runs no program of the container's before it hears `Hooked` or `Saved`, so that the rules may come
    // while it makes its mounts.
    if let Some(cgroup) = &undo.cgroup {
        confine(cgroup, devices.as_ref(), plan.control.delegate_to)?;
    }
    meanwhile()?;
    let mut launched = Launched {
        talk,
        console: None,
        undo,
    };
    converse(request, &mut launched, &runtime_hooks, &id_maps)?;
    hold(request, &launched.undo, last.as_deref(), launched.pid())?;
    Ok(launched)
}

/// Put the process into a cgroup below the container's own.
fn hold(request: &Request, undo: &Undo, below: Option<&Path>, pid: Pid) -> Result<()> {
    let (Some(cgroup), Some(below)) = (&undo.cgroup, below) else {
        return Ok(());
    };
    let owner = request.plan.control.delegate_to;
    cgroup
        .hold(request.hierarchy, below, pid, owner)
        .context("unable to apply cgroup configuration")
}

/// Put the process into its class of resctrl.
fn enter_class(undo: &Undo, pid: Pid) -> Result<()> {
    let rdt = undo.rdt.as_ref();
    rdt.map_or(Ok(()), |rdt| rdt.enter(pid))
        .context("linux.intelRdt")
}

/// A child that died meanwhile has left word why, which is heard next.
fn go_on(said: nix::Result<()>) -> Result<()> {
    match said {
        Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
        other => other.context("tell the container's process to go on"),
    }
}

/// Write the maps of the process's new user namespace.
fn map(plan: &Plan, pid: Pid) -> Result<()> {
    debug!("map the ids of process {pid}");
    let maps = plan.maps.as_ref().map_or(Ok(()), |maps| maps.write(pid));
    maps.context("linux.uidMappings, linux.gidMappings")
}

/// Answer the child until it is ready.
fn converse(
    request: &Request,
    launched: &mut Launched,
    runtime_hooks: &[Prepared],
    id_maps: &[OwnedFd],
) -> Result<()> {
    loop {
        let heard = launched
            .talk
            .hear()
            .context("listen to the container's process")?;
        debug!("the container's process says {heard:?}");
        match heard {
            Heard::Entered(pid) => {
                entered(request.plan, launched, pid)?;
                go_on(launched.talk.known())?;
            }
            Heard::Unmapped => {
                map(request.plan, launched.pid())?;
                go_on(launched.talk.mapped())?;
            }
            Heard::Tree(tree, number) => {
                sources::map_made(request.plan, &tree, number, id_maps)
                    .context("unable to start container process")?;
                go_on(launched.talk.mapped())?;
            }
            Heard::Networked(socket) => {
                let moved = &mut launched.undo.devices;
                network::hand_over(&request.plan.net_devices, socket, moved)?;
                go_on(launched.talk.moved())?;
            }
            Heard::Rooted => {
                let pid = launched.pid().as_raw();
                let state = |status: &str| (request.state)(status, pid);
                launched.undo.run_hooks(runtime_hooks, &state)?;
                go_on(launched.talk.hooked())?;
            }
            Heard::Console(master, slave) => launched.console = Some((master, slave)),
            Heard::Ready(None) => return Ok(()),
            Heard::Ready(Some(listener)) => {
                let state = (request.state)("creating", launched.pid().as_raw());
                return notify::hand_over(request.plan.agent.as_ref(), &state, launched, listener);
            }
            Heard::Failed(failure) => return Err(explain(request.plan, &failure)),
            Heard::End => bail!(
                "unable to start container process: the container's process died while it was set up"
            ),
        }
    }
}

/// A second fork: the process that goes on takes the first one's place.
fn entered(plan: &Plan, launched: &mut Launched, pid: Pid) -> Result<()> {
    let pidfd = pidfd::open(pid).context("open the container's process")?;
    if let Some(first) = launched.undo.process.replace(Cloned { pid, pidfd }) {
        while waitid(Id::PIDFd(first.pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    }
    // It may have been forked before the first one came into its class.
    enter_class(&launched.undo, pid)?;
    plan.process
        .oom_score_adj
        .map_or(Ok(()), |adjustment| adjust_oom_score(pid, adjustment))
}

/// The container's cgroup with its limits; none for a rootless caller who may not have one and asks for nothing of it.
///
/// A scope of systemd's comes later: it is made around the process.
fn make_cgroup(request: &Request, limits: &[cgroup::Limit]) -> Result<Option<Cgroup>> {
    let path = match request.place {
        Place::Path(path) => path,
        Place::Scope(_) => return Ok(None),
        Place::Nowhere if limits.is_empty() => return Ok(None),
        Place::Nowhere => {
            bail!("linux.resources: limits need a cgroup, and --cgroup-manager=disabled gives none")
        }
    };
    let error = match Cgroup::create(request.hierarchy, path, limits) {
        Ok(cgroup) => {
            debug!("made cgroup {}", path.display());
            // ORDER: before there is a process in it. What has no mark holds nothing of ours.
            cgroup.claim(request.mark);
            return Ok(Some(cgroup));
        }
        Err(error) => error,
    };
    match error.downcast_ref::<cgroup::Refused>() {
        Some(refused) if request.rootless => {
            let has_path = request.plan.control.path.is_some();
            refused.without_cgroup(has_path, !limits.is_empty())?;
            Ok(None)
        }
        _ => Err(error).context("unable to apply cgroup configuration"),
    }
}

/// Restrict the cgroup's access to devices, and hand it to its owner inside.
fn confine(cgroup: &Cgroup, devices: Option<&Devices>, owner: Option<Uid>) -> Result<()> {
    if let Some(devices) = devices {
        cgroup.devices(devices).context("linux.resources.devices")?;
    }
    owner.map_or(Ok(()), |owner| cgroup.delegate(owner))
}

/// Clone the child: into its cgroup where the kernel allows it, else it waits until it is put there, and has its cgroup
/// namespace only then, so that the namespace's root is the right one.
fn clone_process(
    given: &mut Given,
    cgroup: Option<&Cgroup>,
    place: &Place,
) -> Result<(Cloned, bool)> {
    let flags = given.plan.namespaces.clone;
    let made_around_it = matches!(place, Place::Scope(_));
    if cgroup.is_some() || made_around_it {
        match cgroup.map(|cgroup| clone_child(given, flags, Some(cgroup))) {
            Some(Ok(cloned)) => return Ok((cloned, true)),
            // The caller may not write the cgroup that is common to both.
            None | Some(Err(Errno::EACCES | Errno::EPERM)) => {}
            Some(Err(Errno::EBUSY)) if let Some(why) = cgroup.and_then(Cgroup::why_busy) => {
                bail!("unable to start container process: {why}")
            }
            Some(Err(errno)) => return Err(clone_failed(errno)),
        }
        let own_namespace =
            process::CloneFlags::from(clone_flag(Kind::Cgroup).bits().cast_unsigned());
        given.unshare |= flags & own_namespace;
        given.wait_mapped = true;
        return clone_child(given, flags & !own_namespace, None)
            .map(|cloned| (cloned, false))
            .map_err(clone_failed);
    }
    clone_child(given, flags, None)
        .map(|cloned| (cloned, true))
        .map_err(clone_failed)
}

fn clone_child(
    given: &mut Given,
    flags: process::CloneFlags,
    cgroup: Option<&Cgroup>,
) -> nix::Result<Cloned> {
    match process::clone3(flags, cgroup.map(Cgroup::fd))? {
        Some(cloned) => Ok(cloned),
        None => child::main(given),
    }
}

fn clone_failed(errno: Errno) -> anyhow::Error {
    let hint = match errno {
        Errno::ENOSPC => ": a limit in /proc/sys/user is reached",
        Errno::EPERM => {
            ": user namespaces may be disabled for unprivileged users (sysctl kernel.unprivileged_userns_clone, \
             user.max_user_namespaces)"
        }
        _ => "",
    };
    anyhow!(
        "unable to start container process: clone: {}{hint}",
        Words(errno)
    )
}

/// A user namespace cannot raise limits, so that is done here, for the child to inherit; it lowers them in the end.
fn raise_limits(plan: &Plan) -> Result<()> {
    for limit in &plan.process.limits {
        let (soft, hard) = getrlimit(limit.resource).context("process.rlimits")?;
        if limit.hard > hard {
            setrlimit(limit.resource, soft, limit.hard).map_err(|errno| {
                anyhow!(
                    "process.rlimits: {} may not be raised from {hard} to {}: {} (needs CAP_SYS_RESOURCE)",
                    limit.name,
                    limit.hard,
                    Words(errno)
                )
            })?;
        }
    }
    Ok(())
}

fn adjust_oom_score(pid: Pid, adjustment: i32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string())
        .with_context(|| format!("process.oomScoreAdj: set to {adjustment}"))
}

fn open_namespace(kind: Kind, path: &Path) -> Result<OwnedFd> {
    let field = || {
        format!(
            "linux.namespaces: {} namespace {}",
            name(kind),
            path.display()
        )
    };
    // A fifo in its place would be waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty())
        .map_err(|errno| anyhow!("{}", Words(errno)))
        .with_context(field)?;
    match namespace_type(file.as_fd()) {
        Ok(found) if found == clone_flag(kind).bits() => Ok(file),
        Ok(_) => Err(anyhow!("the path is of a namespace of another type")).with_context(field),
        Err(_) => Err(anyhow!("the path is no namespace")).with_context(field),
    }
}

/// A namespace joined by path may be the caller's own: then its settings are the host's, and its devices are there.
fn check_joined(plan: &Plan, kind: Kind, file: BorrowedFd) -> Result<()> {
    let (own, prefixes): (_, &[&str]) = match kind {
        Kind::Network => ("/proc/self/ns/net", &["net/"]),
        Kind::Ipc => (
            "/proc/self/ns/ipc",
            &["kernel/msg", "kernel/sem", "kernel/shm", "fs/mqueue/"],
        ),
        Kind::Uts => (
            "/proc/self/ns/uts",
            &["kernel/hostname", "kernel/domainname"],
        ),
        _ => return Ok(()),
    };
    let theirs = fstat(file).context("linux.namespaces")?;
    let ours = stat(own).with_context(|| format!("look at {own}"))?;
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) {
        return Ok(());
    }
    if kind == Kind::Network && !plan.net_devices.is_empty() {
        // COMPAT: the words for a container without a network namespace, which this comes to.
        bail!("linux.netDevices: unable to move network devices without a NET namespace");
    }
    let concerns = |(path, _): &&(PathBuf, String)| {
        prefixes
            .iter()
            .any(|prefix| path.to_str().is_some_and(|path| path.starts_with(prefix)))
    };
    match plan.sysctl.iter().find(concerns) {
        Some((path, _)) => bail!(
            "linux.sysctl: {:?} not allowed in host {} namespace",
            path.display().to_string(),
            name(kind)
        ),
        None => Ok(()),
    }
}

/// Whether a user namespace to join has the maps that the bundle names as well. COMPAT: runc's words.
fn check_maps(plan: &Plan, namespace: &OwnedFd) -> Result<()> {
    const FIELD: &str = "linux.uidMappings, linux.gidMappings";
    let Some(expected) = &plan.expected_maps else {
        return Ok(());
    };
    let what = || format!("{FIELD}: look at the maps of the user namespace to join");
    let Some(Cloned { pid, pidfd }) = process::clone3(0, None).with_context(what)? else {
        let flag = nix::sched::CloneFlags::CLONE_NEWUSER;
        process::exit_now(setns(namespace, flag).err().map_or(0, |errno| errno as i32))
    };
    // KERNEL: a process that has ended has its namespaces until it has been waited for.
    let ended = wait_for(&pidfd, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    let same = match ended.with_context(what)? {
        WaitStatus::Exited(_, 0) => expected.are_of(pid),
        WaitStatus::Exited(_, errno) => Err(anyhow!("{}", Words(Errno::from_raw(errno)))),
        other => Err(anyhow!("{other:?}")),
    };
    wait_for(&pidfd, WaitPidFlag::WEXITED).with_context(what)?;
    if !same.with_context(what)? {
        bail!(
            "{FIELD}: user namespaces enabled, but both namespace path and non-matching mapping specified -- you may only provide one"
        );
    }
    report::warn(format_args!(
        "{FIELD}: the user namespace is joined by its path, and has these maps already"
    ));
    Ok(())
}

fn wait_for(process: &OwnedFd, how: WaitPidFlag) -> nix::Result<WaitStatus> {
    loop {
        match waitid(Id::PIDFd(process.as_fd()), how) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn open_path(path: &str) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {path}"))
}

/// The sentence for what a child says of its end.
fn explain(plan: &Plan, failure: &Failure) -> anyhow::Error {
    let Failure {
        step,
        errno,
        subject,
    } = failure;
    let why = Words(*errno).to_string();
    let sentence = match step {
        Step::Hook => return anyhow!(HookFailed(subject.clone())),
        // COMPAT: engines tell a missing program (127) from a forbidden one (126) by these words.
        Step::Lookup if !subject.contains('/') => {
            format!("exec: {subject:?}: executable file not found in $PATH")
        }
        Step::Lookup if *errno == Errno::EACCES => format!("exec: {subject:?}: {why}"),
        // COMPAT: Docker knows the first reason for exit code 126, Podman the second.
        Step::Lookup if *errno == Errno::EISDIR => {
            format!("exec: {subject:?}: is a directory: permission denied")
        }
        Step::Lookup => format!("exec: {subject:?}: stat {subject}: {why}"),
        _ => format!(
            "error during container init: {}",
            init_failure(plan, *step, &why, subject)
        ),
    };
    anyhow!("unable to start container process: {sentence}")
}

fn init_failure(plan: &Plan, step: Step, why: &str, subject: &str) -> String {
    let what = match step {
        Step::Mount => return mount_failure(plan, why, subject),
        Step::Breakout => return subject.to_owned(),
        Step::JoinNamespace => format!("join {subject} namespace"),
        Step::Unshare => "unshare namespaces".to_owned(),
        Step::BecomeRoot => "become root of the user namespace".to_owned(),
        Step::TimeOffsets => format!("linux.timeOffsets: write {subject:?}"),
        Step::Fork => "fork into the pid namespace".to_owned(),
        Step::Loopback => "set the loopback device up".to_owned(),
        Step::NetDevices => format!("linux.netDevices: {subject}"),
        Step::Keyring => format!("join session keyring {subject}"),
        Step::Propagation => format!("set propagation of {subject}"),
        Step::Root => format!("bind root.path {subject}"),
        Step::Device => format!("make device {subject}"),
        Step::Link => format!("make link /dev/{subject}"),
        Step::Sysctl => format!("linux.sysctl: write {subject}"),
        Step::Pivot => format!("make {} the root", plan.root.path.display()),
        Step::Null => format!("open {subject} of the container"),
        Step::Cwd => return format!("chdir to cwd ({subject:?}) set in config.json failed: {why}"),
        Step::Console => format!("set up the terminal ({subject})"),
        Step::Hostname => format!("set hostname {subject:?}"),
        Step::Domainname => format!("set domainname {subject:?}"),
        Step::Masked => format!("mask {subject}"),
        Step::ReadOnly => format!("make {subject} read-only"),
        Step::ReadOnlyRoot => "make the root read-only".to_owned(),
        Step::Stdio => format!("set up descriptors ({subject})"),
        Step::Apparmor => {
            format!("process.apparmorProfile: apparmor failed to apply profile {subject:?}")
        }
        Step::Selinux => format!("process.selinuxLabel: apply {subject:?}"),
        Step::MountLabel => format!("linux.mountLabel: apply {subject:?}"),
        Step::Execution => format!("set {subject}"),
        Step::Limit => format!("process.rlimits: set {subject}"),
        Step::Capabilities => format!("process.capabilities: {subject}"),
        Step::Groups => "process.user.additionalGids: setgroups".to_owned(),
        Step::Ids => format!("process.user: {subject}"),
        Step::NoNewPrivileges => "set no_new_privs".to_owned(),
        Step::Seccomp => "load the seccomp filter".to_owned(),
        Step::Hook | Step::Lookup => subject.to_owned(),
    };
    format!("{what}: {why}")
}

fn mount_failure(plan: &Plan, why: &str, subject: &str) -> String {
    let (index, said) = subject.split_once(' ').unwrap_or((subject, ""));
    let Some(op) = index
        .parse()
        .ok()
        .and_then(|index: usize| plan.mounts.get(index))
    else {
        return why.to_owned();
    };
    let what = sources::mounting(&op.source(), &op.destination());
    if op.ordinary_directory && said.contains("ordinary directory") {
        return format!("{what}: filesystem {:?} {said}", op.kind());
    }
    if said.contains("inside /proc") {
        return format!("{what}: {:?} {said}", op.destination());
    }
    if said.starts_with("cannot ") {
        return format!("{what}: {said}: {why}");
    }
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(" ({said})")
    };
    format!("{what}: mount {}: {why}{said}", op.kind())
}

/// Where compiled filters are kept below the state root.
pub(crate) fn cache_directory(root: &Path) -> PathBuf {
    root.join(".cache/seccomp")
}
