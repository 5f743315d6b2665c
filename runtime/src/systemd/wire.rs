//! Messages of D-Bus (specification, "Message Protocol"): those few kinds that are spoken with systemd.
//!
//! **Threat.** The peer may be anything that sits on the socket: lengths are checked before they are believed, and a message
//! has an upper size.

use std::borrow::Cow;
use std::io;

use super::property::Given;

/// The longest message that is read, in bytes. The protocol allows 128 MiB; systemd's answers here have some hundred.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

/// The fixed beginning of a message: what has to be read to know the length of all.
pub(super) const FIXED: usize = 16;

/// A value of a property, sent as a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Flag(bool),
    Number(u64),
    Text(String),
    Bytes(Vec<u8>),
    Pids(Vec<u32>),
    /// Of an annotation, in a type of its own.
    Given(Given),
}

impl Value {
    fn signature(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Flag(_) => "b",
            Self::Number(_) => "t",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Pids(_) => "au",
            Self::Given(given) => return Cow::Owned(given.signature()),
        })
    }
}

/// Writes values, each at its alignment.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn align(&mut self, to: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
        self
    }

    fn byte(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// The bytes of a number of the alignment `to`.
    pub fn raw(&mut self, to: usize, bytes: &[u8]) -> &mut Self {
        self.align(to).bytes.extend_from_slice(bytes);
        self
    }

    #[cfg(test)]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn number(&mut self, value: u32) -> &mut Self {
        self.align(4).bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn flag(&mut self, value: bool) -> &mut Self {
        self.number(u32::from(value))
    }

    /// A string, or the path of an object.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.number(length(text.len())).bytes.extend_from_slice(text.as_bytes());
        self.byte(0)
    }

    pub fn signature(&mut self, text: &str) -> &mut Self {
        self.byte(u8::try_from(text.len()).unwrap_or(u8::MAX)).bytes.extend_from_slice(text.as_bytes());
        self.byte(0)
    }

    pub fn variant(&mut self, value: &Value) -> &mut Self {
        self.signature(&value.signature());
        match value {
            Value::Flag(flag) => self.flag(*flag),
            Value::Number(number) => {
                self.align(8).bytes.extend_from_slice(&number.to_le_bytes());
                self
            }
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => {
                self.number(length(bytes.len())).bytes.extend_from_slice(bytes);
                self
            }
            Value::Pids(pids) => self.array(4, |writer| {
                for pid in pids {
                    writer.number(*pid);
                }
            }),
            Value::Given(given) => {
                given.write(self);
                self
            }
        }
    }

    /// An array of elements of the alignment `to`. Its length does not count the padding before the first one.
    pub fn array(&mut self, to: usize, elements: impl FnOnce(&mut Self)) -> &mut Self {
        self.number(0);
        let at = self.bytes.len();
        self.align(to);
        let start = self.bytes.len();
        elements(self);
        let len = length(self.bytes.len() - start).to_le_bytes();
        if let Some(place) = self.bytes.get_mut(at - 4..at) {
            place.copy_from_slice(&len);
        }
        self
    }
}

/// What is sent here is far below the limit of the protocol.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A method of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

const METHOD_CALL: u8 = 1;
const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;

/// A call of `method` with the number `serial` and what `body` writes, which has the type `signature`.
pub(super) fn call(method: &Method<'_>, serial: u32, signature: &str, body: &Writer) -> Vec<u8> {
    let fields = [
        (field::PATH, "o", method.path),
        (field::DESTINATION, "s", method.destination),
        (field::INTERFACE, "s", method.interface),
        (field::MEMBER, "s", method.member),
    ];
    message(METHOD_CALL, serial, None, &fields, signature, body)
}

fn message(
    kind: u8,
    serial: u32,
    reply_to: Option<u32>,
    texts: &[(u8, &str, &str)],
    signature: &str,
    body: &Writer,
) -> Vec<u8> {
    let mut message = Writer::default();
    message.byte(LITTLE_ENDIAN).byte(kind).byte(0).byte(VERSION);
    message.number(length(body.bytes.len())).number(serial);
    message.array(8, |fields| {
        for (code, kind, text) in texts {
            fields.align(8).byte(*code).signature(kind).text(text);
        }
        if let Some(serial) = reply_to {
            fields.align(8).byte(field::REPLY_SERIAL).signature("u").number(serial);
        }
        if !signature.is_empty() {
            fields.align(8).byte(field::SIGNATURE).signature("g").signature(signature);
        }
    });
    message.align(8).bytes.extend_from_slice(&body.bytes);
    message.bytes
}

/// Codes of header fields.
mod field {
    pub const PATH: u8 = 1;
    pub const INTERFACE: u8 = 2;
    pub const MEMBER: u8 = 3;
    pub const ERROR_NAME: u8 = 4;
    pub const REPLY_SERIAL: u8 = 5;
    pub const DESTINATION: u8 = 6;
    pub const SIGNATURE: u8 = 8;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Return,
    Error,
    Signal,
    Other,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: Kind,
    /// The call that it answers.
    pub reply_to: Option<u32>,
    pub member: String,
    pub error: String,
    pub signature: String,
    pub body: Vec<u8>,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message of D-Bus is malformed")
}

/// The length of the whole message that begins with `fixed`.
pub(super) fn total(fixed: &[u8; FIXED]) -> io::Result<usize> {
    let [order, _, _, version, body @ .., _, _, _, _, f0, f1, f2, f3] = fixed;
    if *order != LITTLE_ENDIAN || *version != VERSION {
        return Err(broken());
    }
    let body = usize::try_from(u32::from_le_bytes(*body)).map_err(|_| broken())?;
    let fields = usize::try_from(u32::from_le_bytes([*f0, *f1, *f2, *f3])).map_err(|_| broken())?;
    let total = fields.checked_add(FIXED).map(|head| head.next_multiple_of(8));
    total.and_then(|head| head.checked_add(body)).filter(|total| *total <= MAX_MESSAGE).ok_or_else(broken)
}

/// Reads a whole message.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Message> {
    let mut reader = Reader { bytes, at: 0 };
    let [_, kind, _, _] = reader.take::<4>()?;
    let body_len = usize::try_from(reader.number()?).map_err(|_| broken())?;
    reader.number()?;
    let fields_end = usize::try_from(reader.number()?).map_err(|_| broken())?.saturating_add(FIXED);
    let kind = match kind {
        2 => Kind::Return,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => Kind::Other,
    };
    let mut message = Message {
        kind,
        reply_to: None,
        member: String::new(),
        error: String::new(),
        signature: String::new(),
        body: Vec::new(),
    };
    while reader.at < fields_end {
        reader.align(8)?;
        let [code] = reader.take::<1>()?;
        match reader.signature()?.as_str() {
            "u" => {
                let number = reader.number()?;
                if code == field::REPLY_SERIAL {
                    message.reply_to = Some(number);
                }
            }
            "s" | "o" => {
                let text = reader.text()?;
                match code {
                    field::MEMBER => message.member = text,
                    field::ERROR_NAME => message.error = text,
                    _ => {}
                }
            }
            "g" => {
                let text = reader.signature()?;
                if code == field::SIGNATURE {
                    message.signature = text;
                }
            }
            // A field that is not known has a type that need not be known either, and ends the list for us.
            _ => break,
        }
    }
    let body_at = fields_end.next_multiple_of(8);
    let end = body_at.checked_add(body_len).ok_or_else(broken)?;
    message.body = bytes.get(body_at..end).ok_or_else(broken)?.to_vec();
    Ok(message)
}

/// Reads values, each at its alignment.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn of(message: &'a Message) -> Self {
        Self { bytes: &message.body, at: 0 }
    }

    fn align(&mut self, to: usize) -> io::Result<()> {
        self.at = self.at.checked_next_multiple_of(to).ok_or_else(broken)?;
        Ok(())
    }

    fn slice(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or_else(broken)?;
        let slice = self.bytes.get(self.at..end).ok_or_else(broken)?;
        self.at = end;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.slice(N)?.try_into().map_err(|_| broken())
    }

    pub fn number(&mut self) -> io::Result<u32> {
        self.align(4)?;
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn words(&mut self, len: usize) -> io::Result<String> {
        let text = String::from_utf8(self.slice(len)?.to_vec()).map_err(|_| broken())?;
        match self.take()? {
            [0] => Ok(text),
            _ => Err(broken()),
        }
    }

    /// A string, or the path of an object.
    pub fn text(&mut self) -> io::Result<String> {
        let len = usize::try_from(self.number()?).map_err(|_| broken())?;
        self.words(len)
    }

    fn signature(&mut self) -> io::Result<String> {
        let [len] = self.take()?;
        self.words(usize::from(len))
    }

    /// A variant that holds a string.
    pub fn text_variant(&mut self) -> io::Result<String> {
        match self.signature()?.as_str() {
            "s" | "o" => self.text(),
            _ => Err(broken()),
        }
    }
}

/// An answer as a bus would send it: an error, if it has a name.
#[cfg(test)]
pub(super) fn answer(reply_to: u32, error: Option<&str>, signature: &str, body: &Writer) -> Vec<u8> {
    let name: Vec<_> = error.iter().map(|name| (field::ERROR_NAME, "s", *name)).collect();
    message(if error.is_some() { 3 } else { 2 }, 1, Some(reply_to), &name, signature, body)
}

#[cfg(test)]
pub(super) fn signal(member: &str, signature: &str, body: &Writer) -> Vec<u8> {
    message(4, 1, None, &[(field::MEMBER, "s", member)], signature, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method<'_> = Method { destination: "a.b", path: "/o", interface: "a.b.C", member: "Do" };

    #[test]
    fn a_call_has_the_layout_of_the_specification() {
        let mut body = Writer::default();
        body.text("hi").number(7);
        let bytes = call(&METHOD, 3, "su", &body);
        let mut expected: Vec<u8> = vec![b'l', 1, 0, 1];
        // "hi" with its length and end has 7 bytes; a number follows at 8.
        expected.extend([12, 0, 0, 0, 3, 0, 0, 0]);
        expected.extend([72, 0, 0, 0]);
        expected.extend(b"\x01\x01o\0\x02\0\0\0/o\0\0\0\0\0\0");
        expected.extend(b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0");
        expected.extend(b"\x02\x01s\0\x05\0\0\0a.b.C\0\0\0");
        expected.extend(b"\x03\x01s\0\x02\0\0\0Do\0\0\0\0\0\0");
        expected.extend(b"\x08\x01g\0\x02su\0");
        expected.resize(expected.len().next_multiple_of(8), 0);
        expected.extend(b"\x02\0\0\0hi\0\0\x07\0\0\0");
        assert_eq!(bytes, expected);
        let fixed: &[u8; FIXED] = bytes.first_chunk().unwrap();
        assert_eq!(total(fixed).unwrap(), bytes.len());
        let message = parse(&bytes).unwrap();
        assert_eq!((message.member.as_str(), message.signature.as_str()), ("Do", "su"));
        let mut reader = Reader::of(&message);
        assert_eq!((reader.text().unwrap().as_str(), reader.number().unwrap()), ("hi", 7));
        assert!(reader.number().is_err());
    }

    #[test]
    fn variants_are_aligned_by_their_own_types() {
        let mut writer = Writer::default();
        writer.variant(&Value::Number(1)).variant(&Value::Pids(vec![2, 3])).variant(&Value::Bytes(vec![9]));
        assert_eq!(
            writer.bytes,
            b"\x01t\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02au\0\x08\0\0\0\x02\0\0\0\x03\0\0\0\x02ay\0\x01\0\0\0\x09"
        );
        let mut empty = Writer::default();
        empty.number(1).array(8, |_| {});
        assert_eq!(empty.bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn no_message_is_believed() {
        let good = call(&METHOD, 1, "", &Writer::default());
        for len in 0..good.len() {
            // Cut anywhere, it is an error or a shorter message, never a panic.
            let _ = parse(&good[..len]);
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = parse(&bad);
                let _ = total(bad.first_chunk().unwrap());
            }
        }
        let mut huge = good;
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(total(huge.first_chunk().unwrap()).is_err());
        assert!(parse(&huge).is_err());
    }
}
