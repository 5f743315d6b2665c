//! Inodes: attributes, extended attributes, and what each kind of file holds.

use core::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result, RwLock};
use sentry_memory::PagedData;
use sentry_mm::FileMappings;
use sentry_vfs::{
    Attachment, Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, Inode, OpenFlags, Owner, RenameFlags,
    SetAttr, SetTime, Timestamp, Usage,
};

use crate::dir::Entries;
use crate::file::OpenTmpfs;
use crate::fs::Shared;
use crate::memfd::seal;

/// What Linux counts for each directory entry in a directory's size.
const DIRENT_SIZE: u64 = 20;

/// What changes of an inode.
pub(crate) struct State {
    pub attr: Attr,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub body: Body,
    /// A file made without a name may still get one (`O_TMPFILE`).
    pub linkable: bool,
}

impl State {
    /// A change of contents or owner takes a program's capabilities away (`security_inode_killpriv`).
    pub fn drop_capability(&mut self) {
        if !self.xattrs.is_empty() && matches!(self.body, Body::File { .. }) {
            self.xattrs.remove(&b"security.capability"[..]);
        }
    }
}

pub(crate) enum Body {
    File {
        data: PagedData,
        /// Bytes charged to the file system for `data`.
        charged: u64,
        seals: u32,
        /// Where space that was reserved past the end (`FALLOC_FL_KEEP_SIZE`) ends; 0 for none.
        kept: u64,
    },
    Dir(Entries),
    Link(Box<[u8]>),
    Special,
}

/// An inode of a tmpfs.
pub(crate) struct TmpInode {
    pub shared: Arc<Shared>,
    pub ino: u64,
    kind: FileKind,
    pub state: RwLock<State, { rank::FILE_DATA }>,
    /// One write or size change at a time (`i_rwsem`).
    pub writes: Mutex<(), 48>,
    pub mappings: FileMappings,
    attachment: Attachment,
    usage: Usage,
    charged_inode: bool,
}

impl core::fmt::Debug for TmpInode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "TmpInode({} {:?})", self.ino, self.kind)
    }
}

impl Drop for TmpInode {
    fn drop(&mut self) {
        if self.charged_inode {
            self.shared.release_inode();
        }
        let mut doomed = match &mut self.state.get_mut().body {
            Body::File { charged, .. } => {
                self.shared.release(*charged);
                return;
            }
            Body::Dir(entries) => entries.take_all(),
            Body::Link(_) | Body::Special => return,
        };
        // A deep tree goes level by level, not by recursion.
        while let Some(child) = doomed.pop() {
            if let Some(mut child) = Arc::into_inner(child)
                && let Body::Dir(entries) = &mut child.state.get_mut().body
            {
                doomed.extend(entries.take_all());
            }
        }
    }
}

fn touch(time: &mut Timestamp, set: Option<SetTime>, now: Timestamp) {
    match set {
        Some(SetTime::Now) => *time = now,
        Some(SetTime::At(at)) => *time = at,
        None => {}
    }
}

impl TmpInode {
    fn build(shared: &Arc<Shared>, kind: FileKind, mode: u32, owner: Owner, charged: bool) -> Arc<Self> {
        let ino = shared.next_ino();
        let mut attr = Attr::new(kind, mode, ino, shared.dev);
        attr.uid = owner.uid;
        attr.gid = owner.gid;
        let body = match kind {
            FileKind::Regular => {
                Body::File { data: PagedData::new(&shared.memory), charged: 0, seals: seal::SEAL, kept: 0 }
            }
            FileKind::Directory => {
                attr.nlink = 2;
                attr.size = 2 * DIRENT_SIZE;
                Body::Dir(Entries::default())
            }
            FileKind::Symlink => Body::Link(Box::default()),
            _ => Body::Special,
        };
        Arc::new(Self {
            shared: Arc::clone(shared),
            ino,
            kind,
            state: RwLock::new(State { attr, xattrs: BTreeMap::new(), body, linkable: false }),
            writes: Mutex::new(()),
            mappings: FileMappings::new(),
            attachment: Attachment::new(),
            usage: Usage::default(),
            charged_inode: charged,
        })
    }

    /// An inode that does not count against the limit: a root.
    pub fn uncharged(shared: &Arc<Shared>, kind: FileKind, mode: u32, owner: Owner) -> Arc<Self> {
        Self::build(shared, kind, mode, owner, false)
    }

    /// A new inode; `ENOSPC` when the limit is reached.
    pub fn new(shared: &Arc<Shared>, kind: FileKind, mode: u32, owner: Owner) -> Result<Arc<Self>> {
        shared.charge_inode()?;
        Ok(Self::build(shared, kind, mode, owner, true))
    }

    /// A regular file without a name.
    pub fn nameless(shared: &Arc<Shared>, mode: u32, owner: Owner) -> Result<Arc<Self>> {
        let inode = Self::new(shared, FileKind::Regular, mode, owner)?;
        inode.state.write().attr.nlink = 0;
        Ok(inode)
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Adds to the link count and sets ctime.
    pub fn add_links(&self, by: i32) {
        let mut state = self.state.write();
        state.attr.nlink = state.attr.nlink.saturating_add_signed(by);
        state.attr.ctime = Timestamp::now();
    }

    /// Enters a name. The tree lock is held; the name is free.
    fn enter(&self, name: &[u8], child: &Arc<TmpInode>) -> Result<()> {
        let mut state = self.state.write();
        let State { attr, body, .. } = &mut *state;
        let Body::Dir(entries) = body else { return Err(Errno::ENOTDIR) };
        if attr.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if !entries.insert(name, child) {
            return Err(Errno::EEXIST);
        }
        attr.size += DIRENT_SIZE;
        attr.nlink += u32::from(child.is_dir());
        attr.mtime = Timestamp::now();
        attr.ctime = attr.mtime;
        Ok(())
    }

    /// Takes a name out. The tree lock is held.
    fn take(&self, name: &[u8]) -> Result<Arc<TmpInode>> {
        let mut state = self.state.write();
        let State { attr, body, .. } = &mut *state;
        let Body::Dir(entries) = body else { return Err(Errno::ENOTDIR) };
        let child = entries.remove(name).ok_or(Errno::ENOENT)?;
        attr.size = attr.size.saturating_sub(DIRENT_SIZE);
        attr.nlink = attr.nlink.saturating_sub(u32::from(child.is_dir()));
        attr.mtime = Timestamp::now();
        attr.ctime = attr.mtime;
        Ok(child)
    }

    fn get(&self, name: &[u8]) -> Result<Arc<TmpInode>> {
        match &self.state.read().body {
            Body::Dir(entries) => entries.get(name).ok_or(Errno::ENOENT),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn is_empty_dir(&self) -> bool {
        matches!(&self.state.read().body, Body::Dir(entries) if entries.is_empty())
    }

    fn add(&self, name: &[u8], child: Arc<TmpInode>) -> Result<Arc<dyn Inode>> {
        let _tree = self.shared.tree.lock();
        self.enter(name, &child)?;
        Ok(child)
    }

    /// The victim of an unlink, rmdir or rename loses a name.
    fn lose_name(victim: &TmpInode) {
        victim.add_links(if victim.is_dir() { -2 } else { -1 });
    }

    fn exchange(&self, name: &[u8], new_dir: &TmpInode, new_name: &[u8]) -> Result<()> {
        new_dir.get(new_name)?;
        let a = self.take(name)?;
        let b = new_dir.take(new_name)?;
        new_dir.enter(new_name, &a)?;
        self.enter(name, &b)?;
        let now = Timestamp::now();
        a.state.write().attr.ctime = now;
        b.state.write().attr.ctime = now;
        Ok(())
    }

    fn set_size(&self, size: u64) -> Result<()> {
        if i64::try_from(size).is_err() {
            return Err(Errno::EFBIG);
        }
        let _writes = self.writes.lock();
        let shrunk = {
            let mut state = self.state.write();
            let State { attr, body, .. } = &mut *state;
            let Body::File { data, charged, seals, kept } = body else {
                return Err(if self.is_dir() { Errno::EISDIR } else { Errno::EINVAL });
            };
            let refused = match size.cmp(&attr.size) {
                core::cmp::Ordering::Less => seal::SHRINK,
                core::cmp::Ordering::Greater => seal::GROW,
                core::cmp::Ordering::Equal => 0,
            };
            if *seals & refused != 0 {
                return Err(Errno::EPERM);
            }
            let shrunk = size < attr.size;
            if shrunk {
                data.truncate(size);
                *kept = 0;
                let now = data.allocated(size);
                self.shared.release(charged.saturating_sub(now));
                *charged = now;
            } else if size > attr.size {
                // Pages reserved past the old end come into the file.
                let now = data.allocated(size.max(*kept));
                self.shared.charge_all(now.saturating_sub(*charged))?;
                *charged = now;
            }
            attr.size = size;
            attr.mtime = Timestamp::now();
            attr.ctime = attr.mtime;
            shrunk
        };
        if shrunk {
            self.mappings.revoke(self, size);
        }
        Ok(())
    }
}

/// The tmpfs inode behind a trait object; `EXDEV` for another file system's.
fn own(inode: &Arc<dyn Inode>) -> Result<Arc<TmpInode>> {
    Arc::clone(inode).into_any().downcast().map_err(|_| Errno::EXDEV)
}

impl Inode for TmpInode {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attr(&self) -> Result<Attr> {
        let state = self.state.read();
        let mut attr = state.attr;
        if let Body::File { charged, .. } = &state.body {
            attr.blocks = charged / 512;
        }
        Ok(attr)
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            self.set_size(size)?;
        }
        let mut state = self.state.write();
        if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
            state.drop_capability();
        }
        let exec_sealed = matches!(&state.body, Body::File { seals, .. } if *seals & seal::EXEC != 0);
        let attr = &mut state.attr;
        let now = Timestamp::now();
        if let Some(mode) = set.mode {
            if exec_sealed && (mode ^ attr.mode) & 0o111 != 0 {
                return Err(Errno::EPERM);
            }
            attr.mode = self.kind.mode_bits() | (mode & 0o7777);
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        touch(&mut attr.atime, set.atime, now);
        touch(&mut attr.mtime, set.mtime, now);
        attr.ctime = now;
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.get(name)?)
    }

    fn create(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        self.add(name, Self::new(&self.shared, FileKind::Regular, mode, owner)?)
    }

    fn mkdir(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        self.add(name, Self::new(&self.shared, FileKind::Directory, mode, owner)?)
    }

    fn symlink(&self, name: &[u8], target: &[u8], owner: Owner) -> Result<Arc<dyn Inode>> {
        let link = Self::new(&self.shared, FileKind::Symlink, 0o777, owner)?;
        {
            let mut state = link.state.write();
            state.attr.size = target.len() as u64;
            state.body = Body::Link(target.into());
        }
        self.add(name, link)
    }

    fn mknod(&self, name: &[u8], mode: u32, rdev: u64, owner: Owner) -> Result<Arc<dyn Inode>> {
        let kind = FileKind::from_mode(mode).ok_or(Errno::EINVAL)?;
        if matches!(kind, FileKind::Directory | FileKind::Symlink) {
            return Err(Errno::EINVAL);
        }
        let node = Self::new(&self.shared, kind, mode, owner)?;
        node.state.write().attr.rdev = rdev;
        self.add(name, node)
    }

    fn tmpfile(&self, mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let inode = Self::nameless(&self.shared, mode, owner)?;
        inode.state.write().linkable = true;
        Ok(inode)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let target = own(target)?;
        if !Arc::ptr_eq(&self.shared, &target.shared) {
            return Err(Errno::EXDEV);
        }
        let _tree = self.shared.tree.lock();
        {
            let state = target.state.read();
            if state.attr.nlink == 0 && !state.linkable {
                return Err(Errno::ENOENT);
            }
            if state.attr.nlink >= i32::MAX.cast_unsigned() {
                return Err(Errno::EMLINK);
            }
        }
        self.enter(name, &target)?;
        target.add_links(1);
        Ok(())
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        let tree = self.shared.tree.lock();
        if self.get(name)?.is_dir() {
            return Err(Errno::EISDIR);
        }
        let victim = self.take(name)?;
        Self::lose_name(&victim);
        drop(tree);
        drop(victim);
        Ok(())
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        let tree = self.shared.tree.lock();
        let victim = self.get(name)?;
        if !victim.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if !victim.is_empty_dir() {
            return Err(Errno::ENOTEMPTY);
        }
        self.take(name)?;
        Self::lose_name(&victim);
        drop(tree);
        drop(victim);
        Ok(())
    }

    fn rename(
        &self,
        name: &[u8],
        new_dir: &Arc<dyn Inode>,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let new_dir = own(new_dir)?;
        if !Arc::ptr_eq(&self.shared, &new_dir.shared) {
            return Err(Errno::EXDEV);
        }
        let tree = self.shared.tree.lock();
        if flags.contains(RenameFlags::EXCHANGE) {
            return self.exchange(name, &new_dir, new_name);
        }
        let source = self.get(name)?;
        let victim = match new_dir.get(new_name) {
            Ok(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EEXIST),
            Ok(victim) if Arc::ptr_eq(&victim, &source) => return Ok(()),
            Ok(victim) => {
                match (source.is_dir(), victim.is_dir()) {
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    (true, true) if !victim.is_empty_dir() => return Err(Errno::ENOTEMPTY),
                    _ => {}
                }
                Some(victim)
            }
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        let whiteout = if flags.contains(RenameFlags::WHITEOUT) {
            let owner = Owner { uid: 0, gid: 0 };
            Some(Self::new(&self.shared, FileKind::CharDevice, 0, owner)?)
        } else {
            None
        };
        if victim.is_some() {
            new_dir.take(new_name)?;
        }
        self.take(name)?;
        new_dir.enter(new_name, &source)?;
        if let Some(whiteout) = whiteout {
            self.enter(name, &whiteout)?;
        }
        if let Some(victim) = &victim {
            Self::lose_name(victim);
        }
        source.state.write().attr.ctime = Timestamp::now();
        drop(tree);
        drop(victim);
        Ok(())
    }

    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let mut cookie = cookie;
        loop {
            // A batch at a time, so that `sink` runs without the lock.
            let batch = match &self.state.read().body {
                Body::Dir(entries) => entries.batch(cookie),
                _ => return Err(Errno::ENOTDIR),
            };
            if batch.is_empty() {
                return Ok(());
            }
            for entry in batch {
                cookie = entry.next_cookie;
                if !sink(entry) {
                    return Ok(());
                }
            }
        }
    }

    fn readlink(&self, _caller: &dyn Caller) -> Result<Vec<u8>> {
        match &self.state.read().body {
            Body::Link(target) => Ok(target.to_vec()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        match self.kind {
            FileKind::Regular => Ok(Arc::new(OpenTmpfs::new(self))),
            FileKind::Directory => Err(Errno::EISDIR),
            FileKind::Symlink => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.state.read().xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let mut state = self.state.write();
        match state.xattrs.contains_key(name) {
            true if flags & libc::XATTR_CREATE != 0 => return Err(Errno::EEXIST),
            false if flags & libc::XATTR_REPLACE != 0 => return Err(Errno::ENODATA),
            // Linux bounds them by inode space; here a fixed number per inode bounds the Sentry's memory.
            false if state.xattrs.len() >= 128 => return Err(Errno::ENOSPC),
            _ => {}
        }
        state.xattrs.insert(name.to_vec(), value.to_vec());
        state.attr.ctime = Timestamp::now();
        Ok(())
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let mut state = self.state.write();
        state.xattrs.remove(name).ok_or(Errno::ENODATA)?;
        state.attr.ctime = Timestamp::now();
        Ok(())
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.state.read().xattrs.keys().cloned().collect())
    }

    fn usage(&self) -> Option<&Usage> {
        Some(&self.usage)
    }

    fn attachment(&self) -> Option<&Attachment> {
        matches!(self.kind, FileKind::Fifo | FileKind::Socket).then_some(&self.attachment)
    }

    fn filesystem(&self) -> Arc<dyn FileSystem> {
        self.shared.filesystem()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
