//! Open regular files: reading, writing, mapping, `fallocate(2)`, seals.

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Events, Result};
use sentry_memory::{UserReader, UserWriter};
use sentry_mm::{FileMappings, Mappable, MappedPiece};
use sentry_vfs::{
    FileOps, Inode, IoCtx, IoStart, OpenFlags, Pos, SetAttr, Timestamp, Whence, without_set_ids,
};

use crate::inode::{Body, State, TmpInode};
use crate::memfd::seal;

/// The largest piece that is copied under an inode's lock.
const PIECE: usize = 128 * 1024;

/// An open regular file of a tmpfs.
#[derive(Debug)]
pub struct OpenTmpfs {
    inode: Arc<TmpInode>,
}

/// The tmpfs file behind an open file, if it is one.
pub fn open_tmpfs_file(ops: &Arc<dyn FileOps>) -> Option<&OpenTmpfs> {
    ops.as_any().downcast_ref()
}

/// Whether a read at `now` sets atime again (`relatime`).
fn atime_is_stale(state: &State, now: Timestamp) -> bool {
    let attr = &state.attr;
    attr.atime <= attr.mtime || attr.atime <= attr.ctime || now.sec - attr.atime.sec >= 24 * 60 * 60
}

impl TmpInode {
    fn read_piece(&self, pos: u64, buf: &mut [u8]) -> usize {
        let state = self.state.read();
        let Body::File { data, .. } = &state.body else { return 0 };
        let left = usize::try_from(state.attr.size.saturating_sub(pos)).unwrap_or(usize::MAX);
        let n = left.min(buf.len());
        if let Some(part) = buf.get_mut(..n) {
            data.read(pos, part);
        }
        n
    }

    /// Writes at `pos`. The write lock is held.
    fn write_piece(&self, pos: u64, bytes: &[u8]) -> Result<usize> {
        let mut state = self.state.write();
        state.drop_capability();
        let State { attr, body, .. } = &mut *state;
        let Body::File { data, charged, seals, kept } = body else { return Err(Errno::EINVAL) };
        if *seals & (seal::WRITE | seal::FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        let mut bytes = bytes;
        if *seals & seal::GROW != 0 {
            let room = usize::try_from(attr.size.saturating_sub(pos)).unwrap_or(usize::MAX);
            if room == 0 {
                return Err(Errno::EPERM);
            }
            bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        }
        let need = data.new_bytes(pos, bytes.len() as u64, attr.size.max(*kept));
        let granted = self.shared.charge(need);
        *charged += granted;
        if granted < need {
            // What fits into the pages granted: found page by page, which only a full file system pays for.
            let mut fits = 0;
            while fits < bytes.len() {
                let to_page_end = 4096 - usize::try_from((pos + fits as u64) % 4096).unwrap_or(0);
                let next = (fits + to_page_end).min(bytes.len());
                if data.new_bytes(pos, next as u64, attr.size.max(*kept)) > granted {
                    break;
                }
                fits = next;
            }
            bytes = bytes.get(..fits).unwrap_or_default();
        }
        let result = if bytes.is_empty() { Err(Errno::ENOSPC) } else { data.write(pos, bytes) };
        if let Ok(n) = result {
            attr.size = attr.size.max(pos + n as u64);
            attr.mtime = Timestamp::now();
            attr.ctime = attr.mtime;
        }
        if granted < need || result != Ok(bytes.len()) {
            let now = data.allocated(attr.size.max(*kept));
            self.shared.release(charged.saturating_sub(now));
            *charged = now;
        }
        result
    }

    fn drop_set_ids(&self, io: &IoCtx<'_>) -> Result<()> {
        const CAPABILITY: &[u8] = b"security.capability";
        let (attr, has_caps) = {
            let state = self.state.read();
            if state.attr.mode & 0o6000 == 0 && state.xattrs.is_empty() {
                return Ok(());
            }
            (state.attr, state.xattrs.contains_key(CAPABILITY))
        };
        if has_caps {
            self.state.write().xattrs.remove(CAPABILITY);
        }
        match without_set_ids(&attr, &io.caller.creds()) {
            None => Ok(()),
            mode => self.set_attr(&SetAttr { mode, ..SetAttr::default() }),
        }
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned();
        if mode & !(KEEP_SIZE | PUNCH_HOLE) != 0 || mode == PUNCH_HOLE {
            return Err(Errno::EOPNOTSUPP);
        }
        let end = offset.checked_add(len).filter(|e| i64::try_from(*e).is_ok()).ok_or(Errno::EFBIG)?;
        let _writes = self.writes.lock();
        let mut state = self.state.write();
        let State { attr, body, .. } = &mut *state;
        let Body::File { data, charged, seals, kept } = body else { return Err(Errno::ENODEV) };
        if mode & PUNCH_HOLE != 0 {
            if *seals & (seal::WRITE | seal::FUTURE_WRITE) != 0 {
                return Err(Errno::EPERM);
            }
            data.punch_hole(offset, len);
        } else {
            if *seals & seal::GROW != 0 && end > attr.size {
                return Err(Errno::EPERM);
            }
            let need = data.new_bytes(offset, len, attr.size.max(*kept));
            self.shared.charge_all(need)?;
            *charged += need;
            let result = data.reserve(offset, len);
            if result.is_err() {
                let now = data.allocated(attr.size.max(*kept));
                self.shared.release(charged.saturating_sub(now));
                *charged = now;
                return result;
            }
            if mode & KEEP_SIZE == 0 {
                attr.size = attr.size.max(end);
            } else {
                *kept = end.max(*kept);
            }
        }
        let now = data.allocated(attr.size.max(*kept));
        if now < *charged {
            self.shared.release(*charged - now);
        } else {
            self.shared.charge(now - *charged);
        }
        *charged = now;
        attr.mtime = Timestamp::now();
        attr.ctime = attr.mtime;
        Ok(())
    }
}

impl OpenTmpfs {
    pub(crate) fn new(inode: Arc<TmpInode>) -> Self {
        Self { inode }
    }

    /// `F_GET_SEALS`; `EINVAL` for a file that cannot be sealed never comes from tmpfs.
    pub fn seals(&self) -> u32 {
        match &self.inode.state.read().body {
            Body::File { seals, .. } => *seals,
            _ => 0,
        }
    }

    /// Whether the file may not be written any more, through mappings made from now on.
    pub fn is_write_sealed(&self) -> bool {
        self.seals() & (seal::WRITE | seal::FUTURE_WRITE) != 0
    }

    /// `F_ADD_SEALS`: `EPERM` once `F_SEAL_SEAL` is set, `EINVAL` for unknown ones, `EBUSY` for `F_SEAL_WRITE` while the
    /// file is mapped for writing.
    pub fn add_seals(&self, add: u32) -> Result<()> {
        if add & !seal::ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let _writes = self.inode.writes.lock();
        let mut state = self.inode.state.write();
        let executable = state.attr.mode & 0o111 != 0;
        let Body::File { seals, .. } = &mut state.body else { return Err(Errno::EINVAL) };
        if *seals & seal::SEAL != 0 {
            return Err(Errno::EPERM);
        }
        let mut add = add;
        if add & seal::EXEC != 0 && executable {
            // What may be executed may not change any more.
            add |= seal::SHRINK | seal::GROW | seal::WRITE | seal::FUTURE_WRITE;
        }
        if add & seal::WRITE != 0 && *seals & seal::WRITE == 0 {
            let sealed = self.inode.mappings.seal_writes(&*self.inode, || *seals |= add);
            return if sealed { Ok(()) } else { Err(Errno::EBUSY) };
        }
        *seals |= add;
        Ok(())
    }
}

impl FileOps for OpenTmpfs {
    fn readiness(&self) -> Events {
        Events::READABLE | Events::WRITABLE
    }

    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let Pos::At(pos) = pos else { return Err(Errno::EINVAL) };
        let inode = &self.inode;
        let size = inode.state.read().attr.size;
        let left = usize::try_from(size.saturating_sub(pos)).unwrap_or(usize::MAX);
        let n =
            if left == 0 { 0 } else { dst.fill(left, |buf, at| Ok(inode.read_piece(pos + at as u64, buf)))? };
        if !io.flags.contains(OpenFlags::NOATIME) {
            let now = Timestamp::now();
            let stale = atime_is_stale(&inode.state.read(), now);
            if stale {
                inode.state.write().attr.atime = now;
            }
        }
        Ok(IoStart::Done(n))
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, pos: Pos) -> Result<IoStart<usize>> {
        if src.remaining() == 0 {
            return Ok(IoStart::Done(0));
        }
        self.inode.drop_set_ids(io)?;
        let _writes = self.inode.writes.lock();
        let start = match pos {
            Pos::At(pos) => pos,
            Pos::Append => self.inode.state.read().attr.size,
            Pos::Stream => return Err(Errno::EINVAL),
        };
        let room = (i64::MAX as u64).saturating_sub(start);
        if room == 0 {
            return Err(Errno::EFBIG);
        }
        let want = src.remaining().min(usize::try_from(room).unwrap_or(usize::MAX));
        let mut piece = vec![0; want.min(PIECE)];
        let mut done = 0;
        while done < want {
            let part = piece.get_mut(..(want - done).min(PIECE)).unwrap_or_default();
            let stored = src.read(part).and_then(|got| {
                let bytes = part.get(..got).unwrap_or_default();
                if got == 0 {
                    Ok((0, 0))
                } else {
                    Ok((self.inode.write_piece(start + done as u64, bytes)?, got))
                }
            });
            match stored {
                Ok((0, _)) => break,
                Ok((n, got)) => {
                    done += n;
                    if n < got || got < part.len() {
                        break;
                    }
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(IoStart::Done(done))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, offset: i64, whence: Whence, current: u64, size: u64) -> Result<u64> {
        let base = match whence {
            Whence::Set => 0,
            Whence::Current => current,
            Whence::End => size,
            Whence::Data | Whence::Hole => {
                let state = self.inode.state.read();
                let size = state.attr.size;
                let Body::File { data, .. } = &state.body else { return Err(Errno::ENXIO) };
                let from = u64::try_from(offset).ok().filter(|o| *o < size).ok_or(Errno::ENXIO)?;
                return if whence == Whence::Data {
                    data.next_data(from, size).ok_or(Errno::ENXIO)
                } else {
                    Ok(data.next_hole(from, size))
                };
            }
        };
        base.checked_add_signed(offset).filter(|p| i64::try_from(*p).is_ok()).ok_or(Errno::EINVAL)
    }

    fn mappable(&self) -> Result<Arc<dyn Mappable>> {
        let now = Timestamp::now();
        let stale = atime_is_stale(&self.inode.state.read(), now);
        if stale {
            self.inode.state.write().attr.atime = now;
        }
        Ok(Arc::clone(&self.inode) as Arc<dyn Mappable>)
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.inode.set_attr(&SetAttr { size: Some(len), ..SetAttr::default() })
    }

    fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.inode.allocate(mode, offset, len)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Mappable for TmpInode {
    fn pieces(&self, offset: u64, len: u64, write: bool) -> Result<Vec<MappedPiece>> {
        let mut state = self.state.write();
        let State { attr, body, .. } = &mut *state;
        let Body::File { data, charged, seals, kept } = body else { return Err(Errno::ENODEV) };
        if write && *seals & (seal::WRITE | seal::FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        let size = attr.size;
        let within = size.next_multiple_of(4096).saturating_sub(offset).min(len);
        if self.shared.options.size.is_some() {
            // Refused before a page is made; the exact sum is taken below.
            let need = data.new_bytes(offset, within, size.max(*kept));
            self.shared.charge_all(need)?;
            *charged += need;
        }
        let found = data.pieces(offset, len, size);
        let now = data.allocated(size.max(*kept));
        if now < *charged {
            self.shared.release(*charged - now);
        } else {
            self.shared.charge(now - *charged);
        }
        *charged = now;
        Ok(MappedPiece::of_data(&self.shared.memory, &found?))
    }

    fn written(&self) {
        let now = Timestamp::now();
        let mut state = self.state.write();
        (state.attr.mtime, state.attr.ctime) = (now, now);
    }

    fn identity(&self) -> (u64, u64) {
        (self.shared.dev, self.ino)
    }

    fn mappings(&self) -> Option<&FileMappings> {
        Some(&self.mappings)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        const PUNCH: u32 = (libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE).cast_unsigned();
        self.allocate(PUNCH, offset, len)
    }
}
