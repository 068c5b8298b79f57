//! Removal: renamed to trash under the lock, unlinked after, through descriptors only.
//!
//! Nothing is followed: a link is unlinked, a directory opened without links and without crossing a mount (a bind mount
//! below a root filesystem would lead out of the store), and names are taken from the open directory.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Error, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::path::{file_type, open_beneath};

use super::measure::blocks;
use super::{DIRECTORY, Store, entries, random_name};

/// How deep directories are opened one inside the other. Deeper ones are moved up and removed from there, so that no
/// depth uses up the descriptors of the process.
const DEEPEST: usize = 64;

/// Something in trash, not yet unlinked.
#[must_use]
pub(crate) struct Trashed {
    trash: OwnedFd,
    name: String,
    /// Where it was, below the root.
    from: String,
}

impl Trashed {
    /// Unlink it. The number of bytes that became free: blocks on disk, of a file with several links only when the last
    /// one goes.
    pub(crate) fn remove(self) -> Result<u64> {
        remove_tree(self.trash.as_fd(), self.name.as_ref())
            .with_context(|| format!("remove {}", self.from))
    }
}

impl Store {
    /// Rename `name`, which stands below the root, to trash: from here on it does not count any more.
    ///
    /// None where there is nothing of that name.
    pub(crate) fn discard(&self, name: &str) -> Result<Option<Trashed>> {
        let context = || format!("remove {}", self.root().join(name).display());
        let (parent, last) = name
            .rsplit_once('/')
            .ok_or_else(|| anyhow!("{name}: not in a directory of the store"))?;
        let parent = self.subdirectory(parent)?;
        let trash = self.subdirectory("trash")?;
        let other = random_name()?;
        match renameat(&parent, last, &trash, other.as_str()) {
            Ok(()) => Ok(Some(Trashed {
                trash,
                name: other,
                from: name.to_owned(),
            })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(context),
        }
    }
}

/// Remove `name` in the directory `parent` with everything below it: the bytes that became free.
///
/// What cannot be removed does not stop the rest; the first such thing is the error. Nothing on another mount is touched.
pub(crate) fn remove_tree(parent: BorrowedFd, name: &OsStr) -> Result<u64> {
    let mut removal = Removal::default();
    removal.entry(parent, name, Path::new(name), 0, parent);
    // What was moved up out of the depths lies beside.
    while let Some(moved) = removal.moved.pop() {
        removal.entry(parent, moved.as_ref(), Path::new(moved.as_str()), 0, parent);
    }
    match removal.first_error {
        Some(error) => Err(error),
        None => Ok(removal.freed),
    }
}

#[derive(Default)]
struct Removal {
    freed: u64,
    /// Names beside the top to which directories from the depths were moved.
    moved: Vec<String>,
    first_error: Option<Error>,
}

impl Removal {
    fn entry(
        &mut self,
        parent: BorrowedFd,
        name: &OsStr,
        path: &Path,
        depth: usize,
        top: BorrowedFd,
    ) {
        match self.try_entry(parent, name, path, depth, top) {
            // Another command found it in trash too, and was quicker.
            Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => {}
            Err(error) => drop(
                self.first_error
                    .get_or_insert_with(|| error.context(path.display().to_string())),
            ),
            Ok(()) => {}
        }
    }

    fn try_entry(
        &mut self,
        parent: BorrowedFd,
        name: &OsStr,
        path: &Path,
        depth: usize,
        top: BorrowedFd,
    ) -> Result<()> {
        let stat = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if file_type(&stat) != SFlag::S_IFDIR {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            self.count(&stat);
            return Ok(());
        }
        if depth > DEEPEST {
            let other = format!("deep-{}", random_name()?);
            renameat(parent, name, top, other.as_str())?;
            self.moved.push(other);
            return Ok(());
        }
        let dir = open_directory(parent, name)?;
        for child in entries(dir.as_fd())? {
            self.entry(dir.as_fd(), &child, &path.join(&child), depth + 1, top);
        }
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => self.freed += blocks(stat.st_blocks),
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY) if self.first_error.is_some() => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// The count of links falls with each that is removed, so a file is counted when its last one goes.
    fn count(&mut self, stat: &FileStat) {
        if stat.st_nlink == 1 {
            self.freed += blocks(stat.st_blocks);
        }
    }
}

/// A directory whose owner may not read it is made readable first: its content has to go all the same.
fn open_directory(parent: BorrowedFd, name: &OsStr) -> Result<OwnedFd> {
    let path = Path::new(name);
    match open_beneath(parent, path, DIRECTORY) {
        Ok(dir) => {
            let mode = fstat(&dir)?.st_mode;
            if mode & 0o700 != 0o700 {
                // Root needs no permission; for others an error shows at the first unlink.
                fchmod(&dir, Mode::from_bits_truncate(mode & 0o7777 | 0o700)).ok();
            }
            Ok(dir)
        }
        Err(Errno::EACCES) => {
            nix::sys::stat::fchmodat(
                parent,
                path,
                Mode::S_IRWXU,
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )?;
            Ok(open_beneath(parent, path, DIRECTORY)?)
        }
        Err(Errno::EXDEV) => Err(anyhow!(
            "a file system is mounted there: unmount it, then try again"
        )),
        Err(errno) => Err(errno.into()),
    }
}
