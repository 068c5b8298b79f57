//! Every blob hashed again, over the cores.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};

use crate::report::sentence;

use super::super::digest::Digest;
use super::super::progress::{Bar, Progress};
use super::super::store::{self, Lease, Store, entries};
use super::{Fault, Findings, Kind, parallel};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// What hashing found.
enum Found {
    Good {
        size: u64,
    },
    /// Another digest, or an error in words.
    Bad(String),
    /// It went before it was held.
    Gone,
}

pub(super) fn check(
    store: &Store,
    lease: &Lease,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<()> {
    let mut digests = listed(store, findings)?;
    for digest in &digests {
        lease.hold(store::Kind::Blob, &digest.to_string())?;
    }
    let sizes = |digest: &Digest| store.blob_size(digest).ok().flatten().unwrap_or_default();
    // The largest first: nobody is left with it when the others have nothing more to do.
    digests.sort_by_cached_key(|digest| std::cmp::Reverse(sizes(digest)));
    let bar = progress.bar("blobs", digests.iter().map(sizes).sum());
    let found = parallel(&digests, |digest| hash(store, digest, &bar));
    drop(bar);
    for (digest, found) in digests.iter().zip(found) {
        match found {
            Found::Good { size } => {
                findings.report.checked.blobs += 1;
                findings.report.checked.blob_bytes += size;
                if !findings.needed.contains_key(digest) {
                    findings.remark(format!(
                        "blob {digest}: no name needs it; prune removes what nothing needs"
                    ));
                }
            }
            Found::Bad(what) => {
                findings.report.checked.blobs += 1;
                findings.damaged.insert(digest.clone());
                bad(findings, digest, &what);
            }
            Found::Gone => {}
        }
    }
    let missing: Vec<_> = findings.missing.iter().cloned().collect();
    for digest in missing {
        bad(findings, &digest, "the blob is not there");
    }
    Ok(())
}

/// A damaged or missing blob, with the images that need it.
fn bad(findings: &mut Findings, digest: &Digest, what: &str) {
    let images = findings.images(digest);
    let advice = if images.is_empty() {
        "no name needs it: `fsck --repair` moves it to quarantine"
    } else if findings.missing.contains(digest) {
        "import the image again"
    } else {
        "`fsck --repair` moves it to quarantine, then import the image again"
    };
    // A document that could not be read is the same fault.
    let subject = digest.to_string();
    findings
        .report
        .faults
        .retain(|fault| fault.kind != Kind::Document || fault.subject != subject);
    let mut fault = Fault::new(Kind::Blob, subject, what, advice);
    fault.images = images;
    findings.fault(fault);
}

/// The digests of all blobs. What else lies among them is a fault.
fn listed(store: &Store, findings: &mut Findings) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in entries(store.subdirectory("blobs")?.as_fd())? {
        let algorithm = algorithm.to_string_lossy();
        let names = store
            .subdirectory(&format!("blobs/{algorithm}"))
            .and_then(|dir| entries(dir.as_fd()));
        let names = match names {
            Ok(names) => names,
            Err(error) => {
                odd(findings, &format!("blobs/{algorithm}"), &sentence(&error));
                continue;
            }
        };
        for name in names {
            let name = name.to_string_lossy();
            match format!("{algorithm}:{name}").parse() {
                Ok(digest) => digests.push(digest),
                Err(_) => odd(findings, &format!("blobs/{algorithm}/{name}"), "not a blob"),
            }
        }
    }
    Ok(digests)
}

fn odd(findings: &mut Findings, path: &str, what: &str) {
    findings.fault(Fault::new(
        Kind::Blob,
        path,
        what,
        "look what it is and move it away: prune stops at it",
    ));
}

fn hash(store: &Store, digest: &Digest, bar: &Bar) -> Found {
    match try_hash(store, digest, bar) {
        Ok((found, size)) if found == *digest => Found::Good { size },
        Ok((found, size)) => {
            Found::Bad(format!("damaged: its {size} bytes have the digest {found}"))
        }
        Err(_) if matches!(store.blob_size(digest), Ok(None)) => Found::Gone,
        Err(error) => Found::Bad(sentence(&error)),
    }
}

fn try_hash(store: &Store, digest: &Digest, bar: &Bar) -> Result<(Digest, u64)> {
    let mut file = store.open_blob(digest)?;
    let mut hasher = digest.algorithm().hasher();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("read blob {digest}")),
        };
        hasher.update(&buffer[..count]);
        size += count as u64;
        bar.add(count as u64);
    }
}
