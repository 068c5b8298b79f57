//! Descriptors: the socket pair of the handshake, passing one over a socket, copying, and closing what is left.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr,
};
use nix::sys::stat::Mode;

/// A connected pair of sockets that keep message borders; closed on exec.
pub(crate) fn seqpacket_pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Connect to the listener at `path`, now or never. COMPAT: as in Go a name that begins with `@` is an abstract one.
///
/// # Errors
/// EAGAIN where its queue is full: somebody listens, and nobody accepts.
pub(crate) fn connect(path: &Path) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let (address, directory) = address(path)?;
    socket::connect(socket.as_raw_fd(), &address)?;
    drop(directory);
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(socket.into())
}

/// The address of the socket at `path`, and a directory that has to stay open while it is used.
fn address(path: &Path) -> nix::Result<(UnixAddr, Option<OwnedFd>)> {
    if let Some(name) = path.as_os_str().as_bytes().strip_prefix(b"@") {
        return Ok((UnixAddr::new_abstract(name)?, None));
    }
    match UnixAddr::new(path) {
        // An address has 107 bytes, a path may have more: its last part from a directory that is open.
        Err(Errno::ENAMETOOLONG) => {
            let above = path.parent().unwrap_or(Path::new("."));
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let directory = open(above, flags, Mode::empty())?;
            let mut short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
            short.push(path.file_name().ok_or(Errno::EISDIR)?);
            Ok((UnixAddr::new(&short)?, Some(directory)))
        }
        address => Ok((address?, None)),
    }
}

/// Send `data`, with the descriptors `fds` attached when there are any: how much of it went, which is all of it unless the
/// socket is a stream.
pub(crate) fn send(socket: BorrowedFd, data: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    socket::sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(data)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

/// Receive one message into `buffer`: its length (0 at the end of the conversation) and the descriptor it carried.
pub(crate) fn receive(
    socket: BorrowedFd,
    buffer: &mut [u8],
) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        match socket::recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fd = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel made these descriptors for this message; nobody else owns them.
            fd = fds
                .into_iter()
                .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) })
                .next_back();
        }
    }
    Ok((message.bytes, fd))
}

/// Put a copy of `fd` at exactly the number `target`, not closed on exec.
pub(crate) fn install(fd: BorrowedFd, target: RawFd) -> nix::Result<()> {
    // SAFETY: dup2 onto one of the standard descriptors, which no owned type stands for.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), target) }).map(drop)
}

/// Whether `number` is an open descriptor that this process was started with: its own are all closed on exec.
pub(crate) fn is_inherited(number: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag.
    unsafe { libc::fcntl(number, libc::F_GETFD) == 0 }
}

/// How many bytes can be read from a pipe at once (FIONREAD, ioctl_pipe(2)).
pub(crate) fn waiting(pipe: BorrowedFd) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    Errno::result(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Borrow one of the standard descriptors, 0 to 2, which live as long as the process.
pub(crate) fn standard(number: RawFd) -> BorrowedFd<'static> {
    assert!((0..=2).contains(&number), "not a standard descriptor");
    // SAFETY: 0 to 2 are opened before main (Rust's runtime sees to it) and never closed.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// write(2) as it is: no retry, no allocation; for the sealed zone before execve.
pub(crate) fn write_raw(fd: BorrowedFd, data: &[u8]) -> nix::Result<usize> {
    nix::unistd::write(fd, data)
}

/// Close a descriptor that an owner in this process's memory, copied from its parent, will never drop.
pub(crate) fn close_foreign(number: RawFd) {
    // SAFETY: after a fork the copied owner is not used and its destructor does not run (see above).
    unsafe { libc::close(number) };
}

/// Close every descriptor from `first` on except those in `keep`, which is sorted (close_range, Linux 5.9).
///
/// For a process that will end by execve or `_exit`: owned descriptors among them are closed behind their owners' backs,
/// and their destructors must not run.
pub(crate) fn close_between(first: RawFd, keep: &[RawFd]) -> nix::Result<()> {
    let mut from = first.cast_unsigned();
    let close = |from: u32, to: u32| {
        // SAFETY: as promised above, nobody uses or drops the descriptors that go.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) }).map(drop)
    };
    for kept in keep.iter().map(|fd| fd.cast_unsigned()) {
        if kept > from {
            close(from, kept - 1)?;
        }
        from = from.max(kept + 1);
    }
    close(from, u32::MAX)
}
