//! As much of D-Bus as the systemd driver takes: one connection, calls that may follow each other without waiting, the
//! answers, and the signals of a job.
//!
//! A client of its own and no package: the ones there are run a thread or an executor, which this program may not have
//! before the clone, and are larger than all the rest of it. The format is that of the D-Bus specification, "Message
//! Protocol"; both ends are on one machine and therefore of one byte order.

use std::ffi::OsString;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// The largest message that is read. The specification allows 128 MiB; what systemd answers here has a few hundred bytes.
const LARGEST: usize = 1 << 20;
/// How deep containers may lie in each other: as deep as the specification allows arrays and structures together.
const DEEPEST: usize = 64;

/// A value as D-Bus knows it, with all it takes to know its signature.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Text(String),
    ObjectPath(String),
    Signature(String),
    /// The signature of the elements, and the elements.
    Array(String, Vec<Self>),
    Struct(Vec<Self>),
    /// One entry of a dictionary, which is an array of these.
    Entry(Box<(Self, Self)>),
    Variant(Box<Self>),
}

impl Value {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn variant(value: Self) -> Self {
        Self::Variant(Box::new(value))
    }

    /// Its signature ("Type System").
    pub(super) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".into(),
            Self::Bool(_) => "b".into(),
            Self::I16(_) => "n".into(),
            Self::U16(_) => "q".into(),
            Self::I32(_) => "i".into(),
            Self::U32(_) => "u".into(),
            Self::I64(_) => "x".into(),
            Self::U64(_) => "t".into(),
            Self::Double(_) => "d".into(),
            Self::Text(_) => "s".into(),
            Self::ObjectPath(_) => "o".into(),
            Self::Signature(_) => "g".into(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(members) => {
                format!(
                    "({})",
                    members.iter().map(Self::signature).collect::<String>()
                )
            }
            Self::Entry(pair) => format!("{{{}{}}}", pair.0.signature(), pair.1.signature()),
            Self::Variant(_) => "v".into(),
        }
    }

    /// The text of a string or an object path.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::ObjectPath(text) => Some(text),
            Self::Variant(inner) => inner.as_text(),
            _ => None,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Byte(value) => out.push(*value),
            Self::Bool(value) => put(out, &u32::from(*value).to_ne_bytes()),
            Self::I16(value) => put(out, &value.to_ne_bytes()),
            Self::U16(value) => put(out, &value.to_ne_bytes()),
            Self::I32(value) => put(out, &value.to_ne_bytes()),
            Self::U32(value) => put(out, &value.to_ne_bytes()),
            Self::I64(value) => put(out, &value.to_ne_bytes()),
            Self::U64(value) => put(out, &value.to_ne_bytes()),
            Self::Double(value) => put(out, &value.to_ne_bytes()),
            Self::Text(text) | Self::ObjectPath(text) => {
                put(out, &length(text.len()).to_ne_bytes());
                out.extend_from_slice(text.as_bytes());
                out.push(0);
            }
            Self::Signature(text) => write_signature(text, out),
            Self::Array(element, values) => {
                put(out, &[0; 4]);
                let count_at = out.len() - 4;
                // The padding before the first element is there without one too, and not counted.
                pad(out, alignment(element.bytes().next().unwrap_or(b'y')));
                let begin = out.len();
                for value in values {
                    value.write(out);
                }
                let count = length(out.len() - begin);
                out[count_at..count_at + 4].copy_from_slice(&count.to_ne_bytes());
            }
            Self::Struct(members) => {
                pad(out, 8);
                for member in members {
                    member.write(out);
                }
            }
            Self::Entry(pair) => {
                pad(out, 8);
                pair.0.write(out);
                pair.1.write(out);
            }
            Self::Variant(inner) => {
                write_signature(&inner.signature(), out);
                inner.write(out);
            }
        }
    }
}

fn write_signature(text: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    pad(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn alignment(code: u8) -> usize {
    match code {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' | b'h' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 1,
    }
}

/// The values in a piece of a message, which begins at a multiple of eight.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let piece = self
            .at
            .checked_add(count)
            .and_then(|end| self.bytes.get(self.at..end));
        self.at = self.at.saturating_add(count);
        piece.context("the message is shorter than it says")
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.align(N);
        Ok(self.take(N)?.try_into()?)
    }

    fn size(&mut self) -> Result<usize> {
        Ok(u32::from_ne_bytes(self.number()?) as usize)
    }

    fn string(&mut self, size: usize) -> Result<String> {
        let text = self.take(size)?.to_vec();
        self.take(1)?;
        String::from_utf8(text).context("a string is not UTF-8")
    }

    /// One value of the first complete type of `signature`; the rest of it.
    fn value<'s>(&mut self, signature: &'s str, depth: usize) -> Result<(Value, &'s str)> {
        if depth > DEEPEST {
            bail!("the message is too deep");
        }
        let code = signature.bytes().next().context("a signature ends early")?;
        let (own, rest) = signature.split_at(complete(signature)?);
        let value = match code {
            b'y' => Value::Byte(self.take(1)?[0]),
            b'b' => Value::Bool(u32::from_ne_bytes(self.number()?) != 0),
            b'n' => Value::I16(i16::from_ne_bytes(self.number()?)),
            b'q' => Value::U16(u16::from_ne_bytes(self.number()?)),
            b'i' => Value::I32(i32::from_ne_bytes(self.number()?)),
            b'u' | b'h' => Value::U32(u32::from_ne_bytes(self.number()?)),
            b'x' => Value::I64(i64::from_ne_bytes(self.number()?)),
            b't' => Value::U64(u64::from_ne_bytes(self.number()?)),
            b'd' => Value::Double(f64::from_ne_bytes(self.number()?)),
            b's' | b'o' => {
                let size = self.size()?;
                let text = self.string(size)?;
                if code == b's' {
                    Value::Text(text)
                } else {
                    Value::ObjectPath(text)
                }
            }
            b'g' => {
                let size = self.take(1)?[0].into();
                Value::Signature(self.string(size)?)
            }
            b'v' => {
                let size = self.take(1)?[0].into();
                let inner = self.string(size)?;
                Value::variant(self.value(&inner, depth + 1)?.0)
            }
            b'a' => {
                let size = self.size()?;
                let element = &own[1..];
                self.align(alignment(element.as_bytes()[0]));
                let end = self.at.checked_add(size).context("an array has no end")?;
                let mut values = Vec::new();
                while self.at < end {
                    values.push(self.value(element, depth + 1)?.0);
                }
                Value::Array(element.to_owned(), values)
            }
            b'(' => {
                self.align(8);
                let mut members = Vec::new();
                let mut inner = &own[1..own.len() - 1];
                while !inner.is_empty() {
                    let (member, more) = self.value(inner, depth + 1)?;
                    members.push(member);
                    inner = more;
                }
                Value::Struct(members)
            }
            b'{' => {
                self.align(8);
                let (key, inner) = self.value(&own[1..own.len() - 1], depth + 1)?;
                let (value, _) = self.value(inner, depth + 1)?;
                Value::Entry(Box::new((key, value)))
            }
            _ => bail!("unknown type in the signature {signature:?}"),
        };
        Ok((value, rest))
    }
}

/// The length of the first complete type of a signature.
pub(super) fn complete(signature: &str) -> Result<usize> {
    let bytes = signature.as_bytes();
    let mut open = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'a' => continue,
            b'(' => open.push(b')'),
            b'{' => open.push(b'}'),
            b')' | b'}' if open.pop() != Some(*byte) => {
                bail!("a bracket is closed that is not open in the signature {signature:?}")
            }
            b')' | b'}' => {}
            _ if b"ybnqiuxtdsoghv".contains(byte) => {}
            _ => bail!("unknown type in the signature {signature:?}"),
        }
        if open.is_empty() {
            return Ok(at + 1);
        }
    }
    bail!("the signature {signature:?} ends early")
}

/// `type` of a message's header.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) destination: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// The bus itself.
const BUS: Object = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

fn call(serial: u32, object: Object, destination: bool, member: &str, body: &[Value]) -> Vec<u8> {
    let mut fields = vec![
        (PATH, Value::ObjectPath(object.path.into())),
        (INTERFACE, Value::text(object.interface)),
        (MEMBER, Value::text(member)),
    ];
    if destination {
        fields.push((DESTINATION, Value::text(object.destination)));
    }
    if !body.is_empty() {
        let signature = body.iter().map(Value::signature).collect();
        fields.push((SIGNATURE, Value::Signature(signature)));
    }
    message(CALL, serial, fields, body)
}

fn message(kind: u8, serial: u32, fields: Vec<(u8, Value)>, body: &[Value]) -> Vec<u8> {
    let mut content = Vec::new();
    for value in body {
        value.write(&mut content);
    }
    let mut out = vec![ORDER_MARK, kind, 0, 1];
    put(&mut out, &length(content.len()).to_ne_bytes());
    put(&mut out, &serial.to_ne_bytes());
    let fields = fields
        .into_iter()
        .map(|(code, value)| Value::Struct(vec![Value::Byte(code), Value::variant(value)]));
    Value::Array("(yv)".into(), fields.collect()).write(&mut out);
    pad(&mut out, 8);
    out.extend(content);
    out
}

/// What a message begins with: the byte order of this machine.
const ORDER_MARK: u8 = if cfg!(target_endian = "little") {
    b'l'
} else {
    b'B'
};

/// What came from the other side.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// The answer to the call of this number.
    Return(u32, Vec<Value>),
    /// The refusal of it: the error's name, and its words.
    Error(u32, String, String),
    /// A signal's member and values.
    Signal(String, Vec<Value>),
}

/// The size of the message that begins here, as soon as enough of it is there to know.
fn size_of_message(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(head) = bytes.get(..16) else {
        return Ok(None);
    };
    if head[0] != ORDER_MARK || head[3] != 1 {
        bail!("the answer is no message of D-Bus");
    }
    let number = |at: usize| -> usize {
        u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
    };
    let size = number(12).next_multiple_of(8) + 16 + number(4);
    if size > LARGEST {
        bail!("the answer is larger than {LARGEST} bytes");
    }
    Ok(Some(size))
}

/// A whole message; none where its kind says nothing to us.
fn parse(bytes: &[u8]) -> Result<Option<Heard>> {
    let kind = bytes[1];
    let mut reader = Reader { bytes, at: 12 };
    let (fields, _) = reader.value("a(yv)", 0)?;
    reader.align(8);
    let (mut serial, mut signature) = (0, String::new());
    let (mut member, mut error) = (String::new(), String::new());
    let Value::Array(_, fields) = fields else {
        bail!("the message has no header");
    };
    for field in fields {
        let Value::Struct(parts) = field else {
            continue;
        };
        if let [Value::Byte(code), Value::Variant(value)] = parts.as_slice() {
            match (*code, value.as_ref()) {
                (REPLY_SERIAL, Value::U32(number)) => serial = *number,
                (MEMBER, Value::Text(text)) => member.clone_from(text),
                (ERROR_NAME, Value::Text(text)) => error.clone_from(text),
                (SIGNATURE, Value::Signature(text)) => signature.clone_from(text),
                _ => {}
            }
        }
    }
    let mut body = Reader {
        bytes: bytes.get(reader.at..).unwrap_or_default(),
        at: 0,
    };
    let mut values = Vec::new();
    let mut rest = signature.as_str();
    while !rest.is_empty() {
        let (value, more) = body.value(rest, 0)?;
        values.push(value);
        rest = more;
    }
    Ok(match kind {
        RETURN => Some(Heard::Return(serial, values)),
        ERROR => {
            let words = values.first().and_then(Value::as_text).unwrap_or_default();
            Some(Heard::Error(serial, error, words.to_owned()))
        }
        SIGNAL => Some(Heard::Signal(member, values)),
        _ => None,
    })
}

/// Where a bus listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Path(PathBuf),
    /// A name that is in no file system.
    Abstract(Vec<u8>),
}

/// The unix sockets in the text of a server address ("Server Addresses"), in order.
pub(super) fn addresses(text: &str) -> Vec<Address> {
    let socket = |address: &str| -> Option<Address> {
        let parameters = address.strip_prefix("unix:")?;
        parameters.split(',').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = unescape(value)?;
            match key {
                "path" => Some(Address::Path(OsString::from_vec(value).into())),
                "abstract" => Some(Address::Abstract(value)),
                _ => None,
            }
        })
    };
    text.split(';').filter_map(socket).collect()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            plain.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            plain.push(byte);
        }
    }
    Some(plain)
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    /// Whether somebody passes messages on. On a socket of systemd's own there is nobody in between.
    is_bus: bool,
    serial: u32,
    /// Calls that were not sent yet.
    out: Vec<u8>,
    /// What came and was not looked at yet.
    input: Vec<u8>,
    authenticated: bool,
}

impl Bus {
    /// Connect to a bus, or to a program's own socket. Nothing is said yet.
    pub(super) fn connect(address: &Address, is_bus: bool) -> std::io::Result<Self> {
        let stream = match address {
            Address::Path(path) => UnixStream::connect(path)?,
            Address::Abstract(name) => {
                UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?
            }
        };
        let mut bus = Self {
            stream,
            is_bus,
            serial: 0,
            // "Authentication Protocol": who we are says the socket itself, also from within a user namespace. All that
            // follows goes with it, so that nothing waits for an answer that is known.
            out: b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n".to_vec(),
            input: Vec::new(),
            authenticated: false,
        };
        if is_bus {
            bus.call(BUS, "Hello", &[]);
        }
        Ok(bus)
    }

    /// Add a call to those that are sent next; the number of its answer.
    pub(super) fn call(&mut self, object: Object, member: &str, body: &[Value]) -> u32 {
        self.serial += 1;
        let message = call(self.serial, object, self.is_bus, member, body);
        self.out.extend(message);
        self.serial
    }

    /// Ask a bus to pass on the signals that `rule` describes; without one between they come unasked.
    pub(super) fn listen(&mut self, rule: &str) {
        if self.is_bus {
            self.call(BUS, "AddMatch", &[Value::text(rule)]);
        }
    }

    /// Send what was added, and return the next message. Errors: the deadline has passed, the other side has gone, or it
    /// does not speak D-Bus.
    pub(super) fn hear(&mut self, deadline: Instant) -> Result<Heard> {
        if !self.out.is_empty() {
            self.limit(deadline)?;
            self.stream.write_all(&self.out).context("send")?;
            self.out.clear();
        }
        while !self.authenticated {
            match self.line() {
                Some(line) if line == "DATA" => {}
                Some(line) if line.starts_with("OK ") => self.authenticated = true,
                Some(line) => bail!("the authentication was answered with {line:?}"),
                None => self.read(deadline)?,
            }
        }
        loop {
            match size_of_message(&self.input)? {
                Some(size) if size <= self.input.len() => {
                    let rest = self.input.split_off(size);
                    let message = std::mem::replace(&mut self.input, rest);
                    if let Some(heard) = parse(&message)? {
                        return Ok(heard);
                    }
                }
                _ => self.read(deadline)?,
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        let end = self.input.windows(2).position(|pair| pair == b"\r\n")?;
        let line: Vec<u8> = self.input.drain(..end + 2).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    fn read(&mut self, deadline: Instant) -> Result<()> {
        self.limit(deadline)?;
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the other side has closed the connection"),
            Ok(count) => self.input.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("no answer in time"),
            Err(error) => return Err(error).context("receive"),
        }
        Ok(())
    }

    fn limit(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no answer in time");
        }
        self.stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.set_write_timeout(Some(left)))
            .context("set a time limit")
    }
}

impl AsFd for Bus {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let properties = Value::Array(
            "(sv)".into(),
            vec![
                Value::Struct(vec![Value::text("a"), Value::variant(Value::U64(u64::MAX))]),
                Value::Struct(vec![
                    Value::text("bcdef"),
                    Value::variant(Value::Array("u".into(), vec![Value::U32(7)])),
                ]),
                Value::Struct(vec![
                    Value::text(""),
                    Value::variant(Value::Array("(ss)".into(), Vec::new())),
                ]),
            ],
        );
        let body = [
            Value::Byte(1),
            Value::Bool(true),
            Value::I16(-2),
            Value::U16(3),
            Value::I32(-4),
            Value::I64(-5),
            Value::Double(0.5),
            Value::ObjectPath("/a".into()),
            Value::Signature("a{sv}".into()),
            Value::Array(
                "{sv}".into(),
                vec![Value::Entry(Box::new((
                    Value::text("k"),
                    Value::variant(Value::Bool(false)),
                )))],
            ),
            properties,
        ];
        let signature: String = body.iter().map(Value::signature).collect();
        assert_eq!(signature, "ybnqixdoga{sv}a(sv)");
        let fields = vec![
            (REPLY_SERIAL, Value::U32(9)),
            (SIGNATURE, Value::Signature(signature)),
        ];
        let bytes = message(RETURN, 1, fields, &body);
        assert_eq!(size_of_message(&bytes).unwrap(), Some(bytes.len()));
        assert_eq!(
            parse(&bytes).unwrap(),
            Some(Heard::Return(9, body.to_vec()))
        );
    }

    #[test]
    fn a_call_lies_as_the_specification_has_it() {
        let object = Object {
            destination: "d.e",
            path: "/",
            interface: "i.j",
        };
        let bytes = call(1, object, true, "M", &[Value::text("x")]);
        let mut expected = vec![ORDER_MARK, 1, 0, 1];
        expected.extend(6u32.to_ne_bytes());
        expected.extend(1u32.to_ne_bytes());
        expected.extend(71u32.to_ne_bytes());
        expected.extend(b"\x01\x01o\0");
        expected.extend(1u32.to_ne_bytes());
        expected.extend(b"/\0\0\0\0\0\0\0");
        expected.extend(b"\x02\x01s\0");
        expected.extend(3u32.to_ne_bytes());
        expected.extend(b"i.j\0\0\0\0\0");
        expected.extend(b"\x03\x01s\0");
        expected.extend(1u32.to_ne_bytes());
        expected.extend(b"M\0\0\0\0\0\0\0");
        expected.extend(b"\x06\x01s\0");
        expected.extend(3u32.to_ne_bytes());
        expected.extend(b"d.e\0\0\0\0\0");
        expected.extend(b"\x08\x01g\0\x01s\0\0");
        expected.extend(1u32.to_ne_bytes());
        expected.extend(b"x\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn messages_that_are_cut_or_wrong_are_refused() {
        let whole = message(
            ERROR,
            1,
            vec![
                (REPLY_SERIAL, Value::U32(2)),
                (ERROR_NAME, Value::text("a.b")),
                (SIGNATURE, Value::Signature("s".into())),
            ],
            &[Value::text("words")],
        );
        assert_eq!(
            parse(&whole).unwrap(),
            Some(Heard::Error(2, "a.b".into(), "words".into()))
        );
        for end in 16..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        assert!(size_of_message(&[b'x'; 16]).is_err());
        let mut huge = whole.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(size_of_message(&huge).is_err());
        // An array that is longer than its message, and variants without an end.
        for (signature, body) in [
            ("ay", vec![255, 255, 255, 255]),
            ("v", [b"\x01v\0".repeat(80), vec![0]].concat()),
        ] {
            let mut reader = Reader {
                bytes: &body,
                at: 0,
            };
            assert!(reader.value(signature, 0).is_err(), "{signature}");
        }
    }

    #[test]
    fn signatures_are_cut_at_their_first_type() {
        for (signature, length) in [
            ("s", 1),
            ("asu", 2),
            ("a(sv)s", 5),
            ("(s(uu))x", 7),
            ("a{sv}", 5),
            ("aau", 3),
        ] {
            assert_eq!(complete(signature).unwrap(), length, "{signature}");
        }
        for signature in ["", "a", "(s", ")", "(s}", "z"] {
            assert!(complete(signature).is_err(), "{signature}");
        }
    }

    #[test]
    fn addresses_are_unix_sockets_in_order() {
        assert_eq!(
            addresses("tcp:host=x;unix:path=/run/a%20b,guid=1;unix:abstract=c;unix:path=%4"),
            [
                Address::Path("/run/a b".into()),
                Address::Abstract(b"c".to_vec())
            ]
        );
    }
}
