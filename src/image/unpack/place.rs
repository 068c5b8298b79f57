//! A directory that appears complete or not at all: filled beside its place under a name of ours, then renamed.
//!
//! The unfinished one is held by flock(2). What a killed command left is therefore known, and the next one that works in the
//! same directory removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, renameat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{Uid, fsync, syncfs};

use crate::image::store::{self, Durability};
use crate::report;

use super::lower::{look, open_directory};

/// How the names of unfinished directories begin.
const PREFIX: &str = ".pelagos-unpack-";

/// Make the directory `path` with what `fill` writes into it; it is given an empty directory. `path` may be absent, or an
/// empty directory, which is replaced.
///
/// # Errors
/// `path` is something else, or `fill` fails: then nothing is left.
pub(crate) fn fill<T>(
    path: &Path,
    durability: Durability,
    fill: impl FnOnce(BorrowedFd) -> Result<T>,
) -> Result<T> {
    let (parent_path, name) = place(path)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = open(&parent_path, flags, Mode::empty())
        .with_context(|| format!("open {}", parent_path.display()))?;
    refuse_content(parent.as_fd(), &name).with_context(|| path.display().to_string())?;
    remove_leftovers(parent.as_fd());
    let unfinished = Unfinished::new(&parent)
        .with_context(|| format!("make a directory in {}", parent_path.display()))?;
    let done = fill(unfinished.dir())?;
    unfinished
        .put(&name, durability)
        .with_context(|| format!("put it into {}", path.display()))?;
    Ok(done)
}

/// The directory in which `path` is or is to be, and its name there.
fn place(path: &Path) -> Result<(PathBuf, OsString)> {
    let context = || path.display().to_string();
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if path.is_symlink() {
                bail!("{}: a symbolic link that leads nowhere", path.display());
            }
            let Some(name) = path.file_name() else {
                bail!("{}: not the name of a directory", path.display());
            };
            let parent = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            return Ok((
                fs::canonicalize(parent).with_context(|| parent.display().to_string())?,
                name.to_owned(),
            ));
        }
        Err(error) => return Err(error).with_context(context),
    };
    match (real.parent(), real.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => bail!("{}: not a directory that can be replaced", path.display()),
    }
}

fn refuse_content(parent: BorrowedFd, name: &OsStr) -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    match open_directory(parent, name.as_bytes()) {
        Ok(dir) if store::entries(dir.as_fd())?.is_empty() => Ok(()),
        Ok(_) => bail!("it is there, and not empty"),
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => bail!("it is there, and no directory"),
        Err(error) => Err(error.into()),
    }
}

struct Unfinished<'p> {
    parent: &'p OwnedFd,
    name: OsString,
    dir: Flock<File>,
    placed: bool,
}

impl<'p> Unfinished<'p> {
    fn new(parent: &'p OwnedFd) -> Result<Self> {
        loop {
            let name = OsString::from(format!("{PREFIX}{}", store::random_name()?));
            mkdirat(parent, name.as_os_str(), Mode::S_IRWXU)?;
            // Between the two steps another command may take it for a leftover.
            if let Some(dir) = hold(parent.as_fd(), &name)? {
                return Ok(Self {
                    parent,
                    name,
                    dir,
                    placed: false,
                });
            }
        }
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn put(mut self, name: &OsStr, durability: Durability) -> Result<()> {
        if durability == Durability::Syncfs {
            syncfs(&*self.dir)?;
        }
        renameat(self.parent, self.name.as_os_str(), self.parent, name)?;
        self.placed = true;
        if durability != Durability::None {
            fsync(self.parent)?;
        }
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = store::remove_tree(self.parent.as_fd(), &self.name)
        {
            let (name, error) = (self.name.display(), report::sentence(&error));
            report::warn(format_args!("remove the unfinished {name}: {error}"));
        }
    }
}

/// The directory `name`, locked; none when it is held by another or gone.
fn hold(parent: BorrowedFd, name: &OsStr) -> Result<Option<Flock<File>>> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = name.as_bytes();
    let dir = match open_directory(parent, name) {
        Ok(dir) => dir,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Ok(dir) = Flock::lock(File::from(dir), FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    let held = fstat(&*dir)?;
    let there = look(parent, name)?;
    let same =
        there.is_some_and(|there| (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino));
    Ok(same.then_some(dir))
}

/// Remove what killed commands of this user left in `parent`. It is no reason to fail that one cannot be.
fn remove_leftovers(parent: BorrowedFd) {
    let Ok(names) = store::entries(parent) else {
        return;
    };
    for name in names {
        if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Ok(Some(dir)) = hold(parent, &name) else {
            continue;
        };
        // Nobody else's directory is taken for ours because of its name.
        let ours = fstat(&*dir).is_ok_and(|stat| stat.st_uid == Uid::effective().as_raw());
        if ours && let Err(error) = store::remove_tree(parent, &name) {
            let (name, error) = (name.display(), report::sentence(&error));
            report::warn(format_args!("remove the leftover {name}: {error}"));
        }
    }
}
