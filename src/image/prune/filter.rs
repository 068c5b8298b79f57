//! What an operator narrows a prune down with: `--filter`, and the words for durations, times and sizes.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Error, Result, bail};

/// One `--filter`. Several have to hold together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Made before that time.
    Until(Until),
    /// Has the label, with this value where one is given.
    Label(String, Option<String>),
    /// Does not have it.
    NotLabel(String, Option<String>),
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// That many seconds ago.
    Ago(u64),
    /// Unix seconds.
    At(u64),
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let label = |text: &str| match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (text.to_owned(), None),
        };
        if let Some(rest) = text.strip_prefix("until=") {
            return Ok(Self::Until(until(rest)?));
        }
        let (filter, key) = if let Some(rest) = text.strip_prefix("label!=") {
            let (key, value) = label(rest);
            (Self::NotLabel(key.clone(), value), key)
        } else if let Some(rest) = text.strip_prefix("label=") {
            let (key, value) = label(rest);
            (Self::Label(key.clone(), value), key)
        } else {
            bail!("{text:?} is none of until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]");
        };
        if key.is_empty() {
            bail!("{text:?}: the label has no key");
        }
        Ok(filter)
    }
}

impl Filter {
    /// Whether something made at `created` (Unix seconds) with these labels may be pruned.
    pub(super) fn takes(&self, created: u64, labels: &BTreeMap<String, String>, now: u64) -> bool {
        let has = |key: &String, value: &Option<String>| {
            labels
                .get(key)
                .is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        match self {
            Self::Until(Until::Ago(ago)) => created <= now.saturating_sub(*ago),
            Self::Until(Until::At(at)) => created <= *at,
            Self::Label(key, value) => has(key, value),
            Self::NotLabel(key, value) => !has(key, value),
        }
    }
}

/// A duration before now, a date, an RFC 3339 time, or Unix seconds.
fn until(text: &str) -> Result<Until> {
    if let Ok(seconds) = text.parse() {
        return Ok(Until::At(seconds));
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Until::Ago(ago.as_secs()));
    }
    let whole = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    unix_seconds(&whole).map(Until::At).with_context(|| {
        format!("until={text}: neither a duration (24h), a date, an RFC 3339 time nor Unix seconds")
    })
}

/// An RFC 3339 time in Unix seconds, with `Z` or an offset; none where it is something else, 0 before 1970.
pub(super) fn unix_seconds(text: &str) -> Option<u64> {
    // The year of a time that was never set is 1 (Go's zero time), or 1970.
    let (year, rest) = text.split_at_checked(4)?;
    if year.parse::<u32>().is_ok_and(|year| year < 1970) && rest.starts_with('-') {
        return Some(0);
    }
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Some(
            time.duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        );
    }
    // `2026-11-23T21:00:00+02:00`: the offset is split off by hand.
    let at = text.len().checked_sub(6)?;
    let (time, offset) = (text.get(..at)?, text.get(at..)?);
    let (sign, offset) = offset.split_at(1);
    let (hours, minutes) = offset.split_once(':')?;
    let offset = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
    let time = humantime::parse_rfc3339_weak(time).ok()?;
    let time = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    match sign {
        "+" => Some(time.saturating_sub(offset)),
        "-" => Some(time.saturating_add(offset)),
        _ => None,
    }
}

/// `--grace`: a duration such as `90s`, `24h` or `7days`, in seconds.
pub(crate) fn grace(text: &str) -> Result<u64> {
    humantime::parse_duration(text)
        .map(|duration| duration.as_secs())
        .with_context(|| format!("{text:?} is not a duration such as 90s, 24h or 7days"))
}

/// A number of bytes, plain or with a unit: `B`, `kB` to `EB` (powers of ten), `KiB` to `EiB` (powers of two).
pub(crate) fn size(text: &str) -> Result<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "t" | "tb" => 1000_u64.pow(4),
        "p" | "pb" => 1000_u64.pow(5),
        "e" | "eb" => 1000_u64.pow(6),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "pib" => 1 << 50,
        "eib" => 1 << 60,
        _ => bail!("{text:?} is not a size such as 500MB or 10GiB"),
    };
    let parsed = || -> Option<u64> {
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.len() > 9 {
            return None;
        }
        let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
        let fraction = match fraction {
            "" => 0,
            digits => {
                let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
                let part = u128::from(digits.parse::<u64>().ok()?) * u128::from(factor) / scale;
                u64::try_from(part).ok()?
            }
        };
        whole.checked_add(fraction)
    };
    parsed().with_context(|| format!("{text:?} is not a size such as 500MB or 10GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_ten_and_of_two() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("1k", 1000),
            ("1.5MB", 1_500_000),
            ("10 GiB", 10 << 30),
            ("2tb", 2_000_000_000_000),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for bad in [
            "",
            "-1",
            "1x",
            "1.2.3k",
            ".5",
            "99999999999EB",
            "20EB",
            "1,5MB",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    // G-5: no number of hours overflows.
    #[test]
    fn durations_that_are_too_long_are_refused_and_long_ones_are_kept() {
        assert_eq!(grace("1h30m").unwrap(), 5400);
        assert_eq!(grace("0s").unwrap(), 0);
        assert!(grace("500000000000years").unwrap() > 1 << 60);
        for bad in ["99999999999999999999h", "10", "-1h", ""] {
            assert!(grace(bad).is_err(), "{bad}");
        }
        let filter: Filter = "until=500000000000years".parse().unwrap();
        assert!(!filter.takes(10, &BTreeMap::new(), 1_000));
    }

    #[test]
    fn times_are_dates_moments_seconds_or_ages() {
        for (text, until) in [
            ("until=24h", Until::Ago(86400)),
            ("until=1700000000", Until::At(1_700_000_000)),
            ("until=2023-11-14", Until::At(1_699_920_000)),
            ("until=2023-11-14T22:13:20Z", Until::At(1_700_000_000)),
            ("until=2023-11-15T00:13:20+02:00", Until::At(1_700_000_000)),
            ("until=1969-01-01T00:00:00Z", Until::At(0)),
        ] {
            assert_eq!(
                text.parse::<Filter>().unwrap(),
                Filter::Until(until),
                "{text}"
            );
        }
        for bad in [
            "until=",
            "until=x",
            "label=",
            "label!==v",
            "dangling=true",
            "",
        ] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        for (filter, takes) in [
            ("label=a", true),
            ("label=a=1", true),
            ("label=a=2", false),
            ("label=b", false),
            ("label!=a", false),
            ("label!=a=2", true),
            ("label!=b", true),
        ] {
            let parsed: Filter = filter.parse().unwrap();
            assert_eq!(parsed.takes(0, &labels, 0), takes, "{filter}");
        }
    }
}
