//! What the store holds, whether anything needs it or not: one look at each directory, sizes from records and stat.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, SFlag, fstatat};

use crate::image::digest::Digest;
use crate::image::store::{LayerRecord, Measure, Store, VolumeRecord, entries, measure};
use crate::sys::path::{file_type, open_no_links};

use super::mark::Fault;
use super::size::Size;

/// A blob's file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobFile {
    pub(crate) size: Size,
    /// Names of the inode; with more than one, nothing becomes free when this one goes.
    pub(crate) links: u64,
    /// Unix seconds, 0 before 1970.
    pub(crate) modified: u64,
}

/// A layer: its record, its tree, or both.
#[derive(Clone, Debug)]
pub(crate) struct LayerFound {
    pub(crate) record: Option<LayerRecord>,
    pub(crate) tree: bool,
}

/// A volume: its record, its directory, or both.
#[derive(Clone, Debug, Default)]
pub(crate) struct VolumeFound {
    pub(crate) record: Option<VolumeRecord>,
}

/// Everything there is.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) blobs: BTreeMap<Digest, BlobFile>,
    pub(crate) layers: BTreeMap<Digest, LayerFound>,
    pub(crate) volumes: BTreeMap<String, VolumeFound>,
    /// Staging directories that no living command holds.
    pub(crate) staging: Vec<String>,
    /// Those that one holds.
    pub(crate) staging_live: Vec<String>,
    pub(crate) trash: Vec<String>,
    /// Paths below the root that are not ours. They are left alone.
    pub(crate) strangers: Vec<String>,
}

impl Scan {
    /// Look at everything. What cannot be read becomes a fault, and the look goes on.
    pub(super) fn take(store: &Store, faults: &mut Vec<Fault>) -> Self {
        let mut scan = Self::default();
        let mut part = |done: Result<()>| {
            if let Err(error) = done {
                faults.push(Fault::fatal(error));
            }
        };
        part(scan.blobs(store));
        part(scan.layers(store));
        part(scan.volumes(store));
        part(scan.leftovers(store));
        scan
    }

    fn blobs(&mut self, store: &Store) -> Result<()> {
        let blobs = store.subdirectory("blobs")?;
        for algorithm in entries(blobs.as_fd())? {
            let at = format!("blobs/{}", algorithm.display());
            if !matches!(algorithm.to_str(), Some("sha256" | "sha512")) {
                self.strangers.push(at);
                continue;
            }
            let dir = store.subdirectory(&at)?;
            for name in entries(dir.as_fd())? {
                let path = format!("{at}/{}", name.display());
                let digest = format!("{}:{}", algorithm.display(), name.display()).parse();
                let Some(stat) = look(dir.as_fd(), &name)
                    .with_context(|| format!("look at {}", store.root().join(&path).display()))?
                else {
                    continue;
                };
                match digest {
                    Ok(digest) if file_type(&stat) == SFlag::S_IFREG => {
                        self.blobs.insert(digest, blob_file(&stat));
                    }
                    _ => self.strangers.push(path),
                }
            }
        }
        Ok(())
    }

    fn layers(&mut self, store: &Store) -> Result<()> {
        let layers = store.subdirectory("layers")?;
        for name in entries(layers.as_fd())? {
            let Some(stat) = look(layers.as_fd(), &name)? else {
                continue;
            };
            match format!("sha256:{}", name.display()).parse() {
                Ok(chain) if file_type(&stat) == SFlag::S_IFDIR => {
                    let found = LayerFound {
                        record: None,
                        tree: true,
                    };
                    self.layers.insert(chain, found);
                }
                _ => self.strangers.push(format!("layers/{}", name.display())),
            }
        }
        for record in store.layer_records()? {
            let found = self
                .layers
                .entry(record.chain_id.clone())
                .or_insert(LayerFound {
                    record: None,
                    tree: false,
                });
            found.record = Some(record);
        }
        Ok(())
    }

    fn volumes(&mut self, store: &Store) -> Result<()> {
        let volumes = store.subdirectory("volumes")?;
        for name in entries(volumes.as_fd())? {
            let Some(stat) = look(volumes.as_fd(), &name)? else {
                continue;
            };
            match name.to_str() {
                Some(text) if file_type(&stat) == SFlag::S_IFDIR => {
                    self.volumes.insert(text.to_owned(), VolumeFound::default());
                }
                _ => self.strangers.push(format!("volumes/{}", name.display())),
            }
        }
        for record in store.volume_records()? {
            let found = self.volumes.entry(record.name.clone()).or_default();
            found.record = Some(record);
        }
        Ok(())
    }

    fn leftovers(&mut self, store: &Store) -> Result<()> {
        for (name, live) in store.stages()? {
            if live {
                &mut self.staging_live
            } else {
                &mut self.staging
            }
            .push(name);
        }
        let trash = store.subdirectory("trash")?;
        for name in entries(trash.as_fd())? {
            match name.into_string() {
                Ok(name) => self.trash.push(name),
                Err(name) => self.strangers.push(format!("trash/{}", name.display())),
            }
        }
        Ok(())
    }

    /// What a layer takes: from its record, or measured where it has none.
    pub(crate) fn layer_size(&self, store: &Store, chain: &Digest) -> Result<Size> {
        match self.layers.get(chain) {
            Some(LayerFound {
                record: Some(record),
                ..
            }) => Ok(Size {
                disk: record.disk_bytes,
                apparent: record.apparent_bytes,
            }),
            Some(LayerFound { tree: true, .. }) => {
                tree_size(store, &format!("layers/{}", chain.hex()))
            }
            _ => Ok(Size::default()),
        }
    }
}

/// What the tree at `path` below the root takes; nothing where there is none.
pub(crate) fn tree_size(store: &Store, path: &str) -> Result<Size> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let context = || format!("measure {}", store.root().join(path).display());
    let tree = match open_no_links(store.dir(), Path::new(path), flags | OFlag::O_DIRECTORY) {
        Ok(tree) => tree,
        Err(Errno::ENOENT) => return Ok(Size::default()),
        // A file or a link: what it takes itself.
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
            let parent = store.subdirectory(parent)?;
            let stat = look(parent.as_fd(), OsStr::new(name)).with_context(context)?;
            return Ok(stat.map_or(Size::default(), |stat| blob_file(&stat).size));
        }
        Err(errno) => return Err(errno).with_context(context),
    };
    let Measure {
        disk_bytes,
        apparent_bytes,
        ..
    } = measure(tree.as_fd()).with_context(context)?;
    Ok(Size {
        disk: disk_bytes,
        apparent: apparent_bytes,
    })
}

fn blob_file(stat: &FileStat) -> BlobFile {
    BlobFile {
        size: Size {
            disk: u64::try_from(stat.st_blocks).unwrap_or_default() * 512,
            apparent: u64::try_from(stat.st_size).unwrap_or_default(),
        },
        links: stat.st_nlink,
        // G-5: a time before 1970 is the oldest there is, not an error.
        modified: u64::try_from(stat.st_mtime).unwrap_or_default(),
    }
}

fn look(dir: BorrowedFd, name: &OsStr) -> Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("look at {}", name.display())),
    }
}
