//! `bundle`: a bundle for the runtime.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Make a bundle, that is rootfs and config.json, from an image
#[derive(Args)]
pub(super) struct Bundle {}

impl Bundle {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("bundle is not there yet")
    }
}
