//! From root of the container to the payload's user: names, limits, ids, capabilities, the filter.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, readlinkat};
use nix::sys::prctl;
use nix::sys::stat::{SFlag, fstat, stat, umask};
use nix::unistd::{
    AccessFlags, Gid, Uid, faccessat, fchdir, fchown, getcwd, setgroups, sethostname, setresgid,
    setresuid, write,
};

use super::{Given, rootfs};
use crate::handshake::Step;
use crate::hooks::Prepared;
use crate::plan::execution::Processors;
use crate::plan::process::Process;
use crate::sys::execution::{
    set_io_priority, set_memory_policy, set_personality, set_processors, set_scheduler,
    use_all_processors,
};
use crate::sys::fd::{close_between, standard};
use crate::sys::filter;
use crate::sys::mount::new_filesystem;
use crate::sys::path::{file_type, open_beneath};
use crate::sys::process::{
    CapSets, ExecArray, capset, drop_bounding, raise_ambient, reset_signals, setdomainname,
    setrlimit,
};

/// CAP_SYS_ADMIN's bit: without no_new_privs a filter may be loaded only with it (seccomp(2)).
const SYS_ADMIN: u64 = 1 << 21;

/// What execve takes.
pub(super) struct Program {
    pub(super) path: CString,
    pub(super) args: ExecArray,
    pub(super) env: ExecArray,
    /// The state for startContainer hooks; empty without any.
    pub(super) state: Vec<u8>,
    /// The listener of a filter that notifies; it closes with the execve.
    pub(super) listener: Option<OwnedFd>,
}

/// Host and domain name of the container's UTS namespace.
pub(super) fn names(given: &Given) {
    if let Some(name) = &given.plan.hostname {
        given.check(sethostname(name), Step::Hostname, name);
    }
    if let Some(name) = &given.plan.domainname {
        given.check(setdomainname(name.as_bytes()), Step::Domainname, name);
    }
}

/// Have the payload confined by its AppArmor profile or its SELinux context: the word for the next execve, startContainer
/// hooks' among them.
pub(super) fn confine(given: &Given) {
    if let Some(profile) = &given.plan.apparmor {
        let word = [b"exec ", profile.as_bytes()].concat();
        let written = write_own(given, "attr/apparmor/exec", &word);
        given.check(written, Step::Apparmor, profile);
    }
    if let Some(context) = &given.plan.selinux.process {
        let written = write_own(given, "attr/exec", context.as_bytes());
        given.check(written, Step::Selinux, context);
    }
}

/// Written to the container's own mount of proc, held since it was made, or to a new one where it has none: what somebody
/// puts in the place of /proc takes the word and does nothing (CVE-2019-16884).
// ORDER: in the process that will execute; before /proc is covered, for a user namespace makes a new one only beside one
// that is seen whole.
fn write_own(given: &Given, file: &str, word: &[u8]) -> nix::Result<usize> {
    let mut own = PathBuf::from(nix::unistd::getpid().to_string());
    own.push(file);
    let made = given.kernel_trees.iter().find(|(at, _)| at == "proc");
    match made {
        Some((_, proc)) => open_beneath(proc.as_fd(), &own, OFlag::O_WRONLY),
        None => new_filesystem(c"proc", [], 0)
            .map_err(|(errno, _)| errno)
            .and_then(|proc| open_beneath(proc.as_fd(), &own, OFlag::O_WRONLY)),
    }
    .and_then(|file| write(&file, word))
}

/// The same for a process that is about to join a container, by the host's /proc. The word outlasts a fork.
// ORDER: before the container's namespaces, where no mount of proc could be trusted; and while the process may still be
// looked into, which an ordinary user's own files in /proc depend on.
pub(super) fn confine_from_outside(given: &Given) {
    let write_own = |file: &str, word: &[u8]| {
        let own = PathBuf::from(readlinkat(given.host_proc(), "self")?).join(file);
        open_beneath(given.host_proc(), &own, OFlag::O_WRONLY).and_then(|file| write(&file, word))
    };
    if let Some(profile) = &given.plan.apparmor {
        let word = [b"exec ", profile.as_bytes()].concat();
        let written = write_own("attr/apparmor/exec", &word);
        given.check(written, Step::Apparmor, profile);
    }
    if let Some(context) = &given.plan.selinux.process {
        let written = write_own("attr/exec", context.as_bytes());
        given.check(written, Step::Selinux, context);
    }
}

/// How the payload is executed.
// ORDER: after the process has come into its cgroup, whose processors these are; before the rights to raise any of it go.
pub(super) fn execution(given: &Given) {
    let wanted = &given.plan.execution;
    match &wanted.processors {
        // COMPAT: as in runc, what the caller was confined to is not the container's matter. Without effect it does no
        // harm.
        Processors::All => use_all_processors().unwrap_or(()),
        Processors::AsTheyAre => {}
        Processors::These(processors) => given.check(
            set_processors(processors),
            Step::Execution,
            "process.execCPUAffinity.final",
        ),
    }
    if let Some(scheduler) = &wanted.scheduler {
        given.check(
            set_scheduler(scheduler),
            Step::Execution,
            "process.scheduler",
        );
    }
    if let Some(priority) = wanted.io_priority {
        given.check(
            set_io_priority(priority),
            Step::Execution,
            "process.ioPriority",
        );
    }
    if let Some(domain) = wanted.personality {
        given.check(
            set_personality(domain),
            Step::Execution,
            "linux.personality",
        );
    }
    if let Some(policy) = &wanted.memory_policy {
        given.check(
            set_memory_policy(policy),
            Step::Execution,
            "linux.memoryPolicy",
        );
    }
}

/// Give up every right that the payload is not to have, and load its filter.
pub(super) fn drop(given: &mut Given, root: &OwnedFd) -> Program {
    let plan = &given.plan.process;
    own_streams(plan);
    // The bounding set takes CAP_SETPCAP, which goes with the rest below.
    bound(given, plan.capabilities.bounding);
    let entered = rootfs::open_directory(root, &plan.cwd).and_then(fchdir);
    let home = rootfs::home(root, plan.uid);
    become_user(given, plan);
    stand_in_cwd(given, root, entered);
    let path = find(given, plan);
    let env = with_home(plan, home);
    for hook in &mut given.start_container {
        hook.inherit(&env);
    }
    let mut program = Program {
        path: given.check(
            CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL),
            Step::Lookup,
            &path,
        ),
        args: ExecArray::new(plan.args.clone()),
        env: ExecArray::new(env),
        state: match given.start_container.is_empty() {
            true => Vec::new(),
            false => (given.state)("created", nix::unistd::getpid().as_raw()),
        },
        listener: None,
    };
    umask(plan.umask);
    // ORDER: nothing is opened after this that a small RLIMIT_NOFILE could refuse.
    for limit in &plan.limits {
        let done = setrlimit(limit.resource, limit.soft, limit.hard);
        given.check(done, Step::Limit, &limit.name);
    }
    given.kernel_trees.clear();
    given.late.clear();
    given.pid_namespace = None;
    close_all_but_ours(given, &[], None);
    reset_signals();
    prctl::set_pdeathsig(None).ok();
    // CVE-2016-9962: changing ids may have made the process dumpable again.
    // ORDER: nothing of the caller's is open any more.
    prctl::set_dumpable(given.plan.open_to_its_owner).ok();
    program.listener = load_filter(given);
    program
}

/// The standard streams belong to the payload's user, so that it can open /dev/stdout again. Not the caller's devices:
/// a terminal would be the user's after our end, and others have many users. COMPAT: runc gives away all but the null
/// device, crun all but terminals.
fn own_streams(plan: &Process) {
    for number in 0..=2 {
        let stream = standard(number);
        let Ok(stat) = fstat(stream) else { continue };
        let device = matches!(file_type(&stat), SFlag::S_IFCHR | SFlag::S_IFBLK);
        // With a terminal of its own the three are that one.
        if stat.st_uid != plan.uid && (plan.terminal.is_some() || !device) {
            // A read-only file system, or an owner that the user namespace does not map: then it stays as it is.
            fchown(stream, Some(Uid::from_raw(plan.uid)), None).ok();
        }
    }
}

fn bound(given: &Given, keep: u64) {
    for number in 0..64u8 {
        if keep >> number & 1 == 1 {
            continue;
        }
        match drop_bounding(number) {
            Ok(()) => {}
            // Past the last capability of this kernel.
            Err(Errno::EINVAL) => return,
            Err(errno) => given.talk.fail(Step::Capabilities, errno, b"bounding set"),
        }
    }
}

fn become_user(given: &Given, plan: &Process) {
    let sets = &plan.capabilities;
    // Capabilities survive the change of user and are then set to exactly what is wanted.
    given.check(prctl::set_keepcaps(true), Step::Capabilities, "keep");
    if let Some(groups) = &plan.groups {
        let groups: Vec<_> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        match setgroups(&groups) {
            // A user namespace may forbid the call (user_namespaces(7)); with nothing to set nothing is lost.
            Err(Errno::EPERM) if groups.is_empty() => {}
            done => given.check(done, Step::Groups, ""),
        }
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    given.check(setresgid(gid, gid, gid), Step::Ids, "setgid");
    given.check(setresuid(uid, uid, uid), Step::Ids, "setuid");
    if plan.no_new_privileges {
        given.check(prctl::set_no_new_privs(), Step::NoNewPrivileges, "");
    }
    let extra = if needs_rights_for_filter(given) {
        SYS_ADMIN
    } else {
        0
    };
    set_capabilities(given, extra);
    for number in (0..64u8).filter(|number| sets.ambient >> number & 1 == 1) {
        // The plan has left out what cannot be raised, as far as that can be known.
        raise_ambient(number).ok();
    }
}

fn needs_rights_for_filter(given: &Given) -> bool {
    given.filter.is_some() && !given.plan.process.no_new_privileges
}

/// All three sets, with `extra` for a little longer.
fn set_capabilities(given: &Given, extra: u64) {
    let sets = &given.plan.process.capabilities;
    let wanted = CapSets {
        effective: sets.effective | extra,
        permitted: sets.permitted | extra,
        inheritable: sets.inheritable,
    };
    given.check(capset(wanted), Step::Capabilities, "set");
}

/// Stand in the payload's directory: entered already as root of the container, or else as the payload's user.
// CVE-2024-21626: by a handle opened inside the root, and only where the kernel can name the place from there.
fn stand_in_cwd(given: &Given, root: &OwnedFd, entered: nix::Result<()>) {
    let cwd = &given.plan.process.cwd;
    let entered = match entered {
        // A file system that squashes root.
        Err(Errno::EACCES) => rootfs::open_directory(root, cwd).and_then(fchdir),
        other => other,
    };
    given.check(entered, Step::Cwd, cwd);
    match getcwd() {
        Ok(path) if path.is_absolute() => {}
        _ => {
            let text = b"current working directory is outside of container mount namespace root -- possible container breakout";
            given.talk.fail(Step::Breakout, Errno::UnknownErrno, text);
        }
    }
}

/// The program to execute: as it is named when that has a slash, else the first in the search path.
fn find(given: &Given, plan: &Process) -> PathBuf {
    let program = plan.program();
    if program.as_bytes().contains(&b'/') {
        given.check(executable(Path::new(program)), Step::Lookup, program);
        return PathBuf::from(program);
    }
    let found = plan
        .search
        .iter()
        .map(|directory| directory.join(program))
        .find(|path| executable(path).is_ok());
    given.check(
        found.filter(|_| !program.is_empty()).ok_or(Errno::ENOENT),
        Step::Lookup,
        program,
    )
}

fn executable(path: &Path) -> nix::Result<()> {
    if file_type(&stat(path)?) == SFlag::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

fn with_home(plan: &Process, home: Option<Vec<u8>>) -> Vec<CString> {
    let mut env = plan.env.clone();
    let has_home = |line: &CString| {
        line.to_bytes()
            .strip_prefix(b"HOME=")
            .is_some_and(|home| !home.is_empty())
    };
    if !env.iter().any(has_home) {
        env.retain(|line| !line.to_bytes().starts_with(b"HOME="));
        let mut line = b"HOME=".to_vec();
        line.extend(
            home.filter(|home| !home.is_empty())
                .unwrap_or_else(|| b"/".to_vec()),
        );
        env.extend(CString::new(line));
    }
    env
}

/// Every descriptor but the payload's own and those that we still talk through. A process of a container that may be
/// entered before it starts must find nothing of the host's here.
// CVE-2024-21626: a leaked directory handle is a way out.
pub(super) fn close_all_but_ours(given: &Given, others: &[&OwnedFd], null: Option<&OwnedFd>) {
    let first = 3 + RawFd::try_from(given.plan.inherited_fds).unwrap_or(0);
    let mut keep = vec![given.talk.as_fd().as_raw_fd()];
    if let Some((go, answer)) = &given.fifos {
        keep.extend([go.as_raw_fd(), answer.as_raw_fd()]);
    }
    let hooks = given.start_container.iter();
    keep.extend(
        hooks
            .flat_map(Prepared::descriptors)
            .map(|fd| fd.as_raw_fd()),
    );
    let trees = given.kernel_trees.iter().map(|(_, tree)| tree);
    let more = others
        .iter()
        .copied()
        .chain(null)
        .chain(trees)
        .chain(&given.late);
    keep.extend(more.chain(&given.pid_namespace).map(AsRawFd::as_raw_fd));
    keep.sort_unstable();
    given.check(
        close_between(first, &keep),
        Step::Stdio,
        "close descriptors",
    );
}

// ORDER: last of all, so that the filter has to permit little more than execve.
fn load_filter(given: &Given) -> Option<OwnedFd> {
    let loaded = given.filter.as_ref()?;
    let listener = given.check(filter::load(&loaded.bpf, loaded.flags), Step::Seccomp, "");
    if needs_rights_for_filter(given) {
        set_capabilities(given, 0);
    }
    listener
}
