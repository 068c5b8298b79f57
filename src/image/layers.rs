//! Shared layers: each unpacked once, by its ChainID, in overlay form.
//!
//! By the ChainID and not by the layer's own digest, since what a layer unpacks to depends on those below it: a parent
//! directory that it implies has the attributes it has there (L-6), and its hard links may lead there (L-19).

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::fsync;

use crate::report::{self, debug};

use super::digest::Digest;
use super::mounts::mounted;
use super::progress::Progress;
use super::store::{
    Durability, Image, Kind, LayerForm, LayerRecord, Lease, Measure, SCHEMA, Stage, Store, is_full,
    measure, now,
};
use super::unpack::{self, Form, Layer, Limits, Options};
use super::userns;

/// Unpack those layers of `image` that the store has no tree of: the ChainIDs of all, base first.
///
/// The lease holds every layer and blob before it is looked for, so what is found stays. Two commands that want one layer
/// do the work once.
///
/// # Errors
/// A layer cannot be unpacked, or is not what its configuration says; nothing of it stays. The layers below it do, unless the
/// disk is full: then it has back what was made here.
pub(crate) fn ensure(
    store: &Store,
    lease: &Lease,
    image: &Image,
    limits: Limits,
    progress: &Progress,
) -> Result<Vec<Digest>> {
    let chains = image.chain_ids();
    for chain in &chains {
        lease.hold(Kind::Layer, &chain.to_string())?;
    }
    for layer in &image.manifest.layers {
        lease.hold(Kind::Blob, &layer.digest.to_string())?;
    }
    let mut made = Vec::new();
    for (at, chain) in chains.iter().enumerate() {
        match one(store, image, &chains, at, limits, progress) {
            Ok(true) => made.push(chain),
            Ok(false) => {}
            Err(error) => {
                if is_full(&error)
                    && let Err(error) = take_back(store, &made)
                {
                    debug!("layers stay: {error:#}");
                }
                let layer = &image.manifest.layers[at].digest;
                return Err(error.context(format!("image {}: layer {layer}", image.shown())));
            }
        }
    }
    Ok(chains)
}

/// Remove layers that this command has made, the last one first, up to one that somebody else has begun to use.
fn take_back(store: &Store, made: &[&Digest]) -> Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    // ORDER: alone before the look at who uses them. What is looked at does not grow meanwhile.
    let _alone = store.exclusive()?;
    let leases = store.leases()?.live;
    let bundles = store.bundle_records()?;
    let mounted = mounted()?;
    for chain in made.iter().rev() {
        let item = (Kind::Layer, chain.to_string());
        // One lease is this command's own.
        let is_used = leases
            .iter()
            .filter(|lease| lease.items.contains(&item))
            .count()
            > 1
            || bundles.iter().any(|bundle| bundle.chain.contains(chain))
            || mounted.stands_on_layer(chain);
        if is_used {
            break;
        }
        store.remove_layer_record(chain)?;
        if let Some(tree) = store.discard(&format!("layers/{}", chain.hex()))? {
            tree.remove()?;
        }
    }
    Ok(())
}

/// The layer at `at`, whose parents are there: whether it was made now.
fn one(
    store: &Store,
    image: &Image,
    chains: &[Digest],
    at: usize,
    limits: Limits,
    progress: &Progress,
) -> Result<bool> {
    let chain = &chains[at];
    if is_there(store, chain)? {
        return Ok(false);
    }
    let stage = store.stage(&format!("layer-{}", chain.hex()))?;
    // Whoever held the staging directory may have unpacked it.
    if is_there(store, chain)? {
        return Ok(false);
    }
    let descriptor = &image.manifest.layers[at];
    let diff_id = &image.config.diff_ids[at];
    let layer = Layer {
        blob: store.open_blob(&descriptor.digest)?,
        descriptor: descriptor.clone(),
        diff_id: diff_id.clone(),
    };
    let parents: Vec<Digest> = chains[..at].iter().rev().cloned().collect();
    let size = fill(
        store,
        &stage,
        &parents,
        layer,
        store.form(),
        limits,
        progress,
    )?;

    let _moment = store.shared()?;
    // A tree without a record: its maker was killed before the commit.
    if let Some(left) = store.discard(&format!("layers/{}", chain.hex()))? {
        left.remove()?;
    }
    let place = |from: &str, to: &str| {
        renameat(stage.dir(), from, store.dir(), to).with_context(|| format!("put it into {to}"))
    };
    let commit = || -> Result<()> {
        // ORDER: the tree first. With it a prune finds the listing too, where this command does not come to its end.
        place("tree", &format!("layers/{}", chain.hex()))?;
        place("list", &format!("records/layers/{}.list", chain.hex()))?;
        if store.durability() != Durability::None {
            // Not every file system has renames on the disk before a record only because they came before it.
            fsync(store.subdirectory("layers")?).context("write its directory out")?;
        }
        store.put_layer_record(&LayerRecord {
            schema: SCHEMA,
            chain_id: chain.clone(),
            diff_id: diff_id.clone(),
            parent: at.checked_sub(1).map(|below| chains[below].clone()),
            blob: descriptor.digest.clone(),
            form: store.form(),
            single_id: userns::has_one_id(),
            created: now(),
            entries: size.entries,
            disk_bytes: size.disk_bytes,
            apparent_bytes: size.apparent_bytes,
        })
    };
    let committed = commit();
    if committed.is_err() {
        // A full disk has it back. What does not succeed here is prune's.
        store.remove_layer_record(chain).ok();
        if let Ok(Some(tree)) = store.discard(&format!("layers/{}", chain.hex())) {
            drop(tree.remove());
        }
    }
    committed.map(|()| true)
}

/// Unpack `layer` over `parents`, nearest first, into `tree` and `list` of the staging directory: what the tree takes.
/// Both are on the disk then, as far as the durability asks for it.
pub(crate) fn fill(
    store: &Store,
    stage: &Stage<'_>,
    parents: &[Digest],
    layer: Layer,
    form: LayerForm,
    limits: Limits,
    progress: &Progress,
) -> Result<Measure> {
    mkdirat(stage.dir(), "tree", Mode::from_bits_truncate(0o755)).context("make its directory")?;
    let tree = open(stage.dir(), "tree", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let list = open(
        stage.dir(),
        "list",
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL,
    )?;
    let mut list = BufWriter::new(File::from(list));
    let parents = parents
        .iter()
        .map(|parent| store.subdirectory(&format!("layers/{}", parent.hex())))
        .collect::<Result<Vec<OwnedFd>>>()?;
    let options = Options {
        form: match form {
            LayerForm::Trusted => Form::Trusted,
            LayerForm::User => Form::User,
        },
        ids: userns::ids(),
        // Only the machine's root makes device nodes.
        devices: form == LayerForm::Trusted,
        limits,
        durability: store.durability(),
    };
    let digest = layer.descriptor.digest.clone();
    let report = unpack::overlay(tree.as_fd(), &parents, layer, &options, &mut list, progress)?;
    for line in report.warnings.iter().chain(&report.skipped) {
        report::warn(format_args!("layer {digest}: {line}"));
    }
    list.flush().context("write its listing")?;
    if store.durability() == Durability::Fsync {
        list.get_ref().sync_all().context("write its listing")?;
    }
    let size = measure(tree.as_fd()).context("measure it")?;
    store.settle()?;
    Ok(size)
}

/// Whether the layer is committed and can be used by this store's overlays.
fn is_there(store: &Store, chain: &Digest) -> Result<bool> {
    let _moment = store.shared()?;
    let Some(record) = store.layer_record(chain)? else {
        return Ok(false);
    };
    if record.form != store.form() {
        bail!(
            "{}: its whiteouts are written in another form than this store's",
            store.layer_path(chain).display()
        );
    }
    if let Err(error) = store.subdirectory(&format!("layers/{}", chain.hex())) {
        return Err(error.context("it has a record and no tree: see `fsck --repair`"));
    }
    if record.single_id && !userns::has_one_id() {
        report::warn(format_args!(
            "layer {chain}: all its files belong to the caller, who had no other ids when it was unpacked: `fsck --repair` unpacks it again"
        ));
    }
    Ok(true)
}

fn open(dir: std::os::fd::BorrowedFd, name: &str, flags: OFlag) -> Result<OwnedFd> {
    openat(
        dir,
        name,
        flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::from_bits_truncate(0o600),
    )
    .with_context(|| format!("open its {name}"))
}
