//! Inodes of the overlay: which layer an object is in, and the changes of names.

use core::sync::atomic::{AtomicBool, Ordering};
use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};

use sentry_base::lock::rank;
use sentry_base::{Errno, KeyedMap, KeyedSet, Mutex, MutexGuard, Result};
use sentry_vfs::{
    Attachment, Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, Inode, OpenFlags, Owner, RenameFlags,
    SetAttr, Usage, file_epoch,
};

use crate::copy_up::Data;
use crate::file::OverlayFile;
use crate::{LinkNote, OverlayFs, UPPER_INO, UpperNote};

/// Cookies of lower entries start here, so that a listing gives the upper ones first.
const LOWER_COOKIES: u64 = 1 << 62;

/// A name in a directory of the overlay.
struct Place {
    parent: Arc<OverlayInode>,
    name: Box<[u8]>,
}

/// An object of the upper layer and its inode number there.
struct Upper {
    inode: Arc<dyn Inode>,
    ino: u64,
}

/// Lower children of a directory that are in use, by name.
#[derive(Default)]
struct Live {
    by_name: KeyedMap<Box<[u8]>, Weak<OverlayInode>>,
    sweep_at: usize,
}

impl Live {
    fn insert(&mut self, name: &[u8], inode: &Arc<OverlayInode>) {
        if self.by_name.len() >= self.sweep_at.max(64) {
            self.by_name.retain(|_, weak| weak.strong_count() > 0);
            self.sweep_at = self.by_name.len() * 2;
        }
        self.by_name.insert(name.into(), Arc::downgrade(inode));
    }
}

/// An object of the overlay.
pub struct OverlayInode {
    fs: Weak<OverlayFs>,
    kind: FileKind,
    ino: u64,
    /// Where a copy-up goes; `None` for the root, for what was made in the upper layer, and for a lower file of
    /// several names, which has no place of its own.
    place: Option<Place>,
    lower: Option<Arc<dyn Inode>>,
    /// The layer's object that it was made from.
    first: Arc<dyn Inode>,
    upper: OnceLock<Upper>,
    /// A lower object whose name is gone while it is in use.
    unlinked: AtomicBool,
    copying: Mutex<(), { rank::DIR_INODE }>,
    live: Mutex<Live, { rank::LEAF }>,
    attachment: Attachment,
    usage: Usage,
    this: Weak<OverlayInode>,
}

impl core::fmt::Debug for OverlayInode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "OverlayInode({} {:?}, upper: {})", self.ino, self.kind, self.upper.get().is_some())
    }
}

impl Drop for OverlayInode {
    fn drop(&mut self) {
        // A long chain of directories must not be dropped by recursion.
        let mut next = self.place.take().map(|place| place.parent);
        // A nameless file of the upper layer goes with its last user, and what was noted of it too.
        if let (Some(upper), Some(fs)) = (self.upper.get(), self.fs.upgrade())
            && upper.inode.attr().is_ok_and(|attr| attr.nlink == 0)
            && !fs.stands_for_lower_names(self.ino)
        {
            fs.forget_upper(upper.ino);
        }
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut last| last.place.take()).map(|place| place.parent);
        }
    }
}

/// What an inode is made from.
struct Origin {
    place: Option<Place>,
    first: Arc<dyn Inode>,
    lower: Option<Arc<dyn Inode>>,
    upper: Option<Upper>,
}

impl Origin {
    fn upper(inode: Arc<dyn Inode>, ino: u64, lower: Option<Arc<dyn Inode>>) -> Self {
        Self { place: None, first: Arc::clone(&inode), lower, upper: Some(Upper { inode, ino }) }
    }

    fn lower(inode: Arc<dyn Inode>, place: Option<Place>) -> Self {
        Self { place, first: Arc::clone(&inode), lower: Some(inode), upper: None }
    }
}

/// What a name stands for, and where it was found.
struct Found {
    inode: Arc<OverlayInode>,
    in_upper: bool,
}

impl OverlayInode {
    fn build(fs: &Weak<OverlayFs>, kind: FileKind, ino: u64, from: Origin) -> Arc<Self> {
        let Origin { place, first, lower, upper } = from;
        Arc::new_cyclic(|this| Self {
            fs: Weak::clone(fs),
            kind,
            ino,
            place,
            lower,
            first,
            upper: upper.map_or_else(OnceLock::new, OnceLock::from),
            unlinked: AtomicBool::new(false),
            copying: Mutex::new(()),
            live: Mutex::default(),
            attachment: Attachment::new(),
            usage: Usage::default(),
            this: Weak::clone(this),
        })
    }

    pub(crate) fn root(
        fs: &Weak<OverlayFs>,
        ino: u64,
        lower: Arc<dyn Inode>,
        upper: (Arc<dyn Inode>, u64),
    ) -> Arc<Self> {
        Self::build(fs, FileKind::Directory, ino, Origin::upper(upper.0, upper.1, Some(lower)))
    }

    pub(crate) fn fs(&self) -> Result<Arc<OverlayFs>> {
        self.fs.upgrade().ok_or(Errno::EIO)
    }

    fn myself(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Errno::EIO)
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.this)
    }

    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    pub(crate) fn upper(&self) -> Option<&Arc<dyn Inode>> {
        self.upper.get().map(|upper| &upper.inode)
    }

    pub(crate) fn lower(&self) -> Option<&Arc<dyn Inode>> {
        self.lower.as_ref()
    }

    pub(crate) fn set_upper(&self, inode: &Arc<dyn Inode>, ino: u64) {
        // Set once: the copy-up lock is held and the cell was empty.
        let _ = self.upper.set(Upper { inode: Arc::clone(inode), ino });
        file_epoch::advance();
    }

    pub(crate) fn parent(&self) -> Option<&Arc<Self>> {
        self.place.as_ref().map(|place| &place.parent)
    }

    pub(crate) fn place(&self) -> Option<(&Arc<Self>, &[u8])> {
        self.place.as_ref().map(|place| (&place.parent, &*place.name))
    }

    pub(crate) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    pub(crate) fn lock_copy_up(&self) -> MutexGuard<'_, (), { rank::DIR_INODE }> {
        self.copying.lock()
    }

    /// The object of the layer that holds this one now.
    fn backing(&self) -> &Arc<dyn Inode> {
        self.upper().unwrap_or(&self.first)
    }

    fn upper_ino(&self) -> Option<u64> {
        self.upper.get().map(|upper| upper.ino)
    }

    /// The lower directory that is shown here, unless it hides `name`.
    fn lower_dir_of(&self, fs: &OverlayFs, name: &[u8]) -> Option<Arc<dyn Inode>> {
        match self.upper_ino() {
            None => self.lower.clone(),
            Some(ino) => {
                let tables = fs.tables.lock();
                let note = tables.upper.get(&ino)?;
                note.lower.clone().filter(|_| !note.whiteouts.contains(name))
            }
        }
    }

    /// The lower object of a name, if it is shown.
    fn lower_child(&self, fs: &OverlayFs, name: &[u8]) -> Result<Option<Arc<dyn Inode>>> {
        match self.lower_dir_of(fs, name).map(|dir| dir.lookup(name)) {
            Some(Ok(lower)) => Ok(Some(lower)),
            Some(Err(Errno::ENOENT)) | None => Ok(None),
            Some(Err(e)) => Err(e),
        }
    }

    fn find(&self, name: &[u8]) -> Result<Found> {
        if self.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let fs = self.fs()?;
        if let Some(upper) = self.upper() {
            match upper.lookup(name) {
                Ok(upper) => return Ok(Found { inode: self.upper_inode(&fs, upper)?, in_upper: true }),
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        let lower = self.lower_child(&fs, name)?.ok_or(Errno::ENOENT)?;
        Ok(Found { inode: self.lower_inode(&fs, name, lower)?, in_upper: false })
    }

    /// The one inode of an upper object.
    fn upper_inode(&self, fs: &OverlayFs, upper: Arc<dyn Inode>) -> Result<Arc<Self>> {
        let attr = upper.attr()?;
        let mut tables = fs.tables.lock();
        let note = tables
            .upper
            .entry(attr.ino)
            .or_insert_with(|| UpperNote { ino: attr.ino | UPPER_INO, ..UpperNote::default() });
        if let Some(live) = note.live.upgrade() {
            return Ok(live);
        }
        let origin = Origin::upper(upper, attr.ino, note.lower.clone());
        let inode = Self::build(&self.fs, attr.kind(), note.ino, origin);
        note.live = Arc::downgrade(&inode);
        Ok(inode)
    }

    /// The inode of a name that is in the lower layer alone.
    fn lower_inode(&self, fs: &OverlayFs, name: &[u8], lower: Arc<dyn Inode>) -> Result<Arc<Self>> {
        let attr = lower.attr()?;
        let kind = attr.kind();
        if attr.nlink > 1 && kind != FileKind::Directory {
            let mut tables = fs.tables.lock();
            let note = tables.links.entry(attr.ino).or_insert_with(|| LinkNote::new(attr.nlink));
            if let Some(live) = note.live.upgrade() {
                return Ok(live);
            }
            let copy = note.copy.clone();
            let mut origin = Origin::lower(lower, None);
            origin.upper = copy.map(|(inode, ino)| Upper { inode, ino });
            let inode = Self::build(&self.fs, kind, attr.ino, origin);
            note.live = Arc::downgrade(&inode);
            if let Some(upper_ino) = inode.upper_ino() {
                let note = tables.upper.entry(upper_ino).or_default();
                note.ino = attr.ino;
                note.live = Arc::downgrade(&inode);
            }
            return Ok(inode);
        }
        let place = Place { parent: self.myself()?, name: name.into() };
        let stale;
        let inode = {
            let mut live = self.live.lock();
            match live.by_name.get(name).and_then(Weak::upgrade) {
                Some(inode) if !inode.is_unlinked() => return Ok(inode),
                other => stale = other,
            }
            let inode = Self::build(&self.fs, kind, attr.ino, Origin::lower(lower, Some(place)));
            live.insert(name, &inode);
            inode
        };
        drop(stale);
        Ok(inode)
    }

    /// Enters an object that was just made in the upper layer.
    fn made(&self, fs: &OverlayFs, upper: Arc<dyn Inode>) -> Result<Arc<dyn Inode>> {
        Ok(self.upper_inode(fs, upper)?)
    }

    /// Makes sure that the lower layer does not show `name` in this directory, which is in the upper layer.
    fn hide_lower(&self, fs: &OverlayFs, name: &[u8]) -> Result<()> {
        let Some(lower) = self.lower_child(fs, name)? else { return Ok(()) };
        let attr = lower.attr()?;
        let ino = self.upper_ino().ok_or(Errno::ESTALE)?;
        let mut released = None;
        {
            let mut tables = fs.tables.lock();
            let note = tables.upper.get_mut(&ino).ok_or(Errno::ESTALE)?;
            note.whiteouts.insert(name.into());
            if let Some(links) = tables.links.get_mut(&attr.ino) {
                links.names_left = links.names_left.saturating_sub(1);
                if links.names_left == 0 {
                    // Nobody finds the copy through a lower name any more; who has it open holds it.
                    released = tables.links.remove(&attr.ino);
                }
            }
        }
        let gone = self.live.lock().by_name.remove(name).and_then(|weak| weak.upgrade());
        // One with a copy has the names that the copy has: it may have been moved.
        if let Some(gone) = gone.filter(|gone| gone.upper.get().is_none()) {
            gone.unlinked.store(true, Ordering::Release);
        }
        if let Some(links) = released {
            let live = links.live.upgrade();
            if let Some(live) = live.filter(|live| live.upper.get().is_none()) {
                live.unlinked.store(true, Ordering::Release);
            }
        }
        // Its count of names is another now.
        file_epoch::advance();
        Ok(())
    }

    /// Forgets the notes of an upper object without a name, which gets none any more.
    fn upper_lost_name(fs: &OverlayFs, inode: &Self) {
        let Some(upper) = inode.upper.get() else { return };
        let nameless = upper.inode.attr().is_ok_and(|attr| attr.nlink == 0 || attr.is_dir());
        if nameless {
            inode.unlinked.store(true, Ordering::Release);
        }
        if nameless && !fs.stands_for_lower_names(inode.ino) {
            fs.forget_upper(upper.ino);
        }
    }

    fn is_empty(&self) -> Result<bool> {
        let mut empty = true;
        self.list(0, &mut |_| {
            empty = false;
            false
        })?;
        Ok(empty)
    }

    /// A lower file of several names gets an upper entry under this one, so that it can be moved.
    fn enter_upper(&self, fs: &OverlayFs, name: &[u8], found: &Found) -> Result<()> {
        let upper = found.inode.copy_up(Data::Copy)?;
        if found.in_upper || found.inode.place.is_some() {
            return Ok(());
        }
        let dir = self.copy_up(Data::Copy)?;
        match dir.link(name, &upper) {
            Ok(()) => self.hide_lower(fs, name),
            // Entered before.
            Err(Errno::EEXIST) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn remove_name(&self, name: &[u8], directory: bool) -> Result<()> {
        let fs = self.fs()?;
        let found = self.find(name)?;
        if directory && !found.inode.is_empty()? {
            return Err(Errno::ENOTEMPTY);
        }
        let dir = self.copy_up(Data::Copy)?;
        // Asked again: the object may have been copied up in the meantime, but not its name changed.
        match (dir.lookup(name), directory) {
            (Ok(_), true) => dir.rmdir(name)?,
            (Ok(_), false) => dir.unlink(name)?,
            (Err(Errno::ENOENT), _) => {}
            (Err(e), _) => return Err(e),
        }
        self.hide_lower(&fs, name)?;
        Self::upper_lost_name(&fs, &found.inode);
        Ok(())
    }
}

impl Inode for OverlayInode {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attr(&self) -> Result<Attr> {
        let mut attr = self.backing().attr()?;
        let fs = self.fs()?;
        attr.dev = fs.dev;
        attr.ino = self.ino;
        match (self.kind, self.upper.get(), &self.lower) {
            // A count of subdirectories would take a listing; 1 says that there is none to be had, as overlayfs does.
            (FileKind::Directory, Some(_), Some(_)) => attr.nlink = 1,
            (FileKind::Directory, ..) => {}
            (_, upper, Some(_)) => {
                if let Some(links) = fs.tables.lock().links.get(&self.ino) {
                    let own = if upper.is_some() { attr.nlink } else { 0 };
                    attr.nlink = own + links.names_left;
                } else if upper.is_none() && self.is_unlinked() {
                    attr.nlink = 0;
                }
            }
            _ => {}
        }
        Ok(attr)
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let data = if set.size == Some(0) { Data::Drop } else { Data::Copy };
        self.copy_up(data)?.set_attr(set)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.find(name)?.inode)
    }

    fn prefetch(&self, names: &[&[u8]]) {
        let Ok(fs) = self.fs() else { return };
        let (mut upper, mut lower) = (self.upper().cloned(), self.lower.clone());
        let mut rest = names;
        // Down the part that is in the upper layer, as far as lower directories go along.
        while let (Some(dir), Some((name, tail))) = (&upper, rest.split_first()) {
            match dir.lookup(name) {
                Ok(child) => {
                    let Ok(attr) = child.attr() else { return };
                    lower = fs.tables.lock().upper.get(&attr.ino).and_then(|note| note.lower.clone());
                    upper = Some(child);
                    rest = tail;
                }
                Err(Errno::ENOENT) => {
                    let Ok(attr) = dir.attr() else { return };
                    let hidden = fs
                        .tables
                        .lock()
                        .upper
                        .get(&attr.ino)
                        .is_none_or(|note| note.whiteouts.contains(*name));
                    if hidden {
                        return;
                    }
                    upper = None;
                }
                Err(_) => return,
            }
        }
        if let Some(lower) = lower.filter(|_| !rest.is_empty()) {
            lower.prefetch(rest);
        }
    }

    fn create(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let upper = self.copy_up(Data::Copy)?.create(name, mode, owner)?;
        self.made(&fs, upper)
    }

    fn mkdir(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let upper = self.copy_up(Data::Copy)?.mkdir(name, mode, owner)?;
        self.made(&fs, upper)
    }

    fn symlink(&self, name: &[u8], target: &[u8], owner: Owner) -> Result<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let upper = self.copy_up(Data::Copy)?.symlink(name, target, owner)?;
        self.made(&fs, upper)
    }

    fn mknod(&self, name: &[u8], mode: u32, rdev: u64, owner: Owner) -> Result<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let upper = self.copy_up(Data::Copy)?.mknod(name, mode, rdev, owner)?;
        self.made(&fs, upper)
    }

    fn tmpfile(&self, mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let fs = self.fs()?;
        let upper = fs.upper.root().tmpfile(mode, owner)?;
        self.made(&fs, upper)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let target = own(target)?;
        if target.is_unlinked() {
            return Err(Errno::ENOENT);
        }
        let upper = target.copy_up(Data::Copy)?;
        self.copy_up(Data::Copy)?.link(name, &upper)
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.remove_name(name, false)
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.remove_name(name, true)
    }

    fn rename(
        &self,
        name: &[u8],
        new_dir: &Arc<dyn Inode>,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let fs = self.fs()?;
        let new_dir = own(new_dir)?;
        let moved = self.find(name)?;
        let victim = match new_dir.find(new_name) {
            Ok(victim) => Some(victim),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if let Some(victim) = &victim
            && !exchange
        {
            if flags.contains(RenameFlags::NOREPLACE) {
                return Err(Errno::EEXIST);
            }
            match (moved.inode.kind == FileKind::Directory, victim.inode.kind == FileKind::Directory) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !victim.inode.is_empty()? => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            if Arc::ptr_eq(&victim.inode, &moved.inode) {
                return Ok(());
            }
        }
        let (from, to) = (self.copy_up(Data::Copy)?, new_dir.copy_up(Data::Copy)?);
        self.enter_upper(&fs, name, &moved)?;
        if exchange {
            new_dir.enter_upper(&fs, new_name, victim.as_ref().ok_or(Errno::ENOENT)?)?;
        }
        from.rename(name, &to, new_name, flags)?;
        self.hide_lower(&fs, name)?;
        new_dir.hide_lower(&fs, new_name)?;
        if let Some(victim) = victim.filter(|_| !exchange) {
            Self::upper_lost_name(&fs, &victim.inode);
        }
        Ok(())
    }

    /// Names that the lower layer shows come in its order and under its cookies, whether or not they have been copied
    /// up: a copy-up in the middle of a listing neither loses nor doubles an entry.
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        if self.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let fs = self.fs()?;
        let (lower, whiteouts) = match self.upper_ino() {
            None => (self.lower.clone(), KeyedSet::default()),
            Some(ino) => match fs.tables.lock().upper.get(&ino) {
                Some(note) => (note.lower.clone(), note.whiteouts.clone()),
                None => (None, KeyedSet::default()),
            },
        };
        let mut more = true;
        if let Some(upper) = self.upper().filter(|_| cookie < LOWER_COOKIES) {
            let mut failed = None;
            upper.list(cookie, &mut |mut entry| {
                let below = match &lower {
                    Some(lower) if !whiteouts.contains(&*entry.name) => lower.lookup(&entry.name),
                    _ => Err(Errno::ENOENT),
                };
                match below {
                    // Given with the lower ones.
                    Ok(_) => return true,
                    Err(Errno::ENOENT) => {}
                    Err(e) => {
                        failed = Some(e);
                        return false;
                    }
                }
                let note = fs.tables.lock().upper.get(&entry.ino).map(|note| note.ino);
                entry.ino = note.unwrap_or(entry.ino | UPPER_INO);
                more = sink(entry);
                more
            })?;
            if let Some(e) = failed {
                return Err(e);
            }
        }
        let Some(lower) = lower.filter(|_| more) else { return Ok(()) };
        lower.list(cookie.saturating_sub(LOWER_COOKIES), &mut |mut entry| {
            if whiteouts.contains(&*entry.name) {
                return true;
            }
            entry.next_cookie |= LOWER_COOKIES;
            sink(entry)
        })
    }

    fn readlink(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        self.backing().readlink(caller)
    }

    fn open(self: Arc<Self>, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        if self.kind != FileKind::Regular {
            return Arc::clone(self.backing()).open(flags, caller);
        }
        if flags.writes() {
            let data = if flags.contains(OpenFlags::TRUNC) { Data::Drop } else { Data::Copy };
            self.copy_up(data)?;
        }
        let is_upper = self.upper.get().is_some();
        let file = Arc::clone(self.backing()).open(flags, caller)?;
        Ok(Arc::new(OverlayFile::new(self, flags, file, is_upper)))
    }

    fn is_steady(&self) -> bool {
        self.kind == FileKind::Regular && self.upper().is_none() && self.first.is_steady()
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.backing().get_xattr(name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.copy_up(Data::Copy)?.set_xattr(name, value, flags)
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        // What is not there needs no copy.
        self.get_xattr(name)?;
        self.copy_up(Data::Copy)?.remove_xattr(name)
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        self.backing().list_xattr()
    }

    fn usage(&self) -> Option<&Usage> {
        Some(&self.usage)
    }

    fn attachment(&self) -> Option<&Attachment> {
        if !matches!(self.kind, FileKind::Fifo | FileKind::Socket) {
            return None;
        }
        match (&self.lower, self.upper()) {
            // The layer's inode outlives this one.
            (None, Some(upper)) => upper.attachment(),
            _ => Some(&self.attachment),
        }
    }

    fn filesystem(&self) -> Arc<dyn FileSystem> {
        match self.fs.upgrade() {
            Some(fs) => fs,
            None => self.first.filesystem(),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The overlay's inode behind a trait object; `EXDEV` for another file system's.
fn own(inode: &Arc<dyn Inode>) -> Result<Arc<OverlayInode>> {
    Arc::clone(inode).into_any().downcast().map_err(|_| Errno::EXDEV)
}
