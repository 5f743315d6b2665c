//! What the Sentry asks.

use crate::wire::{Reader, Writer};
use crate::{DecodeError, Fid, FileHow, MAX_TOGETHER, MAX_XATTR, Name, Path, WireSetAttr, set};

/// A file: `path` under what `fid` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub fid: Fid,
    pub path: Path<'a>,
}

/// One request. "An entry" is a place with at least one component: a name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Gives the fid and the attributes of a mount's root.
    Attach {
        mount: u32,
    },
    /// Gives the attributes of `at`, then of each of `names` below the other, until one is missing or no directory.
    WalkPlus {
        at: Place<'a>,
        names: Path<'a>,
    },
    /// Gives entries of a directory after `cookie` (0 for the first) with their attributes.
    ListPlus {
        at: Place<'a>,
        cookie: u64,
    },
    /// Gives a descriptor of a regular file and its attributes.
    OpenFile {
        at: Place<'a>,
        how: FileHow,
    },
    /// Gives descriptors, for reading, of regular files in one directory: the first of `names`, and of the others those that
    /// can be opened. They stand one after the other, as in a path, at most [`MAX_TOGETHER`]. The answer has an entry for each
    /// descriptor, whose cookie is the place among the names.
    OpenTogether {
        at: Place<'a>,
        names: Path<'a>,
    },
    /// Makes a regular file at an entry that must be free; gives a descriptor and attributes.
    Create {
        at: Place<'a>,
        mode: u32,
        uid: u32,
        gid: u32,
        how: FileHow,
    },
    MakeDir {
        at: Place<'a>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    MakeSymlink {
        at: Place<'a>,
        target: &'a [u8],
        uid: u32,
        gid: u32,
    },
    /// Makes a FIFO (`S_IFIFO`), the node of a socket (`S_IFSOCK`), or an overlay's mark of a removed file (`S_IFCHR`, with the
    /// device number 0) where the mount allows it.
    MakeNode {
        at: Place<'a>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// Moves an entry to another of the same mount; `flags` of `renameat2(2)`.
    Rename {
        from: Place<'a>,
        to: Place<'a>,
        flags: u32,
    },
    /// Gives an object one more name. `from` is an entry or a kept file.
    Link {
        from: Place<'a>,
        to: Place<'a>,
    },
    Unlink {
        at: Place<'a>,
        directory: bool,
    },
    /// Changes attributes; gives the new ones.
    SetAttr {
        at: Place<'a>,
        change: WireSetAttr,
    },
    StatFs {
        at: Place<'a>,
    },
    GetXattr {
        at: Place<'a>,
        name: Name<'a>,
    },
    ListXattr {
        at: Place<'a>,
    },
    /// `flags`: `XATTR_CREATE`, `XATTR_REPLACE`.
    SetXattr {
        at: Place<'a>,
        name: Name<'a>,
        value: &'a [u8],
        flags: u32,
    },
    RemoveXattr {
        at: Place<'a>,
        name: Name<'a>,
    },
    /// Writes the file system that holds `at` to its disk (`syncfs(2)`).
    Sync {
        at: Place<'a>,
    },
    /// Makes a regular file without a name in the file system of a directory (`O_TMPFILE`) and keeps it open; gives
    /// its fid, a descriptor and attributes.
    MakeTemp {
        at: Place<'a>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// Forgets a kept open file.
    Close {
        fid: Fid,
    },
}

const ATTACH: u32 = 1;
const WALK_PLUS: u32 = 2;
const LIST_PLUS: u32 = 3;
const OPEN_FILE: u32 = 4;
const CREATE: u32 = 5;
const MAKE_DIR: u32 = 6;
const MAKE_SYMLINK: u32 = 7;
const MAKE_NODE: u32 = 8;
const RENAME: u32 = 9;
const LINK: u32 = 10;
const UNLINK: u32 = 11;
const SET_ATTR: u32 = 12;
const STAT_FS: u32 = 13;
const GET_XATTR: u32 = 14;
const LIST_XATTR: u32 = 15;
const SET_XATTR: u32 = 16;
const REMOVE_XATTR: u32 = 17;
const SYNC: u32 = 18;
const CLOSE: u32 = 19;
const MAKE_TEMP: u32 = 20;
const OPEN_TOGETHER: u32 = 21;

/// The longest symbolic link (`PATH_MAX` without its NUL).
const MAX_TARGET: usize = 4095;

fn place<'a>(r: &mut Reader<'a>) -> Result<Place<'a>, DecodeError> {
    Ok(Place { fid: r.fixed()?, path: r.path()? })
}

fn entry<'a>(r: &mut Reader<'a>) -> Result<Place<'a>, DecodeError> {
    let at = place(r)?;
    if at.path.is_empty() { Err(DecodeError::Name) } else { Ok(at) }
}

fn how(r: &mut Reader<'_>) -> Result<FileHow, DecodeError> {
    let how = FileHow::from_bits(r.u32()?).ok_or(DecodeError::Field)?;
    let writes = how.contains(FileHow::WRITE);
    if !how.intersects(FileHow::READ | FileHow::WRITE) || (how.contains(FileHow::TRUNCATE) && !writes) {
        return Err(DecodeError::Field);
    }
    Ok(how)
}

fn within(value: u32, allowed: u32) -> Result<u32, DecodeError> {
    if value & !allowed == 0 { Ok(value) } else { Err(DecodeError::Field) }
}

fn permissions(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
    within(r.u32()?, 0o7777)
}

impl<'a> Request<'a> {
    /// Takes a datagram apart.
    pub fn decode(message: &'a [u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader(message);
        let request = match r.u32()? {
            ATTACH => Self::Attach { mount: r.u32()? },
            WALK_PLUS => Self::WalkPlus { at: place(r)?, names: r.path()? },
            LIST_PLUS => Self::ListPlus { at: place(r)?, cookie: r.u64()? },
            OPEN_FILE => Self::OpenFile { at: place(r)?, how: how(r)? },
            OPEN_TOGETHER => {
                let (at, names) = (place(r)?, r.path()?);
                if !(1..=MAX_TOGETHER).contains(&names.names().take(MAX_TOGETHER + 1).count()) {
                    return Err(DecodeError::Field);
                }
                Self::OpenTogether { at, names }
            }
            CREATE => Self::Create {
                at: entry(r)?,
                mode: permissions(r)?,
                uid: r.u32()?,
                gid: r.u32()?,
                how: how(r)?,
            },
            MAKE_DIR => Self::MakeDir { at: entry(r)?, mode: permissions(r)?, uid: r.u32()?, gid: r.u32()? },
            MAKE_SYMLINK => {
                let at = entry(r)?;
                let target = r.bytes()?;
                if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                    return Err(DecodeError::Name);
                }
                Self::MakeSymlink { at, target, uid: r.u32()?, gid: r.u32()? }
            }
            MAKE_NODE => {
                let at = entry(r)?;
                let mode = within(r.u32()?, libc::S_IFMT | 0o7777)?;
                if !matches!(mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR) {
                    return Err(DecodeError::Field);
                }
                Self::MakeNode { at, mode, uid: r.u32()?, gid: r.u32()? }
            }
            RENAME => Self::Rename {
                from: entry(r)?,
                to: entry(r)?,
                flags: within(r.u32()?, libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE)?,
            },
            LINK => Self::Link { from: place(r)?, to: entry(r)? },
            UNLINK => Self::Unlink { at: entry(r)?, directory: within(r.u32()?, 1)? == 1 },
            SET_ATTR => {
                let at = place(r)?;
                let change: WireSetAttr = r.fixed()?;
                within(change.mask, set::ALL)?;
                within(change.mode, 0o7777)?;
                let whole = |nsec: u32| nsec < 1_000_000_000;
                if !whole(change.atime.nsec) || !whole(change.mtime.nsec) {
                    return Err(DecodeError::Field);
                }
                Self::SetAttr { at, change }
            }
            STAT_FS => Self::StatFs { at: place(r)? },
            GET_XATTR => Self::GetXattr { at: place(r)?, name: r.name()? },
            LIST_XATTR => Self::ListXattr { at: place(r)? },
            SET_XATTR => {
                let (at, name, value) = (place(r)?, r.name()?, r.bytes()?);
                if value.len() > MAX_XATTR {
                    return Err(DecodeError::Field);
                }
                let flags = within(r.u32()?, (libc::XATTR_CREATE | libc::XATTR_REPLACE).cast_unsigned())?;
                Self::SetXattr { at, name, value, flags }
            }
            REMOVE_XATTR => Self::RemoveXattr { at: place(r)?, name: r.name()? },
            SYNC => Self::Sync { at: place(r)? },
            MAKE_TEMP => {
                Self::MakeTemp { at: place(r)?, mode: permissions(r)?, uid: r.u32()?, gid: r.u32()? }
            }
            CLOSE => Self::Close { fid: r.fixed()? },
            kind => return Err(DecodeError::Kind(kind)),
        };
        r.end()?;
        Ok(request)
    }
}

/// Encodes requests.
#[derive(Debug)]
pub struct RequestWriter;

impl RequestWriter {
    /// Replaces the contents of `out` by the message. Fails where it would pass the length cap.
    pub fn encode(request: &Request<'_>, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let mut w = Writer::new(out);
        let w = &mut w;
        match *request {
            Request::Attach { mount } => {
                w.fixed(&ATTACH);
                w.fixed(&mount);
            }
            Request::WalkPlus { at, names } => {
                Self::place(w, WALK_PLUS, at);
                w.bytes(names.as_bytes());
            }
            Request::ListPlus { at, cookie } => {
                Self::place(w, LIST_PLUS, at);
                w.fixed(&cookie);
            }
            Request::OpenFile { at, how } => {
                Self::place(w, OPEN_FILE, at);
                w.fixed(&how.bits());
            }
            Request::OpenTogether { at, names } => {
                Self::place(w, OPEN_TOGETHER, at);
                w.bytes(names.as_bytes());
            }
            Request::Create { at, mode, uid, gid, how } => {
                Self::place(w, CREATE, at);
                w.fixed(&[mode, uid, gid, how.bits()]);
            }
            Request::MakeDir { at, mode, uid, gid } => {
                Self::place(w, MAKE_DIR, at);
                w.fixed(&[mode, uid, gid]);
            }
            Request::MakeSymlink { at, target, uid, gid } => {
                Self::place(w, MAKE_SYMLINK, at);
                w.bytes(target);
                w.fixed(&[uid, gid]);
            }
            Request::MakeNode { at, mode, uid, gid } => {
                Self::place(w, MAKE_NODE, at);
                w.fixed(&[mode, uid, gid]);
            }
            Request::Rename { from, to, flags } => {
                Self::place(w, RENAME, from);
                Self::more(w, to);
                w.fixed(&flags);
            }
            Request::Link { from, to } => {
                Self::place(w, LINK, from);
                Self::more(w, to);
            }
            Request::Unlink { at, directory } => {
                Self::place(w, UNLINK, at);
                w.fixed(&u32::from(directory));
            }
            Request::SetAttr { at, ref change } => {
                Self::place(w, SET_ATTR, at);
                w.fixed(change);
            }
            Request::StatFs { at } => Self::place(w, STAT_FS, at),
            Request::GetXattr { at, name } => {
                Self::place(w, GET_XATTR, at);
                w.bytes(name.as_bytes());
            }
            Request::ListXattr { at } => Self::place(w, LIST_XATTR, at),
            Request::SetXattr { at, name, value, flags } => {
                Self::place(w, SET_XATTR, at);
                w.bytes(name.as_bytes());
                w.bytes(value);
                w.fixed(&flags);
            }
            Request::RemoveXattr { at, name } => {
                Self::place(w, REMOVE_XATTR, at);
                w.bytes(name.as_bytes());
            }
            Request::Sync { at } => Self::place(w, SYNC, at),
            Request::MakeTemp { at, mode, uid, gid } => {
                Self::place(w, MAKE_TEMP, at);
                w.fixed(&[mode, uid, gid]);
            }
            Request::Close { fid } => {
                w.fixed(&CLOSE);
                w.fixed(&fid);
            }
        }
        if w.overflow { Err(DecodeError::Field) } else { Ok(()) }
    }

    fn place(w: &mut Writer<'_>, kind: u32, at: Place<'_>) {
        w.fixed(&kind);
        Self::more(w, at);
    }

    fn more(w: &mut Writer<'_>, at: Place<'_>) {
        w.fixed(&at.fid);
        w.bytes(at.path.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::WireTime;

    fn at(path: &str) -> Place<'_> {
        Place { fid: Fid(3), path: Path::new(path.as_bytes()).unwrap() }
    }

    fn samples() -> Vec<Request<'static>> {
        let (a, b) = (at("a"), at("usr/lib/b"));
        let how = FileHow::READ | FileHow::WRITE | FileHow::KEEP;
        let name = Name::new(b"user.x").unwrap();
        let change = WireSetAttr {
            mask: set::MODE | set::MTIME,
            mode: 0o644,
            mtime: WireTime { sec: -5, nsec: 7, reserved: 0 },
            ..WireSetAttr::default()
        };
        vec![
            Request::Attach { mount: 2 },
            Request::WalkPlus { at: at(""), names: Path::new(b"a/b/c").unwrap() },
            Request::ListPlus { at: a, cookie: u64::MAX },
            Request::OpenFile { at: b, how },
            Request::OpenTogether { at: at(""), names: Path::new(b"a/b").unwrap() },
            Request::Create { at: b, mode: 0o644, uid: 1, gid: 2, how },
            Request::MakeDir { at: b, mode: 0o755, uid: 1, gid: 2 },
            Request::MakeSymlink { at: a, target: b"../x", uid: 0, gid: 0 },
            Request::MakeNode { at: a, mode: libc::S_IFIFO | 0o600, uid: 0, gid: 0 },
            Request::Rename { from: a, to: b, flags: 1 },
            Request::Link { from: a, to: b },
            Request::Unlink { at: a, directory: true },
            Request::SetAttr { at: a, change },
            Request::StatFs { at: at("") },
            Request::GetXattr { at: a, name },
            Request::ListXattr { at: a },
            Request::SetXattr { at: a, name, value: b"v", flags: 1 },
            Request::RemoveXattr { at: a, name },
            Request::Sync { at: a },
            Request::MakeTemp { at: a, mode: 0o600, uid: 1, gid: 2 },
            Request::Close { fid: Fid(9) },
        ]
    }

    #[test]
    fn every_request_survives_the_wire_and_no_prefix_or_tail_does() {
        let mut out = Vec::new();
        for request in samples() {
            RequestWriter::encode(&request, &mut out).unwrap();
            assert_eq!(Request::decode(&out), Ok(request));
            for cut in 0..out.len() {
                assert!(Request::decode(&out[..cut]).is_err(), "{request:?} cut at {cut}");
            }
            out.push(0);
            assert_eq!(Request::decode(&out), Err(DecodeError::Trailing));
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        let message = |words: &[u32], tail: &[u8]| -> Vec<u8> {
            words.iter().flat_map(|w| w.to_ne_bytes()).chain(tail.iter().copied()).collect()
        };
        // A length that runs past the message, and one that would overflow an addition.
        assert!(Request::decode(&message(&[STAT_FS, 0, 100], b"abc")).is_err());
        assert!(Request::decode(&message(&[STAT_FS, 0, u32::MAX], b"abc")).is_err());
        // `..` and absolute paths.
        assert_eq!(Request::decode(&message(&[STAT_FS, 0, 2], b"..")), Err(DecodeError::Name));
        assert_eq!(Request::decode(&message(&[STAT_FS, 0, 4], b"/etc")), Err(DecodeError::Name));
        // An entry without a name, a device node, an open mode of nothing, a truncation of a file opened to read.
        assert_eq!(Request::decode(&message(&[UNLINK, 0, 0, 0], b"")), Err(DecodeError::Name));
        let mut node = message(&[MAKE_NODE, 0, 1], b"x");
        node.extend(message(&[libc::S_IFBLK | 0o666, 0, 0], b""));
        assert_eq!(Request::decode(&node), Err(DecodeError::Field));
        for how in [0, FileHow::READ.bits() | FileHow::TRUNCATE.bits(), 1 << 20] {
            assert_eq!(Request::decode(&message(&[OPEN_FILE, 0, 0, how], b"")), Err(DecodeError::Field));
        }
        assert_eq!(Request::decode(&message(&[77], b"")), Err(DecodeError::Kind(77)));
    }

    proptest! {
        #[test]
        fn decoding_is_total(kind in 0_u32..24, tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut message = kind.to_ne_bytes().to_vec();
            message.extend(&tail);
            let _ = Request::decode(&message);
            let _ = Request::decode(&tail);
        }
    }
}
