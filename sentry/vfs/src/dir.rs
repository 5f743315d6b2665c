//! Open directories (`getdents64(2)`, `fs/readdir.c`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Events, Result};
use sentry_memory::UserWriter;

use crate::{DirEntry, FileKind, FileOps, IoCtx, IoStart, Location, Pos, Whence};

/// An open directory. Its position is a cookie of the file system; 0 stands before `.`, 1 before `..`, 2 before the
/// first entry.
#[derive(Debug)]
pub struct DirFile {
    at: Location,
}

impl DirFile {
    pub fn new(at: Location) -> Self {
        Self { at }
    }

    pub fn location(&self) -> &Location {
        &self.at
    }

    /// Gives the entries from `position` on to `sink` until it answers false, and moves `position` behind the last
    /// one taken. `ENOENT` for a removed directory.
    pub fn read_entries(&self, position: &mut u64, sink: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let dentry = &self.at.dentry;
        if dentry.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        if *position == 0 {
            let ino = dentry.inode().attr()?.ino;
            let entry = DirEntry { name: b".".to_vec(), ino, kind: FileKind::Directory, next_cookie: 1 };
            if !sink(&entry) {
                return Ok(());
            }
            *position = 1;
        }
        if *position == 1 {
            let parent = dentry.parent();
            let ino = parent.as_ref().unwrap_or(dentry).inode().attr()?.ino;
            let entry = DirEntry { name: b"..".to_vec(), ino, kind: FileKind::Directory, next_cookie: 2 };
            if !sink(&entry) {
                return Ok(());
            }
            *position = 2;
        }
        let cookie = if *position == 2 { 0 } else { *position };
        dentry.inode().list(cookie, &mut |entry| {
            let taken = sink(&entry);
            if taken {
                *position = entry.next_cookie;
            }
            taken
        })
    }
}

impl FileOps for DirFile {
    fn readiness(&self) -> Events {
        Events::READABLE | Events::WRITABLE
    }

    fn try_read(&self, _: &IoCtx<'_>, _: &mut UserWriter<'_>, _: Pos) -> Result<IoStart<usize>> {
        Err(Errno::EISDIR)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, _size: u64) -> Result<u64> {
        let base = match whence {
            Whence::Set => 0,
            Whence::Current => current,
            Whence::End | Whence::Data | Whence::Hole => return Err(Errno::EINVAL),
        };
        base.checked_add_signed(offset).filter(|p| i64::try_from(*p).is_ok()).ok_or(Errno::EINVAL)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn kind(&self) -> FileKind {
        FileKind::Directory
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The directory behind an open file, if it is one.
pub fn as_dir(ops: &Arc<dyn FileOps>) -> Option<&DirFile> {
    ops.as_any().downcast_ref()
}
