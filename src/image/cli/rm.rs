//! `rm`: images and bundles removed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Remove images or bundles
#[derive(Args)]
pub(super) struct Rm {}

impl Rm {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("rm is not there yet")
    }
}
