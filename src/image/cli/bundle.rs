//! `bundle`: a bundle for the runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::idmap::{Maps, Range};
use crate::image::bundle::{self, Labels, Overrides, Place, Rootfs, Wanted};
use crate::image::containers::RuntimeRoots;
use crate::image::manifest::Platform;
use crate::image::progress::Progress;
use crate::image::store::Store;
use crate::image::unpack::Limits;
use crate::image::userns;

use super::Global;

/// Make a bundle, that is rootfs and config.json, from an image
#[derive(Args)]
pub(super) struct Bundle {
    /// Mount shared layers instead of unpacking a tree; for root, until `rm`
    #[arg(long)]
    overlay: bool,

    #[command(flatten)]
    options: Options,

    /// A name, a digest, or the beginning of a digest
    image: String,

    /// The directory to make; an empty one can be there
    dir: PathBuf,

    /// The program's arguments, instead of the image's
    #[arg(last = true)]
    args: Vec<String>,
}

/// What `bundle` and `run` share: everything that goes into config.json.
#[derive(Args)]
pub(super) struct Options {
    /// The image's platform, as os/architecture[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// The program, instead of the image's; it takes the image's arguments away
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// A variable of the environment, or NAME for the value it has here
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,

    /// The working directory
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,

    /// As whom it runs: a user or a uid, and a group or a gid if need be
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// One more annotation of the container
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = key_value)]
    annotations: Vec<(String, String)>,

    /// Which labels of the image become annotations
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    labels: Labels,

    /// A volume or a path of this machine to mount
    #[arg(long = "volume", short, value_name = "NAME|PATH:DEST[:ro]", value_parser = wanted)]
    volumes: Vec<Wanted>,

    /// The host name inside [default: the beginning of the id]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,

    /// Give the program a terminal
    #[arg(long, short)]
    tty: bool,

    /// Make the root filesystem read-only
    #[arg(long)]
    read_only: bool,

    /// User ids inside, on this machine, and how many; root may choose
    #[arg(long, value_name = "INSIDE:OUTSIDE:COUNT", value_parser = id_range)]
    uid_map: Vec<Range>,

    /// Group ids; as the user ids, if none are given
    #[arg(long, value_name = "INSIDE:OUTSIDE:COUNT", value_parser = id_range)]
    gid_map: Vec<Range>,
}

impl Options {
    pub(super) fn request(
        self,
        image: String,
        args: Vec<String>,
        rootfs: Rootfs,
        quiet: bool,
    ) -> Result<bundle::Request> {
        let maps = match (self.uid_map.is_empty(), self.gid_map.is_empty()) {
            (true, true) => None,
            (true, false) => bail!("--gid-map needs a --uid-map"),
            (false, no_groups) => Some(Maps {
                gids: if no_groups {
                    self.uid_map.clone()
                } else {
                    self.gid_map
                },
                uids: self.uid_map,
            }),
        };
        Ok(bundle::Request {
            image,
            platform: self.platform,
            rootfs,
            overrides: Overrides {
                entrypoint: self.entrypoint,
                args,
                env: self.env,
                workdir: self.workdir,
                user: self.user,
                hostname: self.hostname,
                terminal: self.tty,
                read_only: self.read_only,
            },
            labels: self.labels,
            annotations: self.annotations,
            volumes: self.volumes,
            maps,
            limits: Limits::default(),
            quiet,
        })
    }
}

impl Bundle {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let rootfs = if self.overlay {
            Rootfs::Overlay
        } else {
            Rootfs::Flat
        };
        let request = self
            .options
            .request(self.image, self.args, rootfs, global.quiet)?;
        let path = bundle::new_path(&self.dir)?;
        userns::enter(userns::Wanted { mounts: false })?;
        if self.overlay && userns::entered() {
            bail!(
                "--overlay: an ordinary user's mount would end with this command; `run` mounts one"
            );
        }
        let store = Store::open(&global.root, global.durability)?;
        if let Ok(roots) = RuntimeRoots::usual() {
            bundle::sweep(&store, &roots)?;
        }
        let place = Place {
            path,
            id: bundle::new_id()?,
            passing: false,
            state_root: None,
        };
        bundle::make(&store, &place, &request, &Progress::new(global.quiet))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// `KEY=VALUE` with a key.
pub(super) fn key_value(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("expected KEY=VALUE"),
    }
}

fn wanted(text: &str) -> Result<Wanted> {
    Wanted::parse(text)
}

/// `INSIDE:OUTSIDE:COUNT`, none of which leaves the 32 bits of an id.
fn id_range(text: &str) -> Result<Range> {
    let numbers: Vec<u32> = text
        .split(':')
        .map_while(|number| number.parse().ok())
        .collect();
    let [container, host, length] = *numbers else {
        bail!("expected three numbers, INSIDE:OUTSIDE:COUNT");
    };
    let ends = [container, host].map(|first| first.checked_add(length));
    if text.split(':').count() != 3 || length == 0 || ends.contains(&None) {
        bail!("expected three numbers, INSIDE:OUTSIDE:COUNT");
    }
    Ok(Range {
        container,
        host,
        length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ids_is_three_numbers_that_fit() {
        let range = id_range("0:100000:65536").unwrap();
        assert_eq!(
            (range.container, range.host, range.length),
            (0, 100_000, 65_536)
        );
        for text in [
            "",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "0:1:x",
            "-1:0:1",
            "0:4294967295:2",
        ] {
            id_range(text).expect_err(text);
        }
    }
}
