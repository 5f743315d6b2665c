//! Names and relative paths that have been checked once and stay so by their type.

use crate::DecodeError;

/// The longest component in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

fn is_component(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.len() <= NAME_MAX
        && bytes != b"."
        && bytes != b".."
        && !bytes.iter().any(|b| matches!(b, 0 | b'/'))
}

/// One component of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if is_component(bytes) { Ok(Self(bytes)) } else { Err(DecodeError::Name) }
    }

    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Components separated by single slashes, relative to some directory; empty for the directory itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a>(&'a [u8]);

impl<'a> Path<'a> {
    pub const EMPTY: Self = Self(b"");

    pub fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() || bytes.split(|b| *b == b'/').all(is_component) {
            Ok(Self(bytes))
        } else {
            Err(DecodeError::Name)
        }
    }

    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub fn names(self) -> impl Iterator<Item = Name<'a>> {
        self.0.split(|b| *b == b'/').filter(|name| !name.is_empty()).map(Name)
    }

    /// The directory part and the last component; `None` for an empty path.
    pub fn split_last(self) -> Option<(Self, Name<'a>)> {
        if self.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => Some((Self(self.0.get(..slash)?), Name(self.0.get(slash + 1..)?))),
            None => Some((Self::EMPTY, Name(self.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused() {
        for bad in ["/", "/etc", "etc/", "a//b", "..", "a/../b", ".", "a/.", "a\0b", "../x"] {
            assert_eq!(Path::new(bad.as_bytes()), Err(DecodeError::Name), "{bad:?}");
            assert_eq!(Name::new(bad.as_bytes()), Err(DecodeError::Name), "{bad:?}");
        }
        assert!(Name::new(b"").is_err());
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert!(Name::new(&[b'x'; 256]).is_err());
        assert!(Path::new(b"...").is_ok());
        assert!(Path::new("a/b c/é".as_bytes()).is_ok());
    }

    #[test]
    fn split_last_gives_directory_and_name() {
        let (dir, name) = Path::new(b"usr/lib/x").unwrap().split_last().unwrap();
        assert_eq!((dir.as_bytes(), name.as_bytes()), (&b"usr/lib"[..], &b"x"[..]));
        let (dir, name) = Path::new(b"x").unwrap().split_last().unwrap();
        assert!(dir.is_empty());
        assert_eq!(name.as_bytes(), b"x");
        assert_eq!(Path::EMPTY.split_last(), None);
        assert_eq!(Path::new(b"a/b").unwrap().names().count(), 2);
        assert_eq!(Path::EMPTY.names().count(), 0);
    }
}
