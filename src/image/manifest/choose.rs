//! From an index to the manifest for one platform.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;

use anyhow::{Context as _, Result, bail};

use super::{Config, Descriptor, Document, Index, Kind, Platform, is_image_config, kind};
use crate::image::digest::Digest;

/// The deepest nesting of indexes that is followed (S-6: each level could hold millions of entries).
pub(crate) const DEEPEST_INDEX: usize = 8;

/// Where an image does not say what it is for, it is taken after every one that does.
const UNSAID: u32 = u32::MAX;

/// Follow nested indexes to the manifest for `want`; `read` gives a document's bytes. Of several that match, the
/// nearest variant, and of equals the first (image-index.md). Attestations and entries of unknown type are passed over.
/// An entry that does not say its platform is judged by its configuration.
pub(crate) fn choose(
    index: &Index,
    want: &Platform,
    read: &mut dyn FnMut(&Descriptor) -> Result<Vec<u8>>,
) -> Result<Descriptor> {
    let mut search = Search {
        want,
        read,
        nearest: None,
        seen: BTreeSet::new(),
        platforms: Vec::new(),
    };
    search.index(index, 1)?;
    if let Some((_, found)) = search.nearest {
        return Ok(found);
    }
    Err(NoSuchPlatform::new(want, &search.platforms).into())
}

/// There is no image for the platform that is wanted. Says which there are.
#[derive(Debug)]
pub(crate) struct NoSuchPlatform(String);

impl NoSuchPlatform {
    pub(crate) fn new(want: &Platform, there: &[String]) -> Self {
        Self(match there {
            [] => format!("no image for {want}: there is no image at all"),
            _ => format!("no image for {want}; there is {}", there.join(", ")),
        })
    }
}

impl fmt::Display for NoSuchPlatform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Error for NoSuchPlatform {}

struct Search<'call> {
    want: &'call Platform,
    read: &'call mut dyn FnMut(&Descriptor) -> Result<Vec<u8>>,
    nearest: Option<(u32, Descriptor)>,
    /// Indexes that were gone through: one that names itself is not gone through for ever.
    seen: BTreeSet<Digest>,
    /// What there is, for the error.
    platforms: Vec<String>,
}

impl Search<'_> {
    fn index(&mut self, index: &Index, depth: usize) -> Result<()> {
        for entry in &index.manifests {
            if self.found_exactly() {
                return Ok(());
            }
            if entry.is_attestation() {
                continue;
            }
            match kind(&entry.media_type) {
                Some(Kind::Index) => self.nested(entry, depth)?,
                Some(Kind::Manifest) => self.manifest(entry)?,
                None => {}
            }
        }
        Ok(())
    }

    fn found_exactly(&self) -> bool {
        matches!(self.nearest, Some((0, _)))
    }

    fn nested(&mut self, entry: &Descriptor, depth: usize) -> Result<()> {
        if let Some(platform) = &entry.platform
            && !platform.matches(self.want)
        {
            self.note(platform);
            return Ok(());
        }
        if !self.seen.insert(entry.digest.clone()) {
            return Ok(());
        }
        if depth >= DEEPEST_INDEX {
            bail!(
                "index {}: nested deeper than {DEEPEST_INDEX} levels",
                entry.digest
            );
        }
        let bytes = (self.read)(entry)?;
        let document = Document::parse(&bytes, &entry.media_type)
            .with_context(|| format!("index {}", entry.digest))?;
        match document {
            Document::Index(index) => self.index(&index, depth + 1),
            Document::Manifest(_) => Ok(()),
        }
    }

    fn manifest(&mut self, entry: &Descriptor) -> Result<()> {
        let platform = match &entry.platform {
            Some(platform) => platform.clone(),
            None => match self.configured(entry)? {
                Some(platform) => platform,
                None => return Ok(()),
            },
        };
        let distance = if platform.is_unsaid() {
            UNSAID
        } else {
            match platform.distance(self.want) {
                Some(distance) => distance,
                None => {
                    self.note(&platform);
                    return Ok(());
                }
            }
        };
        if self
            .nearest
            .as_ref()
            .is_none_or(|(best, _)| distance < *best)
        {
            self.nearest = Some((distance, entry.clone()));
        }
        Ok(())
    }

    /// The platform that the configuration of `entry` names; none where it is no image.
    fn configured(&mut self, entry: &Descriptor) -> Result<Option<Platform>> {
        if entry.artifact_type.is_some() {
            return Ok(None);
        }
        let bytes = (self.read)(entry)?;
        let document = Document::parse(&bytes, &entry.media_type)
            .with_context(|| format!("manifest {}", entry.digest))?;
        let Document::Manifest(manifest) = document else {
            return Ok(None);
        };
        if !is_image_config(&manifest.config.media_type) {
            return Ok(None);
        }
        let bytes = (self.read)(&manifest.config)?;
        let config =
            Config::parse(&bytes).with_context(|| format!("blob {}", manifest.config.digest))?;
        Ok(Some(config.platform))
    }

    fn note(&mut self, platform: &Platform) {
        let name = platform.to_string();
        if !self.platforms.contains(&name) {
            self.platforms.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anyhow::anyhow;

    use super::super::media_type;
    use super::*;

    #[derive(Default)]
    struct Blobs(BTreeMap<Digest, Vec<u8>>);

    impl Blobs {
        fn add(&mut self, media_type: &str, platform: Option<&str>, text: &str) -> Descriptor {
            let digest = Digest::of(text.as_bytes());
            self.0.insert(digest.clone(), text.as_bytes().to_vec());
            let mut made = Descriptor::new(media_type, digest, text.len() as u64);
            made.platform = platform.map(|text| {
                let (os, rest) = text.split_once('/').unwrap();
                let (architecture, variant) = match rest.split_once('/') {
                    Some((architecture, variant)) => (architecture, Some(variant.to_owned())),
                    None => (rest, None),
                };
                Platform {
                    os: os.to_owned(),
                    architecture: architecture.to_owned(),
                    variant,
                    ..Platform::default()
                }
            });
            made
        }

        /// A manifest whose descriptor says the platform, if any.
        fn image(&mut self, platform: Option<&str>, mark: &str) -> Descriptor {
            self.add(
                media_type::MANIFEST,
                platform,
                &format!("{{\"mark\":{mark:?}}}"),
            )
        }

        fn index(&mut self, entries: &[Descriptor]) -> Descriptor {
            let text = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
            self.add(media_type::INDEX, None, &text)
        }

        fn choose(&self, entries: &[Descriptor], want: &str) -> Result<Digest> {
            let index = Index {
                manifests: entries.to_vec(),
                subject: None,
                annotations: BTreeMap::new(),
            };
            let mut read = |descriptor: &Descriptor| {
                let found = self.0.get(&descriptor.digest).cloned();
                found.ok_or_else(|| anyhow!("blob {}: missing", descriptor.digest))
            };
            Ok(choose(&index, &want.parse().unwrap(), &mut read)?.digest)
        }
    }

    #[test]
    fn l_34_the_nearest_variant_wins_and_of_equals_the_first() {
        let mut blobs = Blobs::default();
        let names = [
            "linux/arm/v5",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/arm64",
            "linux/amd64",
            "linux/amd64/v3",
            "windows/amd64",
        ];
        let all: Vec<_> = names
            .iter()
            .map(|name| blobs.image(Some(name), name))
            .collect();
        for (want, at) in [
            ("linux/arm/v8", 2),
            ("linux/arm/v7", 2),
            ("linux/arm/v6", 1),
            ("linux/arm/v5", 0),
            ("linux/arm64", 3),
            ("linux/amd64", 5),
            ("linux/amd64/v2", 5),
            ("linux/amd64/v4", 6),
            ("windows/amd64", 7),
        ] {
            assert_eq!(blobs.choose(&all, want).unwrap(), all[at].digest, "{want}");
        }
    }

    #[test]
    fn l_35_the_error_lists_what_there_is() {
        let mut blobs = Blobs::default();
        let images = [
            blobs.image(Some("linux/arm/v7"), "a"),
            blobs.image(Some("windows/amd64"), "b"),
            blobs.image(Some("unknown/unknown"), "c"),
        ];
        let nested = blobs.index(&[blobs.image_digest_only("linux/s390x")]);
        let all = [&images[..], &[nested]].concat();
        let error = blobs.choose(&all, "linux/amd64").unwrap_err().to_string();
        assert_eq!(
            error,
            "no image for linux/amd64; there is linux/arm/v7, windows/amd64, linux/s390x"
        );
        let error = blobs.choose(&[], "linux/amd64").unwrap_err().to_string();
        assert!(error.contains("no image at all"), "{error}");
    }

    impl Blobs {
        fn image_digest_only(&self, platform: &str) -> Descriptor {
            let mut copy = Self::default();
            copy.image(Some(platform), platform)
        }
    }

    #[test]
    fn l_34_attestations_artifacts_and_unknown_types_are_passed_over() {
        let mut blobs = Blobs::default();
        let mut artifact = blobs.image(None, "artifact");
        artifact.artifact_type = Some("application/x".to_owned());
        let mut referring = blobs.image(Some("linux/amd64"), "referring");
        referring.annotations.insert(
            "vnd.docker.reference.type".to_owned(),
            "attestation-manifest".to_owned(),
        );
        let all = [
            blobs.image(Some("unknown/unknown"), "attestation"),
            artifact,
            referring,
            blobs.add("application/x-odd", Some("linux/amd64"), "odd"),
            blobs.image(Some("linux/amd64"), "image"),
        ];
        assert_eq!(blobs.choose(&all, "linux/amd64").unwrap(), all[4].digest);
    }

    #[test]
    fn l_34_without_a_platform_the_configuration_decides() {
        let mut blobs = Blobs::default();
        let mut image = |text: &str| {
            let config = blobs.add(media_type::CONFIG, None, text);
            let text = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
            blobs.add(media_type::MANIFEST, None, &text.to_string())
        };
        let rootfs = r#""rootfs":{"type":"layers"}"#;
        let silent = image(&format!("{{{rootfs}}}"));
        let arm = image(&format!(
            "{{\"os\":\"linux\",\"architecture\":\"arm64\",{rootfs}}}"
        ));
        let amd = image(&format!(
            "{{\"os\":\"linux\",\"architecture\":\"amd64\",{rootfs}}}"
        ));
        let all = [silent.clone(), arm.clone(), amd.clone()];
        assert_eq!(blobs.choose(&all, "linux/arm64").unwrap(), arm.digest);
        assert_eq!(blobs.choose(&all, "linux/amd64").unwrap(), amd.digest);
        assert_eq!(blobs.choose(&all, "linux/s390x").unwrap(), silent.digest);
        let error = blobs.choose(&all[1..], "linux/s390x").unwrap_err();
        assert!(error.to_string().contains("linux/arm64, linux/amd64"));
    }

    #[test]
    fn s_6_indexes_are_followed_to_a_depth_and_each_once() {
        let mut blobs = Blobs::default();
        let image = blobs.image(Some("linux/amd64"), "deep");
        let mut entry = image.clone();
        for _ in 1..DEEPEST_INDEX {
            entry = blobs.index(&[entry.clone(), entry]);
        }
        assert_eq!(
            blobs.choose(&[entry.clone()], "linux/amd64").unwrap(),
            image.digest
        );
        // Two to the power of the depth, were each not gone through once.
        assert!(blobs.choose(&[entry.clone()], "linux/s390x").is_err());
        let deeper = blobs.index(&[entry]);
        let error = blobs.choose(&[deeper], "linux/amd64").unwrap_err();
        assert!(error.to_string().contains("nested deeper"), "{error}");

        // An index cannot hold its own digest, but what reads for us might give the same bytes for ever.
        let looping = blobs.index(&[]);
        let text = serde_json::json!({"schemaVersion": 2, "manifests": [looping]}).to_string();
        blobs.0.insert(looping.digest.clone(), text.into_bytes());
        let error = blobs.choose(&[looping], "linux/amd64").unwrap_err();
        assert!(error.to_string().contains("no image at all"), "{error}");
    }
}
