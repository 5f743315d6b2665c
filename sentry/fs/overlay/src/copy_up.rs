//! Copying an object of the lower layer up, with the directories above it.

use std::sync::Arc;

use sentry_base::{Errno, KeyedSet, Result};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{Attr, FileKind, FileOps, Inode, IoStart, OpenFlags, Owner, Pos, SetAttr, SetTime, Whence};

use crate::inode::OverlayInode;
use crate::kernel_caller::{KernelCaller, io};
use crate::{LinkNote, OverlayFs, UpperNote};

/// Bytes that are copied at once.
const CHUNK: usize = 256 * 1024;

/// Whether the contents of a file come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    Copy,
    /// It is about to be truncated to nothing.
    Drop,
}

impl OverlayInode {
    /// The upper object, made now if there is none.
    pub(crate) fn copy_up(&self, data: Data) -> Result<Arc<dyn Inode>> {
        if let Some(upper) = self.upper() {
            return Ok(Arc::clone(upper));
        }
        // From the top down, so that each step finds its directory done and no step holds another's lock.
        let mut above: Vec<Arc<OverlayInode>> = Vec::new();
        let mut next = self.parent().cloned();
        while let Some(dir) = next {
            if dir.upper().is_some() {
                break;
            }
            next = dir.parent().cloned();
            above.push(dir);
        }
        let fs = self.fs()?;
        while let Some(dir) = above.pop() {
            dir.copy_up_alone(&fs, Data::Copy)?;
        }
        self.copy_up_alone(&fs, data)
    }

    fn copy_up_alone(&self, fs: &OverlayFs, data: Data) -> Result<Arc<dyn Inode>> {
        let _only_one = self.lock_copy_up();
        if let Some(upper) = self.upper() {
            return Ok(Arc::clone(upper));
        }
        let lower = self.lower().ok_or(Errno::ESTALE)?;
        let attr = lower.attr()?;
        let upper = match self.kind() {
            FileKind::Regular => self.copy_file(fs, lower, &attr, data)?,
            _ if self.is_unlinked() => {
                // Nameless, it can only be seen through a descriptor: the change has no place to go.
                return Err(Errno::ENOENT);
            }
            _ => self.copy_other(fs, lower, &attr)?,
        };
        self.set_upper(&upper, upper.attr()?.ino);
        Ok(upper)
    }

    /// The new file gets its name last, so that nobody sees it half full.
    fn copy_file(
        &self,
        fs: &OverlayFs,
        lower: &Arc<dyn Inode>,
        attr: &Attr,
        data: Data,
    ) -> Result<Arc<dyn Inode>> {
        let upper = fs.upper.root().tmpfile(attr.mode & 0o7777, Owner { uid: attr.uid, gid: attr.gid })?;
        if data == Data::Copy {
            copy_data(lower, &upper, attr.size)?;
        }
        copy_metadata(lower, &upper, attr)?;
        let upper_ino = upper.attr()?.ino;
        self.note_copy(fs, upper_ino, None);
        let several = {
            let mut tables = fs.tables.lock();
            match tables.links.get_mut(&attr.ino) {
                Some(note) => {
                    // Its names stay in the lower layer and stand for the copy from now on.
                    note.copy = Some((Arc::clone(&upper), upper_ino));
                    true
                }
                None => false,
            }
        };
        if !several && !self.is_unlinked() {
            let (dir, name) = self.upper_place()?;
            if let Err(e) = dir.link(name, &upper) {
                fs.forget_upper(upper_ino);
                return Err(e);
            }
        }
        Ok(upper)
    }

    fn copy_other(&self, fs: &OverlayFs, lower: &Arc<dyn Inode>, attr: &Attr) -> Result<Arc<dyn Inode>> {
        let (dir, name) = self.upper_place()?;
        let owner = Owner { uid: attr.uid, gid: attr.gid };
        let upper = match self.kind() {
            FileKind::Directory => dir.mkdir(name, attr.mode & 0o7777, owner)?,
            FileKind::Symlink => dir.symlink(name, &lower.readlink(&KernelCaller)?, owner)?,
            _ => dir.mknod(name, attr.mode, attr.rdev, owner)?,
        };
        copy_metadata(lower, &upper, attr)?;
        let shown = (self.kind() == FileKind::Directory).then(|| Arc::clone(lower));
        self.note_copy(fs, upper.attr()?.ino, shown);
        Ok(upper)
    }

    fn note_copy(&self, fs: &OverlayFs, upper_ino: u64, lower: Option<Arc<dyn Inode>>) {
        let note = UpperNote { ino: self.ino(), live: self.weak(), lower, whiteouts: KeyedSet::default() };
        let old = fs.tables.lock().upper.insert(upper_ino, note);
        drop(old);
    }

    /// The upper directory and the name in it where the copy belongs.
    fn upper_place(&self) -> Result<(&Arc<dyn Inode>, &[u8])> {
        let (parent, name) = self.place().ok_or(Errno::ENOENT)?;
        Ok((parent.upper().ok_or(Errno::ESTALE)?, name))
    }
}

impl LinkNote {
    pub(crate) fn new(names: u32) -> Self {
        Self { live: std::sync::Weak::new(), copy: None, names_left: names }
    }
}

/// Copies what the directory `from` holds into the empty directory `to`, with its own attributes: the `tmpcopyup` of
/// container engines. `ELOOP` below 64 directories, `ENOSPC` for more than 100,000 entries.
pub fn copy_tree(from: &Arc<dyn Inode>, to: &Arc<dyn Inode>) -> Result<()> {
    const DEPTH: usize = 64;
    const ENTRIES: usize = 100_000;
    let mut left = ENTRIES;
    let mut work = vec![(Arc::clone(from), Arc::clone(to), 0_usize)];
    let mut finish = Vec::new();
    while let Some((from, to, depth)) = work.pop() {
        if depth > DEPTH {
            return Err(Errno::ELOOP);
        }
        let mut names = Vec::new();
        from.list(0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push(entry.name);
            }
            names.len() <= ENTRIES
        })?;
        left = left.checked_sub(names.len()).ok_or(Errno::ENOSPC)?;
        for name in names {
            let source = from.lookup(&name)?;
            let attr = source.attr()?;
            let owner = Owner { uid: attr.uid, gid: attr.gid };
            let made = match attr.kind() {
                FileKind::Directory => {
                    let made = to.mkdir(&name, attr.mode & 0o7777, owner)?;
                    work.push((source, made, depth + 1));
                    continue;
                }
                FileKind::Symlink => to.symlink(&name, &source.readlink(&KernelCaller)?, owner)?,
                FileKind::Regular => {
                    let made = to.create(&name, attr.mode & 0o7777, owner)?;
                    copy_data(&source, &made, attr.size)?;
                    made
                }
                _ => to.mknod(&name, attr.mode, attr.rdev, owner)?,
            };
            copy_metadata(&source, &made, &attr)?;
        }
        finish.push((from, to));
    }
    // A directory's times are set when nothing is made in it any more.
    for (from, to) in finish {
        let attr = from.attr()?;
        copy_metadata(&from, &to, &attr)?;
    }
    Ok(())
}

/// Owner, mode, times and extended attributes.
fn copy_metadata(lower: &Arc<dyn Inode>, upper: &Arc<dyn Inode>, attr: &Attr) -> Result<()> {
    let link = attr.kind() == FileKind::Symlink;
    upper.set_attr(&SetAttr {
        mode: (!link).then_some(attr.mode & 0o7777),
        uid: Some(attr.uid),
        gid: Some(attr.gid),
        size: None,
        atime: Some(SetTime::At(attr.atime)),
        mtime: Some(SetTime::At(attr.mtime)),
    })?;
    // After the owner: a change of that takes capabilities away.
    for name in lower.list_xattr().unwrap_or_default() {
        let Ok(value) = lower.get_xattr(&name) else { continue };
        match upper.set_xattr(&name, &value, 0) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Copies the bytes, and leaves holes as holes where the lower layer can tell them.
fn copy_data(lower: &Arc<dyn Inode>, upper: &Arc<dyn Inode>, size: u64) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    let from = Arc::clone(lower).open(OpenFlags::empty(), &KernelCaller)?;
    let to = Arc::clone(upper).open(OpenFlags::WRONLY, &KernelCaller)?;
    let mut buf = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    let mut at = 0;
    while at < size {
        let signed = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
        let start = match from.seek(signed, Whence::Data, at, size) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(_) => at,
        };
        // The lower file may have grown since, by way of another mount: what was not there is not copied.
        if start >= size {
            break;
        }
        let signed = i64::try_from(start).map_err(|_| Errno::EFBIG)?;
        let end = from.seek(signed, Whence::Hole, start, size).unwrap_or(size).min(size).max(start);
        at = copy_range(&*from, &*to, start, end, &mut buf)?;
        if at < end {
            break;
        }
        // A file system that tells no hole apart must not hold us up.
        if end == start {
            break;
        }
    }
    upper.set_attr(&SetAttr { size: Some(size), ..SetAttr::default() })
}

/// Copies `start..end`, or less where the file ends; returns where it stopped.
fn copy_range(from: &dyn FileOps, to: &dyn FileOps, start: u64, end: u64, buf: &mut [u8]) -> Result<u64> {
    let mut at = start;
    while at < end {
        let want = buf.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let part = buf.get_mut(..want).unwrap_or_default();
        let got = match from.try_read(&io(OpenFlags::NOATIME), &mut UserWriter::buffer(part), Pos::At(at))? {
            IoStart::Done(0) => return Ok(at),
            IoStart::Done(got) => got,
            IoStart::WouldBlock => return Err(Errno::EIO),
        };
        let mut src = UserReader::buffer(buf.get(..got).unwrap_or_default());
        while src.remaining() > 0 {
            match to.try_write(&io(OpenFlags::empty()), &mut src, Pos::At(at))? {
                IoStart::Done(n) if n > 0 => at += n as u64,
                _ => return Err(Errno::ENOSPC),
            }
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use fs_tmpfs::{TmpFs, TmpfsOptions};
    use sentry_memory::MemoryFile;
    use sentry_vfs::{FileSystem, IoCtx, Owner, Pos};

    use super::*;

    #[test]
    fn a_file_that_has_grown_meanwhile_is_copied_as_it_was() {
        let memory = MemoryFile::create(1 << 30).unwrap();
        let root = TmpFs::new(&memory, TmpfsOptions::default()).root();
        let [lower, upper] =
            [b"lower", b"upper"].map(|name| root.create(name, 0o644, Owner { uid: 0, gid: 0 }).unwrap());
        let file = Arc::clone(&lower).open(OpenFlags::WRONLY, &KernelCaller).unwrap();
        let io = IoCtx { caller: &KernelCaller, flags: OpenFlags::WRONLY };
        // A hole where the file was when its size was taken, and data behind.
        file.try_write(&io, &mut sentry_memory::UserReader::buffer(b"grown"), Pos::At(1 << 20)).unwrap();
        copy_data(&lower, &upper, 4096).unwrap();
        assert_eq!(upper.attr().unwrap().size, 4096);
    }
}
