//! Named volumes: directories of the store that outlive the containers which mount them.

use std::collections::{BTreeMap, HashSet};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::report::Hinted;

use super::containers::{Containers, RuntimeRoots};
use super::mounts::{self, Mounted};
use super::output::visible;
use super::store::{HeldLease, Kind, SCHEMA, Store, Trashed, VolumeRecord, entries, now};

/// The longest name, in bytes.
const LONGEST_NAME: usize = 128;

/// Whether `name` may name a volume: a letter or digit, then letters, digits, `_`, `.` and `-`. So it is no path, no
/// option and no hidden file.
///
/// # Errors
/// It may not.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let fine = name.len() <= LONGEST_NAME
        && name.bytes().all(inner)
        && name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !fine {
        bail!(
            "volume {:?}: a name begins with a letter or a digit and has letters, digits, `_`, `.` and `-`, at most {LONGEST_NAME}",
            visible(name)
        );
    }
    Ok(())
}

/// The volumes of a store, as directories that are looked at: what a path leads to, however it is written (B-9).
#[derive(Debug, Default)]
pub(crate) struct Places {
    volumes: Vec<(Inode, String)>,
    /// What holds all of them: the directory `volumes`, the store, and those around it.
    above: HashSet<Inode>,
}

/// The numbers of a file system and of a file in it.
type Inode = (u64, u64);

impl Places {
    /// Of the volumes that are there now.
    ///
    /// # Errors
    /// They cannot be listed, or not looked at.
    pub(crate) fn of(store: &Store) -> Result<Self> {
        let dir = store.root().join("volumes");
        let look = || -> Result<Self> {
            let mut places = Self::default();
            for name in entries(store.subdirectory("volumes")?.as_fd())? {
                let metadata = match std::fs::symlink_metadata(dir.join(&name)) {
                    Ok(metadata) => metadata,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                };
                if let Some(name) = name.to_str().filter(|_| metadata.is_dir()) {
                    places.volumes.push((inode(&metadata), name.to_owned()));
                }
            }
            for dir in dir.canonicalize()?.ancestors() {
                places.above.insert(inode(&std::fs::metadata(dir)?));
            }
            Ok(places)
        };
        look().with_context(|| format!("look at {}", dir.display()))
    }

    /// The volumes that can be reached through `path`: the one that it lies in, or all where it is a directory around them.
    pub(crate) fn through(&self, path: &Path) -> Vec<&str> {
        let Ok(path) = path.canonicalize() else {
            return Vec::new();
        };
        let inodes: Vec<Inode> = path
            .ancestors()
            .filter_map(|dir| std::fs::metadata(dir).ok())
            .map(|metadata| inode(&metadata))
            .collect();
        let all = inodes.first().is_some_and(|own| self.above.contains(own));
        self.volumes
            .iter()
            .filter(|(volume, _)| all || inodes.contains(volume))
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

fn inode(metadata: &Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

/// How a volume comes about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) pinned: bool,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Make the volume `name`, whose name is checked. False where there is one already, which stays as it is.
///
/// # Errors
/// It cannot be made.
pub(crate) fn create(store: &Store, name: &str, wishes: &Wishes) -> Result<bool> {
    let _moment = store.shared()?;
    let _alone = store.index_lock()?;
    create_locked(store, name, wishes)
}

fn create_locked(store: &Store, name: &str, wishes: &Wishes) -> Result<bool> {
    let context = || format!("volume {name}");
    if store.volume_record(name)?.is_some() {
        drop(content(store, name)?);
        return Ok(false);
    }
    let volumes = store.subdirectory("volumes")?;
    // 0755 as in the engines: which users of the container may write is for the image to say, which seeds it.
    let made = match mkdirat(&volumes, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => true,
        // A directory without a record is what a killed command left, or what somebody put there: it may hold something.
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(errno).with_context(context),
    };
    let record = || -> Result<()> {
        drop(content(store, name)?);
        // One of that name may have been idle long ago.
        store.renew(&[format!("volume:{name}")])?;
        store.put_volume_record(&VolumeRecord {
            schema: SCHEMA,
            name: name.to_owned(),
            labels: wishes.labels.clone(),
            pinned: wishes.pinned,
            anonymous: false,
            created: now(),
        })
    };
    if let Err(error) = record() {
        if made {
            unlinkat(&volumes, name, UnlinkatFlags::RemoveDir).ok();
        }
        return Err(error);
    }
    Ok(true)
}

/// The directory that holds what is in the volume.
///
/// # Errors
/// It is not there, or is a link.
pub(crate) fn content(store: &Store, name: &str) -> Result<OwnedFd> {
    store
        .subdirectory(&format!("volumes/{name}"))
        .with_context(|| format!("volume {name}"))
}

/// Who uses the volume `name`, one sentence each.
///
/// # Errors
/// A bundle's record, a lease, a container's state or a mount table cannot be read: it may use it.
pub(crate) fn users(
    store: &Store,
    leases: &[HeldLease],
    containers: &Containers,
    mounted: &Mounted,
    name: &str,
) -> Result<Vec<String>> {
    let mut users = Vec::new();
    for record in store.bundle_records()? {
        if record.volumes.iter().any(|volume| volume == name) {
            users.push(format!("bundle {}", record.path.display()));
        }
    }
    let places = Places::of(store)?;
    for container in containers.all() {
        let mut volumes = container.volumes(&places);
        if volumes.any(|volume| volume == name) {
            users.push(format!("container {}", container.id));
        }
    }
    for lease in leases {
        let named = |(kind, id): &(Kind, String)| *kind == Kind::Volume && id == name;
        if lease.items.iter().any(named) {
            users.push(format!("running command `{}`", lease.purpose));
        }
    }
    // Of a container that the runtime keeps elsewhere, or another runtime does, the mount is all that can be seen.
    if users.is_empty()
        && let Ok(content) = content(store, name)
        && mounted.holds(content.as_fd())?
    {
        users.push("a mount".to_owned());
    }
    Ok(users)
}

/// Take the record of the volume `name` away, then its content: into the trash. Where the content stays, so does the record.
///
/// # Errors
/// One of the two cannot be moved.
pub(crate) fn discard(store: &Store, name: &str) -> Result<Option<Trashed>> {
    let record = store.volume_record(name)?;
    store.remove_volume_record(name)?;
    store.discard(&format!("volumes/{name}")).or_else(|error| {
        if let Some(record) = record {
            store.put_volume_record(&record)?;
        }
        Err(error)
    })
}

/// Remove the volume `name` with all it holds.
///
/// # Errors
/// There is none, or it is in use and `force` is not given, or it cannot be removed.
pub(crate) fn remove(store: &Store, roots: &RuntimeRoots, name: &str, force: bool) -> Result<()> {
    check_name(name)?;
    let trashed = {
        // Alone, so that nobody begins to use it between the look and the removal.
        let _alone = store.exclusive()?;
        if store.volume_record(name)?.is_none() {
            bail!("volume {name}: there is none of that name");
        }
        let containers = Containers::read(roots)?;
        let users = users(
            store,
            &store.leases()?.live,
            &containers,
            &mounts::mounted()?,
            name,
        )?;
        if !users.is_empty() && !force {
            let message = format!("volume {name}: used by {}", users.join(", "));
            return Err(Hinted::new(message, "--force removes it all the same").into());
        }
        let _index = store.index_lock()?;
        discard(store, name)?
    };
    if let Some(trashed) = trashed {
        trashed.remove().with_context(|| format!("volume {name}"))?;
    }
    Ok(())
}

/// Open the content of a volume that is about to be mounted, making it when it is missing. True where it is new and empty.
///
/// The caller's lease holds it already.
pub(crate) fn open(store: &Store, name: &str) -> Result<(OwnedFd, bool)> {
    let fresh = create(store, name, &Wishes::default())?;
    let dir = content(store, name)?;
    let fresh = fresh && entries(dir.as_fd())?.is_empty();
    Ok((dir, fresh))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path_no_option_and_not_hidden() {
        for name in ["a", "db-data", "A.b_c-1", "0", &"x".repeat(LONGEST_NAME)] {
            check_name(name).unwrap();
        }
        for name in [
            "",
            ".",
            "..",
            ".x",
            "-x",
            "_x",
            "a/b",
            "a b",
            "ä",
            "a:b",
            "a\n",
            "a\u{1b}[1m",
            &"x".repeat(LONGEST_NAME + 1),
        ] {
            check_name(name).expect_err(name);
        }
    }
}
