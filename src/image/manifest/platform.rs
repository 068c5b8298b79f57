//! Platforms: what an image is for, what this host is, and which of several is the nearest.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, bail};
use serde::{Deserialize, Serialize};

use super::json::nullable;

/// What a descriptor says of the platform (image-index.md, "platform").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    #[serde(deserialize_with = "nullable")]
    pub(crate) os: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub(crate) os_version: Option<String>,
    #[serde(
        rename = "os.features",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub(crate) os_features: Vec<String>,
}

impl Platform {
    /// This machine.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = normal(std::env::consts::ARCH, host_variant());
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture,
            variant,
            ..Self::default()
        }
    }

    /// `unknown/unknown`, as builders mark attestations that stand in an index beside the images.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether an image for this platform runs on `want`.
    pub(crate) fn matches(&self, want: &Self) -> bool {
        self.distance(want).is_some()
    }

    /// As `matches`; an image that does not say what it is for suits everything.
    pub(crate) fn suits(&self, want: &Self) -> bool {
        self.is_unsaid() || self.matches(want)
    }

    pub(super) fn is_unsaid(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    /// How far an image for this platform is from `want`: 0 when it is made for exactly that, more the older the
    /// variant it is made for, none where it does not run.
    pub(super) fn distance(&self, want: &Self) -> Option<u32> {
        if normal_os(&self.os) != normal_os(&want.os) || !self.version_matches(want) {
            return None;
        }
        let lacks = |feature| !want.os_features.contains(feature);
        if self.os_features.iter().any(lacks) {
            return None;
        }
        let (has, has_variant) = normal(&self.architecture, self.variant.as_deref());
        let (wants, wants_variant) = normal(&want.architecture, want.variant.as_deref());
        if has != wants {
            return None;
        }
        match (
            level(&has, has_variant.as_deref()),
            level(&wants, wants_variant.as_deref()),
        ) {
            (Some(has), Some(wants)) => wants.checked_sub(has),
            _ => (has_variant == wants_variant).then_some(0),
        }
    }

    /// Windows: the same major, minor and build number where both name them.
    fn version_matches(&self, want: &Self) -> bool {
        let (Some(has), Some(wants)) = (&self.os_version, &want.os_version) else {
            return true;
        };
        has.split('.').take(3).eq(wants.split('.').take(3))
    }
}

/// `os/architecture` or `os/architecture/variant`, in the words of the specification or in usual other ones.
impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        let (Some(os), Some(architecture), variant, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            bail!("platform {text:?}: not of the form OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT");
        };
        let word = |part: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.bytes().all(fits)
        };
        if !word(os) || !word(architecture) || !variant.is_none_or(word) {
            bail!(
                "platform {text:?}: a part is empty or not made of letters, digits, '.', '_', '-'"
            );
        }
        let (architecture, variant) = normal(architecture, variant);
        Ok(Self {
            os: normal_os(os),
            architecture,
            variant,
            ..Self::default()
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(out, "/{variant}")?;
        }
        if let Some(version) = &self.os_version {
            write!(out, " ({version})")?;
        }
        if !self.os_features.is_empty() {
            write!(out, " with {}", self.os_features.join(", "))?;
        }
        Ok(())
    }
}

fn normal_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

/// Go's name of the architecture, and the variant unless it is the one that goes without saying.
fn normal(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let lower = architecture.to_ascii_lowercase();
    let variant = variant
        .map(str::to_ascii_lowercase)
        .filter(|variant| !variant.is_empty());
    let (architecture, implied) = match lower.as_str() {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        "i386" | "i486" | "i586" | "i686" | "x86" => ("386", None),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
        "loongarch64" => ("loong64", None),
        other => (other, None),
    };
    let variant = variant.or_else(|| implied.map(str::to_owned));
    let variant = variant.map(|variant| {
        let digit = variant.starts_with(|first: char| first.is_ascii_digit());
        if digit && unsaid(architecture).is_some() {
            format!("v{variant}")
        } else {
            variant
        }
    });
    let variant = match architecture {
        // The 32-bit ARM variant is always said: what goes without saying there differs from tool to tool.
        "arm" => Some(variant.unwrap_or_else(|| "v7".to_owned())),
        _ => variant.filter(|variant| unsaid(architecture) != Some(variant)),
    };
    (architecture.to_owned(), variant)
}

/// The variant of an architecture whose variants build upon each other, when none is given.
fn unsaid(architecture: &str) -> Option<&'static str> {
    match architecture {
        "amd64" => Some("v1"),
        "arm" => Some("v7"),
        "arm64" => Some("v8"),
        _ => None,
    }
}

/// `v8.2` as 802: higher ones run what is made for lower ones. None where variants are not ordered.
fn level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let implied = unsaid(architecture)?;
    let number = variant.unwrap_or(implied).strip_prefix('v')?;
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    let (major, minor): (u8, u8) = (major.parse().ok()?, minor.parse().ok()?);
    (minor < 100).then(|| u32::from(major) * 100 + u32::from(minor))
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    // The feature levels of the x86-64 psABI, as far as a program can tell one from the next.
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("f16c");
    let v3 = v3 && has!("lzcnt") && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd");
    let v4 = v4 && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => Some("v4"),
        (_, true, _) => Some("v3"),
        (true, ..) => Some("v2"),
        _ => None,
    }
}

#[cfg(target_arch = "arm")]
fn host_variant() -> Option<&'static str> {
    let machine = nix::sys::utsname::uname().ok()?;
    match machine.machine().to_str()? {
        name if name.starts_with("armv5") => Some("v5"),
        name if name.starts_with("armv6") => Some("v6"),
        name if name.starts_with("armv8") || name == "aarch64" => Some("v8"),
        _ => Some("v7"),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "arm")))]
fn host_variant() -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn an_image_runs_where_os_and_architecture_agree_and_the_variant_is_not_newer() {
        // image, host, distance
        for (image, host, distance) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64/v1", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v3", Some(200)),
            ("linux/amd64/v2", "linux/amd64/v3", Some(100)),
            ("linux/amd64/v3", "linux/amd64/v3", Some(0)),
            ("linux/amd64/v3", "linux/amd64/v2", None),
            ("linux/amd64/v2", "linux/amd64", None),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm64/8", "linux/arm64", Some(0)),
            ("linux/arm64/v8", "linux/arm64/v8.2", Some(2)),
            ("linux/arm64/v9", "linux/arm64", None),
            ("linux/arm/v5", "linux/arm/v7", Some(200)),
            ("linux/arm/v6", "linux/arm/v8", Some(200)),
            ("linux/arm/v8", "linux/arm/v7", None),
            ("linux/arm", "linux/arm/v7", Some(0)),
            ("linux/arm/v7", "linux/arm64", None),
            ("linux/arm/odd", "linux/arm/v7", None),
            ("linux/mips64le/softfloat", "linux/mips64le", None),
            (
                "linux/mips64le/softfloat",
                "linux/mips64le/softfloat",
                Some(0),
            ),
            ("linux/386", "linux/amd64", None),
            ("windows/amd64", "linux/amd64", None),
        ] {
            let found = platform(image).distance(&platform(host));
            assert_eq!(found, distance, "{image} on {host}");
        }
    }

    #[test]
    fn an_os_feature_that_is_not_wanted_and_another_os_version_do_not_match() {
        let want = Platform {
            os_version: Some("10.0.14393.1066".to_owned()),
            os_features: vec!["win32k".to_owned()],
            ..platform("windows/amd64")
        };
        let mut image = want.clone();
        image.os_version = Some("10.0.14393.9999".to_owned());
        assert!(image.matches(&want));
        image.os_features.clear();
        assert!(image.matches(&want));
        image.os_version = None;
        assert!(image.matches(&want));
        image.os_version = Some("10.0.14394.1066".to_owned());
        assert!(!image.matches(&want));
        let featured = Platform {
            os_features: vec!["odd".to_owned()],
            ..platform("linux/amd64")
        };
        assert!(!featured.matches(&platform("linux/amd64")));
    }

    #[test]
    fn a_platform_is_read_in_the_usual_spellings_and_written_in_one() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i686", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
        ] {
            assert_eq!(platform(text).to_string(), normal, "{text}");
        }
        for bad in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "linux/a b",
            "a/b/",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_is_itself() {
        let host = Platform::host();
        assert!(host.matches(&host));
        assert_eq!(host.os, "linux");
        let plain = Platform {
            variant: None,
            ..host.clone()
        };
        assert!(cfg!(target_arch = "arm") || plain.matches(&host), "{host}");
    }
}
