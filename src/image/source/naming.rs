//! What the images of a source are called, and how the names come into the store.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::report::Hinted;

use super::super::digest::Digest;
use super::super::manifest::{Descriptor, Document, Index, NoSuchPlatform, kind};
use super::super::reference::{Reference, is_tag};
use super::super::store::Store;
use super::gather::{self, Checks, Content, choose_entry, document, gather, is_there};
use super::session::Session;
use super::{Imported, Request};

/// The annotation by which an entry of a layout is named (annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's, which is the full name where the other is a tag only.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// What an archive's name ends with, besides its name.
const SUFFIXES: [&str; 9] = [
    ".tar", ".gz", ".zst", ".zstd", ".tgz", ".tzst", ".oci", ".docker", ".img",
];

/// An image that will have a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: Reference,
    pub(super) target: Descriptor,
    /// The caller has chosen the name; else it came with the source.
    pub(super) asked_for: bool,
}

/// The name of a file or directory without what says its form.
pub(super) fn base(path: &Path) -> Option<String> {
    // `.` and `..` have a name too.
    let whole = path.canonicalize().ok();
    let name = whole.as_deref().unwrap_or(path).file_name()?.to_str()?;
    let mut name = name;
    while let Some(rest) = SUFFIXES.iter().find_map(|end| name.strip_suffix(end)) {
        name = rest;
    }
    Some(name.to_owned())
}

/// A name made from that of the source.
pub(super) fn of_base(request: &Request, tag: &str) -> Result<Reference> {
    let hint = "give the image a name: import SOURCE NAME";
    let Some(base) = request.base else {
        return Err(Hinted::new("the image has no name of its own", hint).into());
    };
    let named = Reference::parse(&format!("{base}:{tag}"));
    named.map_err(|error| error.context(Hinted::new("the image has no name of its own", hint)))
}

/// Import what the entries of a layout's index.json name, or the one that is asked for.
pub(super) fn candidates(
    session: &mut Session,
    content: &dyn Content,
    index: &Index,
    request: &Request,
    checks: &mut Checks,
) -> Result<Vec<Candidate>> {
    let mut groups: Vec<(Reference, Vec<Descriptor>)> = Vec::new();
    let mut nameless: Vec<Descriptor> = Vec::new();
    for entry in &index.manifests {
        let Some(name) = embedded(entry, request)? else {
            nameless.push(entry.clone());
            continue;
        };
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, entries)) => add(entries, entry),
            None => groups.push((name, vec![entry.clone()])),
        }
    }
    if groups.is_empty() {
        let images = without_referrers(session, content, &nameless)?;
        if images.is_empty() {
            bail!("index.json lists no image");
        }
        let name = match &request.wanted.name {
            Some(name) => name.clone(),
            None => of_base(request, "latest")?,
        };
        groups.push((name, images));
    } else if let Some(name) = &request.wanted.name {
        groups = vec![(name.clone(), only(groups)?)];
    }
    let several = groups.len() > 1;
    let mut found = Vec::new();
    for (name, entries) in groups {
        match one(session, content, &name, &entries, request, checks) {
            Ok(target) => found.push(Candidate {
                name,
                target,
                asked_for: request.wanted.name.is_some(),
            }),
            // With --platform, those that do not have it are passed over while there are others.
            Err(error) if several && error.is::<NoSuchPlatform>() => {
                session.remark(format!("{name}: {error}: left out"));
            }
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() {
        bail!("none of the images is for the platform that was asked for");
    }
    gather::referrers(session, content, &nameless, checks)?;
    Ok(found)
}

/// What `name` leads to.
fn one(
    session: &mut Session,
    content: &dyn Content,
    name: &Reference,
    entries: &[Descriptor],
    request: &Request,
    checks: &mut Checks,
) -> Result<Descriptor> {
    let want = request.wanted.platform.as_ref();
    let chosen;
    let entry = match (entries, want) {
        ([one], _) => one,
        (several, Some(want)) => {
            chosen = choose_entry(session, content, several, want)
                .with_context(|| format!("image {name}"))?;
            &chosen
        }
        (several, None) => {
            let list: Vec<String> = several.iter().map(described).collect();
            return Err(Hinted::new(
                format!("image {name}: the name could mean {}", list.join(" or ")),
                "choose one with --platform",
            )
            .into());
        }
    };
    let target =
        gather(session, content, entry, want, checks).with_context(|| format!("image {name}"))?;
    check_pin(name, &target.digest)?;
    Ok(target)
}

/// A name that has a digest is no name for anything else.
pub(super) fn check_pin(name: &Reference, digest: &Digest) -> Result<()> {
    match name.digest() {
        Some(pinned) if pinned != digest => {
            bail!("image {name}: the image has the digest {digest}")
        }
        _ => Ok(()),
    }
}

/// The name that an entry of index.json brings along.
// CVE-2026-50195: whoever made the archive chose it, so it is parsed as what it is and never replaces a name unasked.
fn embedded(entry: &Descriptor, request: &Request) -> Result<Option<Reference>> {
    if let Some(name) = entry.annotations.get(CONTAINERD_NAME) {
        return Reference::parse(name).map(Some);
    }
    match entry.annotations.get(REF_NAME).map(String::as_str) {
        None | Some("") => Ok(None),
        Some(tag) if is_tag(tag) => match (&request.wanted.name, request.base) {
            // The caller's name comes in its place, so that it need not be made up.
            (Some(_), None) => Reference::parse(&format!("stream:{tag}")).map(Some),
            (Some(_), Some(base)) => Ok(Some(
                Reference::parse(&format!("{base}:{tag}"))
                    .or_else(|_| Reference::parse(&format!("stream:{tag}")))?,
            )),
            (None, _) => of_base(request, tag).map(Some),
        },
        Some(name) => Reference::parse(name).map(Some),
    }
}

fn add(entries: &mut Vec<Descriptor>, entry: &Descriptor) {
    if !entries.iter().any(|other| other.digest == entry.digest) {
        entries.push(entry.clone());
    }
}

/// The entries of the one image that all names mean; several where one name has several platforms.
fn only(groups: Vec<(Reference, Vec<Descriptor>)>) -> Result<Vec<Descriptor>> {
    let names: Vec<String> = groups.iter().map(|(name, _)| name.to_string()).collect();
    let mut groups = groups.into_iter();
    let (_, first) = groups.next().context("no image")?;
    let digests = |entries: &[Descriptor]| -> Vec<Digest> {
        entries.iter().map(|entry| entry.digest.clone()).collect()
    };
    if groups.any(|(_, entries)| digests(&entries) != digests(&first)) {
        return Err(several(&names));
    }
    Ok(first)
}

/// A name was given for a source with more than one image.
pub(super) fn several(names: &[String]) -> anyhow::Error {
    Hinted::new(
        format!("one name for several images: {}", names.join(", ")),
        "import them without a name, and use `tag`",
    )
    .into()
}

/// Those entries that are images of their own and do not speak of another.
fn without_referrers(
    session: &mut Session,
    content: &dyn Content,
    entries: &[Descriptor],
) -> Result<Vec<Descriptor>> {
    let mut images = Vec::new();
    for entry in entries {
        let known = kind(&entry.media_type).is_some() && !entry.is_attestation();
        let refers = known
            && is_there(session, content, entry)?
            && match document(session, content, entry)? {
                Document::Index(index) => index.subject.is_some(),
                Document::Manifest(manifest) => manifest.subject.is_some(),
            };
        if known && !refers {
            add(&mut images, entry);
        }
    }
    Ok(images)
}

fn described(entry: &Descriptor) -> String {
    match &entry.platform {
        Some(platform) => format!("{} ({platform})", entry.digest),
        None => entry.digest.to_string(),
    }
}

/// Set the names, all or none, and keep what refers to the images.
pub(super) fn commit(
    store: &Store,
    candidates: &[Candidate],
    referrers: &[Descriptor],
    replace: bool,
) -> Result<Vec<Imported>> {
    store.change_names(|names| {
        let mut done = Vec::new();
        for Candidate {
            name,
            target,
            asked_for,
        } in candidates
        {
            let name = name.to_string();
            let before = names.get(&name)?.map(|there| there.digest);
            let replaced = before.clone().filter(|before| *before != target.digest);
            if let Some(other) = &replaced
                && !asked_for
                && !replace
            {
                return Err(taken(&name, other, &target.digest));
            }
            if before.as_ref() != Some(&target.digest) {
                names.set(&name, target)?;
            }
            done.push(Imported {
                name,
                target: target.clone(),
                replaced,
            });
        }
        for referrer in referrers {
            names.keep(referrer)?;
        }
        Ok(done)
    })
}

fn taken(name: &str, there: &Digest, new: &Digest) -> anyhow::Error {
    Hinted::new(
        format!("image {name}: the name is another image's, {there}, and the source has {new}"),
        "--replace gives the name to the new one; import SOURCE NAME chooses another name",
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_of_a_name_is_without_what_says_the_form() {
        for (path, name) in [
            ("/nowhere/alpine.tar", "alpine"),
            ("/nowhere/alpine.tar.gz", "alpine"),
            ("/nowhere/alpine.oci.tar.zst", "alpine"),
            ("/nowhere/alpine.tgz", "alpine"),
            ("/nowhere/alpine-3.19", "alpine-3.19"),
        ] {
            assert_eq!(base(Path::new(path)).unwrap(), name);
        }
        let here = std::env::current_dir().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap();
        assert_eq!(base(Path::new(".")).unwrap(), here);
    }
}
