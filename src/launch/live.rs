//! Mounts of a running container, changed by a child that goes into it and ends.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{clone_failed, explain, mount_failure, open_path, sources};
use crate::child::{self, Given};
use crate::handshake::{self, Failure, Heard, Step};
use crate::plan::Plan;
use crate::plan::mounts::MountOp;
use crate::sys::errno::Words;
use crate::sys::pidfd;
use crate::sys::process::{self, Cloned};

/// What is to happen to the mounts of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    /// They are made.
    Add,
    /// What is mounted at their destinations is detached.
    Remove,
}

/// Change the mounts of the container whose init `init` is; `root` is its root, where that is not the root of its mount
/// namespace.
///
/// # Errors
/// Names the mount and the reason. What had been mounted before that is detached again.
pub(crate) fn change_mounts(
    plan: &Plan,
    live: Live,
    init: OwnedFd,
    root: Option<OwnedFd>,
) -> Result<()> {
    let (talk, child_end) = handshake::pair().context("make a socket pair")?;
    let parents_own = vec![talk.as_fd().as_raw_fd()];
    let container = (Some(init), root);
    let mut given =
        Given::into_container(plan, child_end, parents_own, container, open_path("/proc")?);
    // Its namespaces with maps have done their work: no mount is left to be mapped.
    let _id_maps = match live {
        Live::Add => sources::clone(plan, &mut given)?,
        Live::Remove => Vec::new(),
    };
    let helper = match process::clone3(0, None).map_err(clone_failed)? {
        Some(cloned) => Helper(cloned),
        None => child::change_mounts(&mut given, live == Live::Add),
    };
    drop(given);
    let heard = talk
        .hear()
        .context("listen to the helper in the container")?;
    drop(helper);
    match heard {
        Heard::Ready(_) => Ok(()),
        Heard::Failed(Failure {
            step: Step::Mount,
            errno,
            subject,
        }) => {
            let why = Words(errno).to_string();
            bail!(match live {
                Live::Add => mount_failure(plan, &why, &subject),
                Live::Remove => unmount_failure(plan, &why, &subject),
            })
        }
        Heard::Failed(failure) => Err(explain(plan, &failure)),
        Heard::End => bail!("the helper died in the container (has that ended?)"),
        other => bail!("unexpected {other:?}: {}", Words(Errno::EPROTO)),
    }
}

fn unmount_failure(plan: &Plan, why: &str, subject: &str) -> String {
    let (index, said) = subject.split_once(' ').unwrap_or((subject, ""));
    let op = index
        .parse()
        .ok()
        .and_then(|index: usize| plan.mounts.get(index));
    let why = if said.is_empty() { why } else { said };
    format!(
        "error unmounting {:?}: {why}",
        op.map(MountOp::destination).unwrap_or_default()
    )
}

/// Killed when it is dropped: after its last word it has nothing to do.
struct Helper(Cloned);

impl Drop for Helper {
    fn drop(&mut self) {
        let pidfd = &self.0.pidfd;
        pidfd::send_signal(pidfd, libc::SIGKILL).ok();
        while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    }
}
