//! The text format of GVariant, in which annotations give the value of a unit property: `'text'`, `uint64 5`, `true`,
//! `['a', 'b']`, `(1, 'x')`, `@as []`, `{'k': <1>}`.
//!
//! Without a type in front a whole number is an `i` and one with a point a `d`, as in GLib and in runc.

use std::iter::Peekable;
use std::str::Chars;

use anyhow::{Context as _, Result, bail};

use super::bus::{Value, complete};

/// How deep values may lie in each other.
const DEEPEST: usize = 32;

/// The value that a text stands for.
///
/// # Errors
/// What is wrong with it; nothing may follow the value.
pub(super) fn parse(text: &str) -> Result<Value> {
    let mut parser = Parser {
        chars: text.chars().peekable(),
    };
    let value = parser.value(None, 0)?;
    parser.space();
    match parser.chars.next() {
        None => Ok(value),
        Some(left) => bail!("{left:?} after the value"),
    }
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn space(&mut self) {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn peek(&mut self) -> Result<char> {
        self.space();
        self.chars.peek().copied().context("a value is missing")
    }

    /// Whether the next sign is this one, which is passed over then.
    fn skip(&mut self, sign: char) -> bool {
        self.space();
        self.chars.next_if_eq(&sign).is_some()
    }

    fn expect(&mut self, sign: char) -> Result<()> {
        if self.skip(sign) {
            return Ok(());
        }
        bail!("{sign:?} is missing")
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self
            .chars
            .next_if(|c| c.is_ascii_alphanumeric() || "+-._".contains(*c))
        {
            word.push(c);
        }
        word
    }

    /// A value, of the type `wanted` where that is known.
    fn value(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value> {
        if depth > DEEPEST {
            bail!("values lie too deep in each other");
        }
        match self.peek()? {
            '@' => {
                self.chars.next();
                let mut signature = String::new();
                while let Some(c) = self.chars.next_if(|c| !c.is_whitespace()) {
                    signature.push(c);
                }
                if complete(&signature)? != signature.len() {
                    bail!("{signature:?} is not one type");
                }
                agree(wanted, &signature)?;
                self.value(Some(&signature), depth + 1)
            }
            quote @ ('\'' | '"') => self.string(quote, wanted),
            '[' => self.array(wanted, depth),
            '(' => self.tuple(wanted, depth),
            '{' => self.dictionary(wanted, depth),
            '<' => {
                self.chars.next();
                agree(wanted, "v")?;
                let inner = self.value(None, depth + 1)?;
                self.expect('>')?;
                Ok(Value::variant(inner))
            }
            _ => self.plain(wanted, depth),
        }
    }

    fn string(&mut self, quote: char, wanted: Option<&str>) -> Result<Value> {
        self.chars.next();
        let mut text = String::new();
        loop {
            match self.chars.next().context("a string has no end")? {
                '\\' => match self.chars.next().context("a string has no end")? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => text.push(self.code_point(4)?),
                    'U' => text.push(self.code_point(8)?),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    c => bail!("unknown escape \\{c}"),
                },
                c if c == quote => break,
                c => text.push(c),
            }
        }
        Ok(match wanted {
            None | Some("s") => Value::Text(text),
            Some("o") => Value::ObjectPath(text),
            Some("g") => Value::Signature(text),
            Some(other) => bail!("a string where the type is {other:?}"),
        })
    }

    fn code_point(&mut self, digits: usize) -> Result<char> {
        let text: String = self.chars.by_ref().take(digits).collect();
        u32::from_str_radix(&text, 16)
            .ok()
            .filter(|_| text.len() == digits)
            .and_then(char::from_u32)
            .with_context(|| format!("{text:?} is no code point"))
    }

    fn array(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value> {
        self.chars.next();
        let mut element = match wanted {
            None => None,
            Some(signature) => Some(
                signature
                    .strip_prefix('a')
                    .with_context(|| format!("an array where the type is {signature:?}"))?
                    .to_owned(),
            ),
        };
        let mut values = Vec::new();
        while !self.skip(']') {
            if !values.is_empty() {
                self.expect(',')?;
            }
            let value = self.value(element.as_deref(), depth + 1)?;
            element.get_or_insert_with(|| value.signature());
            values.push(value);
        }
        let element = element.context("an empty array needs its type in front, such as @as []")?;
        Ok(Value::Array(element, values))
    }

    fn tuple(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value> {
        self.chars.next();
        let mut types = match wanted {
            None => None,
            Some(signature) => Some(
                signature
                    .strip_prefix('(')
                    .and_then(|inner| inner.strip_suffix(')'))
                    .with_context(|| format!("a tuple where the type is {signature:?}"))?,
            ),
        };
        let mut members = Vec::new();
        while !self.skip(')') {
            if !members.is_empty() {
                self.expect(',')?;
                // `(1,)` is a tuple of one.
                if self.skip(')') {
                    break;
                }
            }
            let own = match types {
                None => None,
                Some(rest) => {
                    let (own, rest) = rest.split_at(complete(rest)?);
                    types = Some(rest);
                    Some(own)
                }
            };
            members.push(self.value(own, depth + 1)?);
        }
        match (members.is_empty(), types) {
            // D-Bus has no empty structure.
            (true, _) => bail!("a tuple without members"),
            (false, Some(rest)) if !rest.is_empty() => bail!("a tuple with too few members"),
            _ => Ok(Value::Struct(members)),
        }
    }

    fn dictionary(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value> {
        self.chars.next();
        let mut types = match wanted {
            None => None,
            Some(signature) => {
                let inner = signature
                    .strip_prefix("a{")
                    .and_then(|inner| inner.strip_suffix('}'))
                    .with_context(|| format!("a dictionary where the type is {signature:?}"))?;
                let (key, value) = inner.split_at(complete(inner)?);
                Some((key.to_owned(), value.to_owned()))
            }
        };
        let mut entries = Vec::new();
        while !self.skip('}') {
            if !entries.is_empty() {
                self.expect(',')?;
            }
            let key = self.value(types.as_ref().map(|t| t.0.as_str()), depth + 1)?;
            self.expect(':')?;
            let value = self.value(types.as_ref().map(|t| t.1.as_str()), depth + 1)?;
            types.get_or_insert_with(|| (key.signature(), value.signature()));
            entries.push(Value::Entry(Box::new((key, value))));
        }
        let (key, value) = types.context("an empty dictionary needs its type in front")?;
        Ok(Value::Array(format!("{{{key}{value}}}"), entries))
    }

    /// A number, a truth value, or a value with the name of its type in front.
    fn plain(&mut self, wanted: Option<&str>, depth: usize) -> Result<Value> {
        let word = self.word();
        let named = match word.as_str() {
            "" => bail!("{:?} begins no value", self.peek()?),
            "true" | "false" => {
                agree(wanted, "b")?;
                return Ok(Value::Bool(word == "true"));
            }
            "boolean" => "b",
            "byte" => "y",
            "int16" => "n",
            "uint16" => "q",
            "int32" => "i",
            "uint32" => "u",
            "int64" => "x",
            "uint64" => "t",
            "double" => "d",
            "string" => "s",
            "objectpath" => "o",
            "signature" => "g",
            _ => return number(&word, wanted),
        };
        agree(wanted, named)?;
        self.value(Some(named), depth + 1)
    }
}

fn agree(wanted: Option<&str>, found: &str) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != found => {
            bail!("a value of type {found:?} where the type is {wanted:?}")
        }
        _ => Ok(()),
    }
}

fn number(word: &str, wanted: Option<&str>) -> Result<Value> {
    let (negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    let whole = if let Some(hex) = digits.strip_prefix("0x") {
        i128::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') && !digits.contains('.') {
        i128::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    let whole = whole.map(|n| if negative { -n } else { n });
    let wanted = wanted.unwrap_or(if whole.is_ok() { "i" } else { "d" });
    let value = match (wanted, whole) {
        ("d", _) => word
            .parse()
            .ok()
            .filter(|_| digits.starts_with(|c: char| c.is_ascii_digit()))
            .map(Value::Double),
        ("y", Ok(n)) => u8::try_from(n).ok().map(Value::Byte),
        ("n", Ok(n)) => i16::try_from(n).ok().map(Value::I16),
        ("q", Ok(n)) => u16::try_from(n).ok().map(Value::U16),
        ("i", Ok(n)) => i32::try_from(n).ok().map(Value::I32),
        ("u", Ok(n)) => u32::try_from(n).ok().map(Value::U32),
        ("x", Ok(n)) => i64::try_from(n).ok().map(Value::I64),
        ("t", Ok(n)) => u64::try_from(n).ok().map(Value::U64),
        _ => None,
    };
    value.with_context(|| format!("{word:?} is no value of type {wanted:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_values() {
        let text = |text: &str| Value::text(text);
        for (written, value) in [
            ("'a b'", text("a b")),
            (" \"it's\\n\" ", text("it's\n")),
            ("'\\u00e9'", text("é")),
            ("true", Value::Bool(true)),
            ("5", Value::I32(5)),
            ("-0x10", Value::I32(-16)),
            ("010", Value::I32(8)),
            ("1.5", Value::Double(1.5)),
            ("uint64 18446744073709551615", Value::U64(u64::MAX)),
            ("int16 -3", Value::I16(-3)),
            ("byte 0xff", Value::Byte(255)),
            ("@t 7", Value::U64(7)),
            ("objectpath '/a'", Value::ObjectPath("/a".into())),
            (
                "['a', 'b']",
                Value::Array("s".into(), vec![text("a"), text("b")]),
            ),
            ("@as []", Value::Array("s".into(), Vec::new())),
            (
                "[uint32 1, 2]",
                Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)]),
            ),
            (
                "@a(st) [('/dev', 5)]",
                Value::Array(
                    "(st)".into(),
                    vec![Value::Struct(vec![text("/dev"), Value::U64(5)])],
                ),
            ),
            ("(1,)", Value::Struct(vec![Value::I32(1)])),
            (
                "{'k': <1>}",
                Value::Array(
                    "{sv}".into(),
                    vec![Value::Entry(Box::new((
                        text("k"),
                        Value::variant(Value::I32(1)),
                    )))],
                ),
            ),
        ] {
            assert_eq!(parse(written).unwrap(), value, "{written}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for (written, error) in [
            ("", "a value is missing"),
            ("'a", "a string has no end"),
            ("5 6", "'6' after the value"),
            ("'\\q'", "unknown escape \\q"),
            (
                "[]",
                "an empty array needs its type in front, such as @as []",
            ),
            ("[1, 'a']", "a string where the type is \"i\""),
            ("[1", "',' is missing"),
            ("()", "a tuple without members"),
            ("uint32 -1", "\"-1\" is no value of type \"u\""),
            ("2147483648", "\"2147483648\" is no value of type \"i\""),
            ("@x 'a'", "a string where the type is \"x\""),
            ("@ss 'a'", "\"ss\" is not one type"),
            ("perhaps", "\"perhaps\" is no value of type \"d\""),
            ("nan", "\"nan\" is no value of type \"d\""),
            ("$", "'$' begins no value"),
        ] {
            assert_eq!(parse(written).unwrap_err().to_string(), error, "{written}");
        }
        assert!(parse(&"[".repeat(1000)).is_err());
    }
}
