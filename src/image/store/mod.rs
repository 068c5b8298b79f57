//! The store on disk: see the drawing in `image`.

use clap::ValueEnum;

/// When written content has to be on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// The kernel writes it when it likes; after a power cut content may be damaged, and fsck finds it.
    None,
    /// One syncfs(2) before the record that makes content count.
    #[default]
    Syncfs,
    /// fsync(2) of every file and directory, then of the record.
    Fsync,
}
