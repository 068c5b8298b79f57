//! The documents of an image (image-spec manifest.md, image-index.md, config.md): read strictly, resolved to one platform.

mod base64;
mod choose;
mod config;
mod json;
mod platform;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use json::nullable;

pub(crate) use json::read as read_json;

pub(crate) use choose::{DEEPEST_INDEX, NoSuchPlatform, choose};
pub(crate) use config::{Config, Execution};
pub(crate) use platform::Platform;

/// The largest manifest, index or configuration that is read, in bytes.
pub(crate) const LARGEST_DOCUMENT: u64 = 8 << 20;

/// The media types that we write.
pub(crate) mod media_type {
    pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub(crate) const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
}

/// Names content by type, digest and size (descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// As it was written: Docker's names stay Docker's. [`kind`] and [`layer_type`] say what they mean.
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) urls: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) annotations: BTreeMap<String, String>,
    /// The content itself, in base64; checked against digest and size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor that says no more than it has to.
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            artifact_type: None,
            platform: None,
        }
    }

    /// Whether an index lists this beside its images, and not as one: builders write provenance and SBOMs so.
    pub(crate) fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_unknown)
            || self.annotations.contains_key("vnd.docker.reference.type")
    }

    /// The content that the descriptor brings along; it was checked when the document was read.
    pub(crate) fn embedded(&self) -> Result<Option<Vec<u8>>> {
        let Some(text) = &self.data else {
            return Ok(None);
        };
        let bytes =
            base64::decode(text).with_context(|| format!("data of blob {}", self.digest))?;
        self.check(&bytes)
            .with_context(|| format!("data of blob {}", self.digest))?;
        Ok(Some(bytes))
    }

    /// Whether `bytes` are what this names: the size, then the digest (descriptor.md, "Verification").
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != self.size {
            bail!(
                "{} bytes long, the descriptor says {}",
                bytes.len(),
                self.size
            );
        }
        let mut hasher = self.digest.algorithm().hasher();
        hasher.update(bytes);
        let found = hasher.finish();
        if found != self.digest {
            bail!("the content has the digest {found}");
        }
        Ok(())
    }
}

/// A list of manifests, or of lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
    pub(crate) subject: Option<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// One image, or one artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) subject: Option<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Whether this is an image, which can be unpacked and run; else it is an artifact, which is only kept.
    pub(crate) fn is_image(&self) -> bool {
        is_image_config(&self.config.media_type)
    }

    /// The document of a manifest that we write ourselves: no whitespace, members in the order of the specification.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct File<'manifest> {
            schema_version: u32,
            media_type: &'manifest str,
            config: &'manifest Descriptor,
            layers: &'manifest [Descriptor],
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'manifest BTreeMap<String, String>,
        }
        serde_json::to_vec(&File {
            schema_version: 2,
            media_type: &self.media_type,
            config: &self.config,
            layers: &self.layers,
            annotations: &self.annotations,
        })
        .context("write a manifest")
    }
}

/// What a manifest's bytes turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is looked at at a time, and most are manifests"
)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Document {
    /// Read the document that a descriptor of type `media_type` names. Refused is what another reader could take for
    /// something else: an embedded `mediaType` that differs, an index that is also a manifest, a name that occurs twice.
    // CVE-2021-41190: one document that is an image for one reader and a list of others for the next.
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Self> {
        let Some(kind) = kind(media_type) else {
            bail!("media type {media_type:?} is neither that of a manifest nor that of an index");
        };
        no_disguise(bytes)?;
        let file: File = json::read(bytes)?;
        file.check(media_type, kind)?;
        let document = match kind {
            Kind::Index => Self::Index(Index {
                manifests: file.manifests.unwrap_or_default(),
                subject: file.subject,
                annotations: file.annotations,
            }),
            Kind::Manifest => Self::Manifest(Manifest {
                media_type: media_type.to_owned(),
                artifact_type: file.artifact_type,
                config: file.config.context("no config")?,
                layers: file.layers.unwrap_or_default(),
                subject: file.subject,
                annotations: file.annotations,
            }),
        };
        for descriptor in document.descriptors() {
            descriptor.embedded()?;
        }
        Ok(document)
    }

    /// Everything the document names: an index's entries, or a manifest's config and layers; then the subject.
    pub(crate) fn descriptors(&self) -> Vec<&Descriptor> {
        match self {
            Self::Index(index) => index.manifests.iter().chain(&index.subject).collect(),
            Self::Manifest(manifest) => std::iter::once(&manifest.config)
                .chain(&manifest.layers)
                .chain(&manifest.subject)
                .collect(),
        }
    }
}

/// The members of manifests and indexes together: which are there decides whether the document is what it is said to be.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    schema_version: Option<u64>,
    #[serde(default, deserialize_with = "nullable")]
    media_type: String,
    artifact_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    /// Of Docker's first schema, and its own kind of confusion.
    fs_layers: Option<IgnoredAny>,
}

impl File {
    fn check(&self, media_type: &str, kind: Kind) -> Result<()> {
        if !self.media_type.is_empty() && self.media_type != media_type {
            bail!(
                "its mediaType is {:?}, and it is named as {media_type:?}",
                self.media_type
            );
        }
        if self.schema_version.is_some_and(|version| version != 2) {
            bail!("schemaVersion is not 2");
        }
        let of_index = self.manifests.is_some();
        let of_manifest = self.config.is_some() || self.layers.is_some();
        match kind {
            _ if self.fs_layers.is_some() => bail!("it has fsLayers, as Docker's schema 1 has"),
            Kind::Index if of_manifest => bail!("an index with the config or layers of a manifest"),
            Kind::Manifest if of_index => bail!("a manifest with the manifests of an index"),
            _ => Ok(()),
        }
    }
}

/// The members that decide what a document is.
const DECISIVE: [&str; 6] = [
    "mediaType",
    "manifests",
    "config",
    "layers",
    "fsLayers",
    "subject",
];

/// Go's decoder takes a name in any case, so another reader would see a member that we pass over.
fn no_disguise(bytes: &[u8]) -> Result<()> {
    let members: BTreeMap<String, IgnoredAny> = json::read(bytes)?;
    for name in members.keys() {
        let upper = name.to_uppercase();
        let alike = |known: &&&str| known.to_uppercase() == upper && **known != name;
        if let Some(known) = DECISIVE.iter().find(alike) {
            bail!("the member {name:?} can be taken for {known:?}");
        }
    }
    Ok(())
}

/// What a document's type says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
}

/// The kind of document that `media_type` names, OCI's or Docker's; none for anything else.
pub(crate) fn kind(media_type: &str) -> Option<Kind> {
    match media_type {
        media_type::INDEX | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Some(Kind::Index)
        }
        media_type::MANIFEST | "application/vnd.docker.distribution.manifest.v2+json" => {
            Some(Kind::Manifest)
        }
        _ => None,
    }
}

/// Whether content of this type is an image configuration, and so the manifest that names it an image.
pub(crate) fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        media_type::CONFIG | "application/vnd.docker.container.image.v1+json"
    )
}

/// How a layer of a known type is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerType {
    /// A plain tar, taken literally.
    Tar,
    /// Docker's plain tar, which in the field is often compressed all the same.
    DockerTar,
    Gzip,
    Zstd,
}

/// What the type of a layer says; none where it is unknown, and such a layer is kept but not unpacked (L-31, L-33).
pub(crate) fn layer_type(media_type: &str) -> Option<LayerType> {
    if let Some(rest) = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."))
    {
        return match rest {
            "tar" => Some(LayerType::Tar),
            "tar+gzip" => Some(LayerType::Gzip),
            "tar+zstd" => Some(LayerType::Zstd),
            _ => None,
        };
    }
    match media_type.strip_prefix("application/vnd.docker.image.rootfs.")? {
        "diff.tar" | "foreign.diff.tar" => Some(LayerType::DockerTar),
        "diff.tar.gzip" | "foreign.diff.tar.gzip" => Some(LayerType::Gzip),
        "diff.tar.zstd" | "foreign.diff.tar.zstd" => Some(LayerType::Zstd),
        _ => None,
    }
}

/// Whether the layer may be absent because its owner forbids handing it on.
pub(crate) fn is_nondistributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.")
}

/// The identity of each layer together with those below it (config.md, "Layer ChainID"), base first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests;
