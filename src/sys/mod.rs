//! The kernel's doors: the only room where `unsafe` stands. Functions look like the system call behind them, but take
//! and return owned types; nothing here knows what a container is.
//!
//! What is here because nix lacks it: `clone3`, the descriptor based mount calls (`open_tree`, `fsopen`, `fsconfig`,
//! `fsmount`, `move_mount`, `mount_setattr`), `close_range`, `capset` in one call, `setdomainname`, the pty ioctls,
//! `bpf` and rtnetlink. What nix offers (openat2, setns, unshare, mknodat, prctl, signals, poll, sockets) is used from there.

#[cfg(debug_assertions)]
pub(crate) mod alloc_guard;
#[cfg_attr(
    not(feature = "image"),
    expect(dead_code, reason = "the bare runtime only reads and writes them")
)]
pub(crate) mod attribute;
pub(crate) mod bpf;
#[cfg(target_arch = "x86_64")]
mod entry;
pub(crate) mod errno;
pub(crate) mod execution;
pub(crate) mod fd;
pub(crate) mod filter;
#[cfg(feature = "image")]
pub(crate) mod holes;
#[cfg(feature = "image")]
pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod netlink;
pub(crate) mod path;
pub(crate) mod pidfd;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod seal;
pub(crate) mod spawn;
pub(crate) mod start;
