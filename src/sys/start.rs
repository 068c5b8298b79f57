//! What Rust's own start would do for a program and the C library's does not.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::os::fd::{BorrowedFd, IntoRawFd as _};

/// Descriptors 0 to 2 are open, or the next file to be opened would be written to as one of them; a reader that has gone is
/// an error of write(2), not the end, and so is a file that may not be larger; children that have ended can be waited for, whatever was inherited for `SIGCHLD`: while
/// that is ignored the kernel reaps them itself.
pub(crate) fn streams_and_signals() {
    for number in 0..=2 {
        // SAFETY: only asked about, open or not.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl(stream, FcntlArg::F_GETFD) == Err(Errno::EBADF)
            && let Ok(null) = open(c"/dev/null", OFlag::O_RDWR, Mode::empty())
        {
            // The lowest number that is free: that of the stream. It stays open.
            let _stream = null.into_raw_fd();
        }
    }
    // SAFETY: sets dispositions without a handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// End as a program does that never heard of `SIGPIPE`: quietly, by that signal, for the shell to see.
pub(crate) fn end_by_sigpipe() {
    // SAFETY: sets a disposition without a handler, and sends a signal to this thread.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::raise(libc::SIGPIPE);
    }
}
