//! Images in a tar archive: an OCI layout, what `docker save` writes, or both at once.
//!
//! The archive is read once, from front to end, and what it is shows at its end only: index.json and manifest.json may
//! come last. So blobs go into the store as they pass, other files are spooled to staging, and both are looked through
//! when all is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::super::compression::{self, Compression};
use super::super::digest::{Algorithm, Digest};
use super::super::manifest::LARGEST_DOCUMENT;
use super::super::output;
use super::super::store::{Stage, random_name, unwritten};
use super::super::unpack::archive::{Archive, Entry, Kind};
use super::gather::{Checks, Passed};
use super::naming::{self, Candidate};
use super::session::Session;
use super::{CHUNK, Counted, Request, docker, layout};

/// The most files that are spooled or linked. An image of the largest kind has a few hundred.
const MOST_FILES: usize = 100_000;

/// The longest path of a file in an archive of images, in bytes.
const LONGEST_PATH: usize = 4096;

/// Bytes of an archive's first block that tell what it is.
const BLOCK: usize = 512;

/// What a path in the archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A file below `blobs`, put into the store.
    Blob(Digest),
    /// Another file, in staging under the name that its place makes.
    Spooled {
        name: String,
        digest: Digest,
        size: u64,
        compression: Compression,
    },
    /// A symbolic or hard link to another path, from the top of the archive.
    Link(String),
}

/// What has been read.
pub(super) struct Contents<'s> {
    pub(super) stage: Stage<'s>,
    pub(super) parts: BTreeMap<String, Part>,
    /// `oci-layout`, `index.json` and `manifest.json`.
    documents: BTreeMap<&'static str, Vec<u8>>,
}

/// The images of an archive, plain or compressed.
pub(super) fn read(
    session: &mut Session,
    mut input: impl BufRead + Send,
    request: &Request,
    checks: &mut Checks,
) -> Result<Vec<Candidate>> {
    if input.fill_buf().context("read")?.is_empty() {
        bail!("it is empty: neither a layout nor an archive of images");
    }
    let plain = compression::sniffed(input)?;
    let contents = pass(session, BufReader::with_capacity(CHUNK, plain))?;
    let document = |name| contents.documents.get(name);
    if let (Some(marker), Some(index)) = (document("oci-layout"), document("index.json")) {
        layout::check_version(marker)?;
        contents.linked_blobs(session)?;
        let index = layout::parse_index(index)?;
        return naming::candidates(session, &Passed, &index, request, checks);
    }
    if let Some(manifest) = document("manifest.json") {
        return docker::candidates(session, manifest, &contents, request, checks);
    }
    if contents.parts.contains_key("repositories") {
        bail!("an archive of docker save before Docker 1.10: save it with a newer release");
    }
    bail!("it has neither oci-layout and index.json nor manifest.json: not an archive of images");
}

/// Read the archive to its end.
fn pass<'s>(session: &mut Session<'s>, mut input: impl BufRead) -> Result<Contents<'s>> {
    if input.fill_buf().context("read")?.len() < BLOCK {
        bail!("neither a layout nor an archive of images");
    }
    let mut contents = Contents {
        stage: session.store.stage(&format!("import-{}", random_name()?))?,
        parts: BTreeMap::new(),
        documents: BTreeMap::new(),
    };
    let mut archive = Archive::new(input);
    let mut first = true;
    loop {
        let next = archive.next();
        let entry = if first {
            next.context("neither a layout nor an archive of images")?
        } else {
            next?
        };
        first = false;
        let Some(entry) = entry else { break };
        let shown = entry.path.escape_ascii().to_string();
        one(session, &mut contents, &mut archive, &entry).with_context(|| shown)?;
    }
    // A compressed stream has its checksum at its end.
    archive.drain()?;
    Ok(contents)
}

fn one(
    session: &mut Session,
    contents: &mut Contents,
    archive: &mut Archive<impl BufRead>,
    entry: &Entry,
) -> Result<()> {
    if matches!(entry.kind, Kind::Directory) {
        return Ok(());
    }
    let path = normal(&entry.path)?;
    let part = match entry.kind {
        Kind::File if entry.runs.is_some() => {
            bail!("a sparse file: write the archive without tar's --sparse")
        }
        Kind::File => match path.as_str() {
            "oci-layout" => return document(contents, "oci-layout", archive, entry),
            "index.json" => return document(contents, "index.json", archive, entry),
            "manifest.json" => return document(contents, "manifest.json", archive, entry),
            _ => match blob(&path) {
                // Found again by its path.
                Some(digest) => return put(session, &digest, archive, entry),
                // Of an algorithm that nothing we read can name.
                None if path.starts_with("blobs/") => return Ok(()),
                None => spool(contents, archive)?,
            },
        },
        Kind::HardLink => Part::Link(normal(&entry.link)?),
        Kind::Symlink => {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let mut target = parent.as_bytes().to_vec();
            target.push(b'/');
            target.extend_from_slice(&entry.link);
            if entry.link.starts_with(b"/") {
                bail!("a symbolic link out of the archive");
            }
            Part::Link(resolved(&target)?)
        }
        // Nothing an image is made of.
        Kind::Character | Kind::Block | Kind::Fifo | Kind::Directory => return Ok(()),
    };
    if contents.parts.len() >= MOST_FILES {
        bail!("more than {MOST_FILES} files");
    }
    contents.parts.insert(path, part);
    Ok(())
}

fn document(
    contents: &mut Contents,
    name: &'static str,
    archive: &mut Archive<impl BufRead>,
    entry: &Entry,
) -> Result<()> {
    if entry.size > LARGEST_DOCUMENT {
        bail!(
            "{} bytes long, and {LARGEST_DOCUMENT} is the most that is read",
            entry.size
        );
    }
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes)?;
    contents.documents.insert(name, bytes);
    Ok(())
}

fn put(
    session: &mut Session,
    digest: &Digest,
    archive: &mut Archive<impl BufRead>,
    entry: &Entry,
) -> Result<()> {
    let bar = session.progress.bar(digest.short(), entry.size);
    let mut from = Counted { from: archive, bar };
    session.put(digest, Some(entry.size), &mut from)?;
    Ok(())
}

/// Write the entry to staging and hash it on the way.
fn spool(contents: &mut Contents, archive: &mut Archive<impl BufRead>) -> Result<Part> {
    let name = format!("file-{}", contents.parts.len());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o600);
    let file = openat(contents.stage.dir(), name.as_str(), flags, mode);
    let mut file: File = file.context("make a file in staging")?.into();
    let mut hasher = Algorithm::Sha256.hasher();
    let mut buffer = vec![0; CHUNK];
    let (mut size, mut start) = (0, Vec::new());
    loop {
        let count = archive.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let piece = &buffer[..count];
        if start.len() < BLOCK {
            start.extend_from_slice(&piece[..count.min(BLOCK)]);
        }
        hasher.update(piece);
        file.write_all(piece).map_err(unwritten)?;
        size += count as u64;
    }
    Ok(Part::Spooled {
        name,
        digest: hasher.finish(),
        size,
        compression: compression::sniff(&start),
    })
}

/// The digest that a path below `blobs` stands for.
fn blob(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// A path as names are compared: from the top, without `.` and empty parts.
pub(super) fn normal(path: &[u8]) -> Result<String> {
    if path.split(|byte| *byte == b'/').any(|part| part == b"..") {
        bail!("a path with `..`");
    }
    resolved(path)
}

/// The same for the target of a link, in which `..` leaves a directory.
fn resolved(path: &[u8]) -> Result<String> {
    if path.len() > LONGEST_PATH {
        bail!("a path longer than {LONGEST_PATH} bytes");
    }
    let Ok(path) = std::str::from_utf8(path) else {
        bail!("a path that is not UTF-8");
    };
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => bail!("a link out of the archive"),
            ".." => {}
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

impl Contents<'_> {
    /// Blobs that are links to other files: tar(1) writes the second name of a file so.
    fn linked_blobs(&self, session: &mut Session) -> Result<()> {
        for (path, part) in &self.parts {
            let (Some(named), Part::Link(_)) = (blob(path), part) else {
                continue;
            };
            if let Ok(Part::Spooled {
                name, digest, size, ..
            }) = self.part(path)
                && digest == named
            {
                session.put_staged(&self.stage, &name, &digest, size)?;
            }
        }
        Ok(())
    }

    /// What `path` is, links followed.
    pub(super) fn part(&self, path: &str) -> Result<Part> {
        let shown = output::visible(path);
        let mut path = normal(path.as_bytes()).with_context(|| shown.clone().into_owned())?;
        // As many as the kernel follows.
        for _ in 0..40 {
            match self.parts.get(&path) {
                Some(Part::Link(target)) => path.clone_from(target),
                Some(part) => return Ok(part.clone()),
                None => match blob(&path) {
                    Some(digest) => return Ok(Part::Blob(digest)),
                    None => bail!("{shown}: missing"),
                },
            }
        }
        bail!("{shown}: too many links")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_in_one_form_and_lead_nowhere_else() {
        for (path, expected) in [("./a/b", "a/b"), ("/a//b/.", "a/b"), ("a", "a"), ("./", "")] {
            assert_eq!(normal(path.as_bytes()).unwrap(), expected);
        }
        for bad in ["../a", "a/../b", "a/.."] {
            assert!(normal(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(resolved(b"a/../b/./c").unwrap(), "b/c");
        assert!(resolved(b"a/../../b").is_err());
        assert!(normal(b"\xff").is_err());
    }

    #[test]
    fn only_a_digest_below_blobs_is_a_blob() {
        let hex = "a".repeat(64);
        assert!(blob(&format!("blobs/sha256/{hex}")).is_some());
        for other in ["blobs/sha256/abc", "blobs/blake3/abc", "blobs/sha256", "x"] {
            assert_eq!(blob(other), None, "{other}");
        }
        assert_eq!(blob(&format!("blobs/sha256/{hex}/x")), None);
    }
}
