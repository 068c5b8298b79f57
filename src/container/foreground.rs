//! A command that stays with its payload: signals passed on, its streams copied, orphans reaped, the exit code.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::copying::Copying;
use super::readiness::Relay;
use crate::sys::{pidfd, spawn};

/// The blocked signals of this process, to be read one by one.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

/// Blocks every signal that can be passed on, and opens where they arrive.
///
/// Called before the clone, so that none is lost between the payload's birth and [`wait`]. The child has to empty its
/// mask. Faults of this process itself (SEGV and the like) stay as they are.
pub(crate) fn block_signals() -> Result<Signals> {
    let mut mask = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGSYS,
    ] {
        mask.remove(fault);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).context("block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&mask, flags)
        .map(Signals)
        .context("open signalfd")
}

impl Signals {
    /// Reads all that are there; whether one of them asks a program to end.
    fn ask_to_end(&self) -> bool {
        let mut asked = false;
        while let Ok(Some(signal)) = self.0.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            asked |= matches!(
                number,
                libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM
            );
        }
        asked
    }
}

/// What has been written is copied, where no payload has come to be.
pub(crate) fn drain(mut copying: Copying, signals: &Signals) {
    copying.wait_for_nobody();
    copying.finish(signals.0.as_fd(), || signals.ask_to_end());
}

/// A payload that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    code: u8,
    copying: Copying,
}

/// Waits for the payload `pid`, which must be a child of this process.
///
/// Every signal but CHLD and WINCH is passed on to it; WINCH carries the size of our terminal over to its own. All ended
/// children of this process are reaped, so a subreaper leaves no zombies. With `relay`, the service manager hears when the
/// payload is ready; this process is the main one for it, since it stays.
pub(crate) fn wait(
    pid: Pid,
    pidfd: OwnedFd,
    mut copying: Copying,
    signals: &Signals,
    mut relay: Option<&Relay>,
) -> Result<Ended> {
    let mut dead = false;
    loop {
        // ORDER: before the poll. A child that ended earlier may have left no event to wake up for.
        let code = match reap(pid)? {
            // KERNEL: dead for its pidfd and not yet for its parent, as long as a tracer has not heard of its death.
            None if dead => Some(spawn::reap_one(pid).context("wait for the payload")?),
            code => code,
        };
        if let Some(code) = code {
            return Ok(Ended { code, copying });
        }
        let mut fds = vec![
            PollFd::new(signals.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(relay) = relay {
            fds.push(PollFd::new(relay.as_fd(), PollFlags::POLLIN));
        }
        let own = fds.len();
        let patience = copying.patience();
        fds.extend(copying.wanted());
        match poll(&mut fds, patience) {
            Err(Errno::EINTR) => continue,
            other => other.context("wait for the payload")?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        dead = ready[1];
        if ready[0] {
            pass_on(signals, &pidfd, &copying)?;
        }
        copying.go_on(&ready[own..]);
        // This process is the main one, and stays: nobody has to wait until that is taken.
        if relay.is_some_and(|relay| relay.pass_on(Pid::this().as_raw()).is_break()) {
            relay = None;
        }
    }
}

impl Ended {
    /// Whether processes besides the payload may hold up [`Self::code`].
    pub(crate) fn has_pipes(&self) -> bool {
        self.copying.has_pipes()
    }

    /// Nobody holds it up any more: what has been written is copied, and that is all.
    pub(crate) fn wait_for_nobody(&mut self) {
        self.copying.wait_for_nobody();
    }

    /// The payload's exit code, 128+n for signal n, when all that it and its children have written is copied.
    ///
    /// COMPAT: as with runc that lasts until nobody has the payload's pipes any more. Unlike there a signal that asks a program
    /// to end cuts it short.
    pub(crate) fn code(self, signals: &Signals) -> u8 {
        self.copying
            .finish(signals.0.as_fd(), || signals.ask_to_end());
        self.code
    }
}

/// Reaps every ended child; the payload's code if it was among them.
fn reap(payload: Pid) -> Result<Option<u8>> {
    let mut code = None;
    loop {
        match spawn::reap_any() {
            Ok(Some((pid, status))) if pid == payload => code = Some(status),
            Ok(Some(_)) => {}
            // Nobody left to wait for can only be after the payload.
            Ok(None) => return Ok(code),
            Err(Errno::ECHILD) if code.is_some() => return Ok(code),
            Err(errno) => return Err(errno).context("wait for the payload"),
        }
    }
}

fn pass_on(signals: &Signals, payload: &OwnedFd, copying: &Copying) -> Result<()> {
    while let Some(signal) = signals.0.read_signal().context("read signals")? {
        match i32::try_from(signal.ssi_signo).unwrap_or(0) {
            libc::SIGCHLD => {}
            // The kernel's word on a write of ours that nobody reads.
            libc::SIGPIPE if signal.ssi_pid == std::process::id() => {}
            libc::SIGWINCH => copying.follow(),
            number => match pidfd::send_signal(payload, number) {
                Ok(()) | Err(Errno::ESRCH) => {}
                // A signal that may not be passed on is no reason to leave the payload alone.
                Err(errno) => crate::report::warn(format_args!("pass on signal {number}: {errno}")),
            },
        }
    }
    Ok(())
}
