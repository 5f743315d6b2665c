//! What the file calls share: who walks, where from, and lists of buffers.

use std::sync::Arc;

use abi::fs::IoVec;
use sentry_base::{Errno, Result};
use sentry_kernel::{Current, FsContext, MountNamespace, Task};
use sentry_memory::IoSeg;
use sentry_vfs::{Credentials, FileDescription, FsContextView, Location, LookupFlags, PathCx};
use zerocopy::FromBytes;

use crate::args::{DirFd, Ptr};

/// The most bytes that one transfer moves (`MAX_RW_COUNT`).
pub(crate) const MAX_RW: usize = 0x7fff_f000;
/// `IOV_MAX`
const IOV_MAX: usize = 1024;

/// The caller as a walker of paths.
pub(crate) struct Paths {
    task: Arc<Task>,
    ns: Arc<MountNamespace>,
    fs: Arc<FsContext>,
    view: Arc<FsContextView>,
    pub creds: Arc<Credentials>,
}

impl Paths {
    pub fn of(cx: &Current) -> Self {
        let fs = cx.fs();
        let view = fs.view();
        Self { task: Arc::clone(&cx.task), ns: cx.mount_ns(), fs, view, creds: cx.creds() }
    }

    pub fn cx(&self) -> PathCx<'_> {
        PathCx::new(&self.ns, &self.view, &self.creds, &*self.task)
    }

    pub fn root(&self) -> &Location {
        &self.view.root
    }

    pub fn cwd(&self) -> &Location {
        &self.view.cwd
    }

    pub fn ns(&self) -> &Arc<MountNamespace> {
        &self.ns
    }

    pub fn fs(&self) -> &FsContext {
        &self.fs
    }

    /// What a directory argument and a path name.
    pub fn at(&self, dir: DirFd, path: &[u8], flags: LookupFlags) -> Result<Location> {
        let base = self.base(dir, path, flags)?;
        self.cx().lookup(base.as_ref(), path, flags)
    }

    /// Where a walk from this directory argument begins: `EBADF` for a closed descriptor, `ENOTDIR` for a file without
    /// a place. An absolute path needs none, unless the walk is confined below it.
    pub fn base(&self, dir: DirFd, path: &[u8], flags: LookupFlags) -> Result<Option<Location>> {
        let confined = flags.intersects(LookupFlags::IN_ROOT | LookupFlags::BENEATH | LookupFlags::NO_XDEV);
        if dir.0 == libc::AT_FDCWD || (path.first() == Some(&b'/') && !confined) {
            return Ok(None);
        }
        let file = self.task.file_or_path(dir.0)?;
        match file.location() {
            Some(at) => Ok(Some(at.clone())),
            None => Err(Errno::ENOTDIR),
        }
    }
}

/// What an `*at` call with `AT_EMPTY_PATH` and `AT_SYMLINK_NOFOLLOW` names: a place, or a file without one.
pub(crate) enum Target {
    At(Location),
    File(Arc<FileDescription>),
}

/// The target of a call that follows links unless `AT_SYMLINK_NOFOLLOW` is given.
pub(crate) fn target(paths: &Paths, cx: &Current, dir: DirFd, path: Ptr, flags: i32) -> Result<Target> {
    let empty_ok = flags & libc::AT_EMPTY_PATH != 0;
    // Newer kernels take a null pointer for the empty path.
    let text = if empty_ok && path.is_null() { Vec::new() } else { cx.path(path.0)? };
    let mut lookup = LookupFlags::empty();
    if flags & libc::AT_SYMLINK_NOFOLLOW == 0 {
        lookup |= LookupFlags::FOLLOW;
    }
    if empty_ok {
        lookup |= LookupFlags::EMPTY;
        if text.is_empty() && dir.0 != libc::AT_FDCWD {
            let file = cx.file_or_path(dir.0)?;
            return Ok(match file.location() {
                Some(at) => Target::At(at.clone()),
                None => Target::File(file),
            });
        }
    }
    paths.at(dir, &text, lookup).map(Target::At)
}

/// The segments of a vectored transfer, cut at [`MAX_RW`].
pub(crate) fn segments(cx: &Current, iov: Ptr, count: usize) -> Result<Vec<IoSeg>> {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; count * size_of::<IoVec>()];
    cx.copy_in(iov.0, &mut bytes)?;
    let mut room = MAX_RW as u64;
    let mut segs = Vec::with_capacity(count);
    for chunk in bytes.chunks_exact(size_of::<IoVec>()) {
        let vec = IoVec::read_from_bytes(chunk).map_err(|_| Errno::EFAULT)?;
        if i64::try_from(vec.len).is_err() {
            return Err(Errno::EINVAL);
        }
        let len = vec.len.min(room);
        room -= len;
        segs.push(IoSeg { addr: vec.base, len });
    }
    Ok(segs)
}

/// The segments from byte `skip` on, at most `limit` bytes of them.
pub(crate) fn cut(segs: &[IoSeg], skip: u64, limit: u64) -> Vec<IoSeg> {
    let (mut skip, mut limit) = (skip, limit);
    let mut out = Vec::with_capacity(segs.len());
    for seg in segs {
        let skipped = seg.len.min(skip);
        skip -= skipped;
        let len = (seg.len - skipped).min(limit);
        limit -= len;
        if len > 0 {
            out.push(IoSeg { addr: seg.addr.wrapping_add(skipped), len });
        }
    }
    out
}

/// The total length of segments.
pub(crate) fn total(segs: &[IoSeg]) -> u64 {
    segs.iter().map(|s| s.len).sum()
}
