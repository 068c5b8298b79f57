//! An OCI image layout in a directory (image-layout.md).

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use crate::report::Hinted;
use crate::sys::path::{file_type, open_in_root};

use super::super::digest::Digest;
use super::super::manifest::{Descriptor, Document, Index, LARGEST_DOCUMENT, media_type};
use super::gather::{Checks, Content};
use super::naming::{self, Candidate};
use super::session::Session;
use super::{CHUNK, Request};

/// The images of the layout in `dir`. Blobs that they do not need are not read.
pub(super) fn read(
    session: &mut Session,
    dir: OwnedFd,
    request: &Request,
    checks: &mut Checks,
) -> Result<Vec<Candidate>> {
    let layout = Layout { dir };
    let Some(version) = layout.file("oci-layout")? else {
        let error = "a directory without oci-layout: not an image layout";
        // What skopeo's `dir:` writes has blobs, but neither names nor an index.
        return Err(
            match layout.file("version")?.is_some() && layout.file("manifest.json")?.is_some() {
                true => Hinted::new(
                    error,
                    "`skopeo copy dir:DIR oci-archive:FILE` makes one that is",
                )
                .into(),
                false => anyhow!(error),
            },
        );
    };
    check_version(&small(version, "oci-layout")?)?;
    let index = layout.file("index.json")?.context("no index.json")?;
    let index = parse_index(&small(index, "index.json")?)?;
    naming::candidates(session, &layout, &index, request, checks)
}

/// `oci-layout` has to be of the one version that there is.
pub(super) fn check_version(bytes: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker = serde_json::from_slice(bytes).context("oci-layout")?;
    if marker.image_layout_version != "1.0.0" {
        bail!(
            "oci-layout: imageLayoutVersion is {:?}, and 1.0.0 is what is read",
            marker.image_layout_version
        );
    }
    Ok(())
}

pub(super) fn parse_index(bytes: &[u8]) -> Result<Index> {
    match Document::parse(bytes, media_type::INDEX).context("index.json")? {
        Document::Index(index) => Ok(index),
        Document::Manifest(_) => bail!("index.json: a manifest"),
    }
}

fn small(file: File, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LARGEST_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {name}"))?;
    Ok(bytes)
}

struct Layout {
    dir: OwnedFd,
}

impl Layout {
    /// A regular file of the layout. Links are followed inside it and nowhere else: somebody else may have made it.
    fn file(&self, name: &str) -> Result<Option<File>> {
        let context = || format!("open {name}");
        // Without waiting for the writer of a FIFO.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        match open_in_root(self.dir.as_fd(), Path::new(name), flags) {
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(context),
            Ok(fd) if file_type(&fstat(&fd).with_context(context)?) == SFlag::S_IFREG => {
                Ok(Some(fd.into()))
            }
            Ok(_) => bail!("{name}: not a regular file"),
        }
    }

    fn blob(&self, digest: &Digest) -> Result<Option<File>> {
        self.file(&format!(
            "blobs/{}/{}",
            digest.algorithm().name(),
            digest.hex()
        ))
    }
}

impl Content for Layout {
    fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.blob(digest)?.is_some())
    }

    fn bring(&self, session: &mut Session, descriptor: &Descriptor) -> Result<()> {
        let digest = &descriptor.digest;
        let Some(file) = self.blob(digest)? else {
            bail!("blob {digest}: missing");
        };
        let length = file
            .metadata()
            .with_context(|| format!("look at blob {digest}"))?
            .len();
        if length != descriptor.size {
            bail!(
                "blob {digest}: {length} bytes long, its descriptor says {}",
                descriptor.size
            );
        }
        let bar = session.progress.bar(digest.short(), length);
        let mut from = super::Counted {
            from: BufReader::with_capacity(CHUNK, file),
            bar,
        };
        session.put(digest, Some(length), &mut from)?;
        Ok(())
    }
}
