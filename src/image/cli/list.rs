//! `list`: the images by name.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// List images
#[derive(Args)]
pub(super) struct List {}

impl List {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("list is not there yet")
    }
}
