//! `unpack`: an image's tree, flat or as shared layers.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Unpack an image
#[derive(Args)]
pub(super) struct Unpack {}

impl Unpack {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("unpack is not there yet")
    }
}
