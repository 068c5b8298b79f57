//! `export`: an image as an archive.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::report::Hinted;

use super::super::export::{self, Destination};
use super::super::manifest::Platform;
use super::super::output;
use super::super::progress::Progress;
use super::super::store::Store;
use super::Global;

/// Write images as an oci-archive, their digests unchanged
///
/// The same images make the same bytes.
#[derive(Args)]
pub(super) struct Export {
    /// Names or digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,

    /// The archive to write, or - for stdout
    #[arg(required = true, value_name = "FILE")]
    file: PathBuf,

    /// Only the manifest for this platform [default: whatever the name leads to]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

impl Export {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let Some(store) = Store::existing(&global.root)? else {
            let image = output::visible(&self.images[0]).into_owned();
            bail!(Hinted::new(
                format!(
                    "image {image}: there is no store at {}",
                    global.root.display()
                ),
                "name the store with --root",
            ));
        };
        let destination = if self.file.as_os_str() == "-" {
            Destination::Stdout
        } else {
            Destination::File(self.file)
        };
        let progress = Progress::new(global.quiet);
        export::export(
            &store,
            &self.images,
            self.platform.as_ref(),
            &destination,
            &progress,
        )?;
        Ok(ExitCode::SUCCESS)
    }
}
