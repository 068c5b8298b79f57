//! `list`: the images by name.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Document};
use crate::image::output::{self, Table};
use crate::image::store::{Image, Store};
use crate::report;

use super::{Format, Global, print};

/// List images
#[derive(Args)]
pub(super) struct List {
    /// Only names that contain this
    part: Option<String>,

    /// The shape of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One name, as `--format json` shows it (docs/IMAGE.md).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// None for an entry of index.json without a name.
    name: Option<String>,
    /// Of the manifest or index that the name leads to.
    digest: Digest,
    media_type: String,
    /// `os/architecture[/variant]`; several for an index, none for an artifact.
    platforms: Vec<String>,
    /// Of this machine's platform, or of the only manifest: none where there is no image for it.
    image: Option<Chosen>,
}

/// The image that a container would be made from here.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Chosen {
    manifest: Digest,
    config: Digest,
    created: Option<String>,
    layers: usize,
    /// Manifest, configuration and layers as they are stored, in bytes.
    size: u64,
}

impl List {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let mut rows = Vec::new();
        if let Some(store) = Store::existing(&global.root)? {
            let readable = store.readable_names()?;
            for (_, error) in &readable.others {
                report::warn(format_args!(
                    "{}",
                    output::visible(&report::sentence(error))
                ));
            }
            for (name, target) in readable.names {
                if self.part.as_ref().is_none_or(|part| name.contains(part)) {
                    rows.push(row(&store, name, &target));
                }
            }
        }
        match self.format {
            Format::Json => print(&output::json(&rows)?)?,
            Format::Table => print(&table(&rows))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What can be said of one entry. A damaged one is shown without what could not be read.
fn row(store: &Store, name: String, target: &Descriptor) -> Row {
    let image = store.load(None, target, None);
    let platforms = match platforms(store, target, image.as_ref().ok()) {
        Ok(platforms) => platforms,
        Err(error) => {
            report::warn(format_args!(
                "image {}: {}",
                output::visible(&name),
                report::sentence(&error)
            ));
            Vec::new()
        }
    };
    Row {
        name: Some(name).filter(|name| !name.is_empty()),
        digest: target.digest.clone(),
        media_type: target.media_type.clone(),
        platforms,
        image: image.ok().map(|image| Chosen {
            size: image.descriptor.size
                + image.manifest.config.size
                + image
                    .manifest
                    .layers
                    .iter()
                    .map(|layer| layer.size)
                    .sum::<u64>(),
            manifest: image.descriptor.digest,
            config: image.manifest.config.digest,
            created: image.config.created,
            layers: image.manifest.layers.len(),
        }),
    }
}

fn platforms(store: &Store, target: &Descriptor, image: Option<&Image>) -> Result<Vec<String>> {
    let bytes = store.document(target)?;
    Ok(match Document::parse(&bytes, &target.media_type)? {
        Document::Index(index) => index
            .manifests
            .iter()
            .filter(|child| !child.is_attestation())
            .filter_map(|child| child.platform.as_ref())
            .map(ToString::to_string)
            .collect(),
        Document::Manifest(_) => image
            .map(|image| image.config.platform.to_string())
            .into_iter()
            .collect(),
    })
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&["NAME", "DIGEST", "PLATFORM", "CREATED", "LAYERS", "SIZE"]);
    for row in rows {
        let platforms = match row.platforms.as_slice() {
            [] => "-".into(),
            [one] => one.clone(),
            [first, others @ ..] => format!("{first} and {} more", others.len()),
        };
        let image = row.image.as_ref();
        let created = image.and_then(|image| image.created.as_deref());
        table.row([
            row.name.as_deref().unwrap_or("-").into(),
            row.digest.short().into(),
            platforms.into(),
            // To the second is enough for people.
            created
                .map_or("-", |time| time.get(..19).unwrap_or(time))
                .into(),
            image
                .map_or("-".to_owned(), |image| image.layers.to_string())
                .into(),
            image
                .map_or("-".to_owned(), |image| output::bytes(image.size))
                .into(),
        ]);
    }
    table.text()
}
