//! What a stored manifest needs, whatever its kind: OCI's and Docker's manifests and indexes, and of the older kinds
//! Docker's schema 1 and OCI's artifact manifest, which registries still hold (G-2).

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::super::digest::Digest;
use super::super::super::manifest::{
    Descriptor, Document, is_nondistributable, kind, media_type as oci,
};

const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// What a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Manifests that an index lists.
    pub(super) children: Vec<Digest>,
    /// Content: configuration, layers, and the entries of an index that are no manifests.
    pub(super) blobs: Vec<Digest>,
    /// Content that may be elsewhere by its type.
    pub(super) elsewhere: Vec<Digest>,
    /// What this is a referrer of.
    pub(super) subject: Option<Digest>,
}

/// The members by which the kind is told.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Look {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct First {
    fs_layers: Vec<FsLayer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: Digest,
}

#[derive(Deserialize)]
struct Artifact {
    #[serde(default)]
    blobs: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

impl Needs {
    /// Read a stored manifest.
    ///
    /// # Errors
    /// It is truncated, ambiguous (CVE-2021-41190) or of a kind that is not known: then what it needs is not known.
    pub(super) fn of(bytes: &[u8]) -> Result<Self> {
        let look: Look = serde_json::from_slice(bytes).context("not a manifest")?;
        if look.schema_version == Some(1) {
            let first: First =
                serde_json::from_slice(bytes).context("a manifest of Docker's schema 1")?;
            return Ok(Self {
                blobs: first
                    .fs_layers
                    .into_iter()
                    .map(|layer| layer.blob_sum)
                    .collect(),
                ..Self::default()
            });
        }
        let media_type = match &look.media_type {
            Some(written) if !written.is_empty() => written.as_str(),
            _ if look.manifests.is_some() => oci::INDEX,
            _ => oci::MANIFEST,
        };
        if media_type == ARTIFACT {
            let artifact: Artifact = serde_json::from_slice(bytes).context("an artifact")?;
            return Ok(Self {
                blobs: digests(artifact.blobs.iter().flatten()),
                subject: artifact.subject.map(|subject| subject.digest),
                ..Self::default()
            });
        }
        if kind(media_type).is_none() {
            bail!("media type {media_type:?}: a kind of manifest that is not known here");
        }
        Ok(match Document::parse(bytes, media_type)? {
            Document::Index(index) => {
                let (children, blobs): (Vec<_>, Vec<_>) = index
                    .manifests
                    .iter()
                    .partition(|entry| is_manifest(&entry.media_type));
                Self {
                    children: digests(children),
                    blobs: digests(blobs),
                    elsewhere: Vec::new(),
                    subject: index.subject.map(|subject| subject.digest),
                }
            }
            Document::Manifest(manifest) => {
                let (elsewhere, here): (Vec<_>, Vec<_>) = manifest
                    .layers
                    .iter()
                    .partition(|layer| is_nondistributable(&layer.media_type));
                Self {
                    children: Vec::new(),
                    blobs: digests(std::iter::once(&manifest.config).chain(here)),
                    elsewhere: digests(elsewhere),
                    subject: manifest.subject.map(|subject| subject.digest),
                }
            }
        })
    }

    /// All content that has to stay while the manifest does.
    pub(super) fn content(&self) -> impl Iterator<Item = &Digest> {
        self.blobs.iter().chain(&self.elsewhere)
    }
}

fn digests<'one>(descriptors: impl IntoIterator<Item = &'one Descriptor>) -> Vec<Digest> {
    descriptors
        .into_iter()
        .map(|descriptor| descriptor.digest.clone())
        .collect()
}

/// Build caches list layers in an index, so its entries are told apart by type.
fn is_manifest(media_type: &str) -> bool {
    kind(media_type).is_some()
        || media_type == ARTIFACT
        || media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn entry(kind: &str, text: &str) -> Value {
        json!({"mediaType": kind, "digest": digest(text).to_string(), "size": text.len()})
    }

    fn needs(document: &Value) -> Result<Needs> {
        Needs::of(document.to_string().as_bytes())
    }

    // G-2
    #[test]
    fn every_kind_of_manifest_says_what_it_needs() {
        let manifest = json!({
            "schemaVersion": 2,
            "config": entry(oci::CONFIG, "config"),
            "layers": [
                entry(oci::LAYER_GZIP, "layer"),
                entry("application/vnd.oci.image.layer.nondistributable.v1.tar", "far"),
            ],
            "subject": entry(oci::MANIFEST, "subject"),
        });
        let found = needs(&manifest).unwrap();
        assert_eq!(found.blobs, [digest("config"), digest("layer")]);
        assert_eq!(found.elsewhere, [digest("far")]);
        assert_eq!(found.subject, Some(digest("subject")));

        let index = json!({"schemaVersion": 2, "manifests": [
            entry(oci::MANIFEST, "child"),
            entry("application/vnd.docker.distribution.manifest.list.v2+json", "list"),
            entry(oci::LAYER_GZIP, "cached layer"),
        ]});
        let found = needs(&index).unwrap();
        assert_eq!(found.children, [digest("child"), digest("list")]);
        assert_eq!(found.blobs, [digest("cached layer")]);

        let first = json!({"schemaVersion": 1, "name": "a", "fsLayers": [
            {"blobSum": digest("old").to_string()},
        ]});
        assert_eq!(needs(&first).unwrap().blobs, [digest("old")]);

        let artifact = json!({
            "mediaType": ARTIFACT,
            "blobs": [entry("text/plain", "text")],
            "subject": entry(oci::MANIFEST, "subject"),
        });
        let found = needs(&artifact).unwrap();
        assert_eq!(
            (found.blobs, found.subject),
            (vec![digest("text")], Some(digest("subject")))
        );
    }

    // G-1
    #[test]
    fn what_cannot_be_read_for_certain_is_an_error() {
        let good = json!({"schemaVersion": 2, "config": entry(oci::CONFIG, "c"), "layers": []});
        let text = good.to_string();
        assert!(Needs::of(text.as_bytes()).is_ok());
        for length in [0, 1, text.len() - 1] {
            assert!(Needs::of(&text.as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(Needs::of(b"{}").is_err());
        assert!(Needs::of(b"[]").is_err());
        assert!(
            needs(&json!({"schemaVersion": 2, "mediaType": "text/x-new", "blobs": []})).is_err()
        );
        let both = json!({"schemaVersion": 2, "config": entry(oci::CONFIG, "c"), "layers": [],
            "manifests": []});
        assert!(needs(&both).is_err());
    }
}
