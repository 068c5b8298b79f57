//! From what a source names to everything its images are made of: brought into the store, complete, and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};

use super::super::digest::Digest;
use super::super::manifest::{
    Config, DEEPEST_INDEX, Descriptor, Document, Index, Kind, Manifest, NoSuchPlatform, Platform,
    choose, is_nondistributable, kind, layer_type,
};
use super::super::unpack::{self, Layer};
use super::session::Session;

/// The most layers that are checked at a time: each has 16 MiB of buffers.
const MOST_CHECKS: usize = 3;

/// Where blobs come from that are not in the store yet.
pub(super) trait Content {
    /// Whether the source has the blob.
    fn has(&self, digest: &Digest) -> Result<bool>;
    /// Put it into the store.
    fn bring(&self, session: &mut Session, descriptor: &Descriptor) -> Result<()>;
}

/// An archive: whatever it holds has been put into the store as it passed.
pub(super) struct Passed;

impl Content for Passed {
    fn has(&self, _: &Digest) -> Result<bool> {
        Ok(false)
    }

    fn bring(&self, _: &mut Session, _: &Descriptor) -> Result<()> {
        Ok(())
    }
}

/// What is left to do when all blobs are there.
#[derive(Default)]
pub(super) struct Checks {
    /// Layers by digest and DiffID, with the image they were met in first.
    layers: BTreeMap<(Digest, Digest), (Descriptor, Digest)>,
    /// Manifests without a name that speak of an imported one.
    pub(super) referrers: Vec<Descriptor>,
}

impl Checks {
    /// Check the DiffIDs of all layers, the largest first, several at a time. Each check keeps two processors busy: one
    /// inflates, one hashes.
    pub(super) fn verify(self, session: &Session) -> Result<()> {
        let mut layers: Vec<_> = self.layers.into_iter().collect();
        layers.sort_by_key(|(_, (descriptor, _))| std::cmp::Reverse(descriptor.size));
        let total = layers.iter().map(|(_, (descriptor, _))| descriptor.size);
        let bar = session.progress.bar("checking layers", total.sum());
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
        let work = || {
            while let Some(((digest, diff_id), (descriptor, manifest))) =
                layers.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let check = || -> Result<()> {
                    unpack::verify_diff_id(Layer {
                        blob: session.store.open_blob(digest)?,
                        descriptor: descriptor.clone(),
                        diff_id: diff_id.clone(),
                    })
                };
                if let Err(error) = check() {
                    // No further layer is begun.
                    next.store(layers.len(), Ordering::Relaxed);
                    let error = error.context(format!("manifest {manifest}"));
                    if let Ok(mut failed) = failed.lock() {
                        failed.get_or_insert(error);
                    }
                    return;
                }
                bar.add(descriptor.size);
            }
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = (processors / 2).clamp(1, MOST_CHECKS);
        thread::scope(|scope| {
            for _ in 1..threads.min(layers.len()) {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(_) => bail!("a check of a layer did not come to its end"),
        }
    }
}

/// Bring what the top-level entry `entry` leads to: what its name shall point to.
///
/// An index is kept as it is, with those of its images that are there as a whole; with `want` it is left aside for the
/// one manifest that it leads to.
pub(super) fn gather(
    session: &mut Session,
    content: &dyn Content,
    entry: &Descriptor,
    want: Option<&Platform>,
    checks: &mut Checks,
) -> Result<Descriptor> {
    let mut gathering = Gathering {
        session,
        content,
        checks,
        followed: BTreeSet::new(),
        images: 0,
        missing: None,
    };
    let target = match (kind(&entry.media_type), want) {
        (Some(Kind::Manifest), _) => {
            gathering.image(entry, want)?;
            entry.clone()
        }
        (Some(Kind::Index), Some(want)) => gathering.chosen(entry, want)?,
        (Some(Kind::Index), None) => {
            gathering.index(entry, 1)?;
            if let (0, Some(missing)) = (gathering.images, gathering.missing) {
                bail!(
                    "index {}: it has no complete image: {missing}",
                    entry.digest
                );
            }
            entry.clone()
        }
        (None, _) => bail!(
            "blob {}: media type {:?} is neither that of a manifest nor that of an index",
            entry.digest,
            entry.media_type
        ),
    };
    let mut named = Descriptor::new(&target.media_type, target.digest, target.size);
    named.platform = target.platform;
    named.artifact_type = target.artifact_type;
    Ok(named)
}

/// Of several top-level entries, the one for `want`.
pub(super) fn choose_entry(
    session: &mut Session,
    content: &dyn Content,
    entries: &[Descriptor],
    want: &Platform,
) -> Result<Descriptor> {
    let index = Index {
        manifests: entries.to_vec(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    choose(&index, want, &mut |descriptor| {
        read(session, content, descriptor)
    })
}

/// The document that `descriptor` names, brought into the store but not kept yet.
pub(super) fn document(
    session: &mut Session,
    content: &dyn Content,
    descriptor: &Descriptor,
) -> Result<Document> {
    let bytes = read(session, content, descriptor)?;
    Document::parse(&bytes, &descriptor.media_type)
        .with_context(|| format!("blob {}", descriptor.digest))
}

fn read(session: &mut Session, content: &dyn Content, descriptor: &Descriptor) -> Result<Vec<u8>> {
    bring(session, content, descriptor)?;
    session.store.document(descriptor)
}

/// Whether the blob can be had: from the source, from the store, or from its own descriptor.
pub(super) fn is_there(
    session: &Session,
    content: &dyn Content,
    descriptor: &Descriptor,
) -> Result<bool> {
    Ok(descriptor.data.is_some()
        || content.has(&descriptor.digest)?
        || session.has(&descriptor.digest)?)
}

fn bring(session: &mut Session, content: &dyn Content, descriptor: &Descriptor) -> Result<()> {
    let Descriptor { digest, size, .. } = descriptor;
    if content.has(digest)? {
        content.bring(session, descriptor)?;
    } else if let Some(bytes) = descriptor.embedded()? {
        session.put(digest, Some(*size), &mut bytes.as_slice())?;
    } else if !session.has(digest)? {
        bail!("blob {digest}: missing");
    }
    match session.store.blob_size(digest)? {
        Some(found) if found == *size => Ok(()),
        Some(found) => bail!("blob {digest}: {found} bytes long, its descriptor says {size}"),
        None => bail!("blob {digest}: missing"),
    }
}

struct Gathering<'call, 's> {
    session: &'call mut Session<'s>,
    content: &'call dyn Content,
    checks: &'call mut Checks,
    /// Indexes and manifests that were gone through.
    followed: BTreeSet<Digest>,
    /// Complete ones.
    images: usize,
    /// The first blob of an image that is not there.
    missing: Option<String>,
}

impl Gathering<'_, '_> {
    fn document(&mut self, descriptor: &Descriptor) -> Result<Document> {
        document(self.session, self.content, descriptor)
    }

    fn is_there(&self, descriptor: &Descriptor) -> Result<bool> {
        is_there(self.session, self.content, descriptor)
    }

    fn keep(&mut self, descriptor: &Descriptor) -> Result<()> {
        bring(self.session, self.content, descriptor)?;
        self.session.keep(&descriptor.digest)
    }

    fn chosen(&mut self, entry: &Descriptor, want: &Platform) -> Result<Descriptor> {
        let Document::Index(index) = self.document(entry)? else {
            bail!("blob {}: not an index", entry.digest);
        };
        let (session, content) = (&mut *self.session, self.content);
        let chosen = choose(&index, want, &mut |descriptor| {
            read(session, content, descriptor)
        })
        .with_context(|| format!("index {}", entry.digest))?;
        self.image(&chosen, None)?;
        Ok(chosen)
    }

    fn index(&mut self, entry: &Descriptor, depth: usize) -> Result<()> {
        if !self.followed.insert(entry.digest.clone()) {
            return Ok(());
        }
        if depth > DEEPEST_INDEX {
            bail!(
                "index {}: nested deeper than {DEEPEST_INDEX} levels",
                entry.digest
            );
        }
        let Document::Index(index) = self.document(entry)? else {
            bail!("blob {}: not an index", entry.digest);
        };
        self.session.keep(&entry.digest)?;
        for child in &index.manifests {
            if !self.is_there(child)? {
                // A layout may hold a part of what its index lists (image-layout.md): `docker save` writes such ones.
                if !child.is_attestation() {
                    self.missing
                        .get_or_insert_with(|| format!("blob {}: missing", child.digest));
                }
                continue;
            }
            match kind(&child.media_type) {
                Some(Kind::Index) => self
                    .index(child, depth + 1)
                    .with_context(|| format!("index {}", entry.digest))?,
                Some(Kind::Manifest) => self
                    .child(child)
                    .with_context(|| format!("index {}", entry.digest))?,
                None => self.keep(child)?,
            }
        }
        Ok(())
    }

    /// One manifest of an index. It is left out where content is missing: the others may be complete.
    fn child(&mut self, entry: &Descriptor) -> Result<()> {
        if !self.followed.insert(entry.digest.clone()) {
            return Ok(());
        }
        let Document::Manifest(manifest) = self.document(entry)? else {
            bail!("blob {}: not a manifest", entry.digest);
        };
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if !is_nondistributable(&blob.media_type) && !self.is_there(blob)? {
                let missing = format!("manifest {}: blob {}: missing", entry.digest, blob.digest);
                if !entry.is_attestation() {
                    self.session.remark(format!("{missing}: left out"));
                    self.missing.get_or_insert(missing);
                }
                return Ok(());
            }
        }
        self.manifest(entry, &manifest, None)
    }

    /// A manifest that has to be complete.
    fn image(&mut self, entry: &Descriptor, want: Option<&Platform>) -> Result<()> {
        match self.document(entry)? {
            Document::Manifest(manifest) => self.manifest(entry, &manifest, want),
            Document::Index(_) => bail!("blob {}: not a manifest", entry.digest),
        }
    }

    fn manifest(
        &mut self,
        entry: &Descriptor,
        manifest: &Manifest,
        want: Option<&Platform>,
    ) -> Result<()> {
        self.parts(entry, manifest, want)
            .with_context(|| format!("manifest {}", entry.digest))?;
        self.session.keep(&entry.digest)?;
        self.images += 1;
        Ok(())
    }

    fn parts(
        &mut self,
        entry: &Descriptor,
        manifest: &Manifest,
        want: Option<&Platform>,
    ) -> Result<()> {
        self.keep(&manifest.config).context("configuration")?;
        if !manifest.is_image() {
            if !entry.is_attestation() {
                self.session.remark(format!(
                    "manifest {}: an artifact ({}): kept as it is, its content is not unpacked to be checked",
                    entry.digest, artifact_type(manifest)
                ));
            }
            for layer in &manifest.layers {
                self.keep(layer)?;
            }
            return Ok(());
        }
        let config = Config::parse(&self.session.store.document(&manifest.config)?)
            .with_context(|| format!("blob {}", manifest.config.digest))?;
        config.fits(manifest)?;
        if let Some(want) = want
            && !config.platform.suits(want)
        {
            return Err(NoSuchPlatform::new(want, &[config.platform.to_string()]).into());
        }
        let count = manifest.layers.len();
        for (at, (layer, diff_id)) in manifest.layers.iter().zip(&config.diff_ids).enumerate() {
            self.layer(entry, layer, diff_id)
                .with_context(|| format!("layer {} of {count}", at + 1))?;
        }
        Ok(())
    }

    fn layer(&mut self, entry: &Descriptor, layer: &Descriptor, diff_id: &Digest) -> Result<()> {
        let digest = &layer.digest;
        if is_nondistributable(&layer.media_type) && !self.is_there(layer)? {
            self.session.remark(format!(
                "layer {digest}: not distributable and not there: the image cannot be unpacked without it"
            ));
            return Ok(());
        }
        self.keep(layer)?;
        if layer_type(&layer.media_type).is_none() {
            self.session.remark(format!(
                "layer {digest}: unknown media type {:?}: kept, not checked",
                layer.media_type
            ));
            return Ok(());
        }
        self.checks
            .layers
            .entry((digest.clone(), diff_id.clone()))
            .or_insert_with(|| (layer.clone(), entry.digest.clone()));
        Ok(())
    }
}

fn artifact_type(manifest: &Manifest) -> String {
    let named = manifest.artifact_type.as_ref();
    let name = named.unwrap_or(&manifest.config.media_type);
    format!("{name:?}")
}

/// Keep manifests without a name that speak of something that was imported: signatures, SBOMs, and what speaks of those.
pub(super) fn referrers(
    session: &mut Session,
    content: &dyn Content,
    nameless: &[Descriptor],
    checks: &mut Checks,
) -> Result<()> {
    let mut waiting = Vec::new();
    for entry in nameless {
        if kind(&entry.media_type).is_none() || !is_there(session, content, entry)? {
            continue;
        }
        let document = document(session, content, entry)?;
        let subject = match &document {
            Document::Index(index) => &index.subject,
            Document::Manifest(manifest) => &manifest.subject,
        };
        if let Some(subject) = subject {
            waiting.push((entry, subject.digest.clone()));
        }
    }
    // One may speak of another that comes after it.
    loop {
        let before = waiting.len();
        let (ready, rest): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|(_, subject)| session.is_kept(subject));
        for (entry, _) in &ready {
            let target = gather(session, content, entry, None, checks)
                .map_err(|error| anyhow!(error).context("referrer"))?;
            checks.referrers.push(target);
        }
        waiting = rest;
        if waiting.len() == before {
            return Ok(());
        }
    }
}
