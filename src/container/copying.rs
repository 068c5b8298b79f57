//! The standard streams of a payload that somebody stays with: copied to and from its terminal, or to and from the pipes
//! that it has in the place of what it must not have itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, SFlag, fstat, makedev};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{isatty, pipe2, read, write};

use crate::launch::Stdio;
use crate::sys::fd::standard;
use crate::sys::path::file_type;
use crate::sys::pty;

/// What is copied while a payload runs. Empty, there is nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    pumps: Vec<Pump>,
    /// The master of the payload's terminal.
    master: Option<OwnedFd>,
    /// Ours, raw until dropped.
    raw: Option<RawTerminal>,
}

/// Without output for this long after the payload's end, in milliseconds, nothing more is expected.
const QUIET_MS: u8 = 200;
/// Several times of what a pty holds (13824 bytes on Linux 6.18): what comes after that much was written by others.
const HELD: usize = 64 << 10;
/// So was what is still waited for after all this time.
const LINGERING: Duration = Duration::from_secs(2);
/// How much is read at once, and the most that a write may find no room for. A pipe that polls writable takes a page.
const CHUNK: usize = 4096;

/// Pipes for the payload in the place of those standard streams that it must not have itself, and what is then copied.
///
/// Whoever has a file, be it only to read, can open it anew by /proc/self/fd and write to it, truncate it or keep it; who
/// has a terminal can change its modes and read what is typed after the payload's end. A pipe or a socket gives nothing but
/// itself. Two streams that are one file share a pipe, so that the order of what is written stays.
pub(super) fn pipes() -> Result<(Stdio, Copying)> {
    let mut streams = Stdio::default();
    let mut copying = Copying::default();
    let mut output = None;
    for (number, fd) in (0..=2).enumerate() {
        let stat = fstat(standard(fd)).context("look at the standard streams")?;
        if is_the_payloads_too(&stat) {
            continue;
        }
        let file = (stat.st_dev, stat.st_ino);
        if number == 2 && output == Some(file) {
            let shared = streams[1].as_ref().map(OwnedFd::try_clone);
            streams[2] = shared.transpose().context("copy a pipe")?;
            continue;
        }
        if number == 1 {
            output = Some(file);
        }
        let (from, to) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let ours = own(fd)?;
        let (payloads, pump) = match number {
            0 => (from, Pump::new(Way::In, ours, to)),
            _ => (to, Pump::new(Way::Out, from, ours)),
        };
        streams[number] = Some(payloads);
        copying.pumps.push(pump);
    }
    Ok((streams, copying))
}

/// Whether the payload may have the caller's own: a fifo or pipe, a socket, the null device, and what is no file at all.
fn is_the_payloads_too(stat: &FileStat) -> bool {
    match file_type(stat) {
        SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFBLK => false,
        SFlag::S_IFCHR => stat.st_rdev == makedev(1, 3),
        _ => true,
    }
}

/// One of our standard streams, to be closed by itself.
fn own(number: i32) -> Result<OwnedFd> {
    standard(number)
        .try_clone_to_owned()
        .context("copy a standard stream")
}

/// Give the terminal behind `master` the size of ours, if we have one.
pub(super) fn follow(master: BorrowedFd) {
    if let Some(ours) = our_terminal()
        && let Ok(size) = pty::window_size(ours)
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
fn our_terminal() -> Option<BorrowedFd<'static>> {
    let mut streams = [0, 1, 2].map(standard).into_iter();
    streams.find(|stream| isatty(stream).unwrap_or(false))
}

impl Copying {
    /// The same, and with a `master` between the terminal behind it and our standard streams. Our own terminal, the first of
    /// them that is one, is raw meanwhile.
    pub(super) fn with_terminal(mut self, master: Option<OwnedFd>) -> Result<Self> {
        if let Some(master) = master {
            // Unlike that of the standard streams nobody else's.
            fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set up console")?;
            let another = || master.try_clone().context("set up console");
            self.pumps.push(Pump::new(Way::Keys, own(0)?, another()?));
            self.pumps.push(Pump::new(Way::Screen, another()?, own(1)?));
            self.raw = RawTerminal::new()?;
            self.master = Some(master);
        }
        Ok(self)
    }

    /// What to poll for, each with what comes of it in `go_on`'s list. A stream of which nothing is wanted is left out:
    /// poll(2) reports a hangup unasked, over and over.
    pub(super) fn wanted(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.pumps.iter().filter_map(Pump::wanted)
    }

    /// Move what can be moved, where `ready` says of each that was wanted whether it is.
    pub(super) fn go_on(&mut self, ready: &[bool]) {
        let wanting = self.pumps.iter_mut().filter(|pump| pump.wanted().is_some());
        for (pump, _) in wanting.zip(ready).filter(|(_, ready)| **ready) {
            pump.step();
        }
    }

    /// Our terminal has another size.
    pub(super) fn follow(&self) {
        if let Some(master) = &self.master {
            follow(master.as_fd());
        }
    }

    /// After the payload's death: what it wrote last to its terminal, and our own terminal as it was. Ends when the terminal
    /// does, or, where others hold it open, after a pause without output (the kernel hands the last bytes over from a work
    /// queue), and in any case when no more can be the payload's. However slow our reader is, it gets all of that.
    pub(super) fn drain_terminal(&mut self) {
        for pump in &mut self.pumps {
            if pump.way == Way::Screen {
                pump.drain();
            }
        }
        self.raw = None;
    }

    /// Only what comes through pipes from the payload's side is still copied.
    pub(super) fn hear_out(&mut self) {
        self.pumps.retain(|pump| pump.way == Way::Out);
    }
}

/// Where a stream leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the payload.
    In,
    /// From its pipe.
    Out,
    /// To its terminal.
    Keys,
    /// From its terminal, which has to be read for the payload to go on.
    Screen,
}

/// One direction.
#[derive(Debug)]
struct Pump {
    way: Way,
    /// Both, until one has ended.
    ends: Option<(OwnedFd, OwnedFd)>,
    /// What is read and not yet written.
    held: Vec<u8>,
}

impl Pump {
    fn new(way: Way, from: OwnedFd, to: OwnedFd) -> Self {
        Self {
            way,
            ends: Some((from, to)),
            held: Vec::new(),
        }
    }

    fn wanted(&self) -> Option<PollFd<'_>> {
        let (from, to) = self.ends.as_ref()?;
        Some(match self.held.is_empty() {
            true => PollFd::new(from.as_fd(), PollFlags::POLLIN),
            false => PollFd::new(to.as_fd(), PollFlags::POLLOUT),
        })
    }

    fn step(&mut self) {
        match self.held.is_empty() {
            true => self.read(),
            false => self.write(),
        }
    }

    fn read(&mut self) {
        let Some((from, _)) = &self.ends else { return };
        let mut chunk = vec![0; CHUNK];
        match read(from, &mut chunk) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // EIO: the last process has closed the pty.
            Ok(0) | Err(_) => self.ends = None,
            Ok(length) => {
                chunk.truncate(length);
                self.held = chunk;
            }
        }
    }

    fn write(&mut self) {
        let Some((_, to)) = &self.ends else { return };
        match write(to, &self.held) {
            Ok(length) => drop(self.held.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Our reader is gone, and the payload must not block on that; or nobody is left to read our side.
            Err(_) if matches!(self.way, Way::Keys | Way::Screen) => self.held.clear(),
            // Nobody takes it, or there is no room for it: its writer, the caller or the payload, gets to know.
            Err(_) => self.ends = None,
        }
        if self.ends.is_none() {
            self.held.clear();
        }
    }

    fn drain(&mut self) {
        let (mut left, mut patience) = (HELD, LINGERING);
        self.flush();
        while let Some((from, _)) = &self.ends
            && left > 0
            && !patience.is_zero()
        {
            let begun = Instant::now();
            let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, QUIET_MS) {
                Ok(0) => return,
                Ok(_) => self.read(),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            patience = patience.saturating_sub(begun.elapsed());
            left = left.saturating_sub(self.held.len());
            self.flush();
        }
    }

    /// Write out what was read.
    fn flush(&mut self) {
        while !self.held.is_empty()
            && let Some((_, to)) = &self.ends
        {
            let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => self.write(),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Our own terminal in raw mode; dropped, it is as it was.
#[derive(Debug)]
struct RawTerminal {
    fd: BorrowedFd<'static>,
    before: Termios,
}

impl RawTerminal {
    /// None when no standard stream is a terminal.
    fn new() -> Result<Option<Self>> {
        let Some(fd) = our_terminal() else {
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
