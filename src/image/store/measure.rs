//! How much a tree takes: nothing followed, no other mount entered, hard links once (B-10).

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstat, fstatat};

use crate::sys::path::{file_type, open_beneath};

use super::{DIRECTORY, entries};

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Names in the tree, its own root not counted.
    pub(crate) entries: u64,
    /// Blocks on disk in bytes, each inode once.
    pub(crate) disk_bytes: u64,
    /// Sizes of files and symbolic links in bytes, each inode once.
    pub(crate) apparent_bytes: u64,
}

/// Measure the tree whose root is open as `dir`.
///
/// # Errors
/// A directory that cannot be read, named by its path below the root: a size that leaves something out is no size.
pub(crate) fn measure(dir: BorrowedFd) -> Result<Measure> {
    let mut sum = Measure {
        disk_bytes: blocks(fstat(dir)?.st_blocks),
        ..Measure::default()
    };
    walk(dir, Path::new(""), &mut sum, &mut HashSet::new())?;
    Ok(sum)
}

fn walk(
    dir: BorrowedFd,
    path: &Path,
    sum: &mut Measure,
    seen: &mut HashSet<(u64, u64)>,
) -> Result<()> {
    let context = || format!("measure {}", path.display());
    for name in entries(dir).with_context(context)? {
        let stat = match fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It went while the directory was read.
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno).with_context(context),
        };
        sum.entries += 1;
        if stat.st_nlink > 1
            && file_type(&stat) != SFlag::S_IFDIR
            && !seen.insert((stat.st_dev, stat.st_ino))
        {
            continue;
        }
        sum.disk_bytes += blocks(stat.st_blocks);
        if file_type(&stat) != SFlag::S_IFDIR {
            sum.apparent_bytes += u64::try_from(stat.st_size).unwrap_or_default();
            continue;
        }
        let below = path.join(&name);
        match open_beneath(dir, Path::new(&name), DIRECTORY) {
            Ok(child) => walk(child.as_fd(), &below, sum, seen)?,
            Err(Errno::ENOENT | Errno::EXDEV) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("measure {}", below.display()));
            }
        }
    }
    Ok(())
}

/// stat(2) counts blocks of 512 bytes, whatever the file system's own are.
pub(crate) fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default() * 512
}
