//! PAX extended headers (pax(1), "pax Extended Header"): what of them a layer may use.

use anyhow::{Context as _, Result, anyhow, bail};

use super::sparse;
use super::{Attribute, Time};

/// More than a file can have: the kernel lists 64 KiB of names (xattr(7)).
const MOST_ATTRIBUTES: usize = 4096;

/// What the records of one extended header say. A record that is given again replaces the one before; an empty value
/// takes it back.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<Attribute>,
    pub(super) sparse: sparse::Pax,
}

impl Records {
    /// Read the content of an extended header.
    ///
    /// # Errors
    /// A record is malformed: skipping it would make other readers see another archive (S-7).
    pub(super) fn parse(mut rest: &[u8]) -> Result<Self> {
        let mut records = Self::default();
        while !rest.is_empty() {
            let (key, value, after) = record(rest)?;
            records
                .set(key, value)
                .with_context(|| format!("pax record {}", key.escape_ascii()))?;
            rest = after;
        }
        Ok(records)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, id)?,
            b"gid" => self.gid = optional(value, id)?,
            b"mtime" => self.mtime = optional(value, time)?,
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_attribute(attribute.to_vec(), value.to_vec())?;
                } else if let Some(attribute) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let attribute = percent_decoded(attribute)?;
                    self.set_attribute(attribute, base64(value)?)?;
                } else if let Some(part) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(part, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_attribute(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<()> {
        if name.is_empty() || name.contains(&0) || name.len() > 255 {
            bail!("not the name of an extended attribute");
        }
        self.xattrs.retain(|attribute| attribute.name != name);
        if self.xattrs.len() == MOST_ATTRIBUTES {
            bail!("more than {MOST_ATTRIBUTES} extended attributes");
        }
        self.xattrs.push(Attribute { name, value });
        Ok(())
    }
}

/// The first record, `LENGTH KEY=VALUE\n` where the length counts all of it, and what follows it.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let malformed = || anyhow!("malformed pax record");
    // Twenty digits are more than any length has.
    let space = bytes
        .iter()
        .take(21)
        .position(|byte| *byte == b' ')
        .ok_or_else(malformed)?;
    let length = usize::try_from(decimal(&bytes[..space])?)?;
    if length <= space + 2 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return Err(malformed());
    }
    let record = &bytes[space + 1..length - 1];
    let equals = record
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or_else(malformed)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(malformed());
    }
    Ok((key, value, &bytes[length..]))
}

fn optional<T>(value: &[u8], parse: fn(&[u8]) -> Result<T>) -> Result<Option<T>> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some)
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>> {
    if value.contains(&0) {
        bail!("a NUL byte in a name");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Result<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        bail!("{:?} is not a number", digits.escape_ascii().to_string());
    }
    let text = std::str::from_utf8(digits)?;
    text.parse()
        .with_context(|| format!("the number {text} is too large"))
}

fn id(value: &[u8]) -> Result<u32> {
    super::id(i64::try_from(decimal(value)?)?)
}

/// Seconds with a fraction, perhaps negative. A time beyond what 64 bits hold becomes the last that they do.
fn time(value: &[u8]) -> Result<Time> {
    let (negative, digits) = match value {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let point = digits.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &digits[..0]),
    };
    let numeric = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !numeric(whole) || !numeric(fraction) {
        bail!("{:?} is not a time", value.escape_ascii().to_string());
    }
    let seconds = whole.iter().fold(0i64, |seconds, digit| {
        seconds
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    let nanos = (0..9).fold(0u32, |nanos, at| {
        nanos * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Ok(match (negative, nanos) {
        (false, nanos) => Time { seconds, nanos },
        (true, 0) => Time {
            seconds: -seconds,
            nanos,
        },
        // -1.25 is 0.75 after -2.
        (true, nanos) => Time {
            seconds: (-seconds).saturating_sub(1),
            nanos: 1_000_000_000 - nanos,
        },
    })
}

fn percent_decoded(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let [high, low, after @ ..] = after else {
            bail!("a % without two digits");
        };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
            bail!("a % without two digits");
        };
        bytes.push(u8::try_from(high * 16 + low)?);
        rest = after;
    }
    Ok(bytes)
}

/// RFC 4648 base64; libarchive leaves out the padding.
fn base64(text: &[u8]) -> Result<Vec<u8>> {
    let text = text.strip_suffix(b"=").unwrap_or(text);
    let text = text.strip_suffix(b"=").unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => bail!("not base64"),
            };
            bits = bits << 6 | u32::from(value);
        }
        if group.len() == 1 {
            bail!("not base64");
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(records: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = |length: usize| length.to_string().len();
            let length = rest + digits(rest + digits(rest));
            bytes.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        bytes
    }

    #[test]
    fn the_last_of_two_records_counts_and_an_empty_one_takes_back() {
        let records = Records::parse(&made(&[
            ("path", "a"),
            ("path", "b"),
            ("uid", "7"),
            ("uid", ""),
            ("SCHILY.xattr.user.x", "1"),
            ("SCHILY.xattr.user.x", "2"),
            ("comment", "whatever"),
        ]))
        .unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(records.uid, None);
        assert_eq!(records.xattrs.len(), 1);
        assert_eq!(records.xattrs[0].value, b"2");
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            "x",
            "5 a=b",
            "6 a=b",
            "7 a=b\n",
            "06 a=\n0",
            "3 \n",
            "5 =b\n",
            "99999999999999999999999 a=b\n",
            "-6 a=b\n",
        ] {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for (key, value) in [
            ("path", "a\0b"),
            ("size", "-1"),
            ("size", "99999999999999999999"),
            ("uid", "4294967295"),
            ("mtime", "1.5x"),
            ("mtime", "."),
            ("SCHILY.xattr.", "x"),
            ("LIBARCHIVE.xattr.user.%4", "eA"),
            ("LIBARCHIVE.xattr.user.x", "e"),
        ] {
            assert!(
                Records::parse(&made(&[(key, value)])).is_err(),
                "{key}={value:?}"
            );
        }
    }

    #[test]
    fn times_have_fractions_and_signs_and_bounds() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("12.5", 12, 500_000_000),
            ("1.0000000019", 1, 1),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
            ("99999999999999999999", i64::MAX, 0),
            ("7.", 7, 0),
        ] {
            assert_eq!(
                time(text.as_bytes()).unwrap(),
                Time { seconds, nanos },
                "{text}"
            );
        }
    }

    #[test]
    fn attributes_of_libarchive_are_decoded() {
        for (text, bytes) in [
            ("", ""),
            ("eA", "x"),
            ("eHk", "xy"),
            ("eHl6", "xyz"),
            ("eA==", "x"),
        ] {
            assert_eq!(base64(text.as_bytes()).unwrap(), bytes.as_bytes(), "{text}");
        }
        let records = Records::parse(&made(&[("LIBARCHIVE.xattr.user.a%3Db", "eHl6")])).unwrap();
        assert_eq!(records.xattrs[0].name, b"user.a=b");
        assert_eq!(records.xattrs[0].value, b"xyz");
    }
}
