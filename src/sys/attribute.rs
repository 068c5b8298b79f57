//! Extended attributes (xattr(7)) by descriptor, and by name below a descriptor where there is none to be had.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

/// The names of all extended attributes of the file behind `file` (flistxattr(2)).
pub(crate) fn list(file: BorrowedFd) -> nix::Result<Vec<CString>> {
    // Most files have none, and all of one file fit here.
    let mut names = vec![0u8; 1024];
    loop {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let length =
            unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
        match Errno::result(length) {
            // XATTR_LIST_MAX
            Err(Errno::ERANGE) if names.len() < 1 << 16 => names.resize(1 << 16, 0),
            Err(error) => return Err(error),
            Ok(length) => {
                names.truncate(usize::try_from(length).unwrap_or(0));
                let names = names.split_inclusive(|byte| *byte == 0);
                return Ok(names
                    .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
                    .map(CStr::to_owned)
                    .collect());
            }
        }
    }
}

/// Read the extended attribute `name`, of any size (fgetxattr(2)).
pub(crate) fn get(file: BorrowedFd, name: &CStr) -> nix::Result<Vec<u8>> {
    let mut value = vec![0u8; 1024];
    loop {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let length = unsafe {
            libc::fgetxattr(
                file.as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        match Errno::result(length) {
            // XATTR_SIZE_MAX
            Err(Errno::ERANGE) if value.len() < 1 << 16 => value.resize(1 << 16, 0),
            Err(error) => return Err(error),
            Ok(length) => {
                value.truncate(usize::try_from(length).unwrap_or(0));
                return Ok(value);
            }
        }
    }
}

/// Write the extended attribute `name` of the file behind `file` (fsetxattr(2)).
pub(crate) fn set(file: BorrowedFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    // SAFETY: the name is null-terminated, and pointer and length are those of one slice; both are only read.
    let done = unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// Remove the extended attribute `name` (fremovexattr(2)).
pub(crate) fn remove(file: BorrowedFd, name: &CStr) -> nix::Result<()> {
    // SAFETY: the name is null-terminated and only read.
    Errno::result(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Write the extended attribute `name` of the file `entry` in the directory `dir`, without following it: for what cannot
/// be opened without consequence, such as links and devices.
// KERNEL(6.13): setxattrat(2) would do it without /proc.
pub(crate) fn set_below(
    dir: BorrowedFd,
    entry: &OsStr,
    name: &CStr,
    value: &[u8],
) -> nix::Result<()> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(entry.as_bytes());
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    // SAFETY: path and name are null-terminated, and pointer and length are those of one slice; all are only read.
    let done = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(done).map(drop)
}
