//! `export`: an image as an archive.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Write an image as an oci-archive
#[derive(Args)]
pub(super) struct Export {}

impl Export {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("export is not there yet")
    }
}
