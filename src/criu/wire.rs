//! As much of protocol buffers as CRIU's requests take (protobuf.dev, "Encoding"): numbers, texts and messages in
//! messages. A generated reader of the whole `rpc.proto` would be larger than the runtime's reader of config.json.

use anyhow::{Context, Result, bail};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// A message as it is put together, field after field.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Add a number, a switch or a word of an enumeration. Negative numbers are written as they are in 64 bits.
    pub(crate) fn number(&mut self, field: u32, value: i64) -> &mut Self {
        self.varint(u64::from(field) << 3 | VARINT);
        self.varint(value.cast_unsigned());
        self
    }

    /// Add a text.
    pub(crate) fn text(&mut self, field: u32, value: &str) -> &mut Self {
        self.bytes(field, value.as_bytes())
    }

    /// Add a message.
    pub(crate) fn message(&mut self, field: u32, value: &Self) -> &mut Self {
        self.bytes(field, &value.0)
    }

    fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | LENGTH);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }
}

/// The value of a field that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(i64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in their order.
///
/// # Errors
/// It ends in the middle of a field, or has a kind of field that no release of the protocol has used.
pub(crate) fn fields(mut rest: &[u8]) -> Result<Vec<(u32, Value<'_>)>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let field = u32::try_from(key >> 3).context("field number")?;
        let value = match key & 7 {
            VARINT => Value::Number(take_varint(&mut rest)?.cast_signed()),
            FIXED64 => Value::Bytes(take(&mut rest, 8)?),
            LENGTH => {
                let length = usize::try_from(take_varint(&mut rest)?).context("length")?;
                Value::Bytes(take(&mut rest, length)?)
            }
            FIXED32 => Value::Bytes(take(&mut rest, 4)?),
            kind => bail!("field {field} is of kind {kind}"),
        };
        found.push((field, value));
    }
    Ok(found)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, left) = rest
        .split_at_checked(length)
        .context("it ends in the middle of a field")?;
    *rest = left;
    Ok(taken)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number has more than 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let mut inner = Message::default();
        inner.text(1, "post-restore").number(2, 4711);
        let mut message = Message::default();
        message
            .number(1, 6)
            .number(2, 1)
            .message(5, &inner)
            .number(7, -17);
        let read = fields(message.as_bytes()).unwrap();
        assert_eq!(
            read,
            [
                (1, Value::Number(6)),
                (2, Value::Number(1)),
                (5, Value::Bytes(inner.as_bytes())),
                (7, Value::Number(-17)),
            ]
        );
        assert_eq!(
            fields(inner.as_bytes()).unwrap(),
            [(1, Value::Bytes(b"post-restore")), (2, Value::Number(4711))]
        );
    }

    #[test]
    fn numbers_have_the_bytes_of_the_encoding_guide() {
        let mut message = Message::default();
        message.number(1, 150);
        assert_eq!(message.as_bytes(), [0x08, 0x96, 0x01]);
        let mut message = Message::default();
        message.text(2, "testing");
        assert_eq!(message.as_bytes(), b"\x12\x07testing");
    }

    #[test]
    fn a_message_that_was_cut_is_an_error() {
        for cut in [
            &b"\x08"[..],
            b"\x08\x96",
            b"\x12\x07test",
            b"\x0b",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(fields(cut).is_err(), "{cut:?}");
        }
    }
}
