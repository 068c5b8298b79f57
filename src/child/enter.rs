//! Into the namespaces.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Uid, chdir, chroot, fchdir, setresgid, setresuid};
use oci_spec::runtime::LinuxNamespaceType as Kind;

use super::{Given, privileges};
use crate::handshake::Step;
use crate::plan::namespaces::{SecondFork, clone_flag, name};
use crate::sys::fd::{close_between, receive, send, seqpacket_pair};
use crate::sys::process::{
    exit_now, forget_caller, fork, fork_sibling, join_session_keyring, let_keyring_be_found,
};
use crate::sys::{net, netlink};

/// Join and unshare what the clone did not make.
///
/// Who we are: a child of the runtime, in the namespaces that clone3 could make at once, still with the caller's ids.
/// Behind us: root in the user namespace if there is one, every namespace but a joined pid namespace entered.
pub(super) fn namespaces(given: &Given) {
    let namespaces = &given.plan.namespaces;
    if given.wait_mapped {
        given.talk.wait_mapped();
    }
    // ORDER: after the maps, which an unprivileged parent cannot write for a process that is not dumpable; before the
    // first setns, which brings the process into view.
    get_out_of_sight();
    for (join, file) in namespaces.joins.iter().zip(&given.joins) {
        given.check(
            setns(file, clone_flag(join.kind)),
            Step::JoinNamespace,
            name(join.kind),
        );
        if join.kind == Kind::User {
            become_root(given);
        }
    }
    if namespaces.user_after_joins {
        if let Some(namespace) = &given.pid_namespace {
            join_pid(given, namespace);
        }
        given.check(unshare(CloneFlags::CLONE_NEWUSER), Step::Unshare, "user");
        given.talk.unmapped_and_wait();
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
    die_with_parent();
}

/// CVE-2016-9962: from here on nobody inside can trace this process or read its descriptors, but who has the host's
/// CAP_SYS_PTRACE; and what the caller said is there for nobody.
fn get_out_of_sight() {
    prctl::set_dumpable(false).ok();
    forget_caller();
}

/// A step that hangs must not outlive the parent; taken back before the payload, which may. A change of ids or a fork
/// forgets it (PR_SET_PDEATHSIG(2const)).
pub(super) fn die_with_parent() {
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).ok();
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
    given.check(
        unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)),
        Step::Unshare,
        "time",
    );
    if !given.plan.time_offsets.is_empty() {
        let written = open_own(given.host_proc(), "self/timens_offsets", OFlag::O_WRONLY)
            .and_then(|file| nix::unistd::write(&file, given.plan.time_offsets.as_bytes()));
        given.check(
            written,
            Step::TimeOffsets,
            given.plan.time_offsets.trim_end(),
        );
    }
    let entered = open_own(
        given.host_proc(),
        "self/ns/time_for_children",
        OFlag::O_RDONLY,
    )
    .and_then(|file| setns(&file, CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)));
    given.check(entered, Step::JoinNamespace, "time");
}

fn open_own(proc: BorrowedFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    openat(
        proc,
        Path::new(path),
        flags | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Enter a pid namespace by path: the process that goes on is born in it.
// ORDER: after the pivot. A process that shows in the container's pid namespace must not hold the host's tree.
pub(super) fn pid_namespace(given: &Given) {
    if let Some(namespace) = &given.pid_namespace {
        if !given.plan.namespaces.user_after_joins {
            join_pid(given, namespace);
        }
        go_on_in_a_new_process(given);
    }
}

/// Have later children born in a pid namespace.
fn join_pid(given: &Given, namespace: &OwnedFd) {
    given.check(
        setns(namespace, CloneFlags::CLONE_NEWPID),
        Step::JoinNamespace,
        "pid",
    );
}

/// Have `make` called by a process inside a pid namespace that this one has yet to join, and take the descriptor that it
/// makes: a mount of proc shows the processes of its maker's namespace.
///
/// That process can be seen from inside, so it has nothing to be found on it: the container's root, no descriptor of the
/// host's, and as little time as it takes.
pub(super) fn in_pid_namespace(
    namespace: &OwnedFd,
    root: BorrowedFd,
    make: impl FnOnce() -> Result<OwnedFd, (Errno, String)>,
) -> Result<OwnedFd, (Errno, String)> {
    let plain = |errno| (errno, String::new());
    let (ours, theirs) = seqpacket_pair().map_err(plain)?;
    let helper = match fork().map_err(plain)? {
        Some(helper) => helper,
        None => help(namespace, root, &theirs, make),
    };
    drop(theirs);
    let mut text = [0; 512];
    let heard = receive(ours.as_fd(), &mut text);
    while waitpid(helper, None) == Err(Errno::EINTR) {}
    match heard.map_err(plain)? {
        (_, Some(made)) => Ok(made),
        (length @ 4.., None) => {
            let errno = Errno::from_raw(i32::from_ne_bytes([text[0], text[1], text[2], text[3]]));
            Err((
                errno,
                String::from_utf8_lossy(&text[4..length]).into_owned(),
            ))
        }
        _ => Err(plain(Errno::ECHILD)),
    }
}

fn help(
    namespace: &OwnedFd,
    root: BorrowedFd,
    answer: &OwnedFd,
    make: impl FnOnce() -> Result<OwnedFd, (Errno, String)>,
) -> ! {
    let confined = fchdir(root)
        .and_then(|()| chroot("."))
        .and_then(|()| setns(namespace, CloneFlags::CLONE_NEWPID))
        .and_then(|()| close_between(3, &[answer.as_raw_fd()]))
        .and_then(|()| fork());
    let said = match confined {
        Ok(Some(inner)) => {
            while waitpid(inner, None) == Err(Errno::EINTR) {}
            exit_now(0)
        }
        Ok(None) => make(),
        Err(errno) => Err((errno, String::new())),
    };
    // Whether it is heard or not, this process ends.
    match said {
        Ok(made) => send(answer.as_fd(), b"made", &[made.as_raw_fd()]).ok(),
        Err((errno, text)) => {
            let mut message = (errno as i32).to_ne_bytes().to_vec();
            message.extend_from_slice(text.as_bytes().get(..500).unwrap_or(text.as_bytes()));
            send(answer.as_fd(), &message, &[]).ok()
        }
    };
    exit_now(0)
}

fn go_on_in_a_new_process(given: &Given) {
    if let Some(pid) = given.check(fork_sibling(), Step::Fork, "") {
        given.talk.entered(pid);
        exit_now(0);
    }
    die_with_parent();
    given.talk.wait_known();
}

/// What a process of its own needs from the kernel besides namespaces: a loopback device that is up, the network devices
/// that it is given, a keyring.
pub(super) fn kernel_objects(given: &Given) {
    if given.plan.namespaces.is_new(Kind::Network) {
        given.check(net::loopback_up(), Step::Loopback, "lo");
    }
    if !given.plan.net_devices.is_empty() {
        let socket = given.check(netlink::open(), Step::NetDevices, "open a netlink socket");
        given.talk.networked_and_wait(socket.as_fd());
    }
    label_keys(given);
    if let Some(number) = keyring(given) {
        // For a process that is to join the container later, whose it is not so far.
        let_keyring_be_found(number).ok();
    }
}

/// The container's session keyring; its number.
pub(super) fn keyring(given: &Given) -> Option<i32> {
    let keyring = given.plan.keyring.as_ref()?;
    match join_session_keyring(keyring) {
        Ok(number) => Some(number),
        // A kernel without keyrings, or a filter around us that forbids them.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => None,
        Err(errno) => given.talk.fail(Step::Keyring, errno, keyring.to_bytes()),
    }
}

/// Into a running container: its namespaces, its root. What comes back is that root.
///
/// Who we are: a child of the runtime, in the container's cgroup or about to be put there, in the caller's namespaces.
/// Behind us: a process that shows in the container, holding nothing of the host's.
pub(super) fn container(given: &mut Given) -> OwnedFd {
    get_out_of_sight();
    if given.wait_mapped {
        given.talk.wait_mapped();
    }
    let namespaces = &given.plan.namespaces;
    if let Some(init) = given.joins.first() {
        join_those_of(given, init, &namespaces.entered);
    }
    if namespaces.entered.contains(&Kind::User) {
        become_root(given);
    }
    if let Some(root) = given.root_tree.take() {
        // A root that is not that of the container's mount namespace, or of no such namespace.
        let done = fchdir(&root).and_then(|()| chroot("."));
        given.check(done, Step::Pivot, "");
    }
    given.joins.clear();
    given.host_proc = None;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = chdir("/").and_then(|()| open("/", flags, Mode::empty()));
    let root = given.check(root, Step::Pivot, "");
    if namespaces.second_fork == SecondFork::AfterJoining {
        // ORDER: before it can be seen by the processes of the namespace, one of which may be able to trace it.
        privileges::close_all_but_ours(given, &[&root], None);
        go_on_in_a_new_process(given);
    }
    die_with_parent();
    root
}

/// All namespaces of these kinds that the process behind `init` is in, with one call where the kernel agrees.
fn join_those_of(given: &Given, init: &OwnedFd, kinds: &[Kind]) {
    let all = kinds
        .iter()
        .fold(CloneFlags::empty(), |flags, kind| flags | clone_flag(*kind));
    if all.is_empty() {
        return;
    }
    match setns(init, all) {
        Ok(()) => return,
        Err(Errno::EPERM) => {}
        Err(errno) => given
            .talk
            .fail(Step::JoinNamespace, errno, b"the container's"),
    }
    // Some of them may belong to the caller's user namespace, which has to be joined before it is left; the others only
    // the container's root may join.
    let mut late: Vec<Kind> = kinds
        .iter()
        .copied()
        .filter(|kind| *kind == Kind::User || setns(init, clone_flag(*kind)).is_err())
        .collect();
    late.sort_by_key(|kind| *kind != Kind::User);
    for kind in late {
        given.check(
            setns(init, clone_flag(kind)),
            Step::JoinNamespace,
            name(kind),
        );
    }
}

/// Have the keyring that comes next labelled like the payload.
pub(super) fn label_keys(given: &Given) {
    let (Some(context), Some(_)) = (&given.plan.selinux.process, &given.plan.keyring) else {
        return;
    };
    let written = open_own(given.host_proc(), "self/attr/keycreate", OFlag::O_WRONLY)
        .and_then(|file| nix::unistd::write(&file, context.as_bytes()));
    given.check(written, Step::Selinux, context);
}
