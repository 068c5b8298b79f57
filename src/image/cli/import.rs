//! `import`: images from a layout or an archive into the store.

use std::io::{IsTerminal as _, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::report;

use super::super::manifest::Platform;
use super::super::output;
use super::super::progress::Progress;
use super::super::reference::Reference;
use super::super::source::{self, Imported, Source, Wanted};
use super::super::store::Store;
use super::{Format, Global, print};

/// Take images from an OCI layout, an oci-archive or a docker-archive
///
/// What the source is shows in its content: a directory is a layout, anything else an archive, plain or compressed. Every
/// image is checked before it gets its name. Prints a line for each name: the name, and the digest of the manifest or
/// index.
#[derive(Args)]
pub(super) struct Import {
    /// A layout's directory, an archive, or - for an archive on stdin
    source: PathBuf,

    /// What to call the image, in place of the names that come with it; replaces what has the name
    name: Option<String>,

    /// Only the image for this platform [default: all that are there]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,

    /// Let names that come with the source replace those of other images
    #[arg(long)]
    replace: bool,

    /// How to print what was imported
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// One imported name, as `--format json` lists it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    name: &'a str,
    digest: String,
    media_type: &'a str,
    /// What the name meant before; null where that was nothing else.
    replaced: Option<String>,
}

impl<'a> From<&'a Imported> for Row<'a> {
    fn from(image: &'a Imported) -> Self {
        Self {
            name: &image.name,
            digest: image.target.digest.to_string(),
            media_type: &image.target.media_type,
            replaced: image.replaced.as_ref().map(ToString::to_string),
        }
    }
}

impl Import {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let source = if self.source.as_os_str() == "-" {
            if stdin().is_terminal() {
                bail!("import -: stdin is a terminal: redirect it from an archive");
            }
            Source::Stdin
        } else {
            Source::Path(self.source)
        };
        let wanted = Wanted {
            name: self.name.as_deref().map(Reference::parse).transpose()?,
            platform: self.platform,
            replace: self.replace,
        };
        let store = Store::open(&global.root, global.durability)?;
        let progress = Progress::new(global.quiet);
        let done = source::import(&store, &source, &wanted, &progress)?;
        if !global.quiet {
            for remark in &done.remarks {
                report::warn(format_args!("{}", output::visible(remark)));
            }
        }
        match self.format {
            Format::Json => {
                let rows: Vec<Row> = done.images.iter().map(Row::from).collect();
                print(&output::json(&rows)?)?;
            }
            Format::Table => {
                for image in &done.images {
                    print(&format!("{} {}\n", image.name, image.target.digest))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
