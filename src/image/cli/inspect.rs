//! `inspect`: everything about one image.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Show an image's manifest, configuration, layers and use
#[derive(Args)]
pub(super) struct Inspect {}

impl Inspect {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("inspect is not there yet")
    }
}
