//! `untag`: names taken away.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Take names away; the content stays until prune
#[derive(Args)]
pub(super) struct Untag {}

impl Untag {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("untag is not there yet")
    }
}
