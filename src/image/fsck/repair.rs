//! What fsck found put right, without the last copy of anything good going.
//!
//! A layer is never changed where it stands: it is unpacked again beside it and the two change places. A damaged blob is
//! set aside, not removed, so that it can be imported again. Of records only those go that are about nothing. Orphans
//! are left to prune.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat, renameat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::report::sentence;

use super::super::containers::{Containers, RuntimeRoots};
use super::super::digest::Digest;
use super::super::layers;
use super::super::manifest::{Descriptor, media_type};
use super::super::mounts;
use super::super::progress::Progress;
use super::super::store::{self, LayerRecord, Store, Used, now, random_name};
use super::super::unpack::{Layer, Limits};
use super::super::userns;
use super::{Dangling, Findings, Kind};

/// Where damaged blobs are set aside. Nothing removes what is in it.
pub(super) const QUARANTINE: &str = "quarantine";

/// Put right what can be; what cannot says why in its fault.
pub(super) fn repair(store: &Store, progress: &Progress, findings: &mut Findings) {
    for digest in std::mem::take(&mut findings.damaged) {
        let images = findings.images(&digest);
        let done = quarantine(store, &digest).map(|to| {
            if images.is_empty() {
                Done::Repaired(format!("moved to {to}"))
            } else {
                // The image stays incomplete, and that is what the exit code is about.
                Done::Left(format!("moved to {to}: import {} again", images.join(", ")))
            }
        });
        settle(findings, Kind::Blob, &digest.to_string(), done);
    }
    let mut broken = std::mem::take(&mut findings.broken);
    // Lower layers first: those above them are unpacked over them.
    broken.sort_by_key(|record| depth(store, record));
    for record in broken {
        let descriptor = findings
            .needed
            .get(&record.blob)
            .map(|(descriptor, _)| descriptor.clone());
        let done = again(store, &record, descriptor, progress);
        settle(
            findings,
            Kind::Layer,
            &record.chain_id.to_string(),
            done.map(|()| Done::Repaired("unpacked again".to_owned())),
        );
    }
    for record in std::mem::take(&mut findings.dangling) {
        match record {
            Dangling::Bundle(id) => match forget(store, || forget_bundle(store, &id)) {
                Ok(()) => findings.remark(format!("bundle record {id}: removed")),
                Err(error) => findings.remark(format!("bundle record {id}: {}", sentence(&error))),
            },
            Dangling::Used => {
                let done = forget(store, || store.put_used(&Used::new()));
                let done = done.map(|()| Done::Repaired("it was begun anew".to_owned()));
                settle(findings, Kind::Record, "records/used.json", done);
            }
            Dangling::Volume(name) => {
                let done = forget(store, || forget_volume(store, &name));
                let done = done.map(|()| Done::Repaired("the record was removed".to_owned()));
                settle(findings, Kind::Volume, &name, done);
            }
        }
    }
}

enum Done {
    Repaired(String),
    /// Something was done, and something is left for the administrator.
    Left(String),
}

/// Write into the fault what became of it.
fn settle(findings: &mut Findings, kind: Kind, subject: &str, done: Result<Done>) {
    for fault in &mut findings.report.faults {
        if fault.kind != kind || fault.subject != subject {
            continue;
        }
        match &done {
            Ok(Done::Repaired(what)) => {
                fault.repaired = true;
                fault.advice.clone_from(what);
            }
            Ok(Done::Left(what)) => fault.advice.clone_from(what),
            Err(error) => fault.advice = format!("not repaired: {}", sentence(error)),
        }
    }
}

fn forget(store: &Store, remove: impl FnOnce() -> Result<()>) -> Result<()> {
    let _alone = store.exclusive()?;
    let _index = store.index_lock()?;
    remove()
}

/// Forget a bundle that is still gone, unless a container was made from it: then it may come back.
fn forget_bundle(store: &Store, id: &str) -> Result<()> {
    let records = store.bundle_records()?;
    let Some(record) = records.iter().find(|record| record.id == id) else {
        return Ok(());
    };
    if record.path.symlink_metadata().is_ok() {
        bail!("{} is there again", record.path.display());
    }
    let containers = Containers::read(&RuntimeRoots::usual()?)?;
    if let Some(container) = containers.of_bundle(&record.path).next() {
        bail!("container {} is made from it", container.id);
    }
    store.remove_bundle_record(id)
}

/// Forget a volume whose content is still not there.
fn forget_volume(store: &Store, name: &str) -> Result<()> {
    if store.subdirectory(&format!("volumes/{name}")).is_ok() {
        bail!("its content is there again");
    }
    store.remove_volume_record(name)
}

/// Set a damaged blob aside: where it is now, below the root. A command that counts on it is not deprived of it.
fn quarantine(store: &Store, digest: &Digest) -> Result<String> {
    let _alone = store.exclusive()?;
    free_of_leases(store, store::Kind::Blob, &digest.to_string())?;
    match mkdirat(store.dir(), QUARANTINE, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).context("make directory quarantine"),
    }
    let from = store.subdirectory(&format!("blobs/{}", digest.algorithm().name()))?;
    let to = store.subdirectory(QUARANTINE)?;
    let name = format!(
        "{}-{}-{}",
        digest.algorithm().name(),
        digest.hex(),
        random_name()?
    );
    renameat(&from, digest.hex(), &to, name.as_str())
        .with_context(|| format!("set blob {digest} aside"))?;
    Ok(format!("{QUARANTINE}/{name}"))
}

fn free_of_leases(store: &Store, kind: store::Kind, id: &str) -> Result<()> {
    for lease in store.leases()?.live {
        if lease
            .items
            .iter()
            .any(|(of, item)| *of == kind && item == id)
        {
            bail!("a running command uses it: {}", lease.purpose);
        }
    }
    Ok(())
}

/// Layers below this one, as far as their records are there.
fn depth(store: &Store, record: &LayerRecord) -> usize {
    parents(store, record).map_or(usize::MAX, |parents| parents.len())
}

/// The layers below, nearest first.
fn parents(store: &Store, record: &LayerRecord) -> Result<Vec<Digest>> {
    let mut found = Vec::new();
    let mut next = record.parent.clone();
    while let Some(chain) = next {
        if found.contains(&chain) {
            bail!("its parents' records go in a circle at {chain}");
        }
        let below = store
            .layer_record(&chain)?
            .ok_or_else(|| anyhow!("the layer {chain} below it has no record"))?;
        found.push(chain);
        next = below.parent;
    }
    Ok(found)
}

/// Unpack a layer again from its blob and put it in place of the damaged tree.
///
/// # Errors
/// Its blob is damaged or gone; or something uses the layer: the kernel does not say what happens to an overlay whose
/// lower directory is changed or exchanged under it, so its users have to go first.
fn again(
    store: &Store,
    record: &LayerRecord,
    descriptor: Option<Descriptor>,
    progress: &Progress,
) -> Result<()> {
    free(store, record)?;
    let hex = record.chain_id.hex();
    let lease = store.lease("fsck --repair")?;
    lease.hold(store::Kind::Blob, &record.blob.to_string())?;
    let parents = parents(store, record)?;
    for parent in &parents {
        lease.hold(store::Kind::Layer, &parent.to_string())?;
    }
    let Some(size) = store.blob_size(&record.blob)? else {
        bail!(
            "its blob {} is not there: import its image again, then repair again",
            record.blob
        );
    };
    let stage = store.stage(&format!("layer-{hex}"))?;
    let layer = Layer {
        blob: store.open_blob(&record.blob)?,
        // No manifest names it any more: what it is compressed with is seen from its first bytes.
        descriptor: descriptor
            .unwrap_or_else(|| Descriptor::new(media_type::LAYER_GZIP, record.blob.clone(), size)),
        diff_id: record.diff_id.clone(),
    };
    let limits = Limits::default();
    let size = layers::fill(
        store,
        &stage,
        &parents,
        layer,
        record.form,
        limits,
        progress,
    )?;

    // ORDER: alone before the last look at who uses it, until the new tree is in place.
    let _alone = store.exclusive()?;
    free(store, record)?;
    exchange(stage.dir(), "tree", store, &format!("layers/{hex}"))?;
    let listing = format!("records/layers/{hex}.list");
    renameat(stage.dir(), "list", store.dir(), listing.as_str())
        .with_context(|| format!("put its listing into {listing}"))?;
    let _index = store.index_lock()?;
    store.put_layer_record(&LayerRecord {
        single_id: userns::has_one_id(),
        created: now(),
        entries: size.entries,
        disk_bytes: size.disk_bytes,
        apparent_bytes: size.apparent_bytes,
        ..record.clone()
    })
}

/// Put the tree in place; what stood there is then in the stage, and goes with it.
fn exchange(stage: BorrowedFd, from: &str, store: &Store, to: &str) -> Result<()> {
    let context = || format!("put it into {to}");
    match renameat2(stage, from, store.dir(), to, RenameFlags::RENAME_EXCHANGE) {
        Err(Errno::ENOENT) => renameat(stage, from, store.dir(), to).with_context(context),
        other => other.with_context(context),
    }
}

/// Whether nothing uses the layer: no bundle, mounted or not, no running command, and no mount that can be seen.
fn free(store: &Store, record: &LayerRecord) -> Result<()> {
    let chain = &record.chain_id;
    let bundles: Vec<String> = store
        .bundle_records()?
        .into_iter()
        .filter(|bundle| bundle.chain.contains(chain))
        .map(|bundle| bundle.path.display().to_string())
        .collect();
    if !bundles.is_empty() {
        bail!(
            "used by bundle {}: remove it, then repair",
            bundles.join(", ")
        );
    }
    free_of_leases(store, store::Kind::Layer, &chain.to_string())?;
    if mounts::mounted()?.stands_on_layer(chain) {
        bail!("it is mounted: unmount it, then repair");
    }
    Ok(())
}
