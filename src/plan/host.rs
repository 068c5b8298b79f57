//! Facts about this host and this caller, read once before anything is planned.

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid};

use crate::idmap;
use crate::sys::process::capget;

/// What a plan may depend on besides the bundle and the options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The caller's effective ids.
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// Whether this process runs in a user namespace of somebody's making, where root is not the machine's root.
    pub(crate) in_user_namespace: bool,
    /// The caller's permitted capabilities, bit n for number n.
    pub(crate) capabilities: u64,
}

impl Host {
    /// Ask the kernel.
    pub(crate) fn probe() -> Result<Self> {
        Ok(Self {
            uid: Uid::effective(),
            gid: Gid::effective(),
            in_user_namespace: !idmap::in_initial_namespace()?,
            capabilities: capget().context("read the own capabilities")?.permitted,
        })
    }

    /// Whether the kernel confines processes by AppArmor. Asked only where a bundle wants it to.
    pub(crate) fn has_apparmor(&self) -> bool {
        std::fs::read("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|answer| answer.starts_with(b"Y"))
    }

    /// Whether the kernel confines processes by SELinux. Asked only where a bundle wants it to.
    pub(crate) fn has_selinux(&self) -> bool {
        // The file system is there only where SELinux is enabled (selinux(8)).
        std::fs::exists("/sys/fs/selinux/enforce").unwrap_or(false)
    }

    /// Whether the caller lacks the machine's root rights, so that a container needs a user namespace of its own and
    /// goes without what only root may do.
    pub(crate) fn rootless(&self) -> bool {
        !self.uid.is_root() || self.in_user_namespace
    }
}
