//! The host files behind the mounts, reached so that no name leads out of them.
//!
//! Every path is resolved from the jail's root with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS`, and
//! the last name of a change is given to a `*at` call that does not follow it. A directory that is swapped for a link
//! while a request runs makes the request fail.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use gofer_protocol::{Fid, Name, Path, Place, WireAttr, WireTime};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp, openat2, statx,
};
use rustix::io::Errno;

use crate::config::Mount;

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// The longest path that one call may resolve (`PATH_MAX` without its NUL).
const PATH_MAX: usize = 4095;

/// Files that may be kept open at once; more are not kept.
const MAX_KEPT: usize = 4096;

/// Marks the fid of a kept file; below it are 11 bits of generation and 20 of index.
const KEPT: u32 = 1 << 31;
const INDEX_BITS: u32 = 20;
const GENERATION_MASK: u32 = (1 << 11) - 1;

/// The mounts of a session and the files that it keeps open.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The jail's root; mount N is `N` in it.
    root: OwnedFd,
    mounts: Vec<Mount>,
    kept: Mutex<Vec<Slot>>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    mount: usize,
    file: Option<Arc<OwnedFd>>,
}

/// A file that a request names, for attribute changes and the like.
#[derive(Debug)]
pub(crate) enum Node {
    /// `O_PATH`.
    Path(OwnedFd),
    Kept(Arc<OwnedFd>),
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Path(fd) => fd.as_fd(),
            Self::Kept(fd) => fd.as_fd(),
        }
    }
}

/// An entry that a request names: its directory, `O_PATH`, and its name there.
#[derive(Debug)]
pub(crate) struct EntryAt<'a> {
    pub dir: OwnedFd,
    name: Name<'a>,
}

impl<'a> EntryAt<'a> {
    pub fn name(&self) -> &'a [u8] {
        self.name.as_bytes()
    }

    pub fn attr(&self) -> Result<WireAttr> {
        attr_at(self.dir.as_fd(), self.name())
    }
}

impl Tree {
    pub fn new(root: OwnedFd, mounts: Vec<Mount>) -> Self {
        Self { root, mounts, kept: Mutex::new(Vec::new()) }
    }

    /// The root fid of a mount.
    pub fn attach(&self, mount: u32) -> Result<Fid> {
        self.mount(usize::try_from(mount).unwrap_or(usize::MAX))?;
        Ok(Fid(mount))
    }

    fn mount(&self, index: usize) -> Result<&Mount> {
        self.mounts.get(index).ok_or(Errno::BADF)
    }

    /// The mount that a fid belongs to.
    fn mount_of(&self, fid: Fid) -> Result<(usize, &Mount)> {
        let index = if fid.0 & KEPT == 0 {
            usize::try_from(fid.0).map_err(|_| Errno::BADF)?
        } else {
            self.kept_slot(fid, |slot| slot.mount)?
        };
        Ok((index, self.mount(index)?))
    }

    /// The mount of `fid` if changes are allowed in it.
    pub fn writable(&self, fid: Fid) -> Result<&Mount> {
        let (_, mount) = self.mount_of(fid)?;
        if mount.read_only { Err(Errno::ROFS) } else { Ok(mount) }
    }

    pub fn same_mount(&self, a: Fid, b: Fid) -> Result<()> {
        if self.mount_of(a)?.0 == self.mount_of(b)?.0 { Ok(()) } else { Err(Errno::XDEV) }
    }

    /// Opens what a place of a mount names. `flags` get `O_CLOEXEC | O_NOFOLLOW | O_NOCTTY`.
    pub fn open(&self, at: Place<'_>, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let (index, _) = self.mount_of(at.fid)?;
        if at.fid.0 & KEPT != 0 {
            return Err(Errno::NOTDIR);
        }
        let prefix = index.to_string();
        let mut full = Vec::with_capacity(prefix.len() + 1 + at.path.as_bytes().len());
        full.extend_from_slice(prefix.as_bytes());
        if !at.path.is_empty() {
            full.push(b'/');
            full.extend_from_slice(at.path.as_bytes());
        }

        // A path that is too long for one call is resolved in pieces.
        let mut rest = full.as_slice();
        let mut base: Option<OwnedFd> = None;
        while rest.len() > PATH_MAX {
            let head = rest.get(..PATH_MAX).ok_or(Errno::NAMETOOLONG)?;
            let slash = head.iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
            let (piece, tail) = rest.split_at_checked(slash).ok_or(Errno::NAMETOOLONG)?;
            let from = base.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let next = beneath(from, piece, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            base = Some(next);
            rest = tail.get(1..).ok_or(Errno::NAMETOOLONG)?;
        }
        beneath(base.as_ref().map_or(self.root.as_fd(), AsFd::as_fd), rest, flags, mode)
    }

    /// A directory, `O_PATH`.
    pub fn directory(&self, at: Place<'_>) -> Result<OwnedFd> {
        self.open(at, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Whatever the place names, a symbolic link included.
    pub fn node(&self, at: Place<'_>) -> Result<Node> {
        if at.fid.0 & KEPT != 0 {
            if !at.path.is_empty() {
                return Err(Errno::NOTDIR);
            }
            return Ok(Node::Kept(self.kept_file(at.fid)?));
        }
        Ok(Node::Path(self.open(at, OFlags::PATH, Mode::empty())?))
    }

    /// The directory of an entry.
    pub fn entry<'a>(&self, at: Place<'a>) -> Result<EntryAt<'a>> {
        let (dir, name) = at.path.split_last().ok_or(Errno::INVAL)?;
        Ok(EntryAt { dir: self.directory(Place { fid: at.fid, path: dir })?, name })
    }

    /// Opens a regular file for I/O; anything else is refused, and a FIFO or device is not even opened.
    pub fn open_regular(&self, at: Place<'_>, flags: OFlags) -> Result<(WireAttr, OwnedFd)> {
        if let Some((dir, name)) = at.path.split_last() {
            let dir = self.directory(Place { fid: at.fid, path: dir })?;
            return regular_in(dir.as_fd(), name, flags);
        }
        let node = self.open(at, OFlags::PATH, Mode::empty())?;
        if file_type(&attr_of(node.as_fd())?) != FileType::RegularFile {
            return Err(Errno::ISDIR);
        }
        regular_only(self.open(at, flags, Mode::empty())?)
    }

    /// Opens a regular file or directory for calls that refuse `O_PATH` descriptors.
    pub fn open_to_read(&self, at: Place<'_>) -> Result<Node> {
        if at.fid.0 & KEPT != 0 {
            return self.node(at);
        }
        let node = self.node(at)?;
        match file_type(&attr_of(node.as_fd())?) {
            FileType::Directory => {
                Ok(Node::Path(self.open(at, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?))
            }
            FileType::RegularFile => Ok(Node::Path(self.open_regular(at, OFlags::RDONLY)?.1)),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Keeps a copy of an open file; [`Fid::NONE`] where too many are kept already.
    pub fn keep(&self, of: Fid, file: &OwnedFd) -> Result<Fid> {
        let (mount, _) = self.mount_of(of)?;
        let mut kept = self.lock_kept();
        let index = match kept.iter().position(|slot| slot.file.is_none()) {
            Some(free) => free,
            None if kept.len() < MAX_KEPT => {
                kept.push(Slot { generation: 0, mount, file: None });
                kept.len() - 1
            }
            None => return Ok(Fid::NONE),
        };
        let slot = kept.get_mut(index).ok_or(Errno::BADF)?;
        let copy = file.try_clone().map_err(|_| Errno::MFILE)?;
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        slot.mount = mount;
        slot.file = Some(Arc::new(copy));
        let index = u32::try_from(index).map_err(|_| Errno::BADF)?;
        Ok(Fid(KEPT | (slot.generation << INDEX_BITS) | index))
    }

    /// Forgets a kept file; a second time is an error.
    pub fn close(&self, fid: Fid) -> Result<()> {
        let mut kept = self.lock_kept();
        Self::slot(&mut kept, fid)?.file.take().map(drop).ok_or(Errno::BADF)
    }

    fn kept_file(&self, fid: Fid) -> Result<Arc<OwnedFd>> {
        self.kept_slot(fid, |slot| slot.file.clone())?.ok_or(Errno::BADF)
    }

    fn kept_slot<T>(&self, fid: Fid, look: impl FnOnce(&Slot) -> T) -> Result<T> {
        Ok(look(Self::slot(&mut self.lock_kept(), fid)?))
    }

    fn lock_kept(&self) -> std::sync::MutexGuard<'_, Vec<Slot>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn slot(kept: &mut [Slot], fid: Fid) -> Result<&mut Slot> {
        if fid.0 & KEPT == 0 {
            return Err(Errno::BADF);
        }
        let index = usize::try_from(fid.0 & ((1 << INDEX_BITS) - 1)).map_err(|_| Errno::BADF)?;
        let slot = kept.get_mut(index).ok_or(Errno::BADF)?;
        let generation = (fid.0 >> INDEX_BITS) & GENERATION_MASK;
        if slot.generation == generation && slot.file.is_some() { Ok(slot) } else { Err(Errno::BADF) }
    }
}

/// The one place where a name is opened.
pub(crate) fn beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let common = if flags.contains(OFlags::PATH) {
        OFlags::CLOEXEC | OFlags::NOFOLLOW
    } else {
        // O_NONBLOCK: a FIFO that took the place of the file since it was looked at must not block the gofer.
        OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(dir, path, flags | common, mode, resolve)
}

/// Opens a regular file of a directory for I/O; anything else is refused, and a FIFO or device is not even opened.
pub(crate) fn regular_in(dir: BorrowedFd<'_>, name: Name<'_>, flags: OFlags) -> Result<(WireAttr, OwnedFd)> {
    if file_type(&attr_at(dir, name.as_bytes())?) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    regular_only(beneath(dir, name.as_bytes(), flags, Mode::empty())?)
}

/// Refuses what is no regular file, and takes `O_NONBLOCK` off again.
pub(crate) fn regular_only(file: OwnedFd) -> Result<(WireAttr, OwnedFd)> {
    let attr = attr_of(file.as_fd())?;
    if file_type(&attr) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    // Of the flags that can be set, it has no other.
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    Ok((attr, file))
}

pub(crate) fn file_type(attr: &WireAttr) -> FileType {
    FileType::from_raw_mode(attr.mode)
}

/// Attributes of a name in a directory, which is not followed.
pub(crate) fn attr_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<WireAttr> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(wire_attr(&statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?))
}

/// Attributes of an open file.
pub(crate) fn attr_of(file: BorrowedFd<'_>) -> Result<WireAttr> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    Ok(wire_attr(&statx(file, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?))
}

/// The target of a link in a directory; empty where the name is none any more.
pub(crate) fn target_at(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    rustix::fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes).unwrap_or_default()
}

fn wire_attr(st: &Statx) -> WireAttr {
    let time = |t: &StatxTimestamp| WireTime { sec: t.tv_sec, nsec: t.tv_nsec, reserved: 0 };
    WireAttr {
        dev: rustix::fs::makedev(st.stx_dev_major, st.stx_dev_minor),
        ino: st.stx_ino,
        size: st.stx_size,
        blocks: st.stx_blocks,
        rdev: rustix::fs::makedev(st.stx_rdev_major, st.stx_rdev_minor),
        mode: st.stx_mode.into(),
        nlink: st.stx_nlink,
        uid: st.stx_uid,
        gid: st.stx_gid,
        blksize: st.stx_blksize,
        has_btime: u32::from(st.stx_mask & StatxFlags::BTIME.bits() != 0),
        atime: time(&st.stx_atime),
        mtime: time(&st.stx_mtime),
        ctime: time(&st.stx_ctime),
        btime: time(&st.stx_btime),
    }
}

/// The place of a whole mount or kept file.
pub(crate) fn itself(fid: Fid) -> Place<'static> {
    Place { fid, path: Path::EMPTY }
}
