//! The listing of a layer in overlay form: what was made, in the order in which it was made, for a later comparison.
//!
//! One line each, fields between tabs, the path last and with backslash escapes:
//!
//! ```text
//! + TYPE MODE UID GID SIZE MTIME CHECK PATH      made, or changed; a second line of a path replaces the first
//! = PATH TARGET                                  PATH is another name of the file that TARGET is at this line
//! - PATH                                         removed again, with everything below it
//! ```
//!
//! TYPE is one of `f d l c b p w`, `w` for a whiteout; SIZE is of files only, and for devices the number; MTIME is seconds
//! and nanoseconds with a point. CHECK is the CRC-32 of a file's content or of a link's target: it finds damage, and is no
//! protection against who can write to the store.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use anyhow::{Context as _, Result, bail};

/// What is known of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// One of `f d l c b p w`.
    pub(crate) kind: u8,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Of a file, in bytes; of a device, its number as stat(2) has it.
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    /// CRC-32 of a file's content or a link's target, else 0.
    pub(crate) check: u32,
}

/// Writes lines as they come.
pub(super) struct Listing<'w> {
    out: Option<&'w mut (dyn Write + Send)>,
}

impl<'w> Listing<'w> {
    pub(super) fn new(out: Option<&'w mut (dyn Write + Send)>) -> Self {
        Self { out }
    }

    pub(super) fn wanted(&self) -> bool {
        self.out.is_some()
    }

    pub(super) fn made(&mut self, path: &[u8], line: &Line) -> Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        let Line {
            kind,
            mode,
            uid,
            gid,
            size,
            mtime: (seconds, nanos),
            check,
        } = line;
        let kind = char::from(*kind);
        writeln!(
            out,
            "+\t{kind}\t{mode:o}\t{uid}\t{gid}\t{size}\t{seconds}.{nanos:09}\t{check:08x}\t{}",
            path.escape_ascii()
        )
        .context("write its listing")
    }

    pub(super) fn linked(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        writeln!(out, "=\t{}\t{}", path.escape_ascii(), target.escape_ascii())
            .context("write its listing")
    }

    pub(super) fn removed(&mut self, path: &[u8]) -> Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        writeln!(out, "-\t{}", path.escape_ascii()).context("write its listing")
    }
}

/// Read a listing: every path that the layer ended with. The root has the empty path.
///
/// # Errors
/// A line is malformed, or the input fails.
pub(crate) fn read(input: impl BufRead) -> Result<BTreeMap<Vec<u8>, Line>> {
    let mut paths = BTreeMap::new();
    for (number, line) in input.split(b'\n').enumerate() {
        let line = line.context("read a listing")?;
        apply(&line, &mut paths).with_context(|| format!("line {} of a listing", number + 1))?;
    }
    Ok(paths)
}

fn apply(line: &[u8], paths: &mut BTreeMap<Vec<u8>, Line>) -> Result<()> {
    let line = std::str::from_utf8(line).context("not text")?;
    let fields: Vec<&str> = line.split('\t').collect();
    match fields[..] {
        ["+", kind, mode, uid, gid, size, mtime, check, path] => {
            let (seconds, nanos) = mtime.split_once('.').context("a time without a point")?;
            let line = Line {
                kind: *kind.as_bytes().first().context("no type")?,
                mode: u32::from_str_radix(mode, 8)?,
                uid: uid.parse()?,
                gid: gid.parse()?,
                size: size.parse()?,
                mtime: (seconds.parse()?, nanos.parse()?),
                check: u32::from_str_radix(check, 16)?,
            };
            paths.insert(unescaped(path)?, line);
        }
        ["=", path, target] => {
            let target = unescaped(target)?;
            let line = paths.get(&target).context("a link to nothing")?.clone();
            paths.insert(unescaped(path)?, line);
        }
        ["-", path] => {
            let path = unescaped(path)?;
            let below = [&path[..], b"/"].concat();
            // '0' is what comes after '/'.
            let after = [&path[..], b"0"].concat();
            let gone: Vec<_> = paths
                .range(below..after)
                .map(|(path, _)| path.clone())
                .collect();
            for path in gone.iter().chain([&path]) {
                paths.remove(path);
            }
        }
        _ => bail!("malformed"),
    }
    Ok(())
}

/// The reverse of `escape_ascii`.
fn unescaped(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).context("malformed escape");
                (u8::try_from(digit(high)? * 16 + digit(low)?)?, after)
            }
            (b'\\', [b't', after @ ..]) => (b'\t', after),
            (b'\\', [b'n', after @ ..]) => (b'\n', after),
            (b'\\', [b'r', after @ ..]) => (b'\r', after),
            (b'\\', [quoted @ (b'\\' | b'\'' | b'"'), after @ ..]) => (*quoted, after),
            (b'\\', _) => bail!("malformed escape"),
            (plain, after) => (*plain, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Ok(bytes)
}

/// The check of content that is read in pieces.
#[derive(Default)]
pub(crate) struct Check {
    crc: flate2::Crc,
}

impl Check {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    pub(crate) fn of(bytes: &[u8]) -> u32 {
        let mut check = Self::default();
        check.update(bytes);
        check.value()
    }

    pub(crate) fn value(&self) -> u32 {
        self.crc.sum()
    }
}

impl Write for Check {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_reads_back_as_what_the_layer_ended_with() {
        let line = |size: u64| Line {
            kind: b'f',
            mode: 0o4755,
            uid: 1,
            gid: 2,
            size,
            mtime: (-3, 5),
            check: 0xdead_beef,
        };
        let mut text = Vec::new();
        let mut listing = Listing::new(Some(&mut text));
        let odd = b"a\tb\\\xff\n'\"";
        listing.made(odd, &line(1)).unwrap();
        listing.linked(b"name", odd).unwrap();
        listing.made(odd, &line(2)).unwrap();
        for path in [&b"dir"[..], b"dir/x", b"dir-y", b"dir.z"] {
            listing.made(path, &line(3)).unwrap();
        }
        listing.removed(b"dir").unwrap();
        let read = read(&text[..]).unwrap();
        let wanted = [
            (odd.to_vec(), line(2)),
            (b"name".to_vec(), line(1)),
            (b"dir-y".to_vec(), line(3)),
            (b"dir.z".to_vec(), line(3)),
        ];
        assert_eq!(read, BTreeMap::from(wanted));
    }
}
