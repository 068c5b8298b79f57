//! The descriptor based mount calls (fsopen(2) and its family), which nix does not have.
//!
//! A mount is made detached, given its attributes, and then moved onto a handle: no path inside a container is ever
//! looked up twice.

use std::ffi::{CStr, CString, c_int, c_uint};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::fstat;

/// Mount attributes of `struct mount_attr` (linux/mount.h).
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    /// All values of access time handling: a change of one of them clears the whole field first.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    /// Linux 5.14.
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// linux/mount.h, since Linux 5.12.
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
/// linux/mount.h, since Linux 5.10.
const MS_NOSYMFOLLOW: libc::c_ulong = 256;
/// linux/stat.h.
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
const OPEN_TREE_CLONE: c_uint = 1;
const OPEN_TREE_CLOEXEC: c_uint = libc::O_CLOEXEC.cast_unsigned();
const AT_RECURSIVE: c_uint = 0x8000;
const AT_EMPTY_PATH: c_uint = libc::AT_EMPTY_PATH.cast_unsigned();
const AT_SYMLINK_NOFOLLOW: c_uint = libc::AT_SYMLINK_NOFOLLOW.cast_unsigned();
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const FSCONFIG_CMD_RECONFIGURE: c_uint = 7;
const FSPICK_CLOEXEC: c_uint = 1;
const FSPICK_EMPTY_PATH: c_uint = 8;

/// One change of a mount's attributes and propagation, as mount_setattr(2) takes it (Linux 5.12).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Attributes to set, of [`attr`].
    pub(crate) set: u64,
    /// Attributes to clear.
    pub(crate) clear: u64,
    /// One of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0 to leave propagation alone.
    pub(crate) propagation: u64,
    /// A user namespace for [`MOUNT_ATTR_IDMAP`], else 0.
    userns_fd: u64,
}

impl Change {
    pub(crate) fn attributes(set: u64, clear: u64) -> Self {
        Self {
            set,
            clear,
            ..Self::default()
        }
    }

    pub(crate) fn propagation(propagation: u64) -> Self {
        Self {
            propagation,
            ..Self::default()
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a call concerns one mount or all that lie below it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    One,
    Tree,
}

impl Reach {
    fn flag(self) -> c_uint {
        if self == Self::Tree { AT_RECURSIVE } else { 0 }
    }
}

fn new_fd(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = c_int::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: every caller passes what a system call answered that makes a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A detached copy of the mount (or the tree of mounts) at `path`, looked up from `dir` (open_tree, Linux 5.2).
pub(crate) fn clone_tree(dir: BorrowedFd, path: &CStr, reach: Reach) -> nix::Result<OwnedFd> {
    open_tree(dir, path, reach.flag())
}

fn open_tree(dir: BorrowedFd, path: &CStr, flags: c_uint) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | flags;
    // SAFETY: the path is null-terminated and only read.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// A detached copy of what is at `path` of the caller's own tree, with its attributes changed.
pub(crate) fn bind(path: &Path, reach: Reach, wanted: Change) -> nix::Result<OwnedFd> {
    bound(path, reach.flag(), wanted)
}

/// The same of a symbolic link, where `path` is one, and not of what it leads to.
pub(crate) fn bind_link(path: &Path, reach: Reach, wanted: Change) -> nix::Result<OwnedFd> {
    bound(path, reach.flag() | AT_SYMLINK_NOFOLLOW, wanted)
}

fn bound(path: &Path, flags: c_uint, wanted: Change) -> nix::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let tree = open_tree(nix::fcntl::AT_FDCWD, &path, flags)?;
    if !wanted.is_none() {
        change(tree.as_fd(), Reach::One, wanted)?;
    }
    Ok(tree)
}

/// Attach the mount behind `mount` (detached, or elsewhere in this namespace) on the file or directory behind `target`.
/// A directory on a file, or the reverse, is `ENOTDIR`.
pub(crate) fn attach(mount: BorrowedFd, target: BorrowedFd) -> nix::Result<()> {
    let is_dir =
        |file: BorrowedFd| fstat(file).map(|about| about.st_mode & libc::S_IFMT == libc::S_IFDIR);
    match attach_at(mount, target, c"", MOVE_MOUNT_T_EMPTY_PATH) {
        // KERNEL: move_mount(2) says EINVAL to this and to much else; mount(2) says what engines tell their users.
        Err(Errno::EINVAL) if is_dir(mount)? != is_dir(target)? => Err(Errno::ENOTDIR),
        other => other,
    }
}

/// Attach the mount behind `mount` at `path` of the caller's own tree.
pub(crate) fn attach_path(mount: BorrowedFd, path: &CStr) -> nix::Result<()> {
    attach_at(mount, nix::fcntl::AT_FDCWD, path, 0)
}

fn attach_at(mount: BorrowedFd, dir: BorrowedFd, path: &CStr, flags: c_uint) -> nix::Result<()> {
    let (from, flags) = (c"".as_ptr(), flags | MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: both paths are null-terminated and only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            from,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
        )
    };
    Errno::result(done).map(drop)
}

/// Whether `file` is the root of a mount (statx with STATX_ATTR_MOUNT_ROOT, Linux 5.8).
pub(crate) fn is_mounted(file: BorrowedFd) -> nix::Result<bool> {
    Ok(about(file, 0)?.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0)
}

/// The numbers of the mount that `file` is on and of the file there (statx with STATX_MNT_ID, Linux 5.8). The same file may
/// be seen through several mounts.
pub(crate) fn place(file: BorrowedFd) -> nix::Result<(u64, u64)> {
    let about = about(file, libc::STATX_INO | libc::STATX_MNT_ID)?;
    Ok((about.stx_mnt_id, about.stx_ino))
}

fn about(file: BorrowedFd, wanted: u32) -> nix::Result<libc::statx> {
    // SAFETY: a structure of numbers, which the kernel fills.
    let mut about: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is null-terminated and only read, the structure is ours.
    let done = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            wanted,
            &raw mut about,
        )
    };
    Errno::result(done).map(|_| about)
}

/// Change attributes or propagation of the mount behind `mount` (mount_setattr, Linux 5.12).
pub(crate) fn change(mount: BorrowedFd, reach: Reach, change: Change) -> nix::Result<()> {
    change_at(mount, c"", reach.flag() | AT_EMPTY_PATH, change)
}

/// Map the ids of the detached mount behind `mount` by the maps of a user namespace: what they map from is an id on the
/// file system, what they map to is an id that the mount shows (mount_setattr with MOUNT_ATTR_IDMAP, Linux 5.12).
///
/// # Errors
/// EINVAL for a file system that cannot be id-mapped, EPERM for what is mapped already and for a caller without rights
/// over the file system or over the namespace.
pub(crate) fn map_ids(mount: BorrowedFd, reach: Reach, namespace: BorrowedFd) -> nix::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let wanted = Change {
        set: MOUNT_ATTR_IDMAP,
        userns_fd,
        ..Change::default()
    };
    change(mount, reach, wanted)
}

/// Change attributes or propagation of the mount at `path` of the caller's own tree.
pub(crate) fn change_path(path: &CStr, reach: Reach, change: Change) -> nix::Result<()> {
    change_at(nix::fcntl::AT_FDCWD, path, reach.flag(), change)
}

fn change_at(dir: BorrowedFd, path: &CStr, flags: c_uint, change: Change) -> nix::Result<()> {
    // SAFETY: the path is null-terminated; the kernel reads as many bytes of `change` as its size says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<Change>(),
        )
    };
    Errno::result(done).map(drop)
}

/// The same attributes as the flags of mount(2).
pub(crate) fn ms_flags(attributes: u64) -> libc::c_ulong {
    let pairs = [
        (attr::RDONLY, libc::MS_RDONLY),
        (attr::NOSUID, libc::MS_NOSUID),
        (attr::NODEV, libc::MS_NODEV),
        (attr::NOEXEC, libc::MS_NOEXEC),
        (attr::NOATIME, libc::MS_NOATIME),
        (attr::STRICTATIME, libc::MS_STRICTATIME),
        (attr::NODIRATIME, libc::MS_NODIRATIME),
        (attr::NOSYMFOLLOW, MS_NOSYMFOLLOW),
    ];
    let wanted = pairs
        .iter()
        .filter(|(attribute, _)| attributes & attribute != 0);
    wanted.fold(0, |flags, (_, flag)| flags | flag)
}

/// One parameter of a file system: `key`, or `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) key: CString,
    pub(crate) value: Option<CString>,
}

/// A new mount of file system `kind`, detached (fsopen, fsconfig, fsmount; Linux 5.2).
///
/// # Errors
/// The errno, and what the file system said about it, which names the parameter at fault.
pub(crate) fn new_filesystem<'p>(
    kind: &CStr,
    parameters: impl IntoIterator<Item = &'p Parameter>,
    attributes: u64,
) -> Result<OwnedFd, (Errno, String)> {
    // SAFETY: the name is null-terminated and only read.
    let context = new_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
        .map_err(|errno| (errno, String::new()))?;
    let explain = |errno| (errno, complaints(&context));
    set_parameters(&context, parameters).map_err(explain)?;
    configure(&context, FSCONFIG_CMD_CREATE, None, None).map_err(explain)?;
    // SAFETY: integers only.
    new_fd(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })
    .map_err(explain)
}

/// Change parameters of the file system behind `root`, which is the root of a mount of it (fspick, Linux 5.2).
///
/// # Errors
/// As for [`new_filesystem`]; EINVAL where `root` is no root of a mount.
pub(crate) fn reconfigure(
    root: BorrowedFd,
    parameters: &[Parameter],
) -> Result<(), (Errno, String)> {
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the path is null-terminated and only read.
    let picked =
        new_fd(unsafe { libc::syscall(libc::SYS_fspick, root.as_raw_fd(), c"".as_ptr(), flags) });
    let context = picked.map_err(|errno| (errno, String::new()))?;
    set_parameters(&context, parameters)
        .and_then(|()| configure(&context, FSCONFIG_CMD_RECONFIGURE, None, None))
        .map_err(|errno| (errno, complaints(&context)))
}

fn set_parameters<'p>(
    context: &OwnedFd,
    parameters: impl IntoIterator<Item = &'p Parameter>,
) -> nix::Result<()> {
    parameters
        .into_iter()
        .try_for_each(|Parameter { key, value }| match value {
            Some(value) => configure(context, FSCONFIG_SET_STRING, Some(key), Some(value)),
            None => configure(context, FSCONFIG_SET_FLAG, Some(key), None),
        })
}

fn configure(
    context: &OwnedFd,
    command: c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> nix::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are null or null-terminated strings, only read, as these commands want them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// The messages that the kernel left in a file system context, without their "e " (error) or "w " (warning) marks.
fn complaints(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut line = [0u8; 512];
    while let Ok(length @ 1..) = nix::unistd::read(context, &mut line) {
        let said = String::from_utf8_lossy(&line[..length]);
        let said = said.trim_end();
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(
            said.strip_prefix("e ")
                .or_else(|| said.strip_prefix("w "))
                .unwrap_or(said),
        );
    }
    text
}

/// The bytes of a field of mountinfo, which writes space, tab, newline and backslash as a backslash and three octal
/// digits (proc_pid_mountinfo(5)).
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        let value =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                plain.push(value);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        for (field, path) in [
            ("/a\\040b", "/a b"),
            ("/a\\134", "/a\\"),
            ("/plain", "/plain"),
            ("/end\\04", "/end\\04"),
            ("/no\\999", "/no\\999"),
        ] {
            assert_eq!(unescape(field.as_bytes()), path.as_bytes(), "{field}");
        }
    }
}
