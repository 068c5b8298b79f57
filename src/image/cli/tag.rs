//! `tag`: another name for an image.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Give an image another name
#[derive(Args)]
pub(super) struct Tag {}

impl Tag {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("tag is not there yet")
    }
}
