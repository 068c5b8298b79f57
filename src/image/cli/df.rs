//! `df`: what the disk holds.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Show what images, layers, blobs and volumes take on the disk
#[derive(Args)]
pub(super) struct Df {}

impl Df {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("df is not there yet")
    }
}
