//! Where images come from: recognised by content, checked, and named last.
//!
//! Whatever the source, the way is the same: its blobs are put into the store under a lease, the documents are followed
//! from what the source names, everything that an image is made of is checked, and only then do its names appear in
//! index.json, all of them or none. Content that no imported image needs is taken away again, and after a failure all
//! that this import brought.

mod archive;
mod docker;
mod gather;
mod layout;
mod naming;
mod session;

use std::fs::File;
use std::io::{self, BufReader, Read, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::digest::Digest;
use super::manifest::{Descriptor, Platform};
use super::output;
use super::progress::{Bar, Progress};
use super::reference::Reference;
use super::store::Store;
use gather::Checks;
use naming::Candidate;
use session::Session;

/// Bytes read from an archive at a time.
const CHUNK: usize = 256 << 10;

/// Where an import reads from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A layout directory or an archive file.
    Path(PathBuf),
    /// An archive on standard input.
    Stdin,
}

impl Source {
    /// For messages.
    fn shown(&self) -> String {
        match self {
            Self::Path(path) => output::visible(&path.to_string_lossy()).into_owned(),
            Self::Stdin => "standard input".to_owned(),
        }
    }
}

/// What is asked of an import.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The name for the one image of the source, in place of those it brings along.
    pub(crate) name: Option<Reference>,
    /// Only the image for this platform.
    pub(crate) platform: Option<Platform>,
    /// Names that come with the source may be taken from other images.
    pub(crate) replace: bool,
}

/// A name that an import has set, or found to be right already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Imported {
    pub(crate) name: String,
    /// The manifest or the index.
    pub(crate) target: Descriptor,
    /// What the name meant before, if it was something else.
    pub(crate) replaced: Option<Digest>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) images: Vec<Imported>,
    /// What the caller should know: what was left out, what could not be checked.
    pub(crate) remarks: Vec<String>,
}

/// Take the images of `source` into the store.
///
/// # Errors
/// The source is none of the known forms; content is missing, or is not what its descriptor says; a name in the source
/// is another image's already. Names and content of the store are then as they were.
pub(crate) fn import(
    store: &Store,
    source: &Source,
    wanted: &Wanted,
    progress: &Progress,
) -> Result<Outcome> {
    let mut session = Session::begin(store, progress)?;
    let done =
        run(&mut session, source, wanted).with_context(|| format!("import {}", source.shown()));
    match done {
        Ok(images) => Ok(Outcome {
            images,
            remarks: session.end(),
        }),
        Err(error) => {
            session.undo();
            Err(error)
        }
    }
}

fn run(session: &mut Session, source: &Source, wanted: &Wanted) -> Result<Vec<Imported>> {
    let base = match source {
        Source::Path(path) => naming::base(path),
        Source::Stdin => None,
    };
    let request = Request {
        wanted,
        base: base.as_deref(),
    };
    let mut checks = Checks::default();
    let candidates = match source {
        Source::Stdin => {
            let input = BufReader::with_capacity(CHUNK, stdin());
            archive::read(session, input, &request, &mut checks)?
        }
        Source::Path(path) => from_path(session, path, &request, &mut checks)?,
    };
    let referrers = std::mem::take(&mut checks.referrers);
    checks.verify(session)?;
    session.trim();
    naming::commit(session.store, &candidates, &referrers, wanted.replace)
}

fn from_path(
    session: &mut Session,
    path: &Path,
    request: &Request,
    checks: &mut Checks,
) -> Result<Vec<Candidate>> {
    let file = File::open(path).context("open")?;
    if file.metadata().context("look at it")?.is_dir() {
        return layout::read(session, file.into(), request, checks);
    }
    let input = BufReader::with_capacity(CHUNK, file);
    archive::read(session, input, request, checks)
}

/// An import in the words of its source.
struct Request<'call> {
    wanted: &'call Wanted,
    /// The name of the file or directory without what says its form; none for a stream.
    base: Option<&'call str>,
}

/// Moves a bar as it is read.
struct Counted<R> {
    from: R,
    bar: Bar,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.bar.add(count as u64);
        Ok(count)
    }
}
