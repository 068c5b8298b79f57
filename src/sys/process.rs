//! Processes: clone3, pidfds, capabilities and the arrays that execve takes.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// clone3's flag word, 64 bits wide (`CLONE_INTO_CGROUP` does not fit nix's `CloneFlags`).
pub(crate) type CloneFlags = u64;

/// linux/sched.h; libc's constant is an int, into which it does not fit.
const CLONE_INTO_CGROUP: CloneFlags = 0x2_0000_0000;

/// A process made by [`clone3`]: its pid in the caller's pid namespace and a descriptor that stays its own.
pub(crate) struct Cloned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// Make a copy of this process as its child, in new namespaces as `flags` say. None in the copy.
///
/// With `cgroup` the copy is born in that cgroup v2 directory (CLONE_INTO_CGROUP, Linux 5.7). The caller has one thread
/// only, so the copy holds no lock that nobody would release.
pub(crate) fn clone3(flags: CloneFlags, cgroup: Option<BorrowedFd>) -> nix::Result<Option<Cloned>> {
    let mut pidfd: c_int = -1;
    let mut args = clone_args(flags | libc::CLONE_PIDFD as u64);
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    Ok(fork_with(&args)?.map(|pid| Cloned {
        pid,
        // SAFETY: CLONE_PIDFD stored a new descriptor there, which nobody else owns.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    }))
}

/// Make a copy of this process that is a child of this one's parent. None in the copy, its pid in the original.
pub(crate) fn fork_sibling() -> nix::Result<Option<Pid>> {
    // A sibling has its exit signal from the common parent; the kernel refuses one named here.
    fork_with(&clone_args(libc::CLONE_PARENT as u64))
}

/// Make a copy of this process as its child. None in the copy, its pid in the original.
pub(crate) fn fork() -> nix::Result<Option<Pid>> {
    let mut args = clone_args(0);
    args.exit_signal = libc::SIGCHLD as u64;
    fork_with(&args)
}

fn clone_args(flags: CloneFlags) -> libc::clone_args {
    // SAFETY: clone_args is plain integers, for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args
}

fn fork_with(args: &libc::clone_args) -> nix::Result<Option<Pid>> {
    debug_assert_eq!(threads(), 1, "clone from a program with several threads");
    // SAFETY: without CLONE_VM the child has its own copy of the memory and goes on with the same stack contents, so
    // this is fork(2); `args` and what it points to outlive the call; there is one thread, so the copy holds no lock.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const *args,
            size_of::<libc::clone_args>(),
        )
    };
    let pid = c_int::try_from(Errno::result(pid)?).map_err(|_| Errno::EOVERFLOW)?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// How many threads this process has.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Forget what the caller said: from now on our command line is our name and `init`, and our environment is empty, for
/// ourselves as for whoever reads /proc/PID/cmdline and environ (proc_pid_environ(5)).
pub(crate) fn forget_caller() {
    // SAFETY: the variable is glibc's, who sets it to the first argument; nothing here changes it.
    unsafe extern "C" {
        static program_invocation_name: *mut c_char;
    }
    let arguments: usize = std::env::args_os().map(|word| word.len() + 1).sum();
    // SAFETY: the kernel puts the arguments on the stack, string after string, then the environment, and then the file's
    // name, to which AT_EXECFN points (fs/exec.c); so what is between is ours to write. Nobody reads it any more.
    unsafe {
        let first = program_invocation_name;
        let name = libc::strlen(first) + 1;
        let rest = first.add(name);
        let end = usize::try_from(libc::getauxval(libc::AT_EXECFN)).unwrap_or(0);
        rest.write_bytes(0, end.saturating_sub(rest as usize));
        let word = c"init".to_bytes_with_nul();
        if arguments >= name + word.len() {
            rest.copy_from_nonoverlapping(word.as_ptr().cast(), word.len());
        }
    }
}

/// Leave at once, without running destructors or flushing what the parent buffered.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(code) }
}

/// An argument or environment list as execve wants it: the strings, and the null-terminated array of their addresses.
#[derive(Debug)]
pub(crate) struct ExecArray {
    pointers: Vec<*const c_char>,
    /// Kept for the pointers.
    _strings: Vec<CString>,
}

impl ExecArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self {
            pointers,
            _strings: strings,
        }
    }

    /// The array's address, valid as long as the value is.
    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Replace this process's program. Allocates nothing; returns only the error.
pub(crate) fn execve(path: &CStr, args: &ExecArray, env: &ExecArray) -> Errno {
    // SAFETY: both arrays end with a null pointer, and each element points into a string that the array owns.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::last()
}

/// Replace this process's program by the file behind `file` (execveat with an empty path).
pub(crate) fn execve_fd(file: BorrowedFd, args: &ExecArray, env: &ExecArray) -> Errno {
    // SAFETY: as for `execve`; the path is an empty literal string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

/// Capability sets as bit masks, bit n for capability number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapSets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two 32 bit words a set.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// This process's capability sets (capget).
pub(crate) fn capget() -> nix::Result<CapSets> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: version 3 makes the kernel write two structures of three words, which is what `data` holds.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |set: usize| u64::from(data[1][set]) << 32 | u64::from(data[0][set]);
    Ok(CapSets {
        effective: join(0),
        permitted: join(1),
        inheritable: join(2),
    })
}

/// Set all three of this thread's sets in one call (capset).
pub(crate) fn capset(sets: CapSets) -> nix::Result<()> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let words = |shift: u32| {
        [sets.effective, sets.permitted, sets.inheritable]
            .map(|set| u32::try_from(set >> shift & 0xffff_ffff).unwrap_or(0))
    };
    let data = [words(0), words(32)];
    // SAFETY: version 3 makes the kernel read two structures of three words, which is what `data` holds.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })
        .map(drop)
}

/// Take capability number `cap` out of the bounding set for good.
pub(crate) fn drop_bounding(cap: u8) -> nix::Result<()> {
    // SAFETY: prctl with integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0) })
        .map(drop)
}

/// Raise capability number `cap` in the ambient set; it must be permitted and inheritable already.
pub(crate) fn raise_ambient(cap: u8) -> nix::Result<()> {
    let raise = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_RAISE).unwrap_or_default();
    // SAFETY: prctl with integers only.
    Errno::result(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(cap), 0, 0)
    })
    .map(drop)
}

/// Set both limits of `resource` (an `RLIMIT_*` number) of this process.
pub(crate) fn setrlimit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let new = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the kernel reads one rlimit64 and, the old pointer being null, writes nothing.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const new, none) })
        .map(drop)
}

/// The (soft, hard) limits of `resource` of this process.
pub(crate) fn getrlimit(resource: u32) -> nix::Result<(u64, u64)> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the new pointer being null nothing is read; the kernel writes one rlimit64.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, none, &raw mut old) })?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// Set the NIS domain name of this process's UTS namespace.
pub(crate) fn setdomainname(name: &[u8]) -> nix::Result<()> {
    // SAFETY: pointer and length are those of one slice.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Join the session keyring of this name (keyctl(2)), or a new one where there is none that may be searched; the payload
/// then shares none with its caller. The number of the keyring.
pub(crate) fn join_session_keyring(name: &CStr) -> nix::Result<i32> {
    /// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
    const JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: the name is null-terminated and only read.
    let serial = Errno::result(unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr())
    })?;
    i32::try_from(serial).map_err(|_| Errno::EOVERFLOW)
}

/// Let processes of the keyring's user find it by its name: what a new session keyring permits, and to search it.
pub(crate) fn let_keyring_be_found(serial: i32) -> nix::Result<()> {
    /// `KEYCTL_SETPERM` of linux/keyctl.h.
    const SETPERM: c_int = 5;
    /// keyctl_setperm(3): everything for who possesses it; for its user view, read, search and link.
    const PERMISSIONS: u32 = 0x3f00_0000 | 0x0001_0000 | 0x0002_0000 | 0x0008_0000 | 0x0010_0000;
    // SAFETY: numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, serial, PERMISSIONS) })
        .map(drop)
}

/// The kind of namespace that `file` stands for, as its CLONE_NEW* flag (ioctl_ns(2)); an error for any other file.
pub(crate) fn namespace_type(file: BorrowedFd) -> nix::Result<c_int> {
    /// `NS_GET_NSTYPE` of linux/nsfs.h: _IO(0xb7, 3).
    const GET_TYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), GET_TYPE as _) })
}

/// Set every signal to its default action and let all of them through: what a fresh program expects.
pub(crate) fn reset_signals() {
    /// The kernel's `struct sigaction` (rt_sigaction(2)), zeroed: the default action, no flags, an empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    /// Signals 1 to 64.
    const SIGNALS: c_int = 64;
    let size = size_of::<u64>();
    // SAFETY: the kernel reads one structure, which is no larger than `DEFAULT`, and one 64 bit mask; it writes nothing.
    // The C library's wrapper would refuse two signals that it keeps for itself. KILL and STOP answer EINVAL.
    unsafe {
        for signal in 1..=SIGNALS {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), old, size);
        }
        let old = std::ptr::null_mut::<u64>();
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            DEFAULT.as_ptr(),
            old,
            size,
        );
    }
}
