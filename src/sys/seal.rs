//! Protection of our own executable file.
//!
//! CVE-2019-5736: until the payload's execve, and for as long as a payload's interpreter is `/proc/self/exe`, a process
//! inside the container can reach the file we run from and reopen it for writing. So a command that makes a container
//! process runs from a file that nobody can open for writing: one on a read-only mount or with fs-verity enabled is
//! good as it is; any other is executed again through a detached read-only bind mount of itself, or, where mounts are
//! not allowed, from a sealed copy in memory.

use std::ffi::{CString, c_ulong};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::FsFlags;

use super::mount::{self, Change, Reach, attr};
use super::process::{ExecArray, execve_fd};

const OWN_FILE: &std::ffi::CStr = c"/proc/self/exe";

/// Go on only from a file that nobody can write: returns when this process runs from such a file already, and
/// otherwise executes it again in a protected form with the same arguments and environment.
pub(crate) fn ensure() -> nix::Result<()> {
    let file = open(OWN_FILE, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    if is_protected(&file)? {
        return Ok(());
    }
    let copy = read_only_bind().or_else(|_| sealed_copy(file.as_fd()))?;
    let strings = |list: Vec<std::ffi::OsString>| -> nix::Result<ExecArray> {
        let list: Result<Vec<_>, _> = list
            .into_iter()
            .map(|text| CString::new(text.into_vec()))
            .collect();
        Ok(ExecArray::new(list.map_err(|_| Errno::EINVAL)?))
    };
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let (args, env) = (
        strings(std::env::args_os().collect())?,
        strings(environment.collect())?,
    );
    Err(execve_fd(copy.as_fd(), &args, &env))
}

fn is_protected(file: &OwnedFd) -> nix::Result<bool> {
    if fstatfs(file)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    let sealed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    let seals =
        fcntl(file, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_truncate);
    Ok(seals.contains(sealed) || has_verity(file.as_fd()))
}

/// `FS_IOC_MEASURE_VERITY` of linux/fsverity.h: _IOWR('f', 134, struct fsverity_digest).
pub(super) const MEASURE_VERITY: c_ulong = 0xc004_6686;

/// Whether fs-verity guards the file: its content can then never change again (FS_IOC_MEASURE_VERITY answers).
fn has_verity(file: BorrowedFd) -> bool {
    #[repr(C)]
    struct Digest {
        algorithm: u16,
        size: u16,
        digest: [u8; 64],
    }
    let mut digest = Digest {
        algorithm: 0,
        size: 64,
        digest: [0; 64],
    };
    // SAFETY: the kernel writes a header and at most `size` bytes, for which the structure has room.
    unsafe { libc::ioctl(file.as_raw_fd(), MEASURE_VERITY as _, &raw mut digest) == 0 }
}

/// Our file through a detached read-only mount of its own, which stays read-only however it is reached.
fn read_only_bind() -> nix::Result<OwnedFd> {
    let tree = mount::clone_tree(nix::fcntl::AT_FDCWD, OWN_FILE, Reach::One)?;
    mount::change(
        tree.as_fd(),
        Reach::One,
        Change::attributes(attr::RDONLY, 0),
    )?;
    Ok(tree)
}

/// A copy of our file in memory that can no longer be changed; what an unprivileged caller gets.
fn sealed_copy(file: BorrowedFd) -> nix::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // KERNEL(6.3): older kernels do not know MFD_EXEC, and make every memfd executable.
    // SAFETY: the name is a literal; the descriptor that comes back is new.
    let memory = unsafe {
        let mut fd = libc::memfd_create(c"pelagos".as_ptr(), flags | libc::MFD_EXEC);
        if fd == -1 && Errno::last() == Errno::EINVAL {
            fd = libc::memfd_create(c"pelagos".as_ptr(), flags);
        }
        OwnedFd::from_raw_fd(Errno::result(fd)?)
    };
    let mut copy = File::from(memory);
    let mut source = File::from(file.try_clone_to_owned().map_err(|_| Errno::EMFILE)?);
    std::io::copy(&mut source, &mut copy)
        .and_then(|_| copy.flush())
        .map_err(|_| Errno::EIO)?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy.into())
}
