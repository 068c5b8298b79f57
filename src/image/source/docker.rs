//! What `docker save` writes: manifest.json, and files that it names by path.
//!
//! It has no manifest in the sense of the specification, so one is made: the bytes of configuration and layers stay as
//! they are, and the same archive makes the same manifest.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::super::compression::Compression;
use super::super::digest::Digest;
use super::super::manifest::{
    Config, Descriptor, LARGEST_DOCUMENT, Manifest, NoSuchPlatform, media_type, read_json,
};
use super::super::output;
use super::super::reference::Reference;
use super::Request;
use super::archive::{Contents, Part};
use super::gather::{Checks, Passed, gather};
use super::naming::{self, Candidate};
use super::session::Session;

/// One image in manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Saved {
    /// For messages.
    fn shown(&self) -> String {
        let tags = self.repo_tags.as_deref().unwrap_or_default();
        let name = tags.first().unwrap_or(&self.config);
        output::visible(name).into_owned()
    }

    /// What the engines show for an image without a name: the beginning of its configuration's digest, which names the
    /// file.
    fn id(&self) -> &str {
        let file = self.config.rsplit('/').next().unwrap_or_default();
        file.get(..12).unwrap_or(file)
    }
}

/// Import what manifest.json names, or the one that is asked for.
pub(super) fn candidates(
    session: &mut Session,
    manifest: &[u8],
    contents: &Contents,
    request: &Request,
    checks: &mut Checks,
) -> Result<Vec<Candidate>> {
    let saved: Vec<Saved> = read_json(manifest).context("manifest.json")?;
    if saved.is_empty() {
        bail!("manifest.json lists no image");
    }
    if request.wanted.name.is_some() && saved.len() > 1 && request.wanted.platform.is_none() {
        let names: Vec<String> = saved.iter().map(Saved::shown).collect();
        return Err(naming::several(&names));
    }
    let several = saved.len() > 1;
    let mut found: Vec<Candidate> = Vec::new();
    for image in &saved {
        let taken = one(session, image, contents, request, checks)
            .with_context(|| format!("image {}", image.shown()));
        let target = match taken {
            Ok(target) => target,
            Err(error) if several && error.is::<NoSuchPlatform>() => {
                session.remark(format!("{error:#}: left out"));
                continue;
            }
            Err(error) => return Err(error),
        };
        for name in names(image, several, request)? {
            naming::check_pin(&name, &target.digest)?;
            match found.iter().find(|other| other.name == name) {
                Some(other) if other.target.digest != target.digest => {
                    bail!("image {name}: manifest.json gives the name to two images");
                }
                Some(_) => {}
                None => found.push(Candidate {
                    name,
                    target: target.clone(),
                    asked_for: request.wanted.name.is_some(),
                }),
            }
        }
    }
    if found.is_empty() {
        bail!("none of the images is for the platform that was asked for");
    }
    Ok(found)
}

/// What the image will be called.
fn names(image: &Saved, several: bool, request: &Request) -> Result<Vec<Reference>> {
    if let Some(name) = &request.wanted.name {
        return Ok(vec![name.clone()]);
    }
    match image.repo_tags.as_deref().unwrap_or_default() {
        [] if several => Ok(vec![naming::of_base(request, image.id())?]),
        [] => Ok(vec![naming::of_base(request, "latest")?]),
        tags => tags.iter().map(|tag| Reference::parse(tag)).collect(),
    }
}

/// Put the parts of one image into the store with a manifest that names them.
fn one(
    session: &mut Session,
    image: &Saved,
    contents: &Contents,
    request: &Request,
    checks: &mut Checks,
) -> Result<Descriptor> {
    let (config, size) = put(session, contents, &image.config).context("configuration")?;
    check_name(&image.config, &config)?;
    let config = Descriptor::new(media_type::CONFIG, config, size);
    if size > LARGEST_DOCUMENT {
        bail!("configuration {}: {size} bytes long", config.digest);
    }
    let read = Config::parse(&session.store.document(&config)?)
        .with_context(|| format!("blob {}", config.digest))?;
    let paths = image.layers.as_deref().unwrap_or_default();
    if paths.len() != read.diff_ids.len() {
        bail!(
            "manifest.json lists {} layers, the configuration has {} DiffIDs",
            paths.len(),
            read.diff_ids.len()
        );
    }
    let mut layers = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let named = || {
            format!(
                "layer {} of {}: {}",
                at + 1,
                paths.len(),
                output::visible(path)
            )
        };
        let (digest, size) = put(session, contents, path).with_context(named)?;
        let media_type = match compression_of(session, contents, path).with_context(named)? {
            Compression::None => media_type::LAYER,
            Compression::Gzip => media_type::LAYER_GZIP,
            Compression::Zstd => media_type::LAYER_ZSTD,
        };
        layers.push(Descriptor::new(media_type, digest, size));
    }
    let manifest = Manifest {
        media_type: media_type::MANIFEST.to_owned(),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: Default::default(),
    };
    let bytes = manifest.to_json()?;
    let entry = Descriptor::new(media_type::MANIFEST, Digest::of(&bytes), bytes.len() as u64);
    session.put(&entry.digest, Some(entry.size), &mut bytes.as_slice())?;
    gather(
        session,
        &Passed,
        &entry,
        request.wanted.platform.as_ref(),
        checks,
    )
}

/// Put what `path` names into the store, where it is not there yet: digest and size.
fn put(session: &mut Session, contents: &Contents, path: &str) -> Result<(Digest, u64)> {
    match contents.part(path)? {
        Part::Blob(digest) => match session.store.blob_size(&digest)? {
            Some(size) => Ok((digest, size)),
            None => bail!("blob {digest}: missing"),
        },
        Part::Spooled {
            name, digest, size, ..
        } => {
            if !session.has(&digest)? {
                session.put_staged(&contents.stage, &name, &digest, size)?;
            }
            Ok((digest, size))
        }
        Part::Link(_) => bail!("a link"),
    }
}

fn compression_of(session: &Session, contents: &Contents, path: &str) -> Result<Compression> {
    match contents.part(path)? {
        Part::Spooled { compression, .. } => Ok(compression),
        Part::Blob(digest) => {
            let mut start = Vec::new();
            let blob = session.store.open_blob(&digest)?;
            blob.take(4).read_to_end(&mut start)?;
            Ok(super::super::compression::sniff(&start))
        }
        Part::Link(_) => bail!("a link"),
    }
}

/// The file is called after its digest: what is in it has to be that.
fn check_name(path: &str, digest: &Digest) -> Result<()> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let hex = name.strip_suffix(".json").unwrap_or(name);
    match format!("sha256:{hex}").parse::<Digest>() {
        Ok(named) if named != *digest => {
            bail!(
                "configuration {}: the content has the digest {digest}",
                output::visible(path)
            )
        }
        _ => Ok(()),
    }
}
