//! The parsers that read what strangers wrote, for the fuzz targets in `tests/fuzz`. Each takes any bytes, and panics where
//! an answer contradicts what its callers rely on.

use super::manifest::{Config, Document};
use super::reference::Reference;
use super::unpack::archive::Archive;

/// Read a layer's tar stream to its end, as it is and with the right checksums.
pub fn tar(bytes: &[u8]) {
    read_archive(bytes);
    read_archive(&with_checksums(bytes));
}

fn read_archive(bytes: &[u8]) {
    let mut archive = Archive::new(bytes);
    while let Ok(Some(entry)) = archive.next() {
        assert!(!entry.path.contains(&0) && !entry.link.contains(&0));
        assert_eq!(entry.mode & !0o7777, 0, "more than permissions");
        let mut end = 0;
        for run in entry.runs.iter().flatten() {
            assert!(run.offset >= end, "runs overlap or go backwards");
            end = run
                .offset
                .checked_add(run.length)
                .expect("a run has an end");
            assert!(end <= entry.size, "data beyond the end of the file");
        }
        let mut given = 0;
        let done = archive.data(entry.runs.as_deref(), |offset, piece| {
            given += piece.len();
            assert!(offset + piece.len() as u64 <= entry.size);
            Ok(())
        });
        assert!(given <= bytes.len(), "more data than there is");
        if done.is_err() {
            return;
        }
    }
    // Whether the rest can be read is the stream's affair.
    drop(archive.drain());
}

/// The same with the checksum of every block that has the magic of a header. No mutation would hit upon it.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().copied().map(u32::from).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// Read an image name.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(reference) = Reference::parse(text) {
        let shown = reference.to_string();
        let again = Reference::parse(&shown).expect("the normal form is a name");
        assert_eq!(reference, again, "the normal form means something else");
        assert_eq!(shown, again.to_string(), "the normal form has another");
        assert!(shown.chars().all(|c| c.is_ascii_graphic()), "{shown:?}");
    }
}

/// Read a document as everything that it could be.
pub fn manifest(bytes: &[u8]) {
    let types = [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ];
    let mut kinds = Vec::new();
    for media_type in types {
        match Document::parse(bytes, media_type) {
            Ok(Document::Manifest(manifest)) => {
                kinds.push("manifest");
                assert!(manifest.layers.len() <= bytes.len());
            }
            Ok(Document::Index(index)) => {
                kinds.push("index");
                assert!(index.manifests.len() <= bytes.len());
            }
            Err(_) => {}
        }
    }
    // CVE-2021-41190: the same bytes are never both.
    kinds.dedup();
    assert!(kinds.len() <= 1, "a document with two meanings");
    if let Ok(config) = Config::parse(bytes) {
        assert!(config.diff_ids.len() <= bytes.len());
    }
}
