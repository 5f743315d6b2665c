//! Pseudo files: files, links and directories whose content the kernel makes when it is read (procfs, sysfs).

use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use sentry_base::{Errno, Result};
use sentry_memory::{UserReader, UserWriter};

use crate::{
    Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, Inode, IoCtx, IoStart, OpenFlags, Pos, SetAttr,
    StatFs,
};

/// What a pseudo file says, and what writing to it does.
pub trait Content: Send + Sync {
    /// The whole text, made anew for each pass over the file.
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>>;

    /// Takes one write; the default refuses as a file without a store method does.
    fn store(&self, caller: &dyn Caller, data: &[u8]) -> Result<usize> {
        let _ = (caller, data);
        Err(Errno::EINVAL)
    }
}

impl<F: Fn(&dyn Caller) -> Result<Vec<u8>> + Send + Sync> Content for F {
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        self(caller)
    }
}

/// Content that never changes.
#[derive(Debug, Clone)]
pub struct Fixed(pub Vec<u8>);

impl Content for Fixed {
    fn text(&self, _caller: &dyn Caller) -> Result<Vec<u8>> {
        Ok(self.0.clone())
    }
}

/// A file system of pseudo files.
pub struct PseudoFs {
    name: &'static str,
    magic: u64,
    dev: u64,
    next_ino: AtomicU64,
    root: OnceLock<Arc<dyn Inode>>,
}

impl core::fmt::Debug for PseudoFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PseudoFs({})", self.name)
    }
}

impl PseudoFs {
    /// A file system of type `name` with device number `dev`; inode numbers made by [`PseudoFs::next_ino`] start above
    /// `first_ino`.
    pub fn new(name: &'static str, magic: u64, dev: u64, first_ino: u64) -> Arc<Self> {
        Arc::new(Self { name, magic, dev, next_ino: AtomicU64::new(first_ino), root: OnceLock::new() })
    }

    /// Sets the root directory, once.
    pub fn set_root(&self, root: Arc<dyn Inode>) {
        let _ = self.root.set(root);
    }

    pub fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    /// A regular file with these permission bits.
    pub fn file(self: &Arc<Self>, permissions: u32, content: impl Content + 'static) -> Arc<dyn Inode> {
        Arc::new(PseudoFile::new(self, self.next_ino(), permissions, Box::new(content)))
    }

    /// A file whose text never changes.
    pub fn fixed(self: &Arc<Self>, text: impl Into<Vec<u8>>) -> Arc<dyn Inode> {
        self.file(0o444, Fixed(text.into()))
    }

    /// A directory with these entries, for good.
    pub fn dir<'n>(
        self: &Arc<Self>,
        entries: impl IntoIterator<Item = (&'n str, Arc<dyn Inode>)>,
    ) -> Arc<dyn Inode> {
        Arc::new(PseudoDir {
            attr: Attr { nlink: 2, ..Attr::new(FileKind::Directory, 0o555, self.next_ino(), self.dev) },
            entries: entries.into_iter().map(|(n, i)| (n.as_bytes().to_vec(), i)).collect(),
            fs: Arc::clone(self),
        })
    }

    /// A symbolic link to `target`.
    pub fn link(self: &Arc<Self>, target: impl Into<Vec<u8>>) -> Arc<dyn Inode> {
        let target = target.into();
        Arc::new(PseudoLink {
            attr: Attr {
                size: target.len() as u64,
                ..Attr::new(FileKind::Symlink, 0o777, self.next_ino(), self.dev)
            },
            target,
            fs: Arc::clone(self),
        })
    }
}

impl FileSystem for PseudoFs {
    fn name(&self) -> &'static str {
        self.name
    }
    fn root(&self) -> Arc<dyn Inode> {
        match self.root.get() {
            Some(root) => Arc::clone(root),
            // Only before `set_root`: a root that shows nothing.
            None => Arc::new(EmptyRoot(self.dev)),
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: self.magic, block_size: 4096, name_max: 255, ..StatFs::default() })
    }
    fn dev(&self) -> u64 {
        self.dev
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct EmptyRoot(u64);

impl Inode for EmptyRoot {
    fn kind(&self) -> FileKind {
        FileKind::Directory
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::new(FileKind::Directory, 0o555, 1, self.0))
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ENOENT)
    }
    fn filesystem(&self) -> Arc<dyn FileSystem> {
        PseudoFs::new("none", 0, self.0, 1)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A regular pseudo file.
pub struct PseudoFile {
    attr: Mutex<Attr>,
    content: Box<dyn Content>,
    fs: Arc<PseudoFs>,
}

impl core::fmt::Debug for PseudoFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PseudoFile")
    }
}

impl PseudoFile {
    pub fn new(fs: &Arc<PseudoFs>, ino: u64, permissions: u32, content: Box<dyn Content>) -> Self {
        Self {
            attr: Mutex::new(Attr { nlink: 1, ..Attr::new(FileKind::Regular, permissions, ino, fs.dev) }),
            content,
            fs: Arc::clone(fs),
        }
    }

    /// The same file owned by `uid` and `gid`.
    #[must_use]
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        {
            let mut attr = self.attr.lock();
            attr.uid = uid;
            attr.gid = gid;
        }
        self
    }
}

impl Inode for PseudoFile {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }
    fn attr(&self) -> Result<Attr> {
        Ok(*self.attr.lock())
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        // Truncation by O_TRUNC is accepted and does nothing, as in procfs and sysfs; so do times.
        let mut attr = self.attr.lock();
        if let Some(mode) = set.mode {
            attr.mode = FileKind::Regular.mode_bits() | (mode & 0o7777);
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        Ok(())
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(OpenPseudo { file: self, text: Mutex::new(None) }))
    }
    fn filesystem(&self) -> Arc<dyn FileSystem> {
        Arc::clone(&self.fs) as Arc<dyn FileSystem>
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The longest write that a pseudo file takes at once.
const STORE_MAX: usize = 64 * 1024;

struct OpenPseudo {
    file: Arc<PseudoFile>,
    /// The text of the present pass; made when a read starts at 0.
    text: Mutex<Option<Arc<Vec<u8>>>>,
}

impl FileOps for OpenPseudo {
    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, pos: Pos) -> Result<IoStart<usize>> {
        let Pos::At(pos) = pos else { return Err(Errno::EINVAL) };
        let held = self.text.lock().clone();
        let text = if let Some(text) = held.filter(|_| pos != 0) {
            text
        } else {
            let text = Arc::new(self.file.content.text(io.caller)?);
            *self.text.lock() = Some(Arc::clone(&text));
            text
        };
        let rest = usize::try_from(pos).ok().and_then(|p| text.get(p..)).unwrap_or_default();
        if rest.is_empty() {
            return Ok(IoStart::Done(0));
        }
        dst.write(rest).map(IoStart::Done)
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        let mut data = vec![0; src.remaining().min(STORE_MAX)];
        let n = src.read(&mut data)?;
        data.truncate(n);
        let stored = self.file.content.store(io.caller, &data)?;
        *self.text.lock() = None;
        Ok(IoStart::Done(stored))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct PseudoLink {
    attr: Attr,
    target: Vec<u8>,
    fs: Arc<PseudoFs>,
}

impl Inode for PseudoLink {
    fn kind(&self) -> FileKind {
        FileKind::Symlink
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn readlink(&self, _caller: &dyn Caller) -> Result<Vec<u8>> {
        Ok(self.target.clone())
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
    fn filesystem(&self) -> Arc<dyn FileSystem> {
        Arc::clone(&self.fs) as Arc<dyn FileSystem>
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct PseudoDir {
    attr: Attr,
    entries: BTreeMap<Vec<u8>, Arc<dyn Inode>>,
    fs: Arc<PseudoFs>,
}

impl Inode for PseudoDir {
    fn kind(&self) -> FileKind {
        FileKind::Directory
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.entries.get(name).map(Arc::clone).ok_or(Errno::ENOENT)
    }
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        list_entries(cookie, self.entries.iter().map(|(n, i)| (n.clone(), Arc::clone(i))), sink)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        // Directories are opened by the VFS, which lists them through `list`.
        Err(Errno::EISDIR)
    }
    fn is_empty_for_good(&self) -> bool {
        self.entries.is_empty()
    }
    fn filesystem(&self) -> Arc<dyn FileSystem> {
        Arc::clone(&self.fs) as Arc<dyn FileSystem>
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Lists `entries`, whose order must not change, with cookies that count from 3.
pub fn list_entries(
    cookie: u64,
    entries: impl Iterator<Item = (Vec<u8>, Arc<dyn Inode>)>,
    sink: &mut dyn FnMut(DirEntry) -> bool,
) -> Result<()> {
    for (at, (name, inode)) in (3..).zip(entries) {
        if at <= cookie {
            continue;
        }
        let entry = DirEntry { name, ino: inode.attr()?.ino, kind: inode.kind(), next_cookie: at };
        if !sink(entry) {
            break;
        }
    }
    Ok(())
}
