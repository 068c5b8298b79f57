//! `run`: a container from an image.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Make a bundle, run it, and remove it
#[derive(Args)]
pub(super) struct Run {}

impl Run {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("run is not there yet")
    }
}
