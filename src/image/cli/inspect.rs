//! `inspect`: everything about one image.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Platform};
use crate::image::output;
use crate::image::store::{Image, Store};

use super::{Format, Global, print};

/// Show an image's manifest, configuration, layers and what uses it
#[derive(Args)]
pub(super) struct Inspect {
    /// A name, a digest, or the beginning of a digest
    image: String,

    /// Of an image for several platforms: which, as OS/ARCHITECTURE[/VARIANT]
    #[arg(long)]
    platform: Option<Platform>,

    /// Print the manifest's bytes as they are stored, nothing else
    #[arg(long, conflicts_with_all = ["config", "format"])]
    raw: bool,

    /// Print the configuration's bytes as they are stored, nothing else
    #[arg(long, conflicts_with = "format")]
    config: bool,

    /// The shape of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// As `--format json` shows it (docs/IMAGE.md).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    /// Every name that leads to the same place.
    names: Vec<String>,
    /// What the names lead to: the manifest, or an index that holds it.
    target: Digest,
    manifest: Descriptor,
    platform: String,
    /// The configuration as it is stored.
    config: Value,
    config_digest: Digest,
    layers: Vec<LayerShown>,
    /// Directories of the bundles made from it.
    bundles: Vec<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LayerShown {
    digest: Digest,
    media_type: String,
    size: u64,
    diff_id: Digest,
    chain_id: Digest,
    /// Blocks on disk of its unpacked tree in bytes, where it has one that is shared.
    unpacked: Option<u64>,
}

impl Inspect {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let Some(store) = Store::existing(&global.root)? else {
            bail!(
                "image {}: there is no store at {}",
                output::visible(&self.image),
                global.root.display()
            );
        };
        let image = store.image(&self.image, self.platform.as_ref())?;
        let document = if self.raw {
            Some(store.document(&image.descriptor)?)
        } else if self.config {
            Some(store.document(&image.manifest.config)?)
        } else {
            None
        };
        if let Some(bytes) = document {
            print(std::str::from_utf8(&bytes).context("the document is not UTF-8")?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let shown = shown(&store, &image)?;
        match self.format {
            Format::Json => print(&output::json(&shown)?)?,
            Format::Table => print(&text(&shown, &image))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn shown(store: &Store, image: &Image) -> Result<Shown> {
    let mut layers = Vec::new();
    let identities = image.config.diff_ids.iter().zip(image.chain_ids());
    for (layer, (diff_id, chain_id)) in image.manifest.layers.iter().zip(identities) {
        layers.push(LayerShown {
            digest: layer.digest.clone(),
            media_type: layer.media_type.clone(),
            size: layer.size,
            diff_id: diff_id.clone(),
            unpacked: store
                .layer_record(&chain_id)?
                .map(|record| record.disk_bytes),
            chain_id,
        });
    }
    let names = store.readable_names()?.names.into_iter();
    Ok(Shown {
        names: names
            .filter(|(name, target)| !name.is_empty() && target.digest == image.target.digest)
            .map(|(name, _)| name)
            .collect(),
        target: image.target.digest.clone(),
        manifest: image.descriptor.clone(),
        platform: image.config.platform.to_string(),
        config: serde_json::from_slice(&store.document(&image.manifest.config)?)?,
        config_digest: image.manifest.config.digest.clone(),
        layers,
        bundles: store
            .bundle_records()?
            .into_iter()
            .filter(|bundle| bundle.manifest == image.descriptor.digest)
            .map(|bundle| bundle.path)
            .collect(),
    })
}

/// The same for people: one line for each thing, values made visible.
fn text(shown: &Shown, image: &Image) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{name:12}{}\n", output::visible(value)));
        }
    };
    line("names", &shown.names.join(" "));
    line("manifest", &shown.manifest.digest.to_string());
    if shown.target != shown.manifest.digest {
        line("index", &shown.target.to_string());
    }
    line("config", &shown.config_digest.to_string());
    line("platform", &shown.platform);
    line(
        "created",
        image.config.created.as_deref().unwrap_or_default(),
    );
    line("author", image.config.author.as_deref().unwrap_or_default());
    let execution = &image.config.execution;
    line("entrypoint", &execution.entrypoint.join(" "));
    line("cmd", &execution.cmd.join(" "));
    line("user", &execution.user);
    line("workdir", &execution.working_dir);
    line("volumes", &execution.volumes.join(" "));
    line("ports", &execution.exposed_ports.join(" "));
    line(
        "stopsignal",
        execution.stop_signal.as_deref().unwrap_or_default(),
    );
    for variable in &execution.env {
        line("env", variable);
    }
    for (name, value) in &execution.labels {
        line("label", &format!("{name}={value}"));
    }
    for layer in &shown.layers {
        let unpacked = layer
            .unpacked
            .map(|size| format!(", unpacked {}", output::bytes(size)));
        line(
            "layer",
            &format!(
                "{} {}{}",
                layer.digest,
                output::bytes(layer.size),
                unpacked.unwrap_or_default()
            ),
        );
    }
    for bundle in &shown.bundles {
        line("bundle", &bundle.to_string_lossy());
    }
    text
}
