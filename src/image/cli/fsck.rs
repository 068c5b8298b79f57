//! `fsck`: the store checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::super::progress::Progress;
use super::super::store::Store;
use super::super::{fsck, output, userns};
use super::{Format, Global, print};

/// Check the store's content against its names, listings and records
#[derive(Args)]
pub(super) struct Fsck {
    /// Unpack damaged layers again, set damaged blobs aside, remove records that are about nothing
    #[arg(long)]
    repair: bool,

    /// The shape of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Fsck {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        // Layers of an ordinary user hold files of other ids, which only root over these may read.
        userns::enter(userns::Wanted { mounts: false })?;
        let store = if self.repair {
            Some(Store::open(&global.root, global.durability)?)
        } else {
            Store::existing(&global.root)?
        };
        let report = match store {
            Some(store) => fsck::run(&store, self.repair, &Progress::new(global.quiet))?,
            None => fsck::Report::default(),
        };
        print(&match self.format {
            Format::Table => report.text(),
            Format::Json => output::json(&report)?,
        })?;
        Ok(if report.is_clean() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
