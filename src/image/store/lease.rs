//! Leases and staging: what lives exactly as long as the command that made it, since the kernel drops a flock with its
//! process.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, mkdirat};

use crate::report::debug;
use crate::sys::path::open_no_links;

use super::{DIRECTORY, Store, Trashed, entries, flock, random_name, remove_tree, stat_at};

/// What a line of a lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// By digest.
    Blob,
    /// By ChainID.
    Layer,
    /// By name.
    Volume,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Layer => "layer",
            Self::Volume => "volume",
        }
    }
}

/// Protects what a running command uses from prune; in a store on a read-only file system nothing can be pruned, and there
/// is no file.
pub(crate) struct Lease(Option<(PathBuf, Flock<File>)>);

/// A lease of a living command, as prune reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldLease {
    pub(crate) purpose: String,
    pub(crate) items: Vec<(Kind, String)>,
}

/// The leases in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases {
    pub(crate) live: Vec<HeldLease>,
    /// Names of those whose command is dead.
    pub(crate) dead: Vec<String>,
}

impl Lease {
    /// Protect one more thing. From the return of this call on no prune removes it; so hold first and look after.
    pub(crate) fn hold(&self, kind: Kind, id: &str) -> Result<()> {
        self.write(&format!("{} {id}\n", kind.word()), "write")
    }

    /// One write: a reader sees a whole line or none.
    fn write(&self, line: &str, what: &str) -> Result<()> {
        let Some((path, file)) = &self.0 else {
            return Ok(());
        };
        (&**file)
            .write_all(line.as_bytes())
            .with_context(|| format!("{what} lease {}", path.display()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.0 {
            // Where this does not succeed the next command removes it: the lock is gone with us.
            drop(std::fs::remove_file(path));
        }
    }
}

/// A directory for unfinished work, ours alone until it is dropped, and then removed.
pub(crate) struct Stage<'s> {
    store: &'s Store,
    name: String,
    dir: Flock<File>,
}

impl Stage<'_> {
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Ok(staging) = self.store.subdirectory("staging") {
            // What stays is swept by the next command.
            drop(remove_tree(staging.as_fd(), self.name.as_ref()));
        }
    }
}

impl Store {
    /// A new lease for this command. Nothing is protected until it is held for something.
    pub(crate) fn lease(&self, purpose: &str) -> Result<Lease> {
        self.require_own()?;
        loop {
            let path = self.path.join("leases").join(random_name()?);
            let dir = self.subdirectory("leases")?;
            let name = path.file_name().unwrap_or_default();
            let flags =
                OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_APPEND | OFlag::O_CLOEXEC;
            let context = || format!("make lease {}", path.display());
            let file = match openat(&dir, name, flags, Mode::from_bits_truncate(0o600)) {
                Err(Errno::EROFS) => return Ok(Lease(None)),
                made => made.with_context(context)?,
            };
            let file = flock(file.into(), FlockArg::LockExclusive).with_context(context)?;
            // Between its making and its lock another command may have taken it for a leftover.
            if fstat(&*file).with_context(context)?.st_nlink > 0 {
                let lease = Lease(Some((path, file)));
                lease.write(&format!("purpose {purpose}\n"), "make")?;
                return Ok(lease);
            }
        }
    }

    /// The leases of living commands, and the names of those whose command is dead. Nothing is changed.
    ///
    /// # Errors
    /// A lease that cannot be read: what it protects is unknown.
    pub(crate) fn leases(&self) -> Result<Leases> {
        let dir = self.subdirectory("leases")?;
        let mut leases = Leases::default();
        for name in entries(dir.as_fd())? {
            let path = self.path.join("leases").join(&name);
            let context = || format!("read lease {}", path.display());
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let file: File = match openat(&dir, name.as_os_str(), flags, Mode::empty()) {
                Ok(file) => file.into(),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno).with_context(context),
            };
            match Flock::lock(file, FlockArg::LockSharedNonblock) {
                // Its maker is dead, or has not locked it yet and will make another.
                Ok(_) => leases.dead.push(name.to_string_lossy().into_owned()),
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text).with_context(context)?;
                    leases.live.push(parse_lease(&text).with_context(context)?);
                }
                Err((_, errno)) => return Err(errno).with_context(context),
            }
        }
        Ok(leases)
    }

    /// Remove a lease whose command is dead: the bytes that became free. None where it is gone or held.
    pub(crate) fn remove_dead_lease(&self, name: &str) -> Result<Option<u64>> {
        let dir = self.subdirectory("leases")?;
        let context = || format!("remove {}", self.path.join("leases").join(name).display());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file: File = match openat(&dir, name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(context),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_dead) => Ok(Some(
                remove_tree(dir.as_fd(), name.as_ref()).with_context(context)?,
            )),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno).with_context(context),
        }
    }

    /// Rename a staging directory whose command is dead to trash. None where it is gone or held.
    pub(crate) fn discard_dead_stage(&self, name: &str) -> Result<Option<Trashed>> {
        let context = || format!("remove {}", self.path.join("staging").join(name).display());
        let staging = self.subdirectory("staging")?;
        let dir = match open_no_links(staging.as_fd(), Path::new(name), DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(context),
        };
        let dir = match Flock::lock(File::from(dir), FlockArg::LockExclusiveNonblock) {
            Ok(dir) => dir,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno).with_context(context),
        };
        let same = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        let there = stat_at(staging.as_fd(), name).with_context(context)?;
        if there.map(same) != Some(same(fstat(&*dir).with_context(context)?)) {
            return Ok(None);
        }
        self.discard(&format!("staging/{name}"))
    }

    /// Remove something in trash: the bytes that became free.
    pub(crate) fn remove_trash(&self, name: &str) -> Result<u64> {
        let trash = self.subdirectory("trash")?;
        remove_tree(trash.as_fd(), name.as_ref())
            .with_context(|| format!("remove {}", self.path.join("trash").join(name).display()))
    }

    /// The staging directory `name`, empty and ours. Waits while another command holds it: what that one makes may be
    /// what is wanted, so look again before starting.
    pub(crate) fn stage(&self, name: &str) -> Result<Stage<'_>> {
        let context = || format!("use {}", self.path.join("staging").join(name).display());
        let staging = self.subdirectory("staging")?;
        loop {
            match mkdirat(&staging, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).with_context(context),
            }
            let dir = match open_no_links(staging.as_fd(), Path::new(name), DIRECTORY) {
                Ok(dir) => dir,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno).with_context(context),
            };
            let dir = flock(dir.into(), FlockArg::LockExclusive).with_context(context)?;
            // The name may have gone to another directory while we waited.
            let ours = fstat(&*dir).with_context(context)?;
            let there = stat_at(staging.as_fd(), name).with_context(context)?;
            if there.is_none_or(|there| (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino))
            {
                continue;
            }
            for left in entries(dir.as_fd())? {
                remove_tree(dir.as_fd(), &left).with_context(context)?;
            }
            return Ok(Stage {
                store: self,
                name: name.to_owned(),
                dir,
            });
        }
    }

    /// The staging directories, and whether a living command holds each.
    pub(crate) fn stages(&self) -> Result<Vec<(String, bool)>> {
        let staging = self.subdirectory("staging")?;
        let mut found = Vec::new();
        for name in entries(staging.as_fd())? {
            let path = self.path.join("staging").join(&name);
            let context = || format!("look at {}", path.display());
            let dir = match open_no_links(staging.as_fd(), Path::new(&name), DIRECTORY) {
                Ok(dir) => dir,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno).with_context(context),
            };
            let live = match Flock::lock(File::from(dir), FlockArg::LockSharedNonblock) {
                Ok(_) => false,
                Err((_, Errno::EWOULDBLOCK)) => true,
                Err((_, errno)) => return Err(errno).with_context(context),
            };
            found.push((name.to_string_lossy().into_owned(), live));
        }
        Ok(found)
    }

    /// Remove what dead commands left: staging and leases without a holder, and trash.
    pub(super) fn clean(&self) -> Result<()> {
        let staging = self.subdirectory("staging")?;
        let trash = self.subdirectory("trash")?;
        for name in entries(staging.as_fd())? {
            let Ok(dir) = open_no_links(staging.as_fd(), Path::new(&name), DIRECTORY) else {
                continue;
            };
            let Ok(dir) = Flock::lock(File::from(dir), FlockArg::LockExclusiveNonblock) else {
                continue;
            };
            let same = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
            let there = name
                .to_str()
                .and_then(|name| stat_at(staging.as_fd(), name).ok()?);
            if there.map(same) != fstat(&*dir).ok().map(same) {
                continue;
            }
            debug!("remove leftover staging/{}", name.display());
            let other = random_name()?;
            // Where it cannot be moved it stays for the next command.
            renameat(&staging, name.as_os_str(), &trash, other.as_str()).ok();
        }
        // A lease that cannot be read is prune's to name: it decides what stays.
        for name in self.leases().map(|leases| leases.dead).unwrap_or_default() {
            debug!("remove leftover leases/{name}");
            drop(self.remove_dead_lease(&name));
        }
        for name in entries(trash.as_fd())? {
            // An ordinary user's command may lack the right outside of its user namespace; a later one has it.
            if let Err(error) = remove_tree(trash.as_fd(), &name) {
                debug!("trash/{} stays: {error:#}", name.display());
            }
        }
        Ok(())
    }
}

fn parse_lease(text: &str) -> Result<HeldLease> {
    let mut lease = HeldLease {
        purpose: String::new(),
        items: Vec::new(),
    };
    // A line without its end is just being written, or was not to the end for want of room: its holder does not count on it.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        match line.split_once(' ') {
            Some(("purpose", purpose)) => lease.purpose = purpose.to_owned(),
            Some(("blob", id)) => lease.items.push((Kind::Blob, id.to_owned())),
            Some(("layer", id)) => lease.items.push((Kind::Layer, id.to_owned())),
            Some(("volume", id)) => lease.items.push((Kind::Volume, id.to_owned())),
            _ => bail!("line {line:?} is not one of ours"),
        }
    }
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_lease_count_when_they_are_whole() {
        let lease =
            parse_lease("purpose bundle /srv/a b\nblob sha256:ab\nlayer sha256:cd\nvolume db\n");
        let lease = lease.unwrap();
        assert_eq!(lease.purpose, "bundle /srv/a b");
        let kinds: Vec<_> = lease.items.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [Kind::Blob, Kind::Layer, Kind::Volume]);
        for (text, items) in [
            ("", 0),
            ("purp", 0),
            ("purpose x\nbl", 0),
            ("blob a\nvolume", 1),
        ] {
            assert_eq!(parse_lease(text).unwrap().items.len(), items, "{text:?}");
        }
        for text in ["junk\n", "blob\n", "blob a\n\nblob b\n"] {
            parse_lease(text).unwrap_err();
        }
    }
}
