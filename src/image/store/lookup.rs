//! From what a person types to an image: a name, a name without its `:latest`, a digest or the beginning of one.

use anyhow::{Context as _, Result, bail};

use crate::report::Hinted;

use super::super::digest::Digest;
use super::super::manifest::{self, Config, Descriptor, Document, Manifest, Platform};
use super::super::output;
use super::super::reference::Reference;
use super::Store;
use super::index::Readable;

/// The fewest hex characters that may stand for a digest.
const SHORTEST_PREFIX: usize = 6;

/// One image for one platform, its documents read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The name by which it was found; none when by digest.
    pub(crate) name: Option<String>,
    /// What the name leads to: the manifest, or an index that holds it.
    pub(crate) target: Descriptor,
    /// The manifest.
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
}

impl Image {
    /// The ChainIDs of its layers, base first (config.md, "Layer ChainID").
    pub(crate) fn chain_ids(&self) -> Vec<Digest> {
        manifest::chain_ids(&self.config.diff_ids)
    }

    /// The name or digest to speak of it by.
    pub(crate) fn shown(&self) -> String {
        match &self.name {
            Some(name) => output::visible(name).into_owned(),
            None => self.descriptor.digest.to_string(),
        }
    }
}

impl Store {
    /// Find what `text` names: the name it was found by, none for a digest, and the descriptor that index.json has.
    ///
    /// # Errors
    /// Nothing is called so, or more than one thing begins so.
    pub(crate) fn find(&self, text: &str) -> Result<(Option<String>, Descriptor)> {
        let Readable { names, mut others } = self.readable_names()?;
        let by_name = |wanted: &str| {
            names
                .iter()
                .find(|(name, _)| !name.is_empty() && name == wanted)
                .map(|(name, target)| (Some(name.clone()), target.clone()))
        };
        if let Some(found) = by_name(text) {
            return Ok(found);
        }
        let reference = Reference::parse(text).ok();
        let full = reference.as_ref().map(ToString::to_string);
        let unreadable = others.iter().position(|(name, _)| {
            !name.is_empty() && (name == text || Some(name) == full.as_ref())
        });
        if let Some(at) = unreadable {
            return Err(others.swap_remove(at).1);
        }
        if let Some(reference) = &reference {
            if let Some(digest) = reference.digest() {
                let target = names.iter().find(|(_, target)| target.digest == *digest);
                return match target {
                    Some((_, target)) => Ok((None, target.clone())),
                    None => self.find_digest(&names, &digest.to_string()),
                };
            }
            if let Some(found) = by_name(&reference.to_string()) {
                return Ok(found);
            }
        }
        self.find_digest(&names, text)
    }

    /// By digest, or the unique beginning of one, of a target, of the manifest for this platform or of its configuration.
    fn find_digest(
        &self,
        names: &[(String, Descriptor)],
        text: &str,
    ) -> Result<(Option<String>, Descriptor)> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let prefix = hex.len() >= SHORTEST_PREFIX
            && hex
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut found: Vec<Descriptor> = Vec::new();
        if prefix || text.parse::<Digest>().is_ok() {
            let matches = |digest: &Digest| {
                digest.to_string() == text || (prefix && digest.hex().starts_with(hex))
            };
            for (_, target) in names {
                let hit = matches(&target.digest)
                    || self.load(None, target, None).is_ok_and(|image| {
                        matches(&image.descriptor.digest) || matches(&image.manifest.config.digest)
                    });
                if hit && !found.iter().any(|other| other.digest == target.digest) {
                    found.push(target.clone());
                }
            }
        }
        match found.as_slice() {
            [one] => Ok((None, one.clone())),
            [] => {
                let error = format!("image {}: not in the store", output::visible(text));
                Err(Hinted::new(error, "`list` shows the names that there are").into())
            }
            _ => bail!(
                "image {text}: {} images begin so: name one, or write more of the digest",
                found.len()
            ),
        }
    }

    /// The image that `text` names, for `platform` or this machine's.
    pub(crate) fn image(&self, text: &str, platform: Option<&Platform>) -> Result<Image> {
        let (name, target) = self.find(text)?;
        self.load(name, &target, platform)
            .with_context(|| format!("image {}", output::visible(text)))
    }

    /// Read the documents of an image. Where a name leads to one manifest, another platform than its own is refused when
    /// it is asked for; this machine's is not insisted on.
    pub(crate) fn load(
        &self,
        name: Option<String>,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<Image> {
        let host;
        let wanted = match platform {
            Some(platform) => platform,
            None => {
                host = Platform::host();
                &host
            }
        };
        let parsed = |descriptor: &Descriptor| {
            Document::parse(&self.document(descriptor)?, &descriptor.media_type)
                .with_context(|| format!("blob {}", descriptor.digest))
        };
        let (descriptor, manifest) = match parsed(target)? {
            Document::Manifest(manifest) => (target.clone(), manifest),
            Document::Index(index) => {
                let chosen = manifest::choose(&index, wanted, &mut |child| self.document(child))?;
                match parsed(&chosen)? {
                    Document::Manifest(manifest) => (chosen, manifest),
                    Document::Index(_) => bail!("blob {}: an index, not a manifest", chosen.digest),
                }
            }
        };
        let config = Config::parse(&self.document(&manifest.config)?)
            .with_context(|| format!("configuration {}", manifest.config.digest))?;
        config
            .fits(&manifest)
            .with_context(|| format!("manifest {}", descriptor.digest))?;
        // An index has been searched; what a manifest that stands alone is for, only its configuration says for certain.
        if let Some(wanted) = platform
            && descriptor.digest == target.digest
            && !config.platform.suits(wanted)
        {
            let there = config.platform.to_string();
            return Err(manifest::NoSuchPlatform::new(wanted, &[there]).into());
        }
        Ok(Image {
            name,
            target: target.clone(),
            descriptor,
            manifest,
            config,
        })
    }
}
