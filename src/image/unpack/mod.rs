//! Layers to trees: the tar reader, and the extractor that works through directory descriptors alone.

pub(crate) mod archive;
mod attributes;
mod extract;
pub(crate) mod listing;
mod lower;
mod names;
mod pipeline;
pub(crate) mod place;
mod touched;
mod tree;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context as _, Result};
use caps::Capability;

use crate::idmap;
use crate::report::debug;
use crate::sys::landlock;
use crate::sys::process::{capget, capset};

use super::digest::Digest;
use super::manifest::Descriptor;
use super::progress::Progress;
use super::store::Durability;

use extract::Extraction;
use listing::Listing;

/// One layer to be unpacked.
pub(crate) struct Layer {
    /// The blob, at its start.
    pub(crate) blob: File,
    pub(crate) descriptor: Descriptor,
    /// What the uncompressed bytes must hash to (config.md, "rootfs.diff_ids").
    pub(crate) diff_id: Digest,
}

/// What the tree is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A complete tree: whiteouts remove what lower layers wrote.
    Flat,
    /// A lower directory of overlayfs: whiteouts are character devices 0:0, marks are `trusted.overlay.*`.
    Trusted,
    /// The same for a mount with the option `userxattr`: marks are `user.overlay.*`.
    User,
}

/// How the numeric owners of a layer become owners on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// As they are.
    AsStored,
    /// Translated; an id without a mapping is an error.
    Mapped(idmap::Maps),
    /// Everything belongs to the caller; the owner is kept in the attribute `user.rootlesscontainers`.
    Single,
}

/// What one unpacking may write at most, in all its layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of file contents, holes included.
    pub(crate) bytes: u64,
    /// Entries of all kinds, and directories that no entry names.
    pub(crate) entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 1 << 40,
            entries: 10_000_000,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) form: Form,
    pub(crate) ids: Ids,
    /// Whether device nodes are made; otherwise they are skipped and reported.
    pub(crate) devices: bool,
    pub(crate) limits: Limits,
    /// `Fsync` has every file and directory synced here. The one syncfs(2) of `Syncfs` is the caller's, before it records
    /// or renames what was unpacked.
    pub(crate) durability: Durability,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) entries: u64,
    pub(crate) files: u64,
    /// Bytes of file contents, holes included.
    pub(crate) apparent_bytes: u64,
    /// What was tolerated, each thing once.
    pub(crate) warnings: Vec<String>,
    /// Entries that were left out, with the reason.
    pub(crate) skipped: Vec<String>,
}

/// Unpack `layers`, base first, on top of each other into the empty directory `target`.
///
/// # Errors
/// Names layer and path. What was written stays in `target`: it is the caller's to remove.
pub(crate) fn flat(
    target: BorrowedFd,
    layers: Vec<Layer>,
    options: &Options,
    progress: &Progress,
) -> Result<Report> {
    confined(target, || {
        let mut extraction = Extraction::new(target, &[], options, Listing::new(None))?;
        pipeline::run(layers, progress, |_, stream| extraction.layer(stream))?;
        extraction.finish()
    })
}

/// Unpack one layer into the empty directory `target` as a lower directory of overlayfs, over the layers `parents`,
/// nearest first, which are in the same form. What was made is written to `listing` (see [`listing`]).
///
/// # Errors
/// As for [`flat`].
pub(crate) fn overlay(
    target: BorrowedFd,
    parents: &[OwnedFd],
    layer: Layer,
    options: &Options,
    listing: &mut (dyn Write + Send),
    progress: &Progress,
) -> Result<Report> {
    confined(target, || {
        let mut extraction =
            Extraction::new(target, parents, options, Listing::new(Some(listing)))?;
        pipeline::run(vec![layer], progress, |_, stream| extraction.layer(stream))?;
        extraction.finish()
    })
}

/// What the extractor may do of what the administrator may; MKNOD for devices, SYS_ADMIN for `trusted.*` attributes.
const CAPABILITIES: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETFCAP,
    Capability::CAP_MKNOD,
    Capability::CAP_SYS_ADMIN,
];

/// Do `work`, which reads what anybody may have made, in a thread that can change nothing but `target`, and with few
/// capabilities (S-15). The second wall: the first is that the extractor names nothing outside.
fn confined<T: Send>(target: BorrowedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let wall = || -> Result<()> {
        let kept = CAPABILITIES
            .iter()
            .fold(0, |kept, capability| kept | capability.bitmask());
        let mut sets = capget()?;
        sets.permitted &= kept;
        sets.effective &= kept;
        sets.inheritable = 0;
        capset(sets)?;
        if !landlock::confine_changes(&[target])? {
            debug!("this kernel has no Landlock for the extractor");
        }
        Ok(())
    };
    thread::scope(|threads| {
        let done = threads.spawn(|| {
            wall().context("confine the extractor")?;
            work()
        });
        // A panic ends the program (Cargo.toml), so there is always an outcome.
        done.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Check a layer's DiffID without unpacking it.
///
/// # Errors
/// The blob cannot be read or decompressed, or is another.
pub(crate) fn verify_diff_id(layer: Layer) -> Result<()> {
    let quiet = Progress::new(true);
    pipeline::run(vec![layer], &quiet, |_, stream| {
        io::copy(stream, &mut io::sink())?;
        Ok(())
    })
}
