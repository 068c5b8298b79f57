//! A command that stays for the sake of one child: signals are passed on to it, and its end is the command's.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::report;
use crate::sys::pidfd;

/// What is passed on. Stopping and continuing concern the whole job and need no help.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// Signals that wait to be passed on instead of ending this process.
pub(super) struct Signals {
    arriving: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Block them. Called before the child is made, so that none is lost in between; a child that is a copy of this process
    /// calls [`Signals::restore`], one that is a new program begins without a mask anyway.
    pub(super) fn block() -> Result<Self> {
        let mask: SigSet = PASSED_ON.into_iter().collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), Some(&mut before))
            .context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let arriving = SignalFd::with_flags(&mask, flags).context("open signalfd")?;
        Ok(Self { arriving, before })
    }

    /// Let them through again.
    pub(super) fn restore(self) -> Result<()> {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None).context("unblock signals")
    }

    /// Wait for the end of the child `pid`, passing signals on meanwhile: its exit code, 128+n for signal n.
    pub(super) fn wait(&self, pid: Pid) -> Result<u8> {
        let child = pidfd::open(pid).with_context(|| format!("watch process {pid}"))?;
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(1)),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).with_context(|| format!("wait for process {pid}")),
            }
            let mut fds = [
                PollFd::new(self.arriving.as_fd(), PollFlags::POLLIN),
                PollFd::new(child.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("wait for signals"),
            }
            self.pass_on(&child)?;
        }
    }

    fn pass_on(&self, child: &OwnedFd) -> Result<()> {
        while let Some(signal) = self.arriving.read_signal().context("read signals")? {
            // A key pressed at the terminal reaches every process of the job, the child among them.
            if signal.ssi_code == libc::SI_KERNEL {
                continue;
            }
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match pidfd::send_signal(child, number) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => report::warn(format_args!("pass on signal {number}: {errno}")),
            }
        }
        Ok(())
    }
}
