//! What the name of an entry means: a path below the root, a whiteout, or nothing that is unpacked. Pure.

use anyhow::{Result, bail};

/// A longer path cannot be named by anybody (PATH_MAX, with the NUL).
const LONGEST_PATH: usize = 4095;

/// Each directory on the way is a descriptor held open.
pub(super) const DEEPEST: usize = 512;

/// `path` without leading, trailing and double slashes and without `.`; empty for the root.
///
/// # Errors
/// It is empty, climbs with `..`, holds a NUL byte, or is too long or too deep (S-1, S-6).
pub(super) fn clean(path: &[u8]) -> Result<Vec<u8>> {
    if path.is_empty() {
        bail!("an empty name");
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => bail!("the name climbs with \"..\""),
            _ if component.contains(&0) => bail!("a NUL byte in the name"),
            _ => {}
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
        depth += 1;
    }
    if clean.len() > LONGEST_PATH {
        bail!("the name is longer than {LONGEST_PATH} bytes");
    }
    if depth > DEEPEST {
        bail!("the name is deeper than {DEEPEST} directories");
    }
    Ok(clean)
}

/// The parent and the last component of a clean path that is not the root's.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// layer.md, "Whiteouts".
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'n> {
    Entry,
    /// The file of this name beside it is gone from the lower layers.
    Whiteout(&'n [u8]),
    /// The lower layers' content of the parent is gone.
    Opaque,
    /// Bookkeeping of AUFS.
    Ignored,
}

/// What the clean path `path` means.
///
/// # Errors
/// A whiteout of nothing, of `.` or of `..` (L-10, L-11); something below a whiteout.
pub(super) fn meaning(path: &[u8]) -> Result<Meaning<'_>> {
    let (parent, name) = split(path);
    // The usual case in one look: no component begins with a dot and a w.
    if !name.starts_with(b".wh.") && !parent.windows(4).any(|part| part == b".wh.") {
        return Ok(Meaning::Entry);
    }
    for component in parent.split(|byte| *byte == b'/') {
        if component.starts_with(b".wh..wh.") {
            return Ok(Meaning::Ignored);
        }
        if component.starts_with(b".wh.") {
            bail!("an entry below a whiteout");
        }
    }
    let Some(target) = name.strip_prefix(b".wh.") else {
        return Ok(Meaning::Entry);
    };
    match target {
        b"" | b"." | b".." => bail!("a whiteout of {:?}", target.escape_ascii().to_string()),
        b".wh..opq" => Ok(Meaning::Opaque),
        _ if target.starts_with(b".wh.") => Ok(Meaning::Ignored),
        _ => Ok(Meaning::Whiteout(target)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_below_the_root_or_refused() {
        let cases: [(&[u8], &[u8]); 8] = [
            (b"a/b", b"a/b"),
            (b"/etc/passwd", b"etc/passwd"),
            (b"./a//b/./c/", b"a/b/c"),
            (b".", b""),
            (b"./", b""),
            (b"//", b""),
            (b"a/..b/c..", b"a/..b/c.."),
            (b"\xff\xfe", b"\xff\xfe"),
        ];
        for (path, wanted) in cases {
            assert_eq!(clean(path).unwrap(), wanted, "{}", path.escape_ascii());
        }
        let deep = b"a/".repeat(DEEPEST + 1);
        let long = b"a".repeat(LONGEST_PATH + 1);
        let bad: [&[u8]; 7] = [b"", b"..", b"../x", b"a/../b", b"/..", &deep, &long];
        for path in bad {
            assert!(clean(path).is_err(), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn whiteouts_are_told_from_entries_and_bad_ones_refused() {
        let cases: [(&[u8], Meaning); 9] = [
            (b"a/b", Meaning::Entry),
            (b"a/x.wh.y", Meaning::Entry),
            (b"x.wh./y", Meaning::Entry),
            (b".wh.a", Meaning::Whiteout(b"a")),
            (b"a/.wh.b", Meaning::Whiteout(b"b")),
            (b"a/.wh....", Meaning::Whiteout(b"...")),
            (b"a/.wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.plnk/12.34", Meaning::Ignored),
            (b".wh..wh.aufs", Meaning::Ignored),
        ];
        for (path, wanted) in cases {
            assert_eq!(meaning(path).unwrap(), wanted, "{}", path.escape_ascii());
        }
        // L-10, L-11
        let bad: [&[u8]; 5] = [b".wh.", b"a/.wh.", b".wh..", b"a/.wh...", b".wh.a/b"];
        for path in bad {
            assert!(meaning(path).is_err(), "{}", path.escape_ascii());
        }
    }
}
