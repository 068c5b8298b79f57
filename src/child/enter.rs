//! Into the namespaces.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use oci_spec::runtime::LinuxNamespaceType as Kind;

use super::Given;
use crate::handshake::Step;
use crate::plan::namespaces::{SecondFork, clone_flag, name};
use crate::sys::net;
use crate::sys::process::{exit_now, fork_sibling, join_session_keyring};

/// Join and unshare what the clone did not make.
///
/// Who we are: a child of the runtime, in the namespaces that clone3 could make at once, still with the caller's ids.
/// Behind us: root in the user namespace if there is one, every namespace but a joined pid namespace entered.
pub(super) fn namespaces(given: &Given) {
    let namespaces = &given.plan.namespaces;
    if given.wait_mapped {
        given.talk.wait_mapped();
    }
    // CVE-2016-9962: from here on nobody inside can trace this process or read its descriptors.
    // ORDER: after the maps, which an unprivileged parent cannot write for a process that is not dumpable; before the
    // first setns, which brings the process into view.
    prctl::set_dumpable(false).ok();
    for (join, file) in namespaces.joins.iter().zip(&given.joins) {
        given.check(setns(file, clone_flag(join.kind)), Step::JoinNamespace, name(join.kind));
        if join.kind == Kind::User {
            become_root(given);
        }
    }
    if namespaces.is_new(Kind::User) {
        become_root(given);
    }
    // Written as a part of the flags: the kernel makes all in one go, or none.
    let rest = CloneFlags::from_bits_retain(i32::try_from(given.unshare).unwrap_or_default());
    if !rest.is_empty() {
        given.check(unshare(rest), Step::Unshare, "");
    }
    if namespaces.second_fork == SecondFork::AfterJoining {
        go_on_in_a_new_process(given);
    }
    if namespaces.new_time {
        time(given);
    }
}

/// The ids 0 and 0, where the user namespace maps them; a namespace without them leaves the process its capabilities.
fn become_root(given: &Given) {
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    for done in [setresgid(group, group, group), setresuid(root, root, root)] {
        match done {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => given.talk.fail(Step::BecomeRoot, errno, b""),
        }
    }
}

/// A time namespace is entered only by a later child or by setns, and its offsets freeze with the first process in it.
fn time(given: &Given) {
    given.check(unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)), Step::Unshare, "time");
    if !given.plan.time_offsets.is_empty() {
        let written = open_own(given.host_proc.as_fd(), "self/timens_offsets", OFlag::O_WRONLY)
            .and_then(|file| nix::unistd::write(&file, given.plan.time_offsets.as_bytes()));
        given.check(written, Step::TimeOffsets, given.plan.time_offsets.trim_end());
    }
    let entered = open_own(given.host_proc.as_fd(), "self/ns/time_for_children", OFlag::O_RDONLY)
        .and_then(|file| setns(&file, CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)));
    given.check(entered, Step::JoinNamespace, "time");
}

fn open_own(proc: BorrowedFd, path: &str, flags: OFlag) -> nix::Result<std::os::fd::OwnedFd> {
    openat(proc, Path::new(path), flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// Enter a pid namespace by path: the process that goes on is born in it.
// ORDER: after the pivot. A process that shows in the container's pid namespace must not hold the host's tree.
pub(super) fn pid_namespace(given: &Given) {
    if let Some(namespace) = &given.pid_namespace {
        given.check(setns(namespace, CloneFlags::CLONE_NEWPID), Step::JoinNamespace, "pid");
        go_on_in_a_new_process(given);
    }
}

fn go_on_in_a_new_process(given: &Given) {
    if let Some(pid) = given.check(fork_sibling(), Step::Fork, "") {
        given.talk.entered(pid);
        exit_now(0);
    }
}

/// What a process of its own needs from the kernel besides namespaces: a loopback device that is up, a keyring.
pub(super) fn kernel_objects(given: &Given) {
    if given.plan.namespaces.is_new(Kind::Network) {
        given.check(net::loopback_up(), Step::Loopback, "lo");
    }
    if let Some(keyring) = &given.plan.keyring {
        match join_session_keyring(keyring) {
            // A kernel without keyrings, or a filter around us that forbids them.
            Ok(()) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => {}
            Err(errno) => given.talk.fail(Step::Keyring, errno, keyring.to_bytes()),
        }
    }
}
