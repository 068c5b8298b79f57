//! A container's process that CRIU makes: the cgroup with its limits is made around CRIU, which is in it while it works.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::network::loopback_up;
use super::{Provisions, Request, Undo, confine, enter_class, make_cgroup};
use crate::cgroup::Place;
use crate::hooks::Prepared;
use crate::report::debug;
use crate::sys::pidfd;
use crate::sys::process::Cloned;

/// What is made for a process that is to be restored. Dropped, it is undone, that process and its maker with it.
pub(crate) struct Restored {
    undo: Undo,
    runtime_hooks: Vec<Prepared>,
}

/// Make the container's cgroup and put `maker` into it, the process that will make the container's.
///
/// # Errors
/// As for [`super::launch`]. Nothing is left behind, `maker` neither.
pub(crate) fn house(request: &Request, prepared: Provisions, maker: Pid) -> Result<Restored> {
    let Provisions {
        limits,
        devices,
        rdt,
        runtime_hooks,
        ..
    } = prepared;
    let mut undo = Undo {
        process: Some(open(maker)?),
        devices: None,
        carrier: None,
        cgroup: make_cgroup(request, &limits)?,
        rdt,
    };
    if let Some(rdt) = &mut undo.rdt {
        rdt.make().context("linux.intelRdt")?;
    }
    if let Some(cgroup) = &undo.cgroup {
        cgroup
            .add(maker)
            .context("unable to apply cgroup configuration")?;
    }
    if let Place::Scope(scope) = request.place {
        let cgroup = scope
            .start(
                request.hierarchy,
                maker,
                &limits,
                devices.as_ref(),
                request.mark,
            )
            .context("unable to apply cgroup configuration")?;
        debug!("made cgroup {}", cgroup.path().display());
        cgroup.claim(request.mark);
        undo.cgroup = Some(cgroup);
    }
    enter_class(&undo, maker)?;
    if let Some(cgroup) = &undo.cgroup {
        confine(cgroup, devices.as_ref(), request.plan.control.delegate_to)?;
    }
    Ok(Restored {
        undo,
        runtime_hooks,
    })
}

fn open(pid: Pid) -> Result<Cloned> {
    let pidfd = pidfd::open(pid).with_context(|| format!("open process {pid}"))?;
    Ok(Cloned { pid, pidfd })
}

impl Restored {
    /// The cgroup's path below the root of its hierarchy.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.undo.cgroup.as_ref().map(|cgroup| cgroup.path())
    }

    /// What comes when the namespaces of the process `init` are there and its programs do not run yet: the loopback device
    /// of a new network namespace, which CRIU leaves down, and the hooks, with the container's state from `state`.
    ///
    /// # Errors
    /// The hook that failed, and how.
    pub(crate) fn prepare(
        &self,
        init: Pid,
        new_network: bool,
        state: &dyn Fn(&str) -> Vec<u8>,
    ) -> Result<()> {
        if new_network {
            loopback_up(init)?;
        }
        self.undo.run_hooks(&self.runtime_hooks, state)
    }

    /// The container's process has come to be: it takes its maker's place in what would be undone.
    pub(crate) fn take(&mut self, init: Pid) -> Result<&OwnedFd> {
        let init = open(init)?;
        Ok(&self.undo.process.insert(init).pidfd)
    }

    /// Nothing is taken back any more. Returns the process.
    pub(crate) fn keep(mut self) -> Option<OwnedFd> {
        self.undo.cgroup = None;
        self.undo.rdt = None;
        self.undo.process.take().map(|process| process.pidfd)
    }
}
