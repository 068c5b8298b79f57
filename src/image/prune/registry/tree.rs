//! A registry's storage tree, reached by descriptor: no link is followed and no mount is crossed below its root, so a
//! path in a plan always means what the survey saw.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::sys::path::{file_type, open_beneath};

use super::super::super::store::entries;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// The open root of the tree.
pub(super) struct Tree {
    path: PathBuf,
    root: OwnedFd,
}

/// What lstat(2) said of a file: enough to know it again, to date it and to count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: i64,
    /// Bytes on disk.
    pub(super) disk: u64,
    pub(super) links: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    pub(super) changed: (i64, i64),
    pub(super) kind: SFlag,
}

impl Stamp {
    fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            disk: u64::try_from(stat.st_blocks).unwrap_or_default() * 512,
            links: stat.st_nlink,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            kind: file_type(stat),
        }
    }

    /// Whether this is still the file that `other` describes. Its ctime and count of links may differ: they change when
    /// another name of it goes.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode, self.size, self.modified, self.kind)
            == (
                other.device,
                other.inode,
                other.size,
                other.modified,
                other.kind,
            )
    }

    /// When the file was last written, linked or renamed, in Unix seconds.
    ///
    /// The newer of mtime and ctime: a blob that is mounted into another repository by a hard link keeps its mtime, and
    /// a file restored from a backup has an old one (G-4). Only the kernel sets the ctime, so an mtime that lies in the
    /// future while the ctime does not was set by somebody and says nothing (G-5).
    pub(super) fn newest(&self, now: i64) -> i64 {
        let (modified, changed) = (self.modified.0, self.changed.0);
        if modified > now && changed <= now {
            changed
        } else {
            modified.max(changed)
        }
    }
}

/// A name in a directory.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) stamp: Stamp,
}

impl Entry {
    pub(super) fn is_directory(&self) -> bool {
        self.stamp.kind == SFlag::S_IFDIR
    }

    pub(super) fn is_file(&self) -> bool {
        self.stamp.kind == SFlag::S_IFREG
    }

    /// What a registry or a copying program is still writing under another name than the final one.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_file() && self.name.ends_with(".tmp")
    }
}

impl Tree {
    /// Open the root, which may be a link: the administrator's way to another disk.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let root = nix::fcntl::open(path, DIRECTORY, Mode::empty())
            .with_context(|| format!("open directory {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            root,
        })
    }

    /// The tree below the directory `inner` of this one.
    pub(super) fn below(&self, inner: &str) -> Result<Self> {
        Ok(Self {
            path: self.path.join(inner),
            root: self
                .directory(inner)?
                .ok_or_else(|| anyhow!("{}: is not there", self.shown(inner)))?,
        })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A path in the tree as people know it.
    pub(super) fn shown(&self, path: &str) -> String {
        self.path.join(path).display().to_string()
    }

    /// Open the directory `path`; none where nothing is there.
    pub(super) fn directory(&self, path: &str) -> Result<Option<OwnedFd>> {
        match self.open_at(path, DIRECTORY) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::EXDEV) => Err(anyhow!(
                "{}: a file system is mounted there: name each file system's tree by itself",
                self.shown(path)
            )),
            Err(Errno::ELOOP) => Err(anyhow!("{}: a symbolic link", self.shown(path))),
            Err(errno) => {
                Err(errno).with_context(|| format!("open directory {}", self.shown(path)))
            }
        }
    }

    fn open_at(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        open_beneath(self.root.as_fd(), Path::new(path), flags)
    }

    /// The entries of the directory `path`, sorted; none where it is not there.
    ///
    /// # Errors
    /// It cannot be read, is a link or a mount, or holds a name that is not UTF-8, which no registry writes.
    pub(super) fn list(&self, path: &str) -> Result<Option<Vec<Entry>>> {
        let Some(dir) = self.directory(path)? else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for name in
            entries(dir.as_fd()).with_context(|| format!("read directory {}", self.shown(path)))?
        {
            let shown = || self.path.join(path).join(&name).display().to_string();
            let stat = match fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It went while the directory was read.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno).with_context(|| format!("look at {}", shown())),
            };
            let Some(name) = name.to_str() else {
                bail!("{}: a name that no registry gives", shown());
            };
            found.push(Entry {
                name: name.to_owned(),
                stamp: Stamp::of(&stat),
            });
        }
        Ok(Some(found))
    }

    /// What is at `path`, links not followed; none where nothing is.
    pub(super) fn stamp(&self, path: &str) -> Result<Option<Stamp>> {
        let context = || format!("look at {}", self.shown(path));
        match self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC) {
            Ok(fd) => Ok(Some(Stamp::of(&fstat(&fd).with_context(context)?))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(context),
        }
    }

    /// The content of the regular file `path`, at most `limit` bytes; none where it is not there.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let context = || format!("read {}", self.shown(path));
        // O_NONBLOCK: a FIFO would wait for a writer for ever.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = match self.open_at(path, flags) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(context),
        };
        if file_type(&fstat(&file).with_context(context)?) != SFlag::S_IFREG {
            bail!("{}: not a regular file", self.shown(path));
        }
        let mut content = Vec::new();
        File::from(file)
            .take(limit + 1)
            .read_to_end(&mut content)
            .with_context(context)?;
        if content.len() as u64 > limit {
            bail!("{}: larger than {limit} bytes", self.shown(path));
        }
        Ok(Some(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(modified: i64, changed: i64) -> Stamp {
        Stamp {
            device: 1,
            inode: 1,
            size: 0,
            disk: 0,
            links: 1,
            modified: (modified, 0),
            changed: (changed, 0),
            kind: SFlag::S_IFREG,
        }
    }

    // G-4, G-5
    #[test]
    fn the_newest_time_is_one_that_somebody_could_not_have_set_ahead() {
        let now = 1000;
        for (modified, changed, newest) in [
            (100, 900, 900),
            (900, 900, 900),
            (-5, -5, -5),
            (5000, 900, 900),
            (5000, 4000, 5000),
        ] {
            assert_eq!(
                stamp(modified, changed).newest(now),
                newest,
                "{modified} {changed}"
            );
        }
    }
}
