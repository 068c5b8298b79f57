//! One process more for a running container: the same clone and the same conversation, with less to say.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::Stdio;
use super::{
    Launched, Undo, adjust_oom_score, clone_failed, entered, explain, go_on, notify, open_path,
    raise_limits,
};
use crate::cgroup::{Cgroup, Resctrl, Traces, Unit};
use crate::child::{self, Given};
use crate::handshake::{self, Failure, Heard, Step};
use crate::plan::Plan;
use crate::plan::seccomp::Filter;
use crate::report::debug;
use crate::sys::errno::Words;
use crate::sys::execution::set_processors;
use crate::sys::process::{self, Cloned};

/// What a process that joins a container needs besides the plan.
pub(crate) struct Joining<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) filter: Option<Filter>,
    /// The pidfd of the container's init, whose namespaces are joined.
    pub(crate) init: Option<OwnedFd>,
    /// The container's root, where it is not that of its mount namespace.
    pub(crate) root: Option<OwnedFd>,
    /// Where the process may go, the first choice first; none for a container without a cgroup.
    pub(crate) cgroups: Vec<Cgroup>,
    /// The unit of systemd's that has the container, and where below its cgroup the process goes.
    pub(crate) unit: Option<(&'a Unit, &'a Path)>,
    /// The container's place in a resctrl file system.
    pub(crate) class: Option<(Resctrl, &'a Traces)>,
    /// Whether a caller without rights over the cgroups goes without: a rootless one, whose own cgroup holds it then.
    pub(crate) lenient: bool,
    /// The container's state, for the agent of its seccomp filter.
    pub(crate) state: &'a dyn Fn() -> Vec<u8>,
    pub(crate) streams: &'a Stdio,
}

/// Make the process, up to the point where only the word to start is missing.
///
/// # Errors
/// As for [`super::launch`]. Nothing is left behind.
pub(crate) fn join(mut joining: Joining) -> Result<Launched> {
    let plan = joining.plan;
    raise_limits(plan)?;
    if let Some(processors) = &plan.execution.first_processors {
        set_processors(processors).context("process.execCPUAffinity.initial")?;
    }
    let (talk, child_end) = handshake::pair().context("make a socket pair")?;
    let parents_own = vec![talk.as_fd().as_raw_fd()];
    let container = (joining.init.take(), joining.root.take());
    let mut given = Given {
        wait_mapped: joining.class.is_some(),
        filter: joining.filter.take(),
        streams: Some(joining.streams),
        ..Given::into_container(plan, child_end, parents_own, container, open_path("/proc")?)
    };
    // COMPAT: runc's words for these stages begin the lines.
    debug!("nsexec container setup: clone a process for the container");
    let (cloned, placed) = clone_process(&mut given, &joining.cgroups)?;
    let pid = cloned.pid;
    debug!("child process in init() has the number {pid}");
    let waits = given.wait_mapped;
    let mut launched = Launched {
        talk,
        console: None,
        undo: Undo {
            process: Some(cloned),
            devices: None,
            carrier: None,
            cgroup: None,
            rdt: None,
        },
    };
    drop(given);
    if let Some((resctrl, traces)) = &joining.class {
        traces.enter(resctrl, pid).context("linux.intelRdt")?;
    }
    if let Some(adjustment) = plan.process.oom_score_adj {
        adjust_oom_score(pid, adjustment)?;
    }
    if !placed {
        place(&joining, pid)?;
    }
    if waits {
        go_on(launched.talk.mapped())?;
    }
    converse(plan, joining.state, &mut launched)?;
    Ok(launched)
}

/// Into the first cgroup that takes the process. False: it waits to be put into one.
fn clone_process(given: &mut Given, cgroups: &[Cgroup]) -> Result<(Cloned, bool)> {
    for cgroup in cgroups {
        match clone_child(given, Some(cgroup)) {
            Ok(cloned) => return Ok((cloned, true)),
            // No right to move between the two; one that has processes below itself; one that is gone.
            Err(
                errno @ (Errno::EACCES
                | Errno::EPERM
                | Errno::EBUSY
                | Errno::EOPNOTSUPP
                | Errno::ENOENT
                | Errno::ENODEV),
            ) => debug!("clone into cgroup {}: {errno}", cgroup.path().display()),
            Err(errno) => return Err(clone_failed(errno)),
        }
    }
    given.wait_mapped |= !cgroups.is_empty();
    clone_child(given, None)
        .map(|cloned| (cloned, cgroups.is_empty()))
        .map_err(clone_failed)
}

fn clone_child(given: &mut Given, cgroup: Option<&Cgroup>) -> nix::Result<Cloned> {
    match process::clone3(0, cgroup.map(Cgroup::fd))? {
        Some(cloned) => Ok(cloned),
        None => child::join(given),
    }
}

/// Put the waiting process into the first cgroup that takes it.
fn place(joining: &Joining, pid: Pid) -> Result<()> {
    let mut refused = None;
    for cgroup in &joining.cgroups {
        match cgroup.add(pid) {
            Ok(()) => return Ok(()),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let Some(error) = refused else { return Ok(()) };
    let no_right = matches!(
        error.downcast_ref(),
        Some(Errno::EACCES | Errno::EPERM | Errno::ENOENT)
    );
    let error = match (no_right, joining.unit) {
        (true, Some((unit, below))) => match unit.attach(pid, below) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        },
        _ => error,
    };
    if no_right && joining.lenient {
        debug!("the process stays in the caller's cgroup: {error:#}");
        return Ok(());
    }
    Err(error).context("unable to apply cgroup configuration")
}

/// Answer the child until it is ready.
fn converse(plan: &Plan, state: &dyn Fn() -> Vec<u8>, launched: &mut Launched) -> Result<()> {
    loop {
        let heard = launched
            .talk
            .hear()
            .context("listen to the container's process")?;
        debug!("the container's process says {heard:?}");
        match heard {
            Heard::Entered(pid) => {
                entered(plan, launched, pid)?;
                go_on(launched.talk.known())?;
            }
            Heard::Console(master, slave) => launched.console = Some((master, slave)),
            Heard::Ready(None) => return Ok(()),
            Heard::Ready(Some(listener)) => {
                return notify::hand_over(plan.agent.as_ref(), &state(), launched, listener);
            }
            // KERNEL: an init that is ending has no namespaces any more, before it counts as dead.
            Heard::Failed(Failure {
                step: Step::JoinNamespace,
                errno: Errno::ESRCH,
                ..
            }) => bail!("cannot exec in a stopped container"),
            Heard::Failed(failure) => return Err(explain(plan, &failure)),
            Heard::End => bail!(
                "unable to start container process: it died while it was set up (has the container ended?)"
            ),
            other => {
                return Err(anyhow!(
                    "unable to start container process: unexpected {other:?}: {}",
                    Words(Errno::EPROTO)
                ));
            }
        }
    }
}
