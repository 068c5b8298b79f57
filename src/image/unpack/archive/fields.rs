//! The fields of a tar header: where they lie (pax(1), "ustar Interchange Format"; GNU tar manual, "Basic Tar Format") and
//! what their bytes mean.

use std::ops::Range;

use anyhow::{Result, bail};

pub(super) const BLOCK: usize = 512;

pub(super) type Block = [u8; BLOCK];

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
pub(super) const MAJOR: Range<usize> = 329..337;
pub(super) const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;

/// A field's bytes up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A numeric field: octal digits between spaces and NULs, or base-256 with the first bit set (GNU, star). Empty is 0.
///
/// # Errors
/// Another character, or a number that does not fit.
pub(super) fn number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return base256(field);
    }
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte));
    let digits = &field[start.unwrap_or(field.len())..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    let mut value = 0i64;
    for digit in &digits[..end] {
        if !matches!(digit, b'0'..=b'7') {
            bail!(
                "{:?} is not an octal number",
                field.escape_ascii().to_string()
            );
        }
        // At most 12 digits of three bits.
        value = value << 3 | i64::from(digit - b'0');
    }
    Ok(value)
}

fn base256(field: &[u8]) -> Result<i64> {
    // The second bit is the sign of a two's complement number; the first is no part of it.
    let negative = field[0] & 0x40 != 0;
    let mut value = if negative { -1i128 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        let byte = match at {
            0 if negative => byte | 0x80,
            0 => byte & 0x7f,
            _ => *byte,
        };
        // A field has at most 12 bytes: 96 bits.
        value = value << 8 | i128::from(byte);
    }
    i64::try_from(value).or_else(|_| bail!("a base-256 number does not fit in 64 bits"))
}

/// Whether the header's checksum is right. Some old writers summed signed bytes.
pub(super) fn checksum_matches(block: &Block) -> bool {
    let Ok(wanted) = number(&block[CHECKSUM]) else {
        return false;
    };
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    wanted == unsigned || wanted == signed
}

/// Which writer's layout a header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(super) fn format(block: &Block) -> Format {
    match &block[MAGIC] {
        b"ustar  \0" => Format::Gnu,
        magic if magic.starts_with(b"ustar\0") => {
            if &block[508..512] == b"tar\0" {
                Format::Star
            } else {
                Format::Ustar
            }
        }
        _ => Format::V7,
    }
}

/// The name of the entry, with the prefix where the layout has one.
pub(super) fn name(block: &Block, format: Format) -> Vec<u8> {
    let prefix: &[u8] = match format {
        Format::V7 => b"",
        Format::Ustar => text(&block[PREFIX]),
        Format::Star => text(&block[STAR_PREFIX]),
        // COMPAT: archive/tar of Go before 1.8 wrote a ustar prefix under GNU's magic, and Docker wrote layers with it.
        Format::Gnu if number(&block[GNU_ATIME]).is_err() || number(&block[GNU_CTIME]).is_err() => {
            let prefix = text(&block[PREFIX]);
            if prefix.is_ascii() { prefix } else { b"" }
        }
        Format::Gnu => b"",
    };
    let name = text(&block[NAME]);
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let cases: [(&[u8], i64); 9] = [
            (b"0000644\0", 0o644),
            (b"    644 ", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"77777777", 0o7777_7777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", -1),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"12 34\0\0\0", 0o12),
        ];
        for (field, value) in cases {
            assert_eq!(number(field).unwrap(), value, "{field:?}");
        }
        let bad: [&[u8]; 4] = [
            b"0000689\0",
            b"-1\0\0\0\0\0\0",
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ];
        for field in bad {
            assert!(number(field).is_err(), "{field:?}");
        }
    }
}
