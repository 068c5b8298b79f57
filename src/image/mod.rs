//! The companion: images kept as a plain OCI layout, unpacked, made into bundles, and pruned without losing what is used.
//!
//! # The store
//!
//! ```text
//! ROOT/                          0700
//! ├─ oci-layout  index.json      an OCI image layout: skopeo and umoci read it, foreign entries are left as they are
//! ├─ blobs/ALGORITHM/HEX         manifests, configs, layers, byte for byte as they came; 0600
//! ├─ layers/HEX/                 an unpacked layer in overlay form, by the sha256 ChainID; nothing of ours inside
//! ├─ volumes/NAME/               what a volume holds
//! ├─ bundles/ID/                 the bundle of a running `run`, held by flock; on this file system, where overlays of
//! │                              layers are known to work and what a container writes is not kept in memory
//! ├─ records/
//! │   ├─ store.json              schema version; overlay form of the layers (trusted or user xattrs)
//! │   ├─ layers/HEX.json         the commit record of a layer: without it the tree does not count
//! │   ├─ layers/HEX.list         what fsck compares: every path with type, mode, owner, size, mtime, hash
//! │   ├─ bundles/ID.json         a bundle made from an image, where it lies and what it uses
//! │   ├─ volumes/NAME.json       labels, pin, creation
//! │   └─ used.json               when a blob, layer, image or volume was last seen referenced
//! ├─ leases/ID                   what a running command uses, one line each; held by flock as long as it lives
//! ├─ staging/NAME/               unfinished work, held by flock; outside every tree that is swept
//! ├─ trash/NAME                  renamed away, being removed
//! ├─ quarantine/NAME             damaged blobs that `fsck --repair` set aside; nothing removes them
//! └─ lock  index.lock            flock: see below
//! ```
//!
//! # Roots
//!
//! What prune keeps is what can be reached from: the names in index.json; containers in any state (the state directories
//! of the runtime); registered bundles; lower directories of mounted overlays; leases that are held. Ids decide, never
//! names: a container keeps the manifest and the chain it was made from, whatever a tag says today. Marking fails closed:
//! a root that cannot be read, a record that cannot be parsed or a child that is missing stops the sweep and is named.
//!
//! # Locks
//!
//! `lock` is held shared while content is added or used, for moments only: long work is protected by its lease, whose
//! lines are written before what they name is looked up or put in place. It is held exclusive to carry out a prune plan:
//! the plan is marked again under it, and what is still unreferenced is renamed to trash. `index.lock` serialises the
//! changes of index.json and of records. Order: a staging lock, then `lock`, then `index.lock`; who holds `lock` exclusive
//! waits for no staging directory that has a meaning to others. Every lock is taken on a
//! descriptor of its own: flock belongs to the open file, and a second handle of the same process would wait for ever.
//! A layer is unpacked in the staging directory named by its ChainID: who comes second waits for its lock and finds the
//! work done. So do two imports of one blob.
//!
//! # Crash rules
//!
//! Content is written in staging, checked, synced as `--sync` says, renamed into place, and only then recorded. So at any
//! moment: a name in index.json leads to complete content; a layer with a record is complete; a tree without a record, a
//! staging directory or a lease whose lock is free, and everything in trash are leftovers, which the next command that
//! opens the store to change it removes. So is a bundle of `run` whose lock is free, whose container does not exist and
//! which was not to be kept, and a bundle whose record says that it is unfinished and whose directory nobody holds: the
//! next command that is about bundles removes them. Removal goes the other way: record first, then rename to trash, then
//! unlink. Where the disk is too full for a name to be taken away, what no name leads to goes first.

pub(crate) mod digest;
pub(crate) mod manifest;
pub(crate) mod reference;

pub(crate) mod compression;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod unpack;

mod bundle;
mod containers;
mod export;
mod foreground;
mod fsck;
mod layers;
mod mounts;
mod prune;
mod run;
mod usage;
mod userns;
mod volume;

mod cli;
mod output;
mod progress;

#[cfg(feature = "_fuzz")]
pub(crate) mod fuzz;

/// The program: parse the command line, carry out one verb, report its outcome as an exit code.
pub(crate) fn main() -> std::process::ExitCode {
    cli::main()
}
