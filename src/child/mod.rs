//! Everything between clone and execve. The rules at this door:
//!
//! 1. Decide nothing: read the plan. What depends on the configuration was decided there.
//! 2. One thread, no locks, no lazy state, no standard streams, no logger, no name service.
//! 3. Fail with a step, an errno and a short subject; the parent writes the sentence.
//! 4. No way back: leave by execve or `_exit`. The parent's destructors never run here.
//! 5. After the pivot no path of the host: what is needed from there arrived as a descriptor.
//! 6. After the seccomp filter no allocation, and few system calls: the user's filter may forbid them.
//! 7. The order is a contract. A moved line needs its `ORDER:` note changed, and a test that fails without it.
//!
//! | zone      | rooms                           | from → to                                |
//! |-----------|---------------------------------|------------------------------------------|
//! | 1 outside | `enter`, `mounts`, `copy_up`    | clone → pivot: the host's tree in sight  |
//! | 2 inside  | `rootfs`, `console`, `privileges` | pivot → filter loaded                  |
//! | 3 sealed  | `last`                          | filter loaded → execve                   |
#![deny(clippy::disallowed_methods, clippy::disallowed_macros)]

mod console;
mod copy_up;
mod enter;
mod last;
mod mounts;
mod privileges;
mod rootfs;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};

use crate::handshake::{ChildEnd, Step};
use crate::hooks::Prepared;
use crate::plan::Plan;
use crate::plan::seccomp::Filter;
use crate::sys::fd::{close_foreign, install};
use crate::sys::process::{CloneFlags, exit_now};

/// What the payload gets in the place of the caller's standard streams, of each that it is not to have itself.
pub(crate) type Stdio = [Option<OwnedFd>; 3];

/// What the child is given besides the plan: all that the parent opened or made for it.
pub(crate) struct Given<'a> {
    pub(crate) plan: &'a Plan,
    /// Descriptors of the parent's, which would tell nobody that the parent has died while they are open here too: its
    /// end of the conversation, and the lock of the state directory; and the user namespaces of id-mapped mounts.
    pub(crate) parents_own: Vec<RawFd>,
    pub(crate) talk: ChildEnd,
    pub(crate) streams: Option<&'a Stdio>,
    /// Whether the parent has to act before anything else: write the id maps, or place the process in its cgroup.
    pub(crate) wait_mapped: bool,
    /// Namespaces that the clone did not make.
    pub(crate) unshare: CloneFlags,
    /// The namespaces to join, in the plan's order, and the pid namespace, which has its own moment. For a process more of
    /// a container it is one, the pidfd of its init, which stands for all.
    pub(crate) joins: Vec<OwnedFd>,
    pub(crate) pid_namespace: Option<OwnedFd>,
    /// The host's /proc, until the pivot.
    pub(crate) host_proc: Option<OwnedFd>,
    /// Trees that the parent cloned: of the root, and of the mount with the same index.
    pub(crate) root_tree: Option<OwnedFd>,
    pub(crate) trees: Vec<Option<OwnedFd>>,
    /// The path by which the kernel knows the root, once it is attached.
    pub(crate) root_name: PathBuf,
    /// The mounts of proc and sysfs that the child has made, and where.
    pub(crate) kernel_trees: Vec<(PathBuf, OwnedFd)>,
    /// Mounts that become read-only in the end.
    pub(crate) late: Vec<OwnedFd>,
    /// Where the host has the cgroup hierarchy, and the container's directory in it.
    pub(crate) hierarchy: PathBuf,
    pub(crate) cgroup: PathBuf,
    /// Whether the parent has hooks to run when the mounts are complete.
    pub(crate) stop_when_rooted: bool,
    pub(crate) create_container: Vec<Prepared>,
    pub(crate) start_container: Vec<Prepared>,
    /// The container's state for its hooks, from a status and a pid.
    pub(crate) state: &'a dyn Fn(&str, i32) -> Vec<u8>,
    pub(crate) filter: Option<Filter>,
    /// The fifos of the start protocol: the word to start, and the answer. Without them the handshake's socket is both.
    pub(crate) fifos: Option<(OwnedFd, OwnedFd)>,
}

impl<'a> Given<'a> {
    /// What a child that goes into a running container is given: the pidfd of its init, and its root, where that is not the
    /// root of its mount namespace.
    pub(crate) fn into_container(
        plan: &'a Plan,
        talk: ChildEnd,
        parents_own: Vec<RawFd>,
        (init, root): (Option<OwnedFd>, Option<OwnedFd>),
        host_proc: OwnedFd,
    ) -> Self {
        Self {
            plan,
            parents_own,
            talk,
            streams: None,
            wait_mapped: false,
            unshare: 0,
            joins: init.into_iter().collect(),
            pid_namespace: None,
            host_proc: Some(host_proc),
            root_tree: root,
            trees: Vec::new(),
            root_name: PathBuf::new(),
            kernel_trees: Vec::new(),
            late: Vec::new(),
            hierarchy: PathBuf::new(),
            cgroup: PathBuf::new(),
            stop_when_rooted: false,
            create_container: Vec::new(),
            start_container: Vec::new(),
            state: &|_, _| Vec::new(),
            filter: None,
            fifos: None,
        }
    }
}

impl Given<'_> {
    fn host_proc(&self) -> BorrowedFd<'_> {
        self.host_proc
            .as_ref()
            .expect("the host's /proc is at hand until the pivot")
            .as_fd()
    }

    /// The value, or the end of this process with the step and subject told to the parent.
    fn check<T>(&self, result: nix::Result<T>, step: Step, subject: impl AsRef<OsStr>) -> T {
        match result {
            Ok(value) => value,
            Err(errno) => self.talk.fail(step, errno, subject.as_ref().as_bytes()),
        }
    }
}

/// Become the container's process.
pub(crate) fn main(given: &mut Given) -> ! {
    given.parents_own.drain(..).for_each(close_foreign);
    streams(given);
    enter::die_with_parent();
    // Modes are given as they are meant; the payload's own mask comes last.
    umask(Mode::empty());
    enter::namespaces(given);
    enter::kernel_objects(given);
    let root = mounts::attach(given);
    if given.stop_when_rooted {
        given.talk.rooted_and_wait();
    }
    // ORDER: after the runtime's hooks, which may make the network devices that a sysctl names.
    mounts::sysctl(given);
    run_hooks(given);
    let null = rootfs::host_null(given);
    given.host_proc = None;
    given.joins.clear();
    rootfs::switch(given, &root);
    if given.pid_namespace.is_some() {
        // ORDER: before it can be seen by the processes of the namespace, one of which may be able to trace it.
        privileges::close_all_but_ours(given, &[&root], null.as_ref());
    }
    enter::pid_namespace(given);
    rootfs::reopen_null(given, &root);
    rootfs::make_cwd(given, &root);
    console::open(given, &root);
    mounts::late_read_only(given, &root);
    privileges::confine(given);
    // ORDER: after everything that is made inside /proc and /sys or over them.
    rootfs::protect_paths(given, &root, null);
    rootfs::propagate(given, &root);
    privileges::names(given);
    privileges::execution(given);
    let program = privileges::drop(given, &root);
    last::words(given, program)
}

/// Become one more process of a running container.
pub(crate) fn join(given: &mut Given) -> ! {
    given.parents_own.drain(..).for_each(close_foreign);
    streams(given);
    enter::die_with_parent();
    umask(Mode::empty());
    privileges::confine_from_outside(given);
    enter::label_keys(given);
    let root = enter::container(given);
    enter::keyring(given);
    rootfs::reopen_null(given, &root);
    console::open(given, &root);
    privileges::execution(given);
    let program = privileges::drop(given, &root);
    last::words(given, program)
}

/// Into a running container, and change its mounts: those of the plan come, or what is mounted at their places goes.
pub(crate) fn change_mounts(given: &mut Given, come: bool) -> ! {
    given.parents_own.drain(..).for_each(close_foreign);
    enter::die_with_parent();
    umask(Mode::empty());
    // The host's, since the container's own may say anything.
    let host_proc = given.host_proc.take();
    let root = enter::container(given);
    given.host_proc = host_proc;
    match come {
        true => mounts::add(given, &root),
        false => mounts::remove(given, &root),
    }
    given.talk.ready_and_wait(None).ok();
    exit_now(0)
}

/// Take the streams that are given for those of the caller.
fn streams(given: &Given) {
    for (number, stream) in (0..).zip(given.streams.into_iter().flatten()) {
        if let Some(stream) = stream {
            given.check(install(stream.as_fd(), number), Step::Stdio, "dup2");
        }
    }
}

fn run_hooks(given: &Given) {
    if given.create_container.is_empty() {
        return;
    }
    let state = (given.state)("creating", nix::unistd::getpid().as_raw());
    for hook in &given.create_container {
        if let Err(failure) = hook.run(&state, None) {
            let mut text = [0; 4096];
            let length = failure.render(&mut text);
            given
                .talk
                .fail(Step::Hook, Errno::UnknownErrno, &text[..length]);
        }
    }
}
