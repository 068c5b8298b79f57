//! Blobs: written once, checked on the way in, found by digest.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::fsync;

use crate::report::Hinted;
use crate::sys::path::{file_type, open_no_links};

use super::super::digest::Digest;
use super::super::manifest::{Descriptor, LARGEST_DOCUMENT};
use super::{Durability, Kind, Lease, Stage, Store, stat_at};

/// Bytes that are read, hashed and written at a time.
const CHUNK: usize = 256 << 10;

/// What became of a blob that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    /// In bytes.
    pub(crate) size: u64,
    /// It was not there before. Where it was, nothing was read from the source.
    pub(crate) fresh: bool,
}

fn name_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

impl Store {
    /// Where the blob stands, for messages.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join(name_of(digest))
    }

    /// The size of a blob in bytes; none where it is not in the store.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let context = || format!("look at {}", self.blob_path(digest).display());
        let dir = self.subdirectory(&format!("blobs/{}", digest.algorithm().name()))?;
        match stat_at(dir.as_fd(), digest.hex()).with_context(context)? {
            None => Ok(None),
            Some(stat) if file_type(&stat) == SFlag::S_IFREG => {
                Ok(Some(u64::try_from(stat.st_size)?))
            }
            Some(_) => bail!(
                "{}: not a regular file: look what it is and move it away",
                self.blob_path(digest).display()
            ),
        }
    }

    /// Open a blob for reading.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File> {
        let context = || format!("open blob {digest} of store {}", self.root().display());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file =
            open_no_links(self.dir(), Path::new(&name_of(digest)), flags).with_context(context)?;
        if file_type(&fstat(&file).with_context(context)?) != SFlag::S_IFREG {
            bail!("{}: not a regular file", self.blob_path(digest).display());
        }
        Ok(file.into())
    }

    /// The bytes of a manifest, index or configuration: size and digest are checked, in this order (L-36).
    pub(crate) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > LARGEST_DOCUMENT {
            bail!("blob {digest}: a document of {size} bytes, more than {LARGEST_DOCUMENT}");
        }
        let mut bytes = Vec::new();
        self.open_blob(digest)?
            .take(size + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read blob {digest}"))?;
        descriptor
            .check(&bytes)
            .with_context(|| format!("blob {digest}: not what it should be, see `fsck`"))?;
        Ok(bytes)
    }

    /// Put a blob whose digest is known: held by the lease, streamed through staging, checked, renamed into place.
    ///
    /// Where it is there already, or another command is just writing it, nothing is read from `from`. A blob that is
    /// there with another size than `size` is damaged and replaced.
    ///
    /// # Errors
    /// The content has another size or digest, or cannot be written. The store is then as it was.
    pub(crate) fn put_blob(
        &self,
        lease: &Lease,
        digest: &Digest,
        size: Option<u64>,
        from: &mut dyn Read,
    ) -> Result<Put> {
        lease.hold(Kind::Blob, &digest.to_string())?;
        let there = || -> Result<Option<Put>> {
            let _moment = self.shared()?;
            let found = self.blob_size(digest)?;
            Ok(found
                .filter(|found| size.is_none_or(|size| size == *found))
                .map(|size| Put { size, fresh: false }))
        };
        if let Some(put) = there()? {
            return Ok(put);
        }
        let stage = self.stage(&format!(
            "blob-{}-{}",
            digest.algorithm().name(),
            digest.hex()
        ))?;
        // Whoever held the staging directory may have put it.
        if let Some(put) = there()? {
            return Ok(put);
        }
        let context = || format!("store blob {digest}");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mut file: File = openat(
            stage.dir(),
            "content",
            flags,
            Mode::from_bits_truncate(0o600),
        )
        .with_context(context)?
        .into();
        let written = copy_checked(from, &mut file, digest, size).with_context(context)?;
        if self.durability() == Durability::Fsync {
            file.sync_all().with_context(context)?;
        }
        let dir = self.subdirectory(&format!("blobs/{}", digest.algorithm().name()))?;
        let _moment = self.shared()?;
        renameat(stage.dir(), "content", &dir, digest.hex()).with_context(context)?;
        if self.durability() == Durability::Fsync {
            fsync(&dir).with_context(context)?;
        }
        Ok(Put {
            size: written,
            fresh: true,
        })
    }

    /// Put content that was written to `name` in a staging directory, and hashed there.
    pub(crate) fn put_staged(
        &self,
        lease: &Lease,
        stage: &Stage,
        name: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Put> {
        let context = || format!("store blob {digest}");
        lease.hold(Kind::Blob, &digest.to_string())?;
        let dir = self.subdirectory(&format!("blobs/{}", digest.algorithm().name()))?;
        if self.durability() == Durability::Fsync {
            let file = openat(stage.dir(), name, OFlag::O_RDONLY, Mode::empty());
            fsync(file.with_context(context)?).with_context(context)?;
        }
        let _moment = self.shared()?;
        if self.blob_size(digest)? == Some(size) {
            return Ok(Put { size, fresh: false });
        }
        renameat(stage.dir(), name, &dir, digest.hex()).with_context(context)?;
        if self.durability() == Durability::Fsync {
            fsync(&dir).with_context(context)?;
        }
        Ok(Put { size, fresh: true })
    }
}

/// Whether `error` says that the disk, or the user's part of it, is full.
pub(crate) fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let errno = cause.downcast_ref::<Errno>().copied().or_else(|| {
            let error = cause.downcast_ref::<io::Error>()?;
            error.raw_os_error().map(Errno::from_raw)
        });
        matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT))
    })
}

/// The error of a write to the store, with what helps where the disk is full.
pub(crate) fn unwritten(error: io::Error) -> anyhow::Error {
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::ENOSPC | Errno::EDQUOT => anyhow::Error::new(error).context(Hinted::new(
            "write",
            "free some space, for example with `prune`",
        )),
        _ => anyhow::Error::new(error).context("write"),
    }
}

fn copy_checked(
    from: &mut dyn Read,
    to: &mut File,
    digest: &Digest,
    size: Option<u64>,
) -> Result<u64> {
    let mut hasher = digest.algorithm().hasher();
    let mut buffer = vec![0; CHUNK];
    let mut written = 0_u64;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("read"),
        };
        written += count as u64;
        if let Some(size) = size.filter(|size| written > *size) {
            bail!("the content is longer than the {size} bytes that its descriptor says");
        }
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count]).map_err(unwritten)?;
    }
    if let Some(size) = size.filter(|size| written != *size) {
        bail!("the content has {written} bytes, its descriptor says {size}");
    }
    let found = hasher.finish();
    if found != *digest {
        bail!("the content has the digest {found}");
    }
    Ok(written)
}
