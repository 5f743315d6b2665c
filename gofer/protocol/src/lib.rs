//! Messages between the Sentry and its gofer.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` socket, at most [`MAX_MESSAGE`] bytes: a fixed header, a fixed
//! structure of its kind, then strings with their lengths before them. The session starts with one [`Hello`] of the
//! gofer; after it every request has one reply. A reply carries descriptors only where its kind says so, and then
//! as many as its header says.
//!
//! A file is named by a [`Place`]: a [`Fid`] and a path under it. A fid is a mount's root or a file that is kept
//! open (it may have lost its name); the gofer holds nothing else for the Sentry, so a tree of a million files costs
//! it nothing.
//!
//! **Invariants.** Decoding is total: any bytes give a value or a [`DecodeError`]. A path that was decoded holds no
//! `..`, no `.`, no empty component, no NUL, and no component over 255 bytes.
//!
//! **Threat.** The gofer decodes requests of a Sentry that may be under the application's control. The Sentry decodes
//! replies under the same rules.

mod path;
mod reply;
mod request;
mod wire;

pub use path::{Name, Path};
pub use reply::{Entry, Hello, Reply, ReplyWriter};
pub use request::{Place, Request, RequestWriter};
pub use wire::{Fid, FileHow, WireAttr, WireSetAttr, WireStatFs, WireTime, set};

/// The longest message in bytes, headers included.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// The longest value of an extended attribute in bytes (`XATTR_SIZE_MAX`).
pub const MAX_XATTR: usize = 64 * 1024;

/// The most files that one request opens.
pub const MAX_TOGETHER: usize = 16;

/// The version that both sides must share; they are one binary, so a mismatch is a mistake.
pub const VERSION: u32 = 1;

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before its contents do.
    #[error("the message is too short for what it announces")]
    Short,
    /// Bytes are left after the contents.
    #[error("the message has bytes after its end")]
    Trailing,
    /// The kind is not known.
    #[error("unknown message kind {0}")]
    Kind(u32),
    /// A path or name breaks the rules of [`Path`].
    #[error("a name in the message is empty, too long, or holds a slash, a NUL or a dot component")]
    Name,
    /// A field holds a value that it must not have.
    #[error("a field of the message is out of range")]
    Field,
}
