//! `unpack`: an image's tree, flat or as shared layers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail};
use clap::Args;

use crate::idmap::{Maps, Range};
use crate::image::bundle;
use crate::image::layers;
use crate::image::manifest::Platform;
use crate::image::progress::Progress;
use crate::image::prune::filter;
use crate::image::store::{Image, Store};
use crate::image::unpack::{self, Form, Ids, Layer, Limits, Options, Report, place};
use crate::image::userns;
use crate::report;

use super::Global;

/// Unpack an image's layers into a directory, or into the store
#[derive(Args)]
pub(super) struct Unpack {
    /// A name, NAME for NAME:latest, or a digest or its beginning
    image: String,

    /// The directory to make; it may be there if it is empty
    #[arg(required_unless_present = "layers")]
    dir: Option<PathBuf>,

    /// Unpack each layer into the store, for overlay, and print where they are, the base first
    #[arg(long, conflicts_with_all = ["dir", "uid_map", "gid_map", "no_devices"])]
    layers: bool,

    /// Which image of an index [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,

    /// Users of the image from CONTAINER on become users from HOST on; may be repeated
    #[arg(long, value_name = "CONTAINER:HOST:LENGTH")]
    uid_map: Vec<Mapping>,

    /// The same for groups [default: as --uid-map, which in turn defaults to it]
    #[arg(long, value_name = "CONTAINER:HOST:LENGTH")]
    gid_map: Vec<Mapping>,

    /// Leave device nodes out, and say which
    #[arg(long)]
    no_devices: bool,

    /// Refuse an image whose files are larger in all, such as 20GB [default: 1TiB]
    #[arg(long, value_name = "SIZE", value_parser = filter::size)]
    max_size: Option<u64>,

    /// Refuse an image of more files and directories [default: 10000000]
    #[arg(long, value_name = "COUNT")]
    max_entries: Option<u64>,
}

impl Unpack {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let own_maps = self.maps();
        let ids = match own_maps {
            Some(maps) => Ids::Mapped(maps),
            None => {
                userns::enter(userns::Wanted::default())?;
                userns::ids()
            }
        };
        let store = Store::open(&global.root, global.durability)?;
        let lease = store.lease("unpack")?;
        let image = bundle::hold(&store, &lease, &self.image, self.platform.as_ref())?;
        let progress = Progress::new(global.quiet);
        let limits = self.limits();
        let Some(dir) = &self.dir else {
            for chain in layers::ensure(&store, &lease, &image, limits, &progress)? {
                super::print(&format!("{}\n", store.layer_path(&chain).display()))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let place = dir.canonicalize().or_else(|_| bundle::new_path(dir));
        if let Ok(place) = place {
            store.is_no_place_for(&place)?;
        }
        let options = Options {
            form: Form::Flat,
            ids,
            devices: !self.no_devices,
            limits,
            durability: global.durability,
        };
        let layers = image_layers(&store, &image)?;
        let report = place::fill(dir, global.durability, |target| {
            unpack::flat(target, layers, &options, &progress)
        })
        .with_context(|| format!("unpack {}", image.shown()))?;
        if !global.quiet {
            say(&report);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            bytes: self.max_size.unwrap_or(default.bytes),
            entries: self.max_entries.unwrap_or(default.entries),
        }
    }

    /// The maps of the command line; one of the two stands for both.
    fn maps(&self) -> Option<Maps> {
        let ranges = |own: &[Mapping], other: &[Mapping]| -> Vec<Range> {
            let given = if own.is_empty() { other } else { own };
            given.iter().map(|mapping| mapping.0).collect()
        };
        let maps = Maps {
            uids: ranges(&self.uid_map, &self.gid_map),
            gids: ranges(&self.gid_map, &self.uid_map),
        };
        (!maps.uids.is_empty()).then_some(maps)
    }
}

/// The layers of an image with what their content must be.
fn image_layers(store: &Store, image: &Image) -> Result<Vec<Layer>> {
    let (layers, diff_ids) = (&image.manifest.layers, &image.config.diff_ids);
    if layers.len() != diff_ids.len() {
        bail!(
            "image {}: its manifest has {} layers, and its configuration {}",
            image.shown(),
            layers.len(),
            diff_ids.len()
        );
    }
    layers
        .iter()
        .zip(diff_ids)
        .map(|(descriptor, diff_id)| {
            Ok(Layer {
                blob: store.open_blob(&descriptor.digest)?,
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
            })
        })
        .collect()
}

fn say(report: &Report) {
    for line in report.warnings.iter().chain(&report.skipped) {
        report::warn(format_args!("{line}"));
    }
}

/// One line of a map, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping(Range);

impl FromStr for Mapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<u32> = text
            .split(':')
            .map(|number| number.parse().with_context(|| format!("{number:?}")))
            .collect::<Result<_>>()?;
        let [container, host, length] = numbers[..] else {
            bail!("not of the form CONTAINER:HOST:LENGTH");
        };
        let last = |first: u32| {
            length
                .checked_sub(1)
                .and_then(|more| first.checked_add(more))
        };
        // The last id stands for none.
        if [last(container), last(host)]
            .iter()
            .any(|last| matches!(last, None | Some(u32::MAX)))
        {
            bail!("the range is empty or leaves the ids");
        }
        Ok(Self(Range {
            container,
            host,
            length,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_three_numbers_within_the_ids() {
        let mapping: Mapping = "0:100000:65536".parse().unwrap();
        assert_eq!(
            mapping.0,
            Range {
                container: 0,
                host: 100_000,
                length: 65536
            }
        );
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:2:3",
            "0:-1:1",
            "0:0:0",
            "1:4294967295:1",
            "5:0:4294967291",
        ] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
    }
}
