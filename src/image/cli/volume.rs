//! `volume`: named volumes.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Create, list and remove volumes
#[derive(Args)]
pub(super) struct Volume {}

impl Volume {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("volume is not there yet")
    }
}
