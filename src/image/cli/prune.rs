//! `prune`: what nothing needs, removed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Remove what nothing needs
#[derive(Args)]
pub(super) struct Prune {}

impl Prune {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("prune is not there yet")
    }
}
