//! Properties of a scope that annotations give: `org.systemd.property.NAME`, with a value in the text form of `GVariant`
//! ("GVariant Text Format" of `GLib`), as runc takes them.

use std::collections::HashMap;
use std::str::Chars;
use std::time::Duration;

use super::wire::{Value, Writer};
use crate::error::{Error, Result};

const PREFIX: &str = "org.systemd.property.";

/// How deep arrays may lie in each other.
const DEPTH: usize = 8;

/// A type of the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Type {
    /// Named by its letter.
    Basic(char),
    Array(Box<Type>),
}

/// A value with a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    kind: Type,
    data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Data {
    /// Every number; the type says what of it is sent.
    Integer(i128),
    /// The bits of a double.
    Double(u64),
    Flag(bool),
    Text(String),
    Array(Vec<Data>),
}

/// The properties that `annotations` give, by name. What cannot be one is an error that names the annotation.
pub(crate) fn given(annotations: &HashMap<String, String>) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        if name.len() < 3 {
            return Err(Error::Usage(format!("annotation {key} name incorrect: too short")));
        }
        if !name.chars().all(|c| c.is_ascii_alphabetic()) {
            let problem = format!("annotation {key} name incorrect: contains non-alphabetic character");
            return Err(Error::Usage(problem));
        }
        let wrong =
            |problem: String| Error::Usage(format!("annotation {key}={text} value parse error: {problem}"));
        let mut value = parse(text).map_err(wrong)?;
        let mut name = name.to_owned();
        // systemctl takes seconds, its bus microseconds.
        if let Some(stem) =
            name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()))
        {
            name = format!("{stem}USec");
            value = microseconds(&value).map_err(wrong)?;
        }
        found.push((name, Value::Given(value)));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn microseconds(value: &Given) -> std::result::Result<Given, String> {
    let of = match value.data {
        Data::Integer(seconds) => u64::try_from(seconds).ok().and_then(|s| s.checked_mul(1_000_000)),
        Data::Double(bits) => {
            let seconds = Duration::try_from_secs_f64(f64::from_bits(bits)).ok();
            seconds.and_then(|seconds| u64::try_from(seconds.as_micros()).ok())
        }
        _ => return Err("not a number of seconds".into()),
    };
    let micros = of.ok_or("out of range for a number of seconds")?;
    Ok(Given { kind: Type::Basic('t'), data: Data::Integer(micros.into()) })
}

impl Type {
    fn signature(&self) -> String {
        match self {
            Self::Basic(letter) => letter.to_string(),
            Self::Array(of) => format!("a{}", of.signature()),
        }
    }

    fn alignment(&self) -> usize {
        match self {
            Self::Basic('y' | 'g') => 1,
            Self::Basic('n' | 'q') => 2,
            Self::Basic('x' | 't' | 'd') => 8,
            Self::Basic(_) | Self::Array(_) => 4,
        }
    }

    /// What an integer of this type may be.
    fn range(&self) -> Option<(i128, i128)> {
        let Self::Basic(letter) = self else { return None };
        Some(match letter {
            'y' => (0, u8::MAX.into()),
            'n' => (i16::MIN.into(), i16::MAX.into()),
            'q' => (0, u16::MAX.into()),
            'i' => (i32::MIN.into(), i32::MAX.into()),
            'u' => (0, u32::MAX.into()),
            'x' => (i64::MIN.into(), i64::MAX.into()),
            't' => (0, u64::MAX.into()),
            _ => return None,
        })
    }
}

impl Given {
    pub fn signature(&self) -> String {
        self.kind.signature()
    }

    pub(super) fn write(&self, to: &mut Writer) {
        write(&self.kind, &self.data, to);
    }
}

fn write(kind: &Type, data: &Data, to: &mut Writer) {
    match (kind, data) {
        (Type::Array(of), Data::Array(items)) => {
            to.array(of.alignment(), |to| {
                for item in items {
                    write(of, item, to);
                }
            });
        }
        (Type::Basic('g'), Data::Text(text)) => {
            to.signature(text);
        }
        (_, Data::Text(text)) => {
            to.text(text);
        }
        (_, Data::Flag(flag)) => {
            to.flag(*flag);
        }
        (_, Data::Double(bits)) => {
            to.raw(8, &bits.to_le_bytes());
        }
        (kind, Data::Integer(value)) => {
            let size = kind.alignment();
            to.raw(size, value.to_le_bytes().get(..size).unwrap_or_default());
        }
        // The parser makes none of another type.
        (Type::Basic(_), Data::Array(_)) => {}
    }
}

/// Reads a value with nothing after it.
fn parse(text: &str) -> std::result::Result<Given, String> {
    let mut parser = Parser { rest: text };
    let (kind, data) = parser.value(None, 0)?;
    parser.space();
    if parser.rest.is_empty() {
        Ok(Given { kind, data })
    } else {
        Err(format!("unexpected {:?} after the value", parser.rest))
    }
}

struct Parser<'a> {
    rest: &'a str,
}

type Parsed = std::result::Result<(Type, Data), String>;

impl<'a> Parser<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, what: char) -> bool {
        let rest = self.rest.strip_prefix(what);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self, part: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        word
    }

    fn value(&mut self, expected: Option<&Type>, depth: usize) -> Parsed {
        if depth > DEPTH {
            return Err("arrays lie too deep in each other".into());
        }
        self.space();
        if self.take('@') {
            let word = self.word(|c| c.is_ascii_alphabetic());
            let kind = of_signature(word)?;
            return self.value(Some(&kind), depth + 1);
        }
        match self.rest.chars().next() {
            None => Err("a value is missing".into()),
            Some('[') => self.array(expected, depth),
            Some(quote @ ('\'' | '"')) => {
                let text = self.string(quote)?;
                let kind = expected.cloned().unwrap_or(Type::Basic('s'));
                if matches!(kind, Type::Basic('s' | 'o' | 'g')) {
                    Ok((kind, Data::Text(text)))
                } else {
                    Err(format!("a string where a value of type {} belongs", kind.signature()))
                }
            }
            Some('b') if self.rest.starts_with("b'") || self.rest.starts_with("b\"") => self.bytes(expected),
            Some(_) => {
                let word = self.word(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
                match keyword(word) {
                    Some(letter) => self.value(Some(&Type::Basic(letter)), depth + 1),
                    None => literal(word, expected, self.rest),
                }
            }
        }
    }

    fn array(&mut self, expected: Option<&Type>, depth: usize) -> Parsed {
        self.take('[');
        let mut of = match expected {
            Some(Type::Array(of)) => Some((**of).clone()),
            Some(other) => {
                return Err(format!("an array where a value of type {} belongs", other.signature()));
            }
            None => None,
        };
        let mut items = Vec::new();
        loop {
            self.space();
            if self.take(']') {
                break;
            }
            if !items.is_empty() && !self.take(',') {
                return Err("a comma is missing in an array".into());
            }
            let (kind, data) = self.value(of.as_ref(), depth + 1)?;
            if of.as_ref().is_some_and(|of| *of != kind) {
                return Err("the values of an array are of several types".into());
            }
            of = Some(kind);
            items.push(data);
        }
        let of = of.ok_or("an empty array without a type")?;
        Ok((Type::Array(Box::new(of)), Data::Array(items)))
    }

    fn bytes(&mut self, expected: Option<&Type>) -> Parsed {
        self.take('b');
        let quote = self.rest.chars().next().unwrap_or('\'');
        let text = self.string(quote)?;
        let kind = Type::Array(Box::new(Type::Basic('y')));
        if expected.is_some_and(|expected| *expected != kind) {
            return Err("a string of bytes where a value of another type belongs".into());
        }
        // It ends with NUL, as in C.
        let bytes = text.bytes().chain([0]).map(|byte| Data::Integer(byte.into())).collect();
        Ok((kind, Data::Array(bytes)))
    }

    fn string(&mut self, quote: char) -> std::result::Result<String, String> {
        let open = || "a string is not closed".to_owned();
        let mut text = String::new();
        let mut chars = self.rest.chars();
        chars.next();
        loop {
            match chars.next().ok_or_else(open)? {
                '\0' => return Err("a string holds a NUL".into()),
                c if c == quote => break,
                '\\' => text.push(match chars.next().ok_or_else(open)? {
                    'u' => code(&mut chars, 4)?,
                    'U' => code(&mut chars, 8)?,
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\x0b',
                    other => other,
                }),
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Ok(text)
    }
}

/// The character of a number of hexadecimal digits.
fn code(chars: &mut Chars<'_>, digits: usize) -> std::result::Result<char, String> {
    let code: String = chars.take(digits).collect();
    let code = u32::from_str_radix(&code, 16).ok().filter(|code| *code > 0);
    code.and_then(char::from_u32).ok_or_else(|| "a wrong escape in a string".to_owned())
}

fn of_signature(word: &str) -> std::result::Result<Type, String> {
    let (arrays, letter) = word.split_at_checked(word.len().saturating_sub(1)).unwrap_or(("", word));
    let letter = letter.chars().next().filter(|letter| "ybnqiuxtdsog".contains(*letter));
    match letter {
        Some(letter) if arrays.len() <= DEPTH && arrays.chars().all(|c| c == 'a') => {
            Ok(arrays.chars().fold(Type::Basic(letter), |of, _| Type::Array(Box::new(of))))
        }
        _ => Err(format!("type {word:?} is not supported")),
    }
}

fn keyword(word: &str) -> Option<char> {
    Some(match word {
        "boolean" => 'b',
        "byte" => 'y',
        "int16" => 'n',
        "uint16" => 'q',
        "int32" => 'i',
        "uint32" => 'u',
        "int64" => 'x',
        "uint64" => 't',
        "double" => 'd',
        "string" => 's',
        "objectpath" => 'o',
        "signature" => 'g',
        _ => return None,
    })
}

/// A flag or a number. What stands after it in the text is for the error alone.
fn literal(word: &str, expected: Option<&Type>, rest: &str) -> Parsed {
    let misfit = |kind: &Type| Err(format!("{word:?} is no value of type {}", kind.signature()));
    if let Some(flag) = match word {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    } {
        return match expected {
            None | Some(Type::Basic('b')) => Ok((Type::Basic('b'), Data::Flag(flag))),
            Some(other) => misfit(other),
        };
    }
    let whole = integer(word);
    let kind = match (expected, whole) {
        (Some(kind), _) => kind.clone(),
        (None, Some(_)) => Type::Basic('i'),
        (None, None) => Type::Basic('d'),
    };
    if kind == Type::Basic('d') {
        let finite = word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            || matches!(word, "inf" | "nan");
        return match word.parse::<f64>() {
            Ok(number) if finite => Ok((kind, Data::Double(number.to_bits()))),
            _ if word.is_empty() => Err(format!("unexpected {rest:?}")),
            _ => Err(format!("{word:?} is no value")),
        };
    }
    match (kind.range(), whole) {
        (Some((least, most)), Some(value)) if (least..=most).contains(&value) => {
            Ok((kind, Data::Integer(value)))
        }
        (Some(_), Some(_)) => Err(format!("{word:?} is out of range for type {}", kind.signature())),
        _ => misfit(&kind),
    }
}

/// Decimal, hexadecimal after `0x`, octal after `0`.
fn integer(word: &str) -> Option<i128> {
    let (sign, digits) = match word.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, word.strip_prefix('+').unwrap_or(word)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => i128::from(u64::from_str_radix(digits, 16).ok()?),
        None if digits.len() > 1 && digits.starts_with('0') => {
            i128::from(u64::from_str_radix(digits, 8).ok()?)
        }
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> std::result::Result<(String, Data), String> {
        parse(text).map(|given| (given.signature(), given.data))
    }

    #[test]
    fn values_have_the_types_that_they_say() {
        let ok = |kind: &str, data| Ok((kind.to_owned(), data));
        assert_eq!(shown("true"), ok("b", Data::Flag(true)));
        assert_eq!(shown(" 5 "), ok("i", Data::Integer(5)));
        assert_eq!(shown("uint64 0x10"), ok("t", Data::Integer(16)));
        assert_eq!(shown("@t 123456789012"), ok("t", Data::Integer(123_456_789_012)));
        assert_eq!(shown("-1.5"), ok("d", Data::Double((-1.5_f64).to_bits())));
        assert_eq!(shown("'inactive-or-failed'"), ok("s", Data::Text("inactive-or-failed".into())));
        assert_eq!(shown(r#""a\"\u0041\n""#), ok("s", Data::Text("a\"A\n".into())));
        let texts = ["a", "b"].map(|text| Data::Text(text.into()));
        assert_eq!(shown("['a', 'b']"), ok("as", Data::Array(texts.into())));
        assert_eq!(shown("@as []"), ok("as", Data::Array(vec![])));
        assert_eq!(shown("[byte 1, 2]"), ok("ay", Data::Array(vec![Data::Integer(1), Data::Integer(2)])));
        assert_eq!(shown("b'x'"), ok("ay", Data::Array(vec![Data::Integer(120), Data::Integer(0)])));
    }

    #[test]
    fn what_is_none_is_refused() {
        for wrong in [
            "",
            "'a",
            "5 6",
            "[1, 'a']",
            "[]",
            "[1",
            "uint16 65536",
            "@t -1",
            "99999999999",
            "hello",
            "@v <1>",
            "byte 'a'",
            "(1, 2)",
            "true false",
            "'a' b",
            "infinity",
            "@",
            "[[[[[[[[[[1]]]]]]]]]]",
            "'\\u0000'",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}: {:?}", parse(wrong));
        }
    }

    #[test]
    fn annotations_give_properties() {
        let of = |key: &str, text: &str| {
            let annotations =
                HashMap::from([(key.to_owned(), text.to_owned()), ("other".into(), "x".into())]);
            given(&annotations).map_err(|error| error.to_string())
        };
        let number = |micros| Value::Given(Given { kind: Type::Basic('t'), data: Data::Integer(micros) });
        assert_eq!(
            of("org.systemd.property.TimeoutStopUSec", "uint64 7"),
            Ok(vec![("TimeoutStopUSec".to_owned(), number(7))])
        );
        assert_eq!(
            of("org.systemd.property.TimeoutStopSec", "1.5"),
            Ok(vec![("TimeoutStopUSec".to_owned(), number(1_500_000))])
        );
        assert!(of("org.systemd.property.TimeoutStopSec", "-1").is_err());
        let error = of("org.systemd.property.MemoryMax", "lots").unwrap_err();
        assert!(
            error.contains("annotation org.systemd.property.MemoryMax=lots value parse error"),
            "{error}"
        );
        assert!(of("org.systemd.property.A.b", "1").unwrap_err().contains("non-alphabetic"));
        assert!(of("org.systemd.property.ab", "1").unwrap_err().contains("too short"));
    }

    #[test]
    fn values_are_written_at_their_alignment() {
        let mut writer = Writer::default();
        for text in ["uint64 1", "[int16 -2, 3]", "['a']"] {
            writer.variant(&Value::Given(parse(text).unwrap()));
        }
        assert_eq!(
            writer.bytes(),
            b"\x01t\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02an\0\x04\0\0\0\xfe\xff\x03\0\x02as\0\x06\0\0\0\x01\0\0\0a\0"
        );
    }
}
