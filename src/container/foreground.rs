//! A command that stays with its payload: signals passed on, the terminal copied, orphans reaped, the exit code.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, isatty, read, write};

use super::readiness::Relay;
use crate::sys::fd::standard;
use crate::sys::{pidfd, pty, spawn};

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

/// Waits for the payload `pid`, which must be a child of this process, and returns its exit code, 128+n for signal n.
///
/// Every signal but CHLD and WINCH is passed on to it. With `console`, the pty's master, our standard streams and the pty
/// are copied to each other, our terminal is raw meanwhile, and WINCH carries its size over. All ended children of this
/// process are reaped, so a subreaper leaves no zombies. With `relay`, the service manager hears when the payload is ready;
/// this process is the main one for it, since it stays.
pub(crate) fn wait(
    pid: Pid,
    pidfd: OwnedFd,
    console: Option<OwnedFd>,
    signals: &Signals,
    mut relay: Option<&Relay>,
) -> Result<u8> {
    let mut console = console.map(Console::new).transpose()?;
    let mut dead = false;
    loop {
        // ORDER: before the poll. A child that ended earlier may have left no event to wake up for.
        let code = match reap(pid)? {
            // KERNEL: dead for its pidfd and not yet for its parent, as long as a tracer has not heard of its death.
            None if dead => Some(spawn::reap_one(pid).context("wait for the payload")?),
            code => code,
        };
        if let Some(code) = code {
            if let Some(console) = &mut console {
                console.drain();
            }
            return Ok(code);
        }
        let mut fds = vec![
            PollFd::new(signals.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
        ];
        let streams = console.as_ref().map_or(Vec::new(), Console::streams);
        fds.extend(streams.iter().map(|(_, fd)| fd.clone()));
        if let Some(relay) = relay {
            fds.push(PollFd::new(relay.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("wait for the payload")?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        let streams: Vec<Stream> = streams.iter().map(|(stream, _)| *stream).collect();
        dead = ready[1];
        if ready[0] {
            pass_on(signals, &pidfd, console.as_ref())?;
        }
        if let Some(console) = &mut console {
            for (stream, _) in streams
                .into_iter()
                .zip(&ready[2..])
                .filter(|(_, ready)| **ready)
            {
                console.copy(stream);
            }
        }
        // This process is the main one, and stays: nobody has to wait until that is taken.
        if relay.is_some_and(|relay| relay.pass_on(Pid::this().as_raw()).is_break()) {
            relay = None;
        }
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

fn pass_on(signals: &Signals, payload: &OwnedFd, console: Option<&Console>) -> Result<()> {
    while let Some(signal) = signals.0.read_signal().context("read signals")? {
        match i32::try_from(signal.ssi_signo).unwrap_or(0) {
            libc::SIGCHLD => {}
            libc::SIGWINCH => {
                if let Some(console) = console {
                    follow(console.master.as_fd());
                }
            }
            number => match pidfd::send_signal(payload, number) {
                Ok(()) | Err(Errno::ESRCH) => {}
                // A signal that may not be passed on is no reason to leave the payload alone.
                Err(errno) => crate::report::warn(format_args!("pass on signal {number}: {errno}")),
            },
        }
    }
    Ok(())
}

/// The pty's master and what is on its way through it.
struct Console {
    master: OwnedFd,
    /// Ours, raw until dropped.
    _raw: Option<RawTerminal>,
    to_payload: Vec<u8>,
    to_us: Vec<u8>,
    /// Our stdin has not ended.
    input: bool,
    /// The payload's side has not ended.
    output: bool,
}

/// Without output for this long after the payload's end, in milliseconds, nothing more is expected.
const QUIET_MS: u8 = 200;
/// Several times of what a pty holds (13824 bytes on Linux 6.18): what comes after that much was written by others.
const HELD: usize = 64 << 10;
/// So was what is still waited for after all this time.
const LINGERING: Duration = Duration::from_secs(2);
/// How much is read at once, and the most that a write may find no room for. A pipe that polls writable takes a page.
const CHUNK: usize = 4096;

/// Give the pty behind `master` the size of our terminal, if we have one.
pub(super) fn follow(master: BorrowedFd) {
    if let Some(terminal) = terminal()
        && let Ok(size) = pty::window_size(terminal)
    {
        pty::set_window_size(master, size).ok();
    }
}

/// The same where the configuration has named no size. ORDER: before the payload may look.
pub(super) fn fit(master: BorrowedFd) {
    if pty::window_size(master) == Ok(pty::WindowSize::default()) {
        follow(master);
    }
}

/// The first standard stream that is a terminal.
fn terminal() -> Option<BorrowedFd<'static>> {
    let mut streams = [0, 1, 2].map(standard).into_iter();
    streams.find(|stream| isatty(stream).unwrap_or(false))
}

impl Console {
    fn new(master: OwnedFd) -> Result<Self> {
        // Ours alone, unlike the standard streams, whose flags other processes share.
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set up console")?;
        Ok(Self {
            master,
            _raw: RawTerminal::new()?,
            to_payload: Vec::new(),
            to_us: Vec::new(),
            input: true,
            output: true,
        })
    }

    /// What to poll for. A stream of which nothing is wanted is left out: poll(2) reports a hangup unasked, over and over.
    fn streams(&self) -> Vec<(Stream, PollFd<'_>)> {
        let mut streams = Vec::with_capacity(3);
        if self.input && self.to_payload.is_empty() {
            streams.push((Stream::Input, PollFd::new(standard(0), PollFlags::POLLIN)));
        }
        if !self.to_us.is_empty() {
            streams.push((Stream::Output, PollFd::new(standard(1), PollFlags::POLLOUT)));
        }
        let mut master = PollFlags::empty();
        if self.to_us.is_empty() {
            master |= PollFlags::POLLIN;
        }
        if !self.to_payload.is_empty() {
            master |= PollFlags::POLLOUT;
        }
        if self.output && !master.is_empty() {
            streams.push((Stream::Master, PollFd::new(self.master.as_fd(), master)));
        }
        streams
    }

    /// Moves what can be moved at one stream that is ready.
    fn copy(&mut self, stream: Stream) {
        match stream {
            Stream::Input => match read_chunk(standard(0)) {
                Some(chunk) if chunk.is_empty() => self.input = false,
                Some(chunk) => self.to_payload = chunk,
                None => {}
            },
            Stream::Output => self.write_out(),
            Stream::Master => {
                self.write_in();
                if self.to_us.is_empty() {
                    match read_chunk(self.master.as_fd()) {
                        // EIO: the last process has closed the pty.
                        Some(chunk) if chunk.is_empty() => self.output = false,
                        Some(chunk) => self.to_us = chunk,
                        None => {}
                    }
                }
            }
        }
    }

    fn write_in(&mut self) {
        if self.to_payload.is_empty() {
            return;
        }
        match write(&self.master, &self.to_payload) {
            Ok(length) => drop(self.to_payload.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Nobody is left to read it.
            Err(_) => self.to_payload.clear(),
        }
    }

    fn write_out(&mut self) {
        match write(standard(1), &self.to_us) {
            Ok(length) => drop(self.to_us.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Our reader is gone; the payload must not block on that.
            Err(_) => self.to_us.clear(),
        }
    }

    /// After the payload's death: what it wrote last. Ends when the pty does, or, where others hold it open, after a pause
    /// without output (the kernel hands the last bytes over from a work queue), and in any case when no more can be the
    /// payload's. However slow our reader is, it gets all of that.
    fn drain(&mut self) {
        let (mut left, mut patience) = (HELD, LINGERING);
        self.flush();
        while self.output && left > 0 && !patience.is_zero() {
            let begun = Instant::now();
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, QUIET_MS) {
                Ok(0) => return,
                Ok(_) => self.copy(Stream::Master),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            patience = patience.saturating_sub(begun.elapsed());
            left = left.saturating_sub(self.to_us.len());
            self.flush();
        }
    }

    /// Write out what was read.
    fn flush(&mut self) {
        while !self.to_us.is_empty() {
            let mut fds = [PollFd::new(standard(1), PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => self.write_out(),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// One side of the copying.
#[derive(Clone, Copy)]
enum Stream {
    Input,
    Output,
    Master,
}

/// One read: empty at the end of the stream, none when it has to be tried again.
fn read_chunk(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut chunk = vec![0; CHUNK];
    match read(fd, &mut chunk) {
        Ok(length) => {
            chunk.truncate(length);
            Some(chunk)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => None,
        Err(_) => Some(Vec::new()),
    }
}

/// Our own terminal in raw mode; dropped, it is as it was.
struct RawTerminal {
    fd: BorrowedFd<'static>,
    before: Termios,
}

impl RawTerminal {
    /// None when no standard stream is a terminal.
    fn new() -> Result<Option<Self>> {
        let Some(fd) = terminal() else {
            return Ok(None);
        };
        let before = tcgetattr(fd).context("read terminal settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(fd, SetArg::TCSANOW, &raw).context("set terminal to raw mode")?;
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        tcsetattr(self.fd, SetArg::TCSANOW, &self.before).ok();
    }
}
