//! The standard streams of a payload that somebody stays with: copied to and from its terminal, or to and from the pipes
//! that it has in the place of what it must not have itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, makedev};
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Uid, fchown, getpgrp, isatty, pipe2, read, tcgetpgrp, write};

use crate::idmap::{self, Maps};
use crate::launch::Stdio;
use crate::plan::process::Process;
use crate::sys::fd::{standard, waiting};
use crate::sys::path::file_type;
use crate::sys::pty;

/// What is copied while a payload runs. Empty, there is nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    pumps: Vec<Pump>,
    terminal: Option<Terminal>,
}

/// The payload's terminal, by its master, and ours, as long as it is ours to set.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    raw: Option<RawTerminal>,
}

/// Without output for this long after the payload's end nothing more is expected of its terminal.
const QUIET: Duration = Duration::from_millis(200);
/// Several times of what a pty holds (13824 bytes on Linux 6.18): what comes after that much was written by others.
const HELD: usize = 64 << 10;
/// So was what is still waited for after all this time.
const LINGERING: Duration = Duration::from_secs(2);
/// For so long a stream is left alone that cannot be used now, but may be later.
const PAUSE: Duration = Duration::from_secs(1);
/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// The most that is written at once where a write may block. A pipe that polls writable takes a page.
const PAGE: usize = 4096;

/// `PIPEFS_MAGIC` of linux/magic.h.
const PIPEFS_MAGIC: FsType = FsType(0x5049_5045);

/// What a payload gets in the place of those of our standard streams that it must not have itself, and what is then copied:
/// nothing where it is `detached` from this command, or has a terminal of its own.
///
/// Whoever has a file, be it only to read, can open it anew by /proc/self/fd and write to it, truncate it or keep it; who
/// has a terminal can change its modes and read what is typed after the payload's end. A pipe or a socket gives nothing but
/// itself. Output and errors that go to one file share a pipe, so that their order stays.
///
/// With the `maps` of the payload's user namespace, what it gets becomes that of its user here: nobody inside can take a
/// file whose owner is not mapped.
pub(super) fn streams(
    process: &Process,
    maps: Option<&Maps>,
    detached: bool,
) -> Result<(Stdio, Copying)> {
    let mut streams = Stdio::default();
    let mut copying = Copying::default();
    if detached || process.terminal.is_some() {
        return Ok((streams, copying));
    }
    for (number, fd) in (0..=2).enumerate() {
        let stat = fstat(standard(fd)).context("look at the standard streams")?;
        if is_the_payloads_too(standard(fd), &stat) {
            continue;
        }
        if number == 2 && streams[1].is_some() && is_that_of_stdout(&stat) {
            let shared = streams[1].as_ref().map(OwnedFd::try_clone);
            streams[2] = shared.transpose().context("copy a pipe")?;
            continue;
        }
        let (from, to) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let (payloads, pump) = match number {
            0 => (from, Pump::new(Way::In, End::callers(0)?, End::ours(to)?)),
            _ => (to, Pump::new(Way::Out, End::ours(from)?, End::callers(fd)?)),
        };
        streams[number] = Some(payloads);
        copying.pumps.push(pump);
    }
    if let Some(owner) = maps.and_then(|maps| idmap::to_host(&maps.uids, process.uid)) {
        for (fd, stream) in (0..).zip(&streams) {
            let stream = stream.as_ref().map_or(standard(fd), AsFd::as_fd);
            // Also a pipe of the caller's; not one that has a name, and an owner for others than this container.
            if fstatfs(stream).is_ok_and(|found| found.filesystem_type() == PIPEFS_MAGIC) {
                fchown(stream, Some(Uid::from_raw(owner)), None).ok();
            }
        }
    }
    Ok((streams, copying))
}

/// Whether the payload may have the caller's own: a fifo or pipe, a socket, the null device, and what is no file at all.
/// Not one that does not block, which few programs reckon with: they lose what it does not take at once.
fn is_the_payloads_too(stream: BorrowedFd, stat: &FileStat) -> bool {
    let blocks =
        || fcntl(stream, FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::O_NONBLOCK == 0);
    match file_type(stat) {
        SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFBLK => false,
        SFlag::S_IFCHR => stat.st_rdev == makedev(1, 3),
        SFlag::S_IFIFO | SFlag::S_IFSOCK => blocks(),
        _ => true,
    }
}

/// Whether our standard error, which is described, is the file, pipe or terminal of our standard output, opened alike.
fn is_that_of_stdout(stderr: &FileStat) -> bool {
    let is_same = |stdout: FileStat| {
        (stdout.st_dev, stdout.st_ino) == (stderr.st_dev, stderr.st_ino)
            && access(standard(1)) == access(standard(2))
    };
    // One inode of another device may be many things.
    (matches!(
        file_type(stderr),
        SFlag::S_IFREG | SFlag::S_IFIFO | SFlag::S_IFSOCK
    ) || is_slave(standard(2), stderr))
        && fstat(standard(1)).is_ok_and(is_same)
}

/// For what a stream is open: `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
fn access(stream: BorrowedFd) -> nix::Result<libc::c_int> {
    fcntl(stream, FcntlArg::F_GETFL).map(|flags| flags & libc::O_ACCMODE)
}

/// Whether it is a terminal, and not the other side of one, which is a new one each time it is opened.
fn is_slave(stream: BorrowedFd, stat: &FileStat) -> bool {
    isatty(stream).unwrap_or(false) && stat.st_rdev != makedev(5, 2)
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
    streams.find(|stream| fstat(stream).is_ok_and(|stat| is_slave(*stream, &stat)))
}

/// Whether others are in the foreground of this terminal.
fn is_anothers(stream: BorrowedFd) -> bool {
    tcgetpgrp(stream).is_ok_and(|foreground| foreground != getpgrp())
}

impl Copying {
    /// The same, and with a `master` between the terminal behind it and our standard streams. Our own terminal, the first of
    /// them that is one, is raw while it is ours.
    pub(super) fn with_terminal(mut self, master: Option<OwnedFd>) -> Result<Self> {
        if let Some(master) = master {
            let end = || End::ours(master.try_clone()?).map_err(std::io::Error::from);
            let (input, output) = (
                end().context("set up console")?,
                end().context("set up console")?,
            );
            self.pumps
                .push(Pump::new(Way::Keys, End::callers(0)?, input));
            self.pumps
                .push(Pump::new(Way::Screen, output, End::callers(1)?));
            let raw = RawTerminal::new()?;
            self.terminal = Some(Terminal { master, raw });
        }
        Ok(self)
    }

    /// How long to wait at most for what is wanted; to be asked before that is.
    pub(super) fn patience(&mut self) -> PollTimeout {
        let mut patience = PollTimeout::NONE;
        let now = Instant::now();
        for pump in &mut self.pumps {
            pump.paused = pump.paused.filter(|until| *until > now);
            if pump.paused.is_some() {
                patience = timeout(PAUSE);
            }
        }
        // A job in the background sets nothing, and may come to the foreground without a sign.
        if let Some(terminal) = &mut self.terminal
            && terminal.raw.is_none()
            && our_terminal().is_some()
        {
            terminal.raw = RawTerminal::new().unwrap_or_default();
            patience = timeout(PAUSE);
        }
        patience
    }

    /// What to poll for, each with what comes of it in `go_on`'s list. A stream of which nothing is wanted is left out:
    /// poll(2) reports a hangup unasked, over and over.
    pub(super) fn wanted(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.pumps.iter().filter_map(Pump::wanted)
    }

    /// Move what can be moved, where `ready` says of each that was wanted whether it is.
    pub(super) fn go_on(&mut self, ready: &[bool]) {
        let pumps = self.pumps.iter_mut();
        let wanting = pumps.filter(|pump| pump.wanted().is_some());
        for (pump, _) in wanting.zip(ready).filter(|(_, ready)| **ready) {
            pump.step();
        }
        if self.terminal.is_some() && self.screen().is_none() {
            // Nobody has the terminal any more. The kernel would take what is typed, and drop it.
            self.pumps.retain(|pump| pump.way != Way::Keys);
        }
    }

    /// Our terminal has another size.
    pub(super) fn follow(&self) {
        if let Some(terminal) = &self.terminal {
            follow(terminal.master.as_fd());
        }
    }

    /// Whether others than the payload may have pipes of its, which are waited for then.
    pub(super) fn has_pipes(&self) -> bool {
        self.pumps.iter().any(|pump| pump.way == Way::Out)
    }

    /// After the payload's death: what it wrote last to its terminal, and what comes through its pipes until nobody has them
    /// any more. When there is something at `signals`, `stopped` says whether it asks for the end: the first time only what is
    /// there already is still copied, the second time nothing.
    ///
    /// The terminal's part ends when the terminal does, or, where others hold it open, after a pause without output (the
    /// kernel hands the last bytes over from a work queue), and in any case when no more can be the payload's. However slow
    /// our reader is, it gets all of that.
    pub(super) fn finish(mut self, signals: BorrowedFd, mut stopped: impl FnMut() -> bool) {
        self.pumps.retain(|pump| pump.way != Way::Keys);
        if let Some(screen) = self.screen() {
            screen.left = Some(HELD);
        }
        let mut lingering = LINGERING;
        let mut stops = 0;
        while self.pumps.iter().any(Pump::is_awaited) {
            let on_screen = self.screen().is_some_and(|screen| screen.held.is_empty());
            let patience = match on_screen {
                true => timeout(QUIET),
                false => self.patience(),
            };
            let mut fds = vec![PollFd::new(signals, PollFlags::POLLIN)];
            fds.extend(self.wanted());
            let begun = Instant::now();
            let polled = poll(&mut fds, patience);
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            match polled {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => self.go_on(&ready[1..]),
            }
            lingering = lingering.saturating_sub(if on_screen {
                begun.elapsed()
            } else {
                Duration::ZERO
            });
            if let Some(screen) = self.screen()
                && on_screen
                && (polled == Ok(0) || lingering.is_zero())
            {
                screen.read_no_more_than(0);
            }
            if ready[0] && stopped() {
                stops += 1;
                if stops > 1 {
                    return;
                }
                self.wait_for_nobody();
            }
        }
    }

    /// Copy no more than what the payload's pipes hold already, where others may go on writing to them.
    pub(super) fn wait_for_nobody(&mut self) {
        for pump in self.pumps.iter_mut().filter(|pump| pump.way == Way::Out) {
            let from = pump.ends.as_ref().map(|(from, _)| from.fd.as_fd());
            let held = from.and_then(|from| waiting(from).ok());
            pump.read_no_more_than(held.unwrap_or(0));
        }
    }

    fn screen(&mut self) -> Option<&mut Pump> {
        let mut pumps = self.pumps.iter_mut();
        pumps.find(|pump| pump.way == Way::Screen && pump.ends.is_some())
    }
}

fn timeout(duration: Duration) -> PollTimeout {
    PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX)
}

/// Where a stream leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the payload's pipe.
    In,
    /// From its pipe.
    Out,
    /// To its terminal.
    Keys,
    /// From its terminal, which has to be read for the payload to go on.
    Screen,
}

/// One end of what is copied.
#[derive(Debug)]
struct End {
    fd: OwnedFd,
    /// A write to it may block.
    blocks: bool,
    /// It is a terminal in whose foreground others may be.
    is_terminal: bool,
}

impl End {
    /// A pipe's or terminal's end that only this process has.
    fn ours(fd: OwnedFd) -> nix::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            fd,
            blocks: false,
            is_terminal: false,
        })
    }

    /// One of our standard streams. While this process hangs in one of them it hears neither a signal nor of the payload's
    /// death; but its flags are those of others too. So a pipe or terminal is opened once more, where that is allowed.
    fn callers(number: RawFd) -> Result<Self> {
        let stream = standard(number);
        let stat = fstat(stream).context("look at the standard streams")?;
        let is_terminal = is_slave(stream, &stat);
        let wanted = if number == 0 {
            libc::O_RDONLY
        } else {
            libc::O_WRONLY
        };
        let is_open_for_it =
            access(stream).is_ok_and(|open| open == wanted || open == libc::O_RDWR);
        let anew = || {
            let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let flags = flags | OFlag::from_bits_retain(wanted);
            open(path.as_str(), flags, Mode::empty()).ok()
        };
        let opened = (is_terminal || file_type(&stat) == SFlag::S_IFIFO)
            .then(anew)
            .flatten()
            .filter(|_| is_open_for_it);
        let blocks = opened.is_none();
        let fd = match opened {
            Some(fd) => fd,
            None => stream
                .try_clone_to_owned()
                .context("copy a standard stream")?,
        };
        Ok(Self {
            fd,
            blocks,
            is_terminal,
        })
    }

    /// Whether it is a terminal in whose foreground others are. ORDER: asked of no master, which answers for its other side.
    fn is_anothers(&self) -> bool {
        self.is_terminal && is_anothers(self.fd.as_fd())
    }
}

/// One direction.
#[derive(Debug)]
struct Pump {
    way: Way,
    /// Both, until one has ended.
    ends: Option<(End, End)>,
    /// What is read and not yet written.
    held: Vec<u8>,
    /// How much is still read, where that is not all.
    left: Option<usize>,
    /// Until when it is left alone.
    paused: Option<Instant>,
}

impl Pump {
    fn new(way: Way, from: End, to: End) -> Self {
        Self {
            way,
            ends: Some((from, to)),
            held: Vec::new(),
            left: None,
            paused: None,
        }
    }

    fn wanted(&self) -> Option<PollFd<'_>> {
        let (from, to) = self.ends.as_ref().filter(|_| self.paused.is_none())?;
        Some(match self.held.is_empty() {
            true => PollFd::new(from.fd.as_fd(), PollFlags::POLLIN),
            false => PollFd::new(to.fd.as_fd(), PollFlags::POLLOUT),
        })
    }

    /// Whether the command must not end before it does: what comes from the payload's side.
    fn is_awaited(&self) -> bool {
        matches!(self.way, Way::Out | Way::Screen) && self.ends.is_some()
    }

    fn step(&mut self) {
        match self.held.is_empty() {
            true => self.read(),
            false => self.write(),
        }
    }

    fn read(&mut self) {
        let Some((from, _)) = &self.ends else { return };
        let mut chunk = vec![0; self.left.unwrap_or(CHUNK).min(CHUNK)];
        match read(&from.fd, &mut chunk) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // What is typed now is for somebody else (termios(3), background process groups).
            Err(Errno::EIO) if from.is_anothers() => self.pause(),
            // EIO: the last process has closed the pty.
            Ok(0) | Err(_) => self.ends = None,
            Ok(length) => {
                chunk.truncate(length);
                self.held = chunk;
                self.left = self.left.map(|left| left - length);
            }
        }
    }

    fn write(&mut self) {
        let Some((_, to)) = &self.ends else { return };
        let most = if to.blocks { PAGE } else { CHUNK };
        match write(&to.fd, &self.held[..self.held.len().min(most)]) {
            Ok(length) => drop(self.held.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Our reader is gone, and the payload must not block on that.
            Err(_) if self.way == Way::Screen => self.held.clear(),
            // Nobody takes it, or there is no room for it: its writer, the caller or the payload, gets to know.
            Err(_) => self.ends = None,
        }
        if self.held.is_empty() && self.left == Some(0) {
            self.ends = None;
        }
    }

    fn pause(&mut self) {
        self.paused = Some(Instant::now() + PAUSE);
    }

    /// What is held is written, and at most this many bytes more are read.
    fn read_no_more_than(&mut self, left: usize) {
        self.left = Some(left);
        if left == 0 && self.held.is_empty() {
            self.ends = None;
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
    /// None when no standard stream is a terminal, or others are in its foreground.
    fn new() -> Result<Option<Self>> {
        let Some(fd) = our_terminal().filter(|fd| !is_anothers(*fd)) else {
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
        // In the background it has been set for others since.
        if !is_anothers(self.fd) {
            tcsetattr(self.fd, SetArg::TCSANOW, &self.before).ok();
        }
    }
}
