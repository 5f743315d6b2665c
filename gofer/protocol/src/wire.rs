//! The fixed structures of the protocol, and the reader and writer of message bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{DecodeError, MAX_MESSAGE, Name, Path};

/// Names a mount's root or a kept open file within one session. Checked by the gofer at every use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Fid(pub u32);

impl Fid {
    /// No file was kept open.
    pub const NONE: Self = Self(u32::MAX);
}

bitflags::bitflags! {
    /// How a regular file is opened.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FileHow: u32 {
        const READ = 1;
        const WRITE = 2;
        const TRUNCATE = 4;
        /// Keep the file open on the gofer's side too and answer with its fid: attributes can then be changed when the
        /// file has lost its name.
        const KEEP = 8;
    }
}

/// A point in time since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireTime {
    pub sec: i64,
    pub nsec: u32,
    pub reserved: u32,
}

/// Attributes of a file, from `statx(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireAttr {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub rdev: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub blksize: u32,
    /// 1 where `btime` is known.
    pub has_btime: u32,
    pub atime: WireTime,
    pub mtime: WireTime,
    pub ctime: WireTime,
    pub btime: WireTime,
}

/// Bits of [`WireSetAttr::mask`]: which fields to set.
pub mod set {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    /// With the bit above: the present time.
    pub const ATIME_NOW: u32 = 64;
    pub const MTIME_NOW: u32 = 128;
    pub const ALL: u32 = 255;
}

/// Attributes to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireSetAttr {
    pub mask: u32,
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub atime: WireTime,
    pub mtime: WireTime,
}

/// The answer of `fstatfs(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireStatFs {
    pub magic: u64,
    pub block_size: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max: u64,
}

/// Takes a message apart from the front.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn fixed<T: FromBytes>(&mut self) -> Result<T, DecodeError> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| DecodeError::Short)?;
        self.0 = rest;
        Ok(value)
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.fixed()
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.fixed()
    }

    /// A string with its length in 32 bits before it.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = usize::try_from(self.u32()?).map_err(|_| DecodeError::Short)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn path(&mut self) -> Result<Path<'a>, DecodeError> {
        Path::new(self.bytes()?)
    }

    pub fn name(&mut self) -> Result<Name<'a>, DecodeError> {
        Name::new(self.bytes()?)
    }

    pub fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// Puts a message together in a buffer that is used again for the next one. What does not fit is left out and
/// remembered, so that only the end needs a check.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
    pub overflow: bool,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        out.clear();
        Self { out, overflow: false }
    }

    pub fn room(&self) -> usize {
        MAX_MESSAGE.saturating_sub(self.out.len())
    }

    fn raw(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.room() {
            self.out.extend_from_slice(bytes);
        } else {
            self.overflow = true;
        }
    }

    pub fn fixed<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.raw(value.as_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        match u32::try_from(bytes.len()) {
            Ok(len) if bytes.len() + size_of::<u32>() <= self.room() => {
                self.fixed(&len);
                self.raw(bytes);
            }
            _ => self.overflow = true,
        }
    }
}
