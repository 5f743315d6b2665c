//! Answers of name servers, read for the addresses that they tie to the name that was asked for (RFC 1035).

use std::net::IpAddr;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
/// Records of one answer that are looked at.
const MAX_RECORDS: u16 = 64;
/// Labels and bytes of a name.
const MAX_LABELS: usize = 128;
const MAX_NAME: usize = 255;

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// Skips a name, which may end in a pointer.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    for _ in 0..MAX_LABELS {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => return Some(at + 1),
            1..64 => at += 1 + len,
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

/// The name of the question, which has no pointers, in lower case.
fn question_name(message: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut name) = (HEADER, String::new());
    for _ in 0..MAX_LABELS {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            return Some((name, at + 4));
        }
        let label = message.get(at..at + len).filter(|_| len < 64)?;
        // A dot within a label would make another name of it.
        if !label.iter().all(|b| b.is_ascii_graphic() && *b != b'.') || name.len() + len > MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        at += len;
    }
    None
}

/// The name that a message asks for.
pub fn question(message: &[u8]) -> Option<String> {
    if short(message, 4)? != 1 {
        return None;
    }
    question_name(message).map(|(name, _)| name)
}

/// The name that an answer is about, and the addresses that it gives. `None` for what is no answer.
pub fn answer(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let is_answer = message.get(2)? & 0x80 != 0 && message.get(3)? & 0xf == 0;
    if !is_answer || short(message, 4)? != 1 {
        return None;
    }
    let (name, mut at) = question_name(message)?;
    let mut found = Vec::new();
    for _ in 0..short(message, 6)?.min(MAX_RECORDS) {
        at = skip_name(message, at)?;
        let (kind, class, len) = (short(message, at)?, short(message, at + 2)?, short(message, at + 8)?);
        let data = message.get(at + 10..at + 10 + usize::from(len))?;
        at += 10 + usize::from(len);
        match (kind, class, data.len()) {
            (TYPE_A, 1, 4) => found.extend(data.first_chunk::<4>().map(|b| IpAddr::from(*b))),
            (TYPE_AAAA, 1, 16) => found.extend(data.first_chunk::<16>().map(|b| IpAddr::from(*b))),
            // Names in between lead from the one to the other.
            _ => {}
        }
    }
    Some((name, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_by_way_of_an_alias_is_read() {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
        message.extend_from_slice(b"\x03wWw\x07example\x03org\x00\x00\x01\x00\x01");
        // An alias, then an address under another name.
        message.extend_from_slice(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x04\x01x\xc0\x10");
        message.extend_from_slice(b"\x01x\xc0\x10\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x01\x02\x03\x04");
        assert_eq!(answer(&message), Some(("www.example.org".into(), vec![[1, 2, 3, 4].into()])));
        for cut in 0..message.len() {
            let _ = answer(&message[..cut]);
        }
        message[2] = 1;
        assert_eq!(answer(&message), None);
    }

    #[test]
    fn a_dot_in_a_label_is_no_name() {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(b"\x0bexample.org\x00\x00\x01\x00\x01");
        assert_eq!(answer(&message), None);
    }
}
