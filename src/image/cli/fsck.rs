//! `fsck`: the store checked.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Check the store's content against its records
#[derive(Args)]
pub(super) struct Fsck {}

impl Fsck {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("fsck is not there yet")
    }
}
