//! `import`: images from a layout or an archive into the store.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::Global;

/// Take images from an OCI layout, an oci-archive or a docker-archive
#[derive(Args)]
pub(super) struct Import {}

impl Import {
    pub(super) fn run(self, _global: &Global) -> Result<ExitCode> {
        bail!("import is not there yet")
    }
}
