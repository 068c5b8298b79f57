//! The layers below an overlay layer, seen as overlayfs shows them.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

use crate::sys::attribute;
use crate::sys::path::file_type;

/// What is seen at a path.
pub(super) struct Seen {
    /// The directory that holds it, in the layer that has it.
    pub(super) dir: OwnedFd,
    pub(super) stat: FileStat,
}

/// Whether a file is overlayfs's whiteout: a character device 0:0.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// Open the directory `name` itself, never where a link leads.
pub(super) fn open_directory(dir: BorrowedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}

pub(super) fn look(dir: BorrowedFd, name: &[u8]) -> nix::Result<Option<FileStat>> {
    match fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the layers `parents`, nearest first, show at `path`, a clean path without links in it. `mark` is the attribute of
/// an opaque directory.
pub(super) fn find(parents: &[OwnedFd], path: &[u8], mark: &CStr) -> nix::Result<Option<Seen>> {
    let mut here: Vec<OwnedFd> = parents
        .iter()
        .map(|fd| fd.try_clone().map_err(|_| Errno::EMFILE))
        .collect::<nix::Result<_>>()?;
    let mut components = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = components.next() {
        let last = components.peek().is_none();
        let mut next = Vec::new();
        for dir in here {
            let Some(stat) = look(dir.as_fd(), name)? else {
                continue;
            };
            if is_whiteout(&stat) {
                break;
            }
            if last {
                return Ok(Some(Seen { dir, stat }));
            }
            if file_type(&stat) != SFlag::S_IFDIR {
                break;
            }
            let dir = open_directory(dir.as_fd(), name)?;
            let opaque = matches!(attribute::get(dir.as_fd(), mark).as_deref(), Ok(b"y"));
            next.push(dir);
            if opaque {
                break;
            }
        }
        here = next;
    }
    Ok(None)
}
