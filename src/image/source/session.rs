//! What one import has brought into the store, so that what is not needed goes again.

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::{Context as _, Result};

use crate::report::debug;

use super::super::digest::Digest;
use super::super::manifest::{Descriptor, Document, kind};
use super::super::progress::Progress;
use super::super::store::{Kind, Lease, Put, Stage, Store};

/// One import under way.
pub(super) struct Session<'s> {
    pub(super) store: &'s Store,
    pub(super) progress: &'s Progress,
    /// Protects all that the source brings; gone once it is known what is needed of it.
    passing: Option<Lease>,
    /// Protects what the imported images are made of, until their names do.
    kept: Lease,
    needed: BTreeSet<Digest>,
    /// What was not in the store before.
    fresh: BTreeSet<Digest>,
    remarks: Vec<String>,
}

impl<'s> Session<'s> {
    pub(super) fn begin(store: &'s Store, progress: &'s Progress) -> Result<Self> {
        Ok(Self {
            store,
            progress,
            passing: Some(store.lease("import")?),
            kept: store.lease("import")?,
            needed: BTreeSet::new(),
            fresh: BTreeSet::new(),
            remarks: Vec::new(),
        })
    }

    fn passing(&self) -> &Lease {
        self.passing.as_ref().unwrap_or(&self.kept)
    }

    /// Put content of a known digest: see [`Store::put_blob`].
    pub(super) fn put(
        &mut self,
        digest: &Digest,
        size: Option<u64>,
        from: &mut dyn Read,
    ) -> Result<Put> {
        let put = self.store.put_blob(self.passing(), digest, size, from)?;
        self.note(digest, put);
        Ok(put)
    }

    /// Put content that was spooled: see [`Store::put_staged`].
    pub(super) fn put_staged(
        &mut self,
        stage: &Stage,
        name: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<()> {
        let put = self
            .store
            .put_staged(self.passing(), stage, name, digest, size)?;
        self.note(digest, put);
        Ok(())
    }

    fn note(&mut self, digest: &Digest, put: Put) {
        if put.fresh {
            self.fresh.insert(digest.clone());
        }
    }

    /// Whether the store has a blob of this digest. From here on it keeps it.
    pub(super) fn has(&self, digest: &Digest) -> Result<bool> {
        self.passing().hold(Kind::Blob, &digest.to_string())?;
        Ok(self.store.blob_size(digest)?.is_some())
    }

    /// An image that is imported needs this.
    pub(super) fn keep(&mut self, digest: &Digest) -> Result<()> {
        if self.needed.insert(digest.clone()) {
            self.kept.hold(Kind::Blob, &digest.to_string())?;
        }
        Ok(())
    }

    pub(super) fn is_kept(&self, digest: &Digest) -> bool {
        self.needed.contains(digest)
    }

    /// Something that the caller should know, once.
    pub(super) fn remark(&mut self, text: String) {
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    /// Take away what no imported image needs.
    pub(super) fn trim(&mut self) {
        drop(self.passing.take());
        let surplus: BTreeSet<Digest> = self.fresh.difference(&self.needed).cloned().collect();
        self.fresh.retain(|digest| !surplus.contains(digest));
        sweep(self.store, surplus);
    }

    /// It has succeeded: the remarks.
    pub(super) fn end(self) -> Vec<String> {
        self.remarks
    }

    /// It has not: take away all that it brought.
    pub(super) fn undo(self) {
        let Self {
            store,
            passing,
            kept,
            fresh,
            ..
        } = self;
        drop((passing, kept));
        sweep(store, fresh);
    }
}

/// Remove those of `surplus` that nobody else has come to use. What cannot be judged stays, and is prune's.
fn sweep(store: &Store, surplus: BTreeSet<Digest>) {
    if surplus.is_empty() {
        return;
    }
    if let Err(error) = try_sweep(store, surplus) {
        debug!("content that the import brought stays: {error:#}");
    }
}

fn try_sweep(store: &Store, surplus: BTreeSet<Digest>) -> Result<()> {
    let mut trashed = Vec::new();
    {
        // ORDER: who wants a blob holds a lease for it before looking it up under the shared lock. So either its line is
        // read here, or its look finds the blob gone.
        let _alone = store.exclusive()?;
        let used = in_use(store)?;
        for digest in surplus.difference(&used) {
            let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
            trashed.extend(store.discard(&name)?);
        }
    }
    for blob in trashed {
        blob.remove()?;
    }
    Ok(())
}

/// Every blob that a living command, a name or a bundle needs. The blobs in question are younger than this import, so
/// whoever uses one has come by it through these.
fn in_use(store: &Store) -> Result<BTreeSet<Digest>> {
    let mut used = BTreeSet::new();
    for lease in store.leases()?.live {
        for (kind, id) in lease.items {
            if kind == Kind::Blob {
                used.insert(id.parse()?);
            }
        }
    }
    for record in store.bundle_records()? {
        used.insert(record.manifest);
        used.insert(record.config);
        used.extend(record.layers);
    }
    let names = store.names()?;
    let mut pending: Vec<Descriptor> = names.into_iter().map(|(_, target)| target).collect();
    let mut followed = BTreeSet::new();
    while let Some(next) = pending.pop() {
        used.insert(next.digest.clone());
        if kind(&next.media_type).is_none() || !followed.insert(next.digest.clone()) {
            continue;
        }
        if store.blob_size(&next.digest)?.is_none() {
            continue;
        }
        let document = Document::parse(&store.document(&next)?, &next.media_type)
            .with_context(|| format!("blob {}", next.digest))?;
        pending.extend(document.descriptors().into_iter().cloned());
    }
    Ok(used)
}
