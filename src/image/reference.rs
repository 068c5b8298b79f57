//! Names of images: the grammar of the distribution specification, and the one form in which a name is kept.

use std::fmt;

use anyhow::{Context as _, Result, bail};

use super::digest::Digest;

/// The longest name without tag and digest, in bytes. Registries refuse longer ones, host included.
const LONGEST_NAME: usize = 255;

/// The longest tag, in bytes.
const LONGEST_TAG: usize = 128;

/// The tag of a name that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// `NAME[:TAG][@DIGEST]` in its normal form: a name with neither has the tag `latest`. Nothing else is added, so
/// `alpine` and `docker.io/library/alpine` are two images.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Read a name as a person or an archive gives it. Hostile input: what passes is printable ASCII, is no path that
    /// leads anywhere, and cannot be taken for a digest.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::read(text).with_context(|| format!("image name {}", shortened(text)))
    }

    fn read(text: &str) -> Result<Self> {
        if text.is_empty() {
            bail!("it is empty");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the host's port.
        let path = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path..].find(':') {
            Some(colon) => (&rest[..path + colon], Some(&rest[path + colon + 1..])),
            None => (rest, None),
        };
        check_name(name)?;
        let tag = match tag {
            Some(tag) => Some(check_tag(tag)?.to_owned()),
            None if digest.is_none() => Some(DEFAULT_TAG.to_owned()),
            None => None,
        };
        Ok(Self {
            name: name.to_owned(),
            tag,
            digest,
        })
    }

    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` is a tag alone, as a layout's `org.opencontainers.image.ref.name` often is.
pub(crate) fn is_tag(text: &str) -> bool {
    check_tag(text).is_ok()
}

fn check_tag(tag: &str) -> Result<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if tag.is_empty() {
        bail!("the tag is empty");
    }
    if tag.len() > LONGEST_TAG {
        bail!("the tag is longer than {LONGEST_TAG} characters");
    }
    if tag.starts_with(['.', '-']) || !tag.bytes().all(fits) {
        bail!(
            "the tag has to be of letters, digits, '_', '.', '-', and not to begin with '.' or '-'"
        );
    }
    Ok(tag)
}

fn check_name(name: &str) -> Result<()> {
    if name.len() > LONGEST_NAME {
        bail!("the name is longer than {LONGEST_NAME} characters");
    }
    let path = match name.split_once('/') {
        Some((host, path)) if is_host(host) => {
            check_host(host)?;
            path
        }
        _ => {
            if matches!(name, "sha256" | "sha512") {
                bail!("it could be taken for a digest");
            }
            if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                bail!("it could be taken for the digits of a digest");
            }
            name
        }
    };
    for component in path.split('/') {
        check_component(component)?;
    }
    Ok(())
}

/// Whether the first component is a registry's host: it has what no other component can have, or it is `localhost`.
fn is_host(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':', '['])
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<()> {
    let (address, port) = match host.rfind(':') {
        // The colons of an IPv6 address stand in brackets.
        Some(colon) if !host[colon..].contains(']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    if let Some(port) = port
        && (!port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        bail!("the port {port:?} is none");
    }
    if let Some(address) = address.strip_prefix('[') {
        let address = address.strip_suffix(']').unwrap_or_default();
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            bail!("the host {host:?} is no IPv6 address in brackets");
        }
        return Ok(());
    }
    let fits = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !address.split('.').all(fits) {
        bail!("the host {address:?} is none");
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution-spec, "Pulling manifests").
fn check_component(component: &str) -> Result<()> {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let word = rest.iter().take_while(|byte| alphanumeric(byte)).count();
        if word == 0 {
            bail!(
                "the part {component:?} has to be of lower-case letters and digits, with single '.', '_', '__' or \
                 '-' between them"
            );
        }
        rest = &rest[word..];
        let separator = rest.iter().take_while(|byte| !alphanumeric(byte)).count();
        match &rest[..separator] {
            b"" => return Ok(()),
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            // An empty word makes the next turn refuse it.
            _ => {
                rest = b"";
                continue;
            }
        }
        rest = &rest[separator..];
    }
}

/// The text as an error can show it: escaped, and not longer than a line.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 100;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_name_is_kept_in_one_form() {
        let pinned = format!("@sha256:{HEX}");
        for (text, name, tag, digest) in [
            ("alpine", "alpine", Some("latest"), false),
            ("alpine:3.19", "alpine", Some("3.19"), false),
            ("a/b:c", "a/b", Some("c"), false),
            ("a_b:c", "a_b", Some("c"), false),
            ("host:5000/a/b", "host:5000/a/b", Some("latest"), false),
            ("host:5000/a/b:v1", "host:5000/a/b", Some("v1"), false),
            ("localhost/a", "localhost/a", Some("latest"), false),
            ("LOCAL/a", "LOCAL/a", Some("latest"), false),
            ("[::1]:5000/a:v1", "[::1]:5000/a", Some("v1"), false),
            ("[fe80::1]/a", "[fe80::1]/a", Some("latest"), false),
            (
                "docker.io/library/alpine:A_.-z",
                "docker.io/library/alpine",
                Some("A_.-z"),
                false,
            ),
            ("a--b/c__d/e.f/0", "a--b/c__d/e.f/0", Some("latest"), false),
            (&format!("a{pinned}"), "a", None, true),
            (&format!("h.x:1/a:t{pinned}"), "h.x:1/a", Some("t"), true),
        ] {
            let read = Reference::parse(text).unwrap();
            assert_eq!(read.name, name, "{text}");
            assert_eq!(read.tag.as_deref(), tag, "{text}");
            assert_eq!(read.digest().is_some(), digest, "{text}");
            let normal = read.to_string();
            let tagless = tag.is_none() || text.contains(tag.unwrap());
            assert_eq!(
                normal,
                if tagless {
                    text.to_owned()
                } else {
                    format!("{text}:latest")
                }
            );
            assert_eq!(Reference::parse(&normal).unwrap(), read, "{text}");
        }
    }

    #[test]
    fn a_name_outside_the_grammar_is_refused() {
        let long_name = "a/".repeat(127) + "aa";
        let long_tag = format!("a:{}", "t".repeat(129));
        let digest = format!("sha256:{HEX}");
        for bad in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:b:c",
            "a@",
            "a@b",
            ":tag",
            "@sha256:",
            "A",
            "a/B",
            "Ab:c",
            "-a",
            "a-",
            "a..b",
            "a._b",
            "a___b",
            "a_-b",
            ".a",
            "a.",
            "..",
            "../a",
            "a/../b",
            "./a",
            "a b",
            "a\n",
            "a\0",
            "a\u{1b}[2J",
            "ä",
            "a:.t",
            "a:-t",
            "a:t/u",
            "a:t t",
            "a:\u{202e}",
            "h:70000/a",
            "h:/a",
            "h:+1/a",
            "h:x/a",
            "-h.x/a",
            "h-.x/a",
            "h..x/a",
            "[::1/a",
            "[::x]/a",
            "[]/a",
            "host:5000/",
            HEX,
            &digest,
            "sha256:abc",
            "sha512",
            &long_name,
            &long_tag,
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a:b@sha256:00",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
        Reference::parse(&format!("a:{}", "t".repeat(128))).unwrap();
        Reference::parse(&format!("{}a", "a/".repeat(127))).unwrap();
        Reference::parse(&format!("host.x/{HEX}")).unwrap();
    }

    #[test]
    fn s_14_an_error_shows_a_hostile_name_escaped_and_shortened() {
        let error = format!("{:#}", Reference::parse("a\u{1b}[2J").unwrap_err());
        assert!(!error.contains('\u{1b}'), "{error}");
        let error = format!("{:#}", Reference::parse(&"é".repeat(100_000)).unwrap_err());
        assert!(error.len() < 1000, "{}", error.len());
    }
}
