//! What the VFS asks of an inode, as requests to the gofer and changes of what is known.

use std::any::Any;
use std::sync::{Arc, Weak};

use gofer_protocol::{Fid, Name, Request, WireSetAttr, WireTime, set};
use sentry_base::{Errno, Result, mono_now};
use sentry_vfs::{
    Attachment, Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, Inode, OpenFlags, Owner, RenameFlags,
    SetAttr, SetTime, StatFs, Usage,
};

use super::{GoferInode, New, Place};
use crate::dir::{Known, Seed};
use crate::file::GoferFile;

fn wire_set_attr(change: &SetAttr) -> WireSetAttr {
    let mut wire = WireSetAttr::default();
    let mut word = |value: Option<u32>, bit: u32, field: &mut u32| {
        if let Some(value) = value {
            wire.mask |= bit;
            *field = value;
        }
    };
    let (mut mode, mut uid, mut gid) = (0, 0, 0);
    word(change.mode.map(|m| m & 0o7777), set::MODE, &mut mode);
    word(change.uid, set::UID, &mut uid);
    word(change.gid, set::GID, &mut gid);
    (wire.mode, wire.uid, wire.gid) = (mode, uid, gid);
    if let Some(size) = change.size {
        wire.mask |= set::SIZE;
        wire.size = size;
    }
    let time = |value: Option<SetTime>, bit: u32, now: u32| match value {
        None => (0, WireTime::default()),
        Some(SetTime::Now) => (bit | now, WireTime::default()),
        Some(SetTime::At(t)) => (bit, WireTime { sec: t.sec, nsec: t.nsec, reserved: 0 }),
    };
    let (atime, mtime) =
        (time(change.atime, set::ATIME, set::ATIME_NOW), time(change.mtime, set::MTIME, set::MTIME_NOW));
    wire.mask |= atime.0 | mtime.0;
    (wire.atime, wire.mtime) = (atime.1, mtime.1);
    wire
}

/// Extended attributes that the gofer shows. The others are answered here: programs ask for them on every file.
fn is_served_xattr(name: &[u8]) -> Result<()> {
    if name.starts_with(b"user.") || name == b"security.capability" {
        Ok(())
    } else if name.starts_with(b"security.") || name.starts_with(b"trusted.") {
        Err(Errno::ENODATA)
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

impl Inode for GoferInode {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attr(&self) -> Result<Attr> {
        self.current_attr()
    }

    fn set_attr(&self, change: &SetAttr) -> Result<()> {
        let fs = self.writable_fs()?;
        let wire = {
            let _tree = fs.tree.read();
            let place = self.locate(&fs)?;
            let request = Request::SetAttr { at: place.at()?, change: wire_set_attr(change) };
            fs.session.call(&request, |reply| Ok(reply.body.attr()?))?
        };
        let seed = fs.seed(&wire, b"", mono_now());
        let mut state = self.state.lock();
        state.attr = seed.attr;
        state.checked = seed.checked;
        state.stale = false;
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.lookup_child(name)?)
    }

    fn prefetch(&self, names: &[&[u8]]) {
        let (Ok(fs), Ok(mut at)) = (self.fs(), self.myself()) else { return };
        // Down the part that is known.
        let mut rest = names;
        while let Some((name, tail)) = rest.split_first() {
            let known = at.dir.lock().known(name, |checked| fs.fresh_enough(checked));
            at = match known {
                Known::Live(inode) if !fs.options.shared || inode.is_fresh(&fs) => inode,
                Known::Seed(seed) => match at.adopt(&fs, name, &seed) {
                    Ok(inode) => {
                        fs.remember(Arc::clone(&inode));
                        inode
                    }
                    Err(_) => return,
                },
                Known::Live(_) | Known::Unknown => break,
                Known::Absent => {
                    // Asking forgot it; the lookup will ask again.
                    at.dir.lock().note_absent(name, mono_now());
                    return;
                }
            };
            if at.kind != FileKind::Directory {
                return;
            }
            rest = tail;
        }
        if rest.len() < 2 {
            // The lookup itself asks for one name.
            return;
        }
        let Ok((found, stop)) = at.walk(&fs, rest) else { return };
        for (name, seed) in rest.iter().zip(found.iter().skip(1)) {
            let Ok(inode) = at.adopt(&fs, name, seed) else { return };
            fs.remember(Arc::clone(&inode));
            at = inode;
        }
        if stop == libc::ENOENT
            && let Some(missing) = rest.get(found.len() - 1)
        {
            at.dir.lock().note_absent(missing, mono_now());
        }
    }

    fn create(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let (child, file) = self.add(name, New::File { mode: mode & 0o7777 }, owner)?;
        child.set_write(Arc::new(file.ok_or(Errno::EIO)?), true);
        // If it is not opened after all, the descriptor is given up with the others.
        self.fs()?.now_idle(&child);
        Ok(child)
    }

    fn mkdir(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        Ok(self.add(name, New::Directory { mode: mode & 0o7777 }, owner)?.0)
    }

    fn symlink(&self, name: &[u8], target: &[u8], owner: Owner) -> Result<Arc<dyn Inode>> {
        Ok(self.add(name, New::Symlink { target }, owner)?.0)
    }

    fn mknod(&self, name: &[u8], mode: u32, rdev: u64, owner: Owner) -> Result<Arc<dyn Inode>> {
        match FileKind::from_mode(mode) {
            Some(FileKind::Regular) => self.create(name, mode, owner),
            Some(FileKind::Fifo | FileKind::Socket) => Ok(self.add(name, New::Node { mode }, owner)?.0),
            // An overlay's mark of a removed file. Of devices the host gets no node, as from a container in a user namespace.
            Some(FileKind::CharDevice) if rdev == 0 => Ok(self.add(name, New::Node { mode }, owner)?.0),
            _ => Err(Errno::EPERM),
        }
    }

    fn tmpfile(&self, mode: u32, owner: Owner) -> Result<Arc<dyn Inode>> {
        let fs = self.writable_fs()?;
        let (fid, wire, file) = {
            let _tree = fs.tree.read();
            let place = self.locate(&fs)?;
            let Owner { uid, gid } = owner;
            let request = Request::MakeTemp { at: place.at()?, mode: mode & 0o7777, uid, gid };
            fs.session
                .call(&request, |reply| Ok((reply.body.fid(), reply.body.attr()?, reply.files.pop())))?
        };
        if fid == Fid::NONE {
            return Err(Errno::ENFILE);
        }
        let seed = fs.seed(&wire, b"", mono_now());
        let inode = Self::nameless(&self.fs, &seed, fid, file.ok_or(Errno::EIO)?);
        fs.now_idle(&inode);
        Ok(inode)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let fs = self.writable_fs()?;
        let me = self.myself()?;
        let target = Arc::clone(target).into_any().downcast::<Self>().map_err(|_| Errno::EXDEV)?;
        let wire = {
            let _tree = fs.tree.read();
            let (from, to) = (target.locate(&fs)?, self.locate(&fs)?.child(name));
            fs.session
                .call(&Request::Link { from: from.at()?, to: to.at()? }, |reply| Ok(reply.body.attr()?))?
        };
        let seed = fs.seed(&wire, &target.target, mono_now());
        self.state.lock().stale = true;
        {
            let mut state = target.state.lock();
            state.places.push(Place { parent: me, name: Arc::from(name) });
            state.attr = seed.attr;
            state.stale = false;
        }
        fs.linked.lock().insert(seed.host, Arc::downgrade(&target));
        self.dir.lock().set_live(name, &target, &seed.attr, false);
        Ok(())
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
        let fs = self.writable_fs()?;
        let me = self.myself()?;
        let to = Arc::clone(new_dir).into_any().downcast::<Self>().map_err(|_| Errno::EXDEV)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        fs.take_in();
        let moved = self.lookup_child(name)?;
        let victim = match to.lookup_child(new_name) {
            Ok(victim) => Some(victim),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if let Some(victim) = &victim
            && !exchange
        {
            victim.pin(false)?;
        }
        let _tree = fs.tree.write();
        {
            let (from, target) = (self.locate(&fs)?.child(name), to.locate(&fs)?.child(new_name));
            let request = Request::Rename { from: from.at()?, to: target.at()?, flags: flags.bits() };
            fs.session.call(&request, |_| Ok(()))?;
        }
        self.state.lock().stale = true;
        to.state.lock().stale = true;
        if victim.as_ref().is_some_and(|v| Arc::ptr_eq(v, &moved)) {
            // Two names of one file: nothing happens (`rename(2)`).
            return Ok(());
        }
        let attr_of = |inode: &Self| inode.state.lock().attr;
        match (&victim, exchange) {
            (Some(victim), true) => {
                victim.moved((&to, new_name), (&me, name));
                let attr = attr_of(victim);
                self.dir.lock().set_live(name, victim, &attr, false);
            }
            (victim, _) => {
                self.dir.lock().remove(name);
                if let Some(victim) = victim {
                    victim.lost_name(&to, new_name);
                    to.dir.lock().remove(new_name);
                }
            }
        }
        moved.moved((self, name), (&to, new_name));
        let attr = attr_of(&moved);
        to.dir.lock().set_live(new_name, &moved, &attr, false);
        Ok(())
    }

    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        if self.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let fs = self.fs()?;
        let known = self.dir.lock().is_listed(|checked| cookie != 0 || fs.fresh_enough(checked));
        if !known {
            self.fetch_listing(&fs)?;
        }
        if cookie == 0 {
            self.ask_listed(&fs);
        }
        let mut after = cookie;
        loop {
            let batch = self.dir.lock().after(after, 128);
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.next_cookie;
            for entry in batch {
                if !sink(entry) {
                    return Ok(());
                }
            }
        }
    }

    fn readlink(&self, _caller: &dyn Caller) -> Result<Vec<u8>> {
        if self.kind == FileKind::Symlink { Ok(self.target.to_vec()) } else { Err(Errno::EINVAL) }
    }

    fn keep_reachable(&self) {
        // Who holds it finds out later that it could not be kept.
        let _ = self.pin(true);
    }

    fn is_steady(&self) -> bool {
        self.kind == FileKind::Regular && self.fs().is_ok_and(|fs| fs.is_fixed())
    }

    fn open(self: Arc<Self>, flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let fs = self.fs()?;
        match self.kind {
            FileKind::Directory => Err(Errno::EISDIR),
            FileKind::Regular => {
                // Counted first, so that nobody gives up what is opened next.
                self.state.lock().opens += 1;
                let file = GoferFile::new(Arc::clone(&self), Arc::clone(&fs));
                if flags.writes() {
                    self.writable_fs()?;
                    self.file_to_write(&fs)?;
                }
                if flags.reads() && fs.options.shared {
                    self.file_to_read(&fs)?;
                }
                Ok(Arc::new(file))
            }
            _ => Err(Errno::ENXIO),
        }
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        if name.starts_with(b"system.posix_acl_") {
            // The lists of host files stay with the host: to the sandbox, each file has none, and an overlay may give it
            // one of its own.
            return Err(Errno::ENODATA);
        }
        is_served_xattr(name)?;
        if !matches!(self.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::ENODATA);
        }
        let fixed = self.fs()?.is_fixed();
        if fixed && let Some((_, value)) = self.state.lock().xattrs.iter().find(|(n, _)| n == name) {
            return value.clone();
        }
        let value = self.xattr_request(name);
        if fixed {
            let mut state = self.state.lock();
            if state.xattrs.len() < 8 {
                state.xattrs.push((name.to_vec(), value.clone()));
            }
        }
        value
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let fs = self.writable_fs()?;
        is_served_xattr(name)?;
        let _tree = fs.tree.read();
        let place = self.locate(&fs)?;
        let name = Name::new(name).map_err(|_| Errno::ERANGE)?;
        let request = Request::SetXattr { at: place.at()?, name, value, flags: flags.cast_unsigned() };
        fs.session.call(&request, |_| Ok(()))
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let fs = self.writable_fs()?;
        is_served_xattr(name)?;
        let _tree = fs.tree.read();
        let place = self.locate(&fs)?;
        let name = Name::new(name).map_err(|_| Errno::ENODATA)?;
        fs.session.call(&Request::RemoveXattr { at: place.at()?, name }, |_| Ok(()))
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        if !matches!(self.kind, FileKind::Regular | FileKind::Directory) {
            return Ok(Vec::new());
        }
        let fs = self.fs()?;
        let _tree = fs.tree.read();
        let place = self.locate(&fs)?;
        let names = fs
            .session
            .call(&Request::ListXattr { at: place.at()? }, |reply| Ok(reply.body.bytes()?.to_vec()))?;
        let shown = names.split(|b| *b == 0).filter(|n| !n.is_empty() && is_served_xattr(n).is_ok());
        Ok(shown.map(<[u8]>::to_vec).collect())
    }

    fn volatile_names(&self) -> bool {
        self.fs.upgrade().is_some_and(|fs| fs.options.shared)
    }

    fn usage(&self) -> Option<&Usage> {
        Some(&self.usage)
    }

    fn attachment(&self) -> Option<&Attachment> {
        Some(&self.attachment)
    }

    fn filesystem(&self) -> Arc<dyn FileSystem> {
        match self.fs.upgrade() {
            Some(fs) => fs,
            None => Arc::new(Unmounted),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl GoferInode {
    fn remove_name(&self, name: &[u8], directory: bool) -> Result<()> {
        let fs = self.writable_fs()?;
        fs.take_in();
        let known = self.dir.lock().known(name, |_| true);
        let child = if let Known::Live(child) = known { Some(child) } else { None };
        if let Some(child) = &child {
            child.pin(false)?;
        }
        {
            let _tree = fs.tree.read();
            let place = self.locate(&fs)?.child(name);
            fs.session.call(&Request::Unlink { at: place.at()?, directory }, |_| Ok(()))?;
        }
        self.state.lock().stale = true;
        self.dir.lock().remove(name);
        if let Some(child) = child {
            child.lost_name(self, name);
        }
        Ok(())
    }
}

/// What an inode that outlives its file system answers.
#[derive(Debug)]
struct Unmounted;

impl FileSystem for Unmounted {
    fn name(&self) -> &'static str {
        "gofer"
    }

    fn root(&self) -> Arc<dyn Inode> {
        let seed = Seed {
            attr: Attr::new(FileKind::Directory, 0, 0, 0),
            host: (0, 0),
            target: Box::default(),
            checked: 0,
        };
        GoferInode::new(&Weak::new(), &seed, None)
    }

    fn statfs(&self) -> Result<StatFs> {
        Err(Errno::EIO)
    }

    fn dev(&self) -> u64 {
        0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
