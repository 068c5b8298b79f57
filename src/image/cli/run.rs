//! `run`: a container from an image.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::image::bundle::Rootfs;
use crate::image::run;

use super::Global;
use super::bundle::Options;

/// Make a bundle, run it, and remove it
#[derive(Args)]
pub(super) struct Run {
    /// Mount shared layers, and fail where that is not possible [default: a tree where it is not]
    #[arg(long, conflicts_with = "flat")]
    overlay: bool,

    /// Unpack a tree
    #[arg(long)]
    flat: bool,

    /// The runtime's program [default: pelagos, beside this program or in $PATH]
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,

    /// The container's id [default: a random one]
    #[arg(long, value_name = "ID")]
    name: Option<String>,

    /// Do not remove the bundle; its path is printed on stderr
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    options: Options,

    /// A name, a digest, or the beginning of a digest
    image: String,

    /// The program's arguments, instead of the image's
    #[arg(last = true)]
    args: Vec<String>,
}

impl Run {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let rootfs = match (self.overlay, self.flat) {
            (true, _) => Rootfs::Overlay,
            (_, true) => Rootfs::Flat,
            _ => Rootfs::Either,
        };
        let request = run::Request {
            bundle: self
                .options
                .request(self.image, self.args, rootfs, global.quiet)?,
            runtime: self.runtime,
            id: self.name,
            keep: self.keep,
        };
        let code = run::run(&global.root, global.durability, global.quiet, request)?;
        Ok(ExitCode::from(code))
    }
}
