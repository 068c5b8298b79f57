//! Network devices.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Set the loopback device of this process's network namespace up.
pub(crate) fn loopback_up() -> nix::Result<()> {
    // Any socket serves for device ioctls; a unix one exists on every kernel.
    let door = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(door.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}
