//! An image as an oci-archive, digests unchanged: a tar of a layout (image-layout.md) with the blobs in the order of their
//! digests and nothing in it that depends on when or by whom it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Read, Write, stdout};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{LinkatFlags, linkat};
use serde_json::json;

use super::digest::{Digest, Hasher};
use super::manifest::{
    Descriptor, Document, Manifest, Platform, is_nondistributable, kind, media_type,
};
use super::output;
use super::progress::{Bar, Progress};
use super::reference::Reference;
use super::store::{Durability, Kind, Lease, Store};

/// The annotation by which an entry of a layout is named (annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Bytes that are collected before they are written.
const CHUNK: usize = 256 << 10;

const NAMELESS: OFlag = OFlag::O_TMPFILE
    .union(OFlag::O_WRONLY)
    .union(OFlag::O_CLOEXEC);

/// Where the archive goes.
pub(crate) enum Destination {
    File(PathBuf),
    Stdout,
}

/// Write what `images` name as one archive; with `platform` the one manifest that each leads to.
///
/// # Errors
/// An image or a blob of one is missing, a blob is damaged, the archive cannot be written. A file appears complete or not
/// at all.
pub(crate) fn export(
    store: &Store,
    images: &[String],
    platform: Option<&Platform>,
    destination: &Destination,
    progress: &Progress,
) -> Result<()> {
    if matches!(destination, Destination::Stdout) && stdout().is_terminal() {
        bail!("stdout is a terminal: redirect it, or name a file");
    }
    let lease = store.lease("export")?;
    let mut plan = Plan {
        store,
        lease: &lease,
        entries: Vec::new(),
        blobs: BTreeMap::new(),
    };
    for image in images {
        let found = store.find(image)?;
        plan.image(found, platform)
            .with_context(|| format!("image {}", output::visible(image)))?;
    }
    plan.referrers()?;
    match destination {
        Destination::Stdout => plan
            .write(stdout().lock(), progress)
            .context("write to stdout"),
        Destination::File(path) => plan
            .write_file(path, progress)
            .with_context(|| format!("write {}", path.display())),
    }
}

/// What the archive will hold.
struct Plan<'s> {
    store: &'s Store,
    lease: &'s Lease,
    /// Those of index.json.
    entries: Vec<Descriptor>,
    /// Size by digest.
    blobs: BTreeMap<Digest, u64>,
}

impl Plan<'_> {
    fn image(
        &mut self,
        (name, target): (Option<String>, Descriptor),
        platform: Option<&Platform>,
    ) -> Result<()> {
        let target = match platform {
            Some(_) => self.store.load(None, &target, platform)?.descriptor,
            None => target,
        };
        self.add(&target)?;
        let mut entry = Descriptor::new(&target.media_type, target.digest, target.size);
        entry.platform = target.platform;
        entry.artifact_type = target.artifact_type;
        // A name that was found by its digest is not said again; a digest in a name would not fit a single platform.
        if let Some(name) = name.and_then(|name| Reference::parse(&name).ok().map(|_| name)) {
            entry.annotations.insert(REF_NAME.to_owned(), name);
        }
        if !self.entries.contains(&entry) {
            self.entries.push(entry);
        }
        Ok(())
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        Document::parse(&self.store.document(descriptor)?, &descriptor.media_type)
            .with_context(|| format!("blob {}", descriptor.digest))
    }

    /// The size of the blob, which is protected from here on; none where the store does not have it.
    fn look(&self, descriptor: &Descriptor) -> Result<Option<u64>> {
        let digest = &descriptor.digest;
        self.lease.hold(Kind::Blob, &digest.to_string())?;
        let _moment = self.store.shared()?;
        match self.store.blob_size(digest)? {
            Some(size) if size != descriptor.size => bail!(
                "blob {digest}: {size} bytes long, its descriptor says {}: see `fsck --repair`",
                descriptor.size
            ),
            found => Ok(found),
        }
    }

    fn need(&mut self, descriptor: &Descriptor) -> Result<()> {
        match self.look(descriptor)? {
            Some(size) => {
                self.blobs.insert(descriptor.digest.clone(), size);
                Ok(())
            }
            None => bail!("blob {}: missing", descriptor.digest),
        }
    }

    /// A manifest or index with all that it leads to. Of an index, what the store does not have is left out, as it was
    /// when it came.
    fn add(&mut self, top: &Descriptor) -> Result<()> {
        self.need(top)?;
        let mut pending = vec![top.clone()];
        let mut followed = BTreeSet::new();
        while let Some(next) = pending.pop() {
            if kind(&next.media_type).is_none() || !followed.insert(next.digest.clone()) {
                continue;
            }
            match self.document(&next)? {
                Document::Manifest(manifest) => self
                    .parts(&manifest)
                    .with_context(|| format!("manifest {}", next.digest))?,
                Document::Index(index) => {
                    for child in index.manifests {
                        if let Some(size) = self.look(&child)? {
                            self.blobs.insert(child.digest.clone(), size);
                            pending.push(child);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn parts(&mut self, manifest: &Manifest) -> Result<()> {
        self.need(&manifest.config).context("configuration")?;
        for layer in &manifest.layers {
            if is_nondistributable(&layer.media_type) && self.look(layer)?.is_none() {
                continue;
            }
            self.need(layer)?;
        }
        Ok(())
    }

    /// Entries without a name that speak of what is written: signatures and SBOMs go along.
    fn referrers(&mut self) -> Result<()> {
        let mut waiting = Vec::new();
        for (name, target) in self.store.readable_names()?.names {
            if !name.is_empty() || kind(&target.media_type).is_none() {
                continue;
            }
            let subject = match self.document(&target)? {
                Document::Index(index) => index.subject,
                Document::Manifest(manifest) => manifest.subject,
            };
            waiting.extend(subject.map(|subject| (target, subject.digest)));
        }
        loop {
            let (ready, rest): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|(_, subject)| self.blobs.contains_key(subject));
            if ready.is_empty() {
                return Ok(());
            }
            for (target, _) in ready {
                self.add(&target)?;
                if !self
                    .entries
                    .iter()
                    .any(|entry| entry.digest == target.digest)
                {
                    self.entries.push(target);
                }
            }
            waiting = rest;
        }
    }

    /// Through a temporary file beside it, so that a name never stands for half an archive. It has no name until it is
    /// whole, where the file system can do that: nothing of a killed command stays.
    fn write_file(&self, path: &Path, progress: &Progress) -> Result<()> {
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            // A FIFO or a device: nothing can be renamed over it.
            let file = File::options().write(true).open(path).context("open")?;
            return self.write(file, progress);
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // The directory's own error is plainer than that of a random name in it.
        File::open(parent).with_context(|| format!("open {}", parent.display()))?;
        let mut name = tempfile::Builder::new();
        name.prefix(".pelagos-image-")
            .permissions(PermissionsExt::from_mode(0o666));
        let context = "make a temporary file beside it";
        let mode = Mode::from_bits_truncate(0o666);
        let file = match open(parent, NAMELESS, mode) {
            Ok(nameless) => {
                let nameless = File::from(nameless);
                self.fill(&nameless, progress)?;
                let file = format!("/proc/self/fd/{}", nameless.as_raw_fd());
                let follow = LinkatFlags::AT_SYMLINK_FOLLOW;
                name.make_in(parent, |path| {
                    Ok(linkat(AT_FDCWD, file.as_str(), AT_FDCWD, path, follow)?)
                })
                .context(context)?
                .into_temp_path()
            }
            // The kernel's answers where the file system has no files without names (open(2), "O_TMPFILE").
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                let named = name.tempfile_in(parent).context(context)?;
                self.fill(named.as_file(), progress)?;
                named.into_temp_path()
            }
            Err(errno) => return Err(errno).context(context),
        };
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    fn fill(&self, file: &File, progress: &Progress) -> Result<()> {
        self.write(file, progress)?;
        if self.store.durability() != Durability::None {
            file.sync_all()?;
        }
        Ok(())
    }

    fn write(&self, to: impl Write, progress: &Progress) -> Result<()> {
        let mut archive = tar::Builder::new(BufWriter::with_capacity(CHUNK, to));
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::INDEX,
            "manifests": self.entries,
        });
        let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
        small(&mut archive, "oci-layout", marker)?;
        small(&mut archive, "index.json", &serde_json::to_vec(&index)?)?;
        directory(&mut archive, "blobs")?;
        let bar = progress.bar("writing", self.blobs.values().sum());
        let mut algorithm = "";
        for (digest, size) in &self.blobs {
            if algorithm != digest.algorithm().name() {
                algorithm = digest.algorithm().name();
                directory(&mut archive, &format!("blobs/{algorithm}"))?;
            }
            self.blob(&mut archive, digest, *size, &bar)
                .with_context(|| format!("blob {digest}"))?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn blob(
        &self,
        archive: &mut tar::Builder<impl Write>,
        digest: &Digest,
        size: u64,
        bar: &Bar,
    ) -> Result<()> {
        let mut from = Checked {
            from: self.store.open_blob(digest)?.take(size),
            hasher: digest.algorithm().hasher(),
            read: 0,
            bar,
        };
        let path = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        let mut header = header(tar::EntryType::Regular, 0o644, size);
        archive.append_data(&mut header, path, &mut from)?;
        let (read, found) = (from.read, from.hasher.finish());
        if read != size || found != *digest {
            return Err(anyhow!("its content is damaged: see `fsck --repair`"));
        }
        Ok(())
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn small(archive: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
    Ok(archive.append_data(&mut header, path, bytes)?)
}

fn directory(archive: &mut tar::Builder<impl Write>, path: &str) -> Result<()> {
    let mut header = header(tar::EntryType::Directory, 0o755, 0);
    Ok(archive.append_data(&mut header, path, io::empty())?)
}

/// A blob that is hashed while it is written.
struct Checked<'b, R> {
    from: R,
    hasher: Hasher,
    read: u64,
    bar: &'b Bar,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.read += count as u64;
        self.bar.add(count as u64);
        Ok(count)
    }
}
