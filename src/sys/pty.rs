//! Pseudo terminals, by descriptor only: no name under /dev/pts is ever trusted.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

/// Width and height of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// The number of the slave that belongs to `master`, unlocked for opening.
pub(crate) fn unlock(master: BorrowedFd) -> nix::Result<u32> {
    let (unlock, mut number) = (0i32, 0u32);
    // SAFETY: TIOCSPTLCK reads one int, TIOCGPTN writes one unsigned int; both outlive the calls.
    unsafe {
        Errno::result(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSPTLCK,
            &raw const unlock,
        ))?;
        Errno::result(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTN,
            &raw mut number,
        ))?;
    }
    Ok(number)
}

/// The slave of `master`, whatever lies at its name by now (TIOCGPTPEER, Linux 4.13).
pub(crate) fn peer(master: BorrowedFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: the argument is an integer; the descriptor that comes back is new.
    unsafe {
        Ok(OwnedFd::from_raw_fd(Errno::result(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            flags.bits(),
        ))?))
    }
}

/// The size of the terminal `tty`.
pub(crate) fn window_size(tty: BorrowedFd) -> nix::Result<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

pub(crate) fn set_window_size(tty: BorrowedFd, size: WindowSize) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// Make `tty` the controlling terminal of this session; the caller leads the session (setsid).
pub(crate) fn set_controlling(tty: BorrowedFd) -> nix::Result<()> {
    // SAFETY: the argument is an integer.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}
