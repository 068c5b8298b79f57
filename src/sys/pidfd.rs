//! A process as a file descriptor: a signal cannot hit another process that took over the number.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

/// pidfd_open(2), kernel 5.3. The fd closes on exec. Errors: ESRCH when there is no such process.
pub(crate) fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and returns an fd or an error.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_send_signal(2), kernel 5.1, as kill(2) would send it. `signal` is a number, since nix's enum has no real-time
/// signals. Errors: ESRCH when the process is reaped, EINVAL for a number that is no signal.
pub(crate) fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo asks the kernel to fill it as kill(2) does.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// A copy of the process's descriptor `number`: pidfd_getfd(2), kernel 5.6. Errors: EPERM where the process may not be
/// traced, EBADF when it has no such descriptor.
pub(crate) fn take(pidfd: impl AsFd, number: RawFd) -> Result<OwnedFd, Errno> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: takes three numbers and returns an fd or an error.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the process is dead, zombies included; false when `limit` passed first.
pub(crate) fn wait_dead(pidfd: impl AsFd, limit: Duration) -> Result<bool, Errno> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn signal_reaches_the_process_and_its_death_is_seen() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(Pid::from_raw(child.id().cast_signed())).unwrap();
        assert_eq!(wait_dead(&pidfd, Duration::from_millis(10)), Ok(false));
        assert_eq!(send_signal(&pidfd, libc::SIGKILL), Ok(()));
        assert_eq!(wait_dead(&pidfd, Duration::from_secs(20)), Ok(true));
        child.wait().unwrap();
        assert_eq!(send_signal(&pidfd, libc::SIGKILL), Err(Errno::ESRCH));
    }
}
