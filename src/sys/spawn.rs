//! One short-lived program run to its end: state on stdin, output captured, a time limit.
//!
//! `std::process` is not used because this also runs in a container's init after its seccomp filter is loaded: there the
//! user's filter may forbid what an allocator or a thread library needs. So everything is prepared beforehand, nothing
//! is allocated here, and the calls are few and old: pipe2, clone, poll, read, write, close, kill, wait4.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2, read, write};

use super::process::ExecArray;

/// A program with its argument and environment vectors in the form execve(2) takes.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    argv: ExecArray,
    envp: ExecArray,
}

impl Program {
    /// `argv` is the full vector, the name it is called by included.
    pub(crate) fn new(path: CString, argv: Vec<CString>, env: Vec<CString>) -> Self {
        Self {
            path,
            argv: ExecArray::new(argv),
            envp: ExecArray::new(env),
        }
    }

    /// Give it another environment.
    pub(crate) fn set_env(&mut self, env: Vec<CString>) {
        self.envp = ExecArray::new(env);
    }

    /// The file to be executed.
    pub(crate) fn path(&self) -> &std::ffi::CStr {
        &self.path
    }
}

/// The first `N` bytes of a stream; what comes after is read and dropped, so that the writer never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Captured<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Captured<N> {
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; N],
        len: 0,
    };

    /// What was captured.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn push(&mut self, more: &[u8]) {
        let taken = more.len().min(N - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&more[..taken]);
        self.len += taken;
    }
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It ended by itself with this status.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// It was still running at the time limit and was killed.
    TimedOut,
    /// It was still running when the process that it was run for ended, and was killed.
    Abandoned,
    /// execve(2) refused it.
    NotExecuted(Errno),
}

/// The status of a child whose execve(2) was refused; the reason comes through its own pipe.
const EXEC_REFUSED: i32 = 127;

/// Runs `program` until it ends, `limit` has passed, or the process behind the pidfd `beside` has ended, with `input` on its
/// stdin.
///
/// `files` take its stdout and stderr in the place of `captured`. The program gets fds 0-2 only, an empty signal mask and a
/// default SIGPIPE. A program that does not read its input is no error. Output is taken until the program itself ends: what
/// its own children still hold open is not waited for. Allocates nothing. Errors: the step that the kernel refused, and why.
pub(crate) fn run<const N: usize>(
    program: &Program,
    input: &[u8],
    limit: Option<Duration>,
    beside: Option<BorrowedFd>,
    files: [Option<BorrowedFd>; 2],
    captured: [&mut Captured<N>; 2],
) -> Result<End, (&'static str, Errno)> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| ("pipe2", errno));
    let (in_read, in_write) = pipe()?;
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let (refusal_read, refusal_write) = pipe()?;

    // A page always fits into an empty pipe, and the state is rarely larger: then it is there before the program is.
    if input.len() > 4096 {
        fcntl(&in_write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| ("fcntl", errno))?;
    }
    let rest = feed(&in_write, input).map_err(|errno| ("write", errno))?;

    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let stdio = [
        in_read.as_fd(),
        files[0].unwrap_or(out_write.as_fd()),
        files[1].unwrap_or(err_write.as_fd()),
    ];
    let (pid, pidfd) =
        start(program, stdio, refusal_write.as_fd()).map_err(|errno| ("clone", errno))?;
    drop((out_write, err_write, refusal_write));

    // While something is left to write, our own read end stays open: writing then never raises SIGPIPE.
    let input = (!rest.is_empty()).then_some((rest, in_read, in_write));
    let outputs = [out_read.as_fd(), err_read.as_fd()];
    let attended = attend(pidfd.as_fd(), beside, input, outputs, deadline, captured);
    if attended != Ok(Attended::Ended) {
        // Not reaped yet, so the pid is still its own. It must not outlive a runtime that can no longer watch it either.
        kill(pid, Signal::SIGKILL).map_err(|errno| ("kill", errno))?;
    }
    let status = reap(pid).map_err(|errno| ("wait4", errno))?;
    let attended = attended.map_err(|errno| ("poll", errno))?;
    match attended {
        Attended::Ended => {}
        Attended::TimedOut => return Ok(End::TimedOut),
        Attended::Abandoned => return Ok(End::Abandoned),
    }
    if libc::WIFSIGNALED(status) {
        return Ok(End::Signalled(libc::WTERMSIG(status)));
    }
    match (libc::WEXITSTATUS(status), refusal(&refusal_read)) {
        (EXEC_REFUSED, Some(errno)) => Ok(End::NotExecuted(errno)),
        (code, _) => Ok(End::Exited(code)),
    }
}

/// Writes what the pipe takes at once and returns the rest.
fn feed<'a>(pipe: &OwnedFd, mut input: &'a [u8]) -> Result<&'a [u8], Errno> {
    while !input.is_empty() {
        match write(pipe, input) {
            Ok(written) => input = &input[written..],
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(input)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attended {
    Ended,
    TimedOut,
    Abandoned,
}

/// Writes the rest of the input and reads the outputs until the process ends, the one beside it does, or the deadline passes.
fn attend<const N: usize>(
    pidfd: BorrowedFd,
    beside: Option<BorrowedFd>,
    mut input: Option<(&[u8], OwnedFd, OwnedFd)>,
    outputs: [BorrowedFd<'_>; 2],
    deadline: Option<Instant>,
    captured: [&mut Captured<N>; 2],
) -> Result<Attended, Errno> {
    let mut open = [true; 2];
    let mut ended = false;
    loop {
        // A negative fd makes poll(2) pass over the entry.
        let entry = |fd: c_int, events: i16| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let output = |n: usize| if open[n] { outputs[n].as_raw_fd() } else { -1 };
        let mut fds = [
            entry(if ended { -1 } else { pidfd.as_raw_fd() }, libc::POLLIN),
            entry(output(0), libc::POLLIN),
            entry(output(1), libc::POLLIN),
            entry(
                input.as_ref().map_or(-1, |(.., pipe)| pipe.as_raw_fd()),
                libc::POLLOUT,
            ),
            entry(beside.map_or(-1, |fd| fd.as_raw_fd()), libc::POLLIN),
        ];
        let timeout = match deadline {
            _ if ended => 0,
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that the last wait does not turn into a busy loop.
                c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
            }
        };
        // SAFETY: the array is ours and its length is passed with it.
        match Errno::result(unsafe { libc::poll(fds.as_mut_ptr(), 5, timeout) }) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(0) if ended => return Ok(Attended::Ended),
            Ok(0) if timeout == 0 => return Ok(Attended::TimedOut),
            Ok(_) => {}
        }
        ended |= fds[0].revents != 0;
        for n in 0..2 {
            if fds[1 + n].revents != 0 {
                open[n] = take(outputs[n], captured[n])?;
            }
        }
        if fds[3].revents != 0
            && let Some((rest, _, pipe)) = &mut input
        {
            *rest = feed(pipe, rest)?;
            if rest.is_empty() {
                input = None;
            }
        }
        if ended {
            input = None;
            if open == [false; 2] {
                return Ok(Attended::Ended);
            }
        }
        if !ended && fds[4].revents != 0 {
            return Ok(Attended::Abandoned);
        }
        // A program that writes without end would otherwise keep us from looking at the clock.
        if !ended && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Attended::TimedOut);
        }
    }
}

/// Reads once; false at the end of the stream.
fn take<const N: usize>(fd: BorrowedFd<'_>, captured: &mut Captured<N>) -> Result<bool, Errno> {
    let mut chunk = [0; 1024];
    match read(fd, &mut chunk) {
        Ok(0) => Ok(false),
        Ok(length) => {
            captured.push(&chunk[..length]);
            Ok(true)
        }
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// The raw wait status: nix's decoding knows no real-time signals.
fn reap(pid: Pid) -> Result<c_int, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int into `status`.
        match Errno::result(unsafe { libc::waitpid(pid.as_raw(), &raw mut status, 0) }) {
            Ok(_) => return Ok(status),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reaps one ended child of this process, without waiting, and returns its exit code, 128+n for signal n.
///
/// None when children are left but none has ended. Errors: ECHILD when there is no child.
pub(crate) fn reap_any() -> Result<Option<(Pid, u8)>, Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one int into `status`.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    Ok((pid != 0).then(|| (Pid::from_raw(pid), exit_code(status))))
}

/// Waits for the child `pid` and returns its exit code, as [`reap_any`] does.
///
/// Errors: ECHILD when it is no child of this process.
pub(crate) fn reap_one(pid: Pid) -> Result<u8, Errno> {
    reap(pid).map(exit_code)
}

fn exit_code(status: c_int) -> u8 {
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    // Both forms fit: a status has eight bits, and signals end at 64.
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// The errno that a child sent before leaving, if it did. All writers are gone by now, so this does not wait.
fn refusal(pipe: &OwnedFd) -> Option<Errno> {
    let mut bytes = [0; 4];
    match read(pipe, &mut bytes) {
        Ok(4) => Some(Errno::from_raw(i32::from_ne_bytes(bytes))),
        _ => None,
    }
}

/// Forks and executes. Plain clone(2): filters written for glibc answer clone3 with ENOSYS, since they cannot look into
/// its argument.
fn start(
    program: &Program,
    stdio: [BorrowedFd<'_>; 3],
    refusal: BorrowedFd<'_>,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack given this is fork(2): the child runs on its own copy of this stack.
    // The kernel writes one int into `pidfd`, the third argument on every architecture we build for. The child calls
    // only functions that are safe after a fork and leaves by execve or _exit.
    let pid =
        Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) })?;
    if pid == 0 {
        become_program(program, stdio, refusal);
    }
    let pid = Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?);
    // SAFETY: the kernel has just made this fd for us.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

fn become_program(program: &Program, stdio: [BorrowedFd<'_>; 3], refusal: BorrowedFd<'_>) -> ! {
    let refuse = |errno: Errno| -> ! {
        let bytes = (errno as i32).to_ne_bytes();
        // SAFETY: four bytes of our own; whether they arrive or not, this process ends here.
        unsafe {
            libc::write(refusal.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            libc::_exit(EXEC_REFUSED)
        }
    };
    for (number, fd) in (0..).zip(stdio) {
        // SAFETY: duplicates onto the standard fds of this process, which is about to become another program.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            refuse(Errno::last());
        }
    }
    // SAFETY: plain calls with arguments of our own; the vectors end with a null pointer and outlive the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        if libc::syscall(
            libc::SYS_close_range,
            3,
            c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) < 0
        {
            // Only a seccomp filter older than the call refuses it. One by one then; ours close themselves.
            for fd in 3..1024 {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        libc::execve(
            program.path.as_ptr(),
            program.argv.as_ptr(),
            program.envp.as_ptr(),
        );
    }
    refuse(Errno::last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        let c = |text: &str| CString::new(text).unwrap();
        Program::new(
            c("/bin/sh"),
            vec![c("sh"), c("-c"), c(script)],
            vec![c("WORD=from env")],
        )
    }

    fn run_shell(script: &str, input: &[u8], limit: Option<Duration>) -> (End, String, String) {
        let (mut out, mut err) = (Captured::<1024>::EMPTY, Captured::EMPTY);
        let end = run(
            &shell(script),
            input,
            limit,
            None,
            [None, None],
            [&mut out, &mut err],
        )
        .unwrap();
        let text =
            |captured: &Captured<1024>| String::from_utf8_lossy(captured.bytes()).into_owned();
        (end, text(&out), text(&err))
    }

    #[test]
    fn input_arrives_and_both_outputs_are_captured() {
        let (end, out, err) = run_shell("cat; echo $WORD >&2; exit 3", b"state", None);
        assert_eq!(
            (end, out.as_str(), err.as_str()),
            (End::Exited(3), "state", "from env\n")
        );
    }

    #[test]
    fn input_larger_than_a_pipe_arrives_whole() {
        let (end, out, _) = run_shell("wc -c | tr -d ' '", &[b'x'; 300_000], None);
        assert_eq!((end, out.as_str()), (End::Exited(0), "300000\n"));
    }

    #[test]
    fn unread_input_is_no_error() {
        let (end, ..) = run_shell("exit 0", &[b'x'; 300_000], None);
        assert_eq!(end, End::Exited(0));
    }

    #[test]
    fn output_beyond_the_buffer_does_not_block_the_program() {
        let (end, out, _) = run_shell("head -c 500000 /dev/zero | tr '\\0' y", b"", None);
        assert_eq!((end, out.len()), (End::Exited(0), 1024));
    }

    #[test]
    fn program_past_its_limit_is_killed() {
        let begun = Instant::now();
        let (end, out, _) = run_shell(
            "echo begun; exec sleep 60",
            b"",
            Some(Duration::from_millis(300)),
        );
        assert_eq!((end, out.as_str()), (End::TimedOut, "begun\n"));
        assert!(begun.elapsed() < Duration::from_secs(20));
        let (end, ..) = run_shell(
            "while :; do echo y; done",
            b"",
            Some(Duration::from_millis(300)),
        );
        assert_eq!(end, End::TimedOut);
    }

    #[test]
    fn program_is_killed_when_the_process_beside_it_ends() {
        let mut beside = std::process::Command::new("sleep")
            .arg("0.3")
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(beside.id().cast_signed());
        let pidfd = crate::sys::pidfd::open(pid).unwrap();
        let (mut out, mut err) = (Captured::<8>::EMPTY, Captured::EMPTY);
        let mut run_beside = |script| {
            run(
                &shell(script),
                b"",
                None,
                Some(pidfd.as_fd()),
                [None, None],
                [&mut out, &mut err],
            )
        };
        assert_eq!(run_beside("exit 3"), Ok(End::Exited(3)));
        assert_eq!(run_beside("exec sleep 60"), Ok(End::Abandoned));
        beside.wait().unwrap();
    }

    #[test]
    fn child_left_behind_with_the_output_open_is_not_waited_for() {
        let begun = Instant::now();
        let (end, out, _) = run_shell("sleep 5 & echo done", b"", None);
        assert_eq!((end, out.as_str()), (End::Exited(0), "done\n"));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn signal_and_refusal_are_told_apart_from_a_status() {
        assert_eq!(run_shell("kill -9 $$", b"", None).0, End::Signalled(9));
        assert_eq!(run_shell("exit 127", b"", None).0, End::Exited(127));
        let absent = Program::new(CString::from(c"/no/such/hook"), vec![], vec![]);
        let (mut out, mut err) = (Captured::<8>::EMPTY, Captured::EMPTY);
        let end = run(&absent, b"", None, None, [None, None], [&mut out, &mut err]);
        assert_eq!(end, Ok(End::NotExecuted(Errno::ENOENT)));
    }

    #[test]
    fn program_gets_no_fd_beyond_stdio() {
        // Four: the standard three and the one that lists the directory.
        let (_, out, _) = run_shell("ls /proc/self/fd | wc -l | tr -d ' '", b"", None);
        assert_eq!(out, "4\n");
    }
}
