//! Where the layer that a sandbox writes to keeps the contents of its files.
//!
//! In memory unless asked otherwise: what is written then counts against the sandbox's memory limit. With a directory,
//! the contents are in one nameless file there (`O_TMPFILE`), which the host may write out under memory pressure and
//! which is gone with the sandbox, however that ends.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The file's length: offsets for what can be written at once; only what is written takes space.
const LENGTHS: [u64; 3] = [1 << 42, 1 << 40, 1 << 34];

/// `--filestore`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filestore {
    /// A directory of the host; `None` for memory.
    pub dir: Option<PathBuf>,
    /// Bytes that all files together may take; `None` for no limit of its own.
    pub limit: Option<u64>,
}

impl Filestore {
    /// Takes `memory` or a directory, and after a comma `size=N` with a suffix `k`, `m` or `g`.
    pub fn parse(text: &str) -> Result<Self> {
        let (place, limit) = match text.rsplit_once(",size=") {
            Some((place, size)) => {
                (place, Some(bytes(size).ok_or_else(|| wrong(text, "the size is no number"))?))
            }
            None => (text, None),
        };
        let dir = match place {
            "memory" => None,
            dir if Path::new(dir).is_absolute() => Some(PathBuf::from(dir)),
            _ => return Err(wrong(text, "it is neither \"memory\" nor an absolute path")),
        };
        Ok(Self { dir, limit })
    }

    /// The file for the Sentry, where there is a directory.
    pub(crate) fn open(&self) -> Result<Option<OwnedFd>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR)
            .map_err(std::io::Error::from)
            .context(|| format!("make the filestore in {}", dir.display()))?;
        let file = File::from(file);
        // As long as the file system lets a sparse file be.
        let mut result = Ok(());
        for length in LENGTHS {
            result = file.set_len(length);
            if result.is_ok() {
                break;
            }
        }
        result.context(|| format!("set the length of the filestore in {}", dir.display()))?;
        Ok(Some(file.into()))
    }
}

fn wrong(text: &str, why: &str) -> Error {
    Error::Config(format!("invalid --filestore {text:?}: {why}"))
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (text.get(..text.len() - 1)?, 10),
        b'm' | b'M' => (text.get(..text.len() - 1)?, 20),
        b'g' | b'G' => (text.get(..text.len() - 1)?, 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_sizes() {
        let of = |text| Filestore::parse(text).unwrap();
        assert_eq!(of("memory"), Filestore::default());
        assert_eq!(of("memory,size=64m").limit, Some(64 << 20));
        assert_eq!(of("/var/tmp,size=4096").dir, Some("/var/tmp".into()));
        for text in ["", "here", "/x,size=", "/x,size=0", "/x,size=1t", "memory,size=99999999999g"] {
            assert!(Filestore::parse(text).is_err(), "{text:?}");
        }
    }
}
