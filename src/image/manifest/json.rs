//! JSON as documents from strangers are read: bounded, in UTF-8, and without a name that occurs twice in one object.

use std::collections::HashSet;
use std::fmt;

use anyhow::{Result, anyhow, bail};
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::Error as _};

use super::LARGEST_DOCUMENT;

/// Read one document. Errors name the member. serde_json itself refuses nesting deeper than 128.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if bytes.len() as u64 > LARGEST_DOCUMENT {
        bail!(
            "{} bytes long, and {LARGEST_DOCUMENT} is the most that is read",
            bytes.len()
        );
    }
    // Readers differ in which of two members with one name they take, so an image could be two images.
    serde_json::from_slice::<Unique>(bytes).map_err(|error| anyhow!("not strict JSON: {error}"))?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => anyhow!("{}", error.into_inner()),
            _ => anyhow!("{path}: {}", error.into_inner()),
        }
    })
}

/// `null` stands for nothing, as Go's encoder writes an empty list or map.
pub(super) fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Any value in which no object names a member twice. Nothing is kept, so it costs no memory beyond the names.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            members.next_value::<Self>()?;
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("the name {name:?} occurs twice")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;

    #[test]
    fn a_name_that_occurs_twice_is_refused_wherever_it_stands() {
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":[{"b":{"a":1,"c":2,"a":3}}]}"#,
            r#"{"a":1,"\u0061":2}"#,
        ] {
            let error = read::<IgnoredAny>(bad.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("\"a\" occurs twice"), "{error}");
        }
        read::<IgnoredAny>(br#"{"a":{"a":[{"a":null},{"a":1.5}]},"A":-1,"b":true}"#).unwrap();
    }

    #[test]
    fn what_is_not_one_bounded_json_value_is_refused() {
        let deep = "[".repeat(1_000_000);
        let long = format!(
            "\"{}\"",
            "a".repeat(usize::try_from(LARGEST_DOCUMENT).unwrap())
        );
        for bad in [
            "",
            "{",
            "{} {}",
            "\u{feff}{}",
            deep.as_str(),
            long.as_str(),
            r#""\ud800""#,
        ] {
            assert!(read::<String>(bad.as_bytes()).is_err(), "{:.20}", bad);
        }
        assert!(read::<IgnoredAny>(b"{\"\xff\":1}").is_err());
    }
}
