//! Terminals: the window size, and the standard streams as fds.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

/// Fds 0-2. The standard library opens /dev/null for those that are closed at start, and this program never closes one.
pub(crate) fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: open for the life of the process, see above.
    [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// TIOCGWINSZ: rows, columns and pixels of a terminal. Errors: ENOTTY.
pub(crate) fn window_size(terminal: impl AsFd) -> Result<libc::winsize, Errno> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one winsize.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

/// TIOCSWINSZ; the foreground process group of the terminal gets SIGWINCH when the size changes. Errors: ENOTTY.
pub(crate) fn set_window_size(terminal: impl AsFd, size: libc::winsize) -> Result<(), Errno> {
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one winsize.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }).map(drop)
}
