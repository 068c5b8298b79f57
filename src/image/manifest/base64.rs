//! The one encoding of RFC 4648 that descriptors use for embedded content (descriptor.md, "data").

use anyhow::{Result, bail};

/// Decode the standard alphabet with padding and nothing else in between.
pub(super) fn decode(text: &str) -> Result<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        bail!("not base64: the length is no multiple of four");
    }
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if padding > 2 {
        bail!("not base64: more than two padding characters");
    }
    let digits = &text[..text.len() - padding];
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            bits = bits << 6 | u32::from(digit(*byte)?);
        }
        let missing = 4 - group.len();
        bits <<= 6 * missing;
        if bits & ((1 << (8 * missing)) - 1) != 0 {
            bail!("not base64: bits are left over");
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..4 - missing]);
    }
    Ok(bytes)
}

fn digit(byte: u8) -> Result<u8> {
    Ok(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => bail!("not base64: the character {:?}", char::from(byte)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_and_what_is_none() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decode(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(decode("+/+/").unwrap(), [0xfb, 0xff, 0xbf]);
        for bad in [
            "Zg", "Zg=", "Zh==", "Zm9=", "Z===", "====", "Zm9v\n", "Zm_v", "Zg==Zg==",
        ] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
