//! Our records: small JSON files, each replaced as a whole, each with the schema version it was written in.
//!
//! A record that cannot be read or parsed is an error that names the file, never a record that is not there: what it
//! protects would be pruned.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::output::visible;
use super::{SCHEMA, Store, entries, stat_at};

/// The largest record that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// How whiteouts and opaque directories are written in layer trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LayerForm {
    /// `trusted.overlay.*`, which takes CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.*`, for overlays mounted with `userxattr` in a user namespace.
    User,
}

/// An unpacked layer that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerRecord {
    pub(crate) schema: u32,
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    /// The ChainID of the layer below; none for a base.
    pub(crate) parent: Option<Digest>,
    /// The layer's blob.
    pub(crate) blob: Digest,
    pub(crate) form: LayerForm,
    /// Every file belongs to the caller: it had no other ids when the layer was unpacked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) single_id: bool,
    /// Unix seconds.
    pub(crate) created: u64,
    /// Paths in the tree.
    pub(crate) entries: u64,
    /// Blocks on disk in bytes, hard links once.
    pub(crate) disk_bytes: u64,
    /// File sizes added up, hard links once.
    pub(crate) apparent_bytes: u64,
}

/// A bundle that was made from an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BundleRecord {
    pub(crate) schema: u32,
    pub(crate) id: String,
    /// Absolute, links resolved.
    pub(crate) path: PathBuf,
    /// `st_dev` of the directory that holds it: where that is another one, the disk is not mounted.
    pub(crate) parent_device: u64,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// The blobs of the layers.
    pub(crate) layers: Vec<Digest>,
    /// ChainIDs of the shared layers that it mounts; none when its tree is its own.
    pub(crate) chain: Vec<Digest>,
    /// Volumes of the store that it mounts, by name.
    pub(crate) volumes: Vec<String>,
    pub(crate) overlay: bool,
    /// Where the runtime keeps the container's state, of a bundle that was made to be run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state_root: Option<PathBuf>,
    /// As the image was called then.
    pub(crate) image_name: Option<String>,
    /// It is being made, by a command that holds the directory by flock: with the lock free, it is a leftover.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unfinished: bool,
    /// Its directory goes with the container, so that the record is a leftover when the directory is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) passing: bool,
    /// Unix seconds.
    pub(crate) created: u64,
    /// Unix seconds; when the bundle's directory was last seen in its place.
    pub(crate) last_seen: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeRecord {
    pub(crate) schema: u32,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Kept by every prune.
    pub(crate) pinned: bool,
    /// Made for an image's `Volumes`, not by name.
    pub(crate) anonymous: bool,
    /// Unix seconds.
    pub(crate) created: u64,
}

/// When what was last seen referenced, in Unix seconds, by `blob:DIGEST`, `layer:CHAINID`, `image:NAME`, `volume:NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) schema: u32,
    /// The time of the prune that wrote it: what was referenced then has this time, and everything else an earlier one.
    #[serde(default)]
    pub(crate) at: u64,
    /// When references last came or went since then; 0 where nothing says so.
    #[serde(skip)]
    pub(crate) changed: u64,
    pub(crate) seen: BTreeMap<String, u64>,
}

impl Used {
    /// Nothing was seen so far.
    pub(crate) fn new() -> Self {
        Self {
            schema: SCHEMA,
            ..Self::default()
        }
    }

    /// When that was last referenced, as far as is known: of what the last prune saw referenced, at the latest when
    /// references last changed. A time to come is now: else nothing would ever be old enough (G-5).
    pub(crate) fn last(&self, key: &str, now: u64) -> Option<u64> {
        let seen = *self.seen.get(key)?;
        let until_then = self.at > 0 && seen >= self.at;
        let last = if until_then {
            seen.max(self.changed)
        } else {
            seen
        };
        Some(last.min(now))
    }
}

/// What every record begins with.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

impl Store {
    pub(crate) fn layer_record(&self, chain: &Digest) -> Result<Option<LayerRecord>> {
        let record: Option<LayerRecord> = self.record("layers", chain.hex())?;
        match record {
            Some(record) if record.chain_id != *chain => bail!(
                "{}: is the record of {}",
                self.record_path("layers", chain.hex()).display(),
                record.chain_id
            ),
            record => Ok(record),
        }
    }

    pub(crate) fn layer_records(&self) -> Result<Vec<LayerRecord>> {
        self.records("layers", |record: &LayerRecord| record.chain_id.hex())
    }

    /// Commit a layer whose tree is in place and on the disk.
    pub(crate) fn put_layer_record(&self, record: &LayerRecord) -> Result<()> {
        self.put_record("layers", record.chain_id.hex(), record)
    }

    /// Take a layer's record and its listing away: its tree does not count any more.
    pub(crate) fn remove_layer_record(&self, chain: &Digest) -> Result<()> {
        self.remove_record("layers", &format!("{}.json", chain.hex()))?;
        self.remove_record("layers", &format!("{}.list", chain.hex()))
    }

    pub(crate) fn bundle_records(&self) -> Result<Vec<BundleRecord>> {
        self.records("bundles", |record: &BundleRecord| &record.id)
    }

    pub(crate) fn put_bundle_record(&self, record: &BundleRecord) -> Result<()> {
        self.put_record("bundles", &record.id, record)
    }

    pub(crate) fn remove_bundle_record(&self, id: &str) -> Result<()> {
        self.remove_record("bundles", &format!("{id}.json"))
    }

    pub(crate) fn volume_record(&self, name: &str) -> Result<Option<VolumeRecord>> {
        self.record("volumes", name)
    }

    pub(crate) fn volume_records(&self) -> Result<Vec<VolumeRecord>> {
        self.records("volumes", |record: &VolumeRecord| &record.name)
    }

    pub(crate) fn put_volume_record(&self, record: &VolumeRecord) -> Result<()> {
        self.put_record("volumes", &record.name, record)
    }

    pub(crate) fn remove_volume_record(&self, name: &str) -> Result<()> {
        self.remove_record("volumes", &format!("{name}.json"))
    }

    pub(crate) fn used(&self) -> Result<Used> {
        let path = self.root().join("records/used.json");
        match self.read("records/used.json", LARGEST)? {
            Some(bytes) => parse(&bytes).with_context(|| format!("read {}", path.display())),
            None => Ok(Used::new()),
        }
    }

    pub(crate) fn put_used(&self, used: &Used) -> Result<()> {
        self.replace("records/used.json", &serde_json::to_vec(used)?)
    }

    /// Let the grace of these things begin anew: they are referenced now, or were until now. The caller holds index.lock.
    pub(crate) fn renew(&self, keys: &[String]) -> Result<()> {
        // One that cannot be read is prune's to name, and stops it.
        let Ok(mut used) = self.used() else {
            return Ok(());
        };
        let before = used.seen.len();
        used.seen.retain(|key, _| !keys.contains(key));
        if used.seen.len() < before {
            self.put_used(&used)?;
        }
        Ok(())
    }

    /// Unix seconds: when a reference last came or went, as far as that leaves a trace in the store. A command's lease
    /// is one.
    pub(crate) fn last_change(&self) -> Result<u64> {
        let mut last = 0;
        for name in ["index.json", "leases", "records/bundles", "records/volumes"] {
            let (dir, file) = match name.rsplit_once('/') {
                Some((dir, file)) => (self.subdirectory(dir)?, file),
                None => (self.subdirectory(".")?, name),
            };
            let stat = stat_at(dir.as_fd(), file)
                .with_context(|| format!("look at {}", self.root().join(name).display()))?;
            let changed = stat.map_or(0, |stat| stat.st_mtime);
            last = last.max(u64::try_from(changed).unwrap_or_default());
        }
        Ok(last)
    }

    fn record_path(&self, folder: &str, name: &str) -> PathBuf {
        self.root()
            .join("records")
            .join(folder)
            .join(format!("{name}.json"))
    }

    fn record<T: DeserializeOwned>(&self, folder: &str, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.read(&format!("records/{folder}/{name}.json"), LARGEST)? else {
            return Ok(None);
        };
        parse(&bytes)
            .map(Some)
            .with_context(|| format!("read {}", self.record_path(folder, name).display()))
    }

    /// All records of a folder; each has to be about what its file is called after, or two could speak of one thing.
    fn records<T: DeserializeOwned>(
        &self,
        folder: &str,
        about: impl Fn(&T) -> &str,
    ) -> Result<Vec<T>> {
        let dir = self.subdirectory(&format!("records/{folder}"))?;
        let mut records = Vec::new();
        for name in entries(dir.as_fd())? {
            let name = name.to_string_lossy();
            match name.rsplit_once('.') {
                // A record may go while the directory is read.
                Some((id, "json")) => {
                    let record: Option<T> = self.record(folder, id)?;
                    if let Some(other) = record.as_ref().map(&about).filter(|about| *about != id) {
                        bail!(
                            "{}: is the record of {}: look what it is and move it away",
                            self.record_path(folder, id).display(),
                            visible(other)
                        );
                    }
                    records.extend(record);
                }
                Some((_, "list")) if folder == "layers" => {}
                _ => bail!(
                    "{}: not a record: look what it is and move it away",
                    self.root()
                        .join("records")
                        .join(folder)
                        .join(&*name)
                        .display()
                ),
            }
        }
        Ok(records)
    }

    fn put_record<T: Serialize>(&self, folder: &str, name: &str, record: &T) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(record)?;
        bytes.push(b'\n');
        self.replace(&format!("records/{folder}/{name}.json"), &bytes)
    }

    fn remove_record(&self, folder: &str, file: &str) -> Result<()> {
        let dir = self.subdirectory(&format!("records/{folder}"))?;
        match unlinkat(&dir, file, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno).with_context(|| {
                format!(
                    "remove {}",
                    self.root()
                        .join("records")
                        .join(folder)
                        .join(file)
                        .display()
                )
            }),
        }
    }
}

/// A record of the schema that this release writes.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let version: Version = serde_json::from_slice(bytes)?;
    if version.schema != SCHEMA {
        bail!(
            "schema {}, this release knows {SCHEMA}: use the release that wrote it",
            version.schema
        );
    }
    Ok(serde_json::from_slice(bytes)?)
}
