//! Inodes of a gofer mount: what is known of each, and how it is asked for. The operations are in [`ops`], files that are
//! opened together in [`ahead`].

mod ahead;
mod ops;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use gofer_protocol::{Fid, FileHow, Name, Path, Place as WirePlace, Request, WireAttr};
use sentry_base::{Errno, Mutex, Nanos, Result, mono_now};
use sentry_mm::TextSlot;
use sentry_vfs::{Attachment, Attr, FileKind, Owner, Timestamp, Usage};

use crate::dir::{DirCache, Known, Seed};
pub(crate) use ahead::{Ahead, Foretold};

use crate::{GoferFs, from_rustix, ranks};

/// After so many lookups that had to ask, the whole directory is fetched.
const LIST_AFTER_MISSES: u32 = 6;

/// A directory whose own size is above this is not fetched as a whole for the sake of lookups, in bytes.
const LIST_MAX_SIZE: u64 = 1 << 20;

/// One name of an inode.
#[derive(Debug)]
struct Place {
    parent: Arc<GoferInode>,
    name: Arc<[u8]>,
}

#[derive(Debug)]
struct State {
    attr: Attr,
    checked: Nanos,
    /// The attributes have changed in a way that only the host knows.
    stale: bool,
    /// Empty for the root, and for an object that has lost its last name.
    places: Vec<Place>,
    /// Kept open on the gofer's side when the last name went while the file was open.
    kept: Option<Fid>,
    read: Option<Arc<OwnedFd>>,
    write: Option<Arc<OwnedFd>>,
    /// Whether `write` was opened for reading too.
    write_reads: bool,
    opens: u32,
    /// `read` came with another file's, and nobody has asked for it yet.
    is_ahead: bool,
    /// Waits among [`GoferFs::idle`], and was opened again meanwhile.
    is_queued: bool,
    was_used: bool,
    /// Names of extended attributes with their values, on mounts where they cannot change.
    xattrs: Vec<(Vec<u8>, Result<Vec<u8>>)>,
}

impl State {
    fn has_host_file(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    /// Whether it is to wait among [`GoferFs::idle`] from now on: it has a host file that nobody uses, and does not wait yet.
    fn enters_queue(&mut self) -> bool {
        let enters = self.opens == 0 && self.has_host_file() && !self.is_queued;
        self.is_queued |= enters;
        enters
    }
}

/// A file, directory or other object of a gofer mount.
pub struct GoferInode {
    fs: Weak<GoferFs>,
    kind: FileKind,
    host: (u64, u64),
    is_root: bool,
    target: Box<[u8]>,
    state: Mutex<State, { ranks::INODE }>,
    dir: Mutex<DirCache, { ranks::DIR }>,
    attachment: Attachment,
    usage: Usage,
    text: TextSlot,
    this: Weak<GoferInode>,
}

impl core::fmt::Debug for GoferInode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "GoferInode({:?}, {:?})", self.kind, self.host)
    }
}

impl Drop for GoferInode {
    fn drop(&mut self) {
        let kept = self.state.get_mut().kept.take();
        if let (Some(fid), Some(fs)) = (kept, self.fs.upgrade()) {
            // A gofer that is gone has closed it already.
            let _ = fs.session.call(&Request::Close { fid }, |_| Ok(()));
        }
        // A long chain of directories must not be dropped by recursion.
        let mut next: Vec<Arc<Self>> = self.state.get_mut().places.drain(..).map(|p| p.parent).collect();
        while let Some(parent) = next.pop() {
            if let Some(mut last) = Arc::into_inner(parent) {
                next.extend(last.state.get_mut().places.drain(..).map(|p| p.parent));
            }
        }
    }
}

/// Where an inode is, in the form of the protocol.
struct Located {
    fid: Fid,
    path: Vec<u8>,
}

impl Located {
    fn at(&self) -> Result<WirePlace<'_>> {
        Ok(WirePlace { fid: self.fid, path: Path::new(&self.path).map_err(|_| Errno::EINVAL)? })
    }

    fn child(mut self, name: &[u8]) -> Self {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self
    }
}

impl GoferInode {
    pub(crate) fn new(fs: &Weak<GoferFs>, seed: &Seed, place: Option<(Arc<GoferInode>, &[u8])>) -> Arc<Self> {
        Self::build(fs, seed, place, None)
    }

    /// A file that was made without a name.
    fn nameless(fs: &Weak<GoferFs>, seed: &Seed, fid: Fid, file: OwnedFd) -> Arc<Self> {
        let inode = Self::build(fs, seed, None, Some(fid));
        inode.set_write(Arc::new(file), true);
        inode
    }

    fn build(
        fs: &Weak<GoferFs>,
        seed: &Seed,
        place: Option<(Arc<GoferInode>, &[u8])>,
        kept: Option<Fid>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            fs: Weak::clone(fs),
            kind: seed.attr.kind(),
            host: seed.host,
            is_root: place.is_none() && kept.is_none(),
            target: seed.target.clone(),
            state: Mutex::new(State {
                attr: seed.attr,
                checked: seed.checked,
                stale: false,
                places: place
                    .into_iter()
                    .map(|(parent, name)| Place { parent, name: Arc::from(name) })
                    .collect(),
                kept,
                read: None,
                write: None,
                write_reads: false,
                opens: 0,
                is_ahead: false,
                is_queued: false,
                was_used: false,
                xattrs: Vec::new(),
            }),
            dir: Mutex::default(),
            attachment: Attachment::new(),
            usage: Usage::default(),
            text: TextSlot::default(),
            this: Weak::clone(this),
        })
    }

    pub(crate) fn fs(&self) -> Result<Arc<GoferFs>> {
        self.fs.upgrade().ok_or(Errno::EIO)
    }

    fn writable_fs(&self) -> Result<Arc<GoferFs>> {
        let fs = self.fs()?;
        if fs.options.read_only { Err(Errno::EROFS) } else { Ok(fs) }
    }

    fn myself(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Errno::EIO)
    }

    /// The present place. The tree lock is held, so that it stays right until the answer.
    fn locate(&self, fs: &GoferFs) -> Result<Located> {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut at: Option<Arc<Self>> = None;
        loop {
            let inode: &Self = at.as_deref().unwrap_or(self);
            if inode.is_root {
                break;
            }
            let parent = {
                let state = inode.state.lock();
                match (state.places.first(), state.kept) {
                    (Some(place), _) => {
                        names.push(Arc::clone(&place.name));
                        Arc::clone(&place.parent)
                    }
                    (None, Some(fid)) if names.is_empty() => return Ok(Located { fid, path: Vec::new() }),
                    (None, _) => return Err(Errno::ENOENT),
                }
            };
            at = Some(parent);
        }
        let mut path = Vec::with_capacity(names.iter().map(|n| n.len() + 1).sum());
        for name in names.iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        Ok(Located { fid: fs.fid, path })
    }

    /// Asks for the attributes of this inode and of names below it. The last number is the errno of the name at which
    /// the walk stopped, 0 if it found all or met something that is no directory.
    fn walk(&self, fs: &GoferFs, names: &[&[u8]]) -> Result<(Vec<Seed>, i32)> {
        let now = mono_now();
        let joined = names.join(&b'/');
        let (found, stop) = {
            let _tree = fs.tree.read();
            let place = self.locate(fs)?;
            let names = Path::new(&joined).map_err(|_| Errno::EINVAL)?;
            fs.session.call(&Request::WalkPlus { at: place.at()?, names }, |reply| {
                let mut found: Vec<(WireAttr, Vec<u8>)> = Vec::new();
                while let Some(entry) = reply.body.entry()? {
                    found.push((entry.attr, entry.target.to_vec()));
                }
                Ok((found, reply.body.value().cast_signed()))
            })?
        };
        if found.is_empty() || found.len() > names.len() + 1 {
            return Err(Errno::EIO);
        }
        Ok((found.iter().map(|(attr, target)| fs.seed(attr, target, now)).collect(), stop))
    }

    /// The inode of `name`, from attributes that have just been learned.
    fn adopt(&self, fs: &GoferFs, name: &[u8], seed: &Seed) -> Result<Arc<Self>> {
        let me = self.myself()?;
        let mut dir = self.dir.lock();
        // A linked file that is known under another name.
        let several = seed.attr.nlink > 1 && seed.attr.kind() != FileKind::Directory;
        let live = match dir.known(name, |_| true) {
            Known::Live(inode) if inode.is_same(seed) => Some(inode),
            _ if several => {
                let found = fs.linked.lock().get(&seed.host).and_then(Weak::upgrade);
                found.filter(|inode| inode.is_same(seed))
            }
            _ => None,
        };
        let inode = match live {
            Some(inode) => {
                let mut state = inode.state.lock();
                state.attr = seed.attr;
                state.checked = seed.checked;
                state.stale = false;
                if !state.places.iter().any(|p| *p.name == *name && Arc::ptr_eq(&p.parent, &me)) {
                    state.places.push(Place { parent: me, name: Arc::from(name) });
                }
                drop(state);
                inode
            }
            None => Self::new(&self.fs, seed, Some((me, name))),
        };
        if fs.is_fixed() {
            dir.set_seed(name, seed.clone());
        }
        dir.set_live(name, &inode, &seed.attr, fs.is_fixed());
        drop(dir);
        if several {
            let mut linked = fs.linked.lock();
            linked.insert(seed.host, Arc::downgrade(&inode));
            if linked.len() > 1024 && linked.len().is_power_of_two() {
                linked.retain(|_, weak| weak.strong_count() > 0);
            }
        }
        Ok(inode)
    }

    fn is_same(&self, seed: &Seed) -> bool {
        self.host == seed.host && self.kind == seed.attr.kind()
    }

    fn is_fresh(&self, fs: &GoferFs) -> bool {
        let state = self.state.lock();
        !state.stale && fs.fresh_enough(state.checked)
    }

    fn lookup_child(&self, name: &[u8]) -> Result<Arc<Self>> {
        if self.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let fs = self.fs()?;
        for attempt in 0..2 {
            let known = self.dir.lock().known(name, |checked| fs.fresh_enough(checked));
            match known {
                Known::Live(inode) if !fs.options.shared || inode.is_fresh(&fs) => {
                    fs.forget_recent(&inode);
                    return Ok(inode);
                }
                Known::Seed(seed) => return self.adopt(&fs, name, &seed),
                Known::Absent => return Err(Errno::ENOENT),
                Known::Live(_) | Known::Unknown => {}
            }
            if attempt == 0 && self.should_list(&fs) {
                self.fetch_listing(&fs)?;
            } else {
                break;
            }
        }
        let (found, stop) = self.walk(&fs, &[name])?;
        if let Some(seed) = found.get(1) {
            return self.adopt(&fs, name, seed);
        }
        let errno = Errno::from_raw(stop);
        if errno == Errno::ENOENT {
            self.dir.lock().remove(name);
        }
        Err(errno)
    }

    /// Whether a lookup that must ask should rather fetch the whole directory.
    fn should_list(&self, fs: &GoferFs) -> bool {
        if fs.options.shared {
            return false;
        }
        let small = self.state.lock().attr.size <= LIST_MAX_SIZE;
        let mut dir = self.dir.lock();
        dir.misses = dir.misses.saturating_add(1);
        small && dir.misses > LIST_AFTER_MISSES && !dir.is_listed(|_| true)
    }

    fn fetch_listing(&self, fs: &GoferFs) -> Result<()> {
        let now = mono_now();
        let mut entries = Vec::new();
        let mut cookie = 0;
        loop {
            let (found, complete) = {
                let _tree = fs.tree.read();
                let place = self.locate(fs)?;
                fs.session.call(&Request::ListPlus { at: place.at()?, cookie }, |reply| {
                    let mut found: Vec<(Vec<u8>, WireAttr, Vec<u8>, u64)> = Vec::new();
                    while let Some(e) = reply.body.entry()? {
                        let name = Name::new(e.name)?.as_bytes().to_vec();
                        found.push((name, e.attr, e.target.to_vec(), e.cookie));
                    }
                    Ok((found, reply.body.value() == 1))
                })?
            };
            let last = found.last().map(|(.., cookie)| *cookie);
            entries.extend(
                found.into_iter().map(|(name, attr, target, _)| (name, fs.seed(&attr, &target, now))),
            );
            match last {
                Some(last) if !complete => cookie = last,
                _ => break,
            }
        }
        self.dir.lock().set_listing(entries, now);
        Ok(())
    }

    /// Makes a child; a new regular file comes with its descriptor.
    fn add(&self, name: &[u8], new: New<'_>, owner: Owner) -> Result<(Arc<Self>, Option<OwnedFd>)> {
        let fs = self.writable_fs()?;
        let Owner { uid, gid } = owner;
        let (wire, file) = {
            let _tree = fs.tree.read();
            let place = self.locate(&fs)?.child(name);
            let at = place.at()?;
            let request = match new {
                New::File { mode } => {
                    Request::Create { at, mode, uid, gid, how: FileHow::READ | FileHow::WRITE }
                }
                New::Directory { mode } => Request::MakeDir { at, mode, uid, gid },
                New::Symlink { target } => Request::MakeSymlink { at, target, uid, gid },
                New::Node { mode } => Request::MakeNode { at, mode, uid, gid },
            };
            fs.session.call(&request, |reply| Ok((reply.body.attr()?, reply.files.pop())))?
        };
        self.state.lock().stale = true;
        let target = if let New::Symlink { target } = new { target } else { b"" };
        let child = self.adopt(&fs, name, &fs.seed(&wire, target, mono_now()))?;
        Ok((child, file))
    }

    /// Keeps a file reachable when its last name is about to go, if it is open or, with `held`, in any case.
    fn pin(&self, held: bool) -> Result<()> {
        let fs = self.fs()?;
        {
            let state = self.state.lock();
            let last = state.attr.nlink <= 1;
            let used = held || state.opens > 0;
            if self.kind != FileKind::Regular || !used || state.kept.is_some() || !last {
                return Ok(());
            }
        }
        // For writing too, where that is allowed: it may be opened again through another descriptor.
        let both = FileHow::READ | FileHow::WRITE | FileHow::KEEP;
        let (fid, file, writes) = match self.open_host(&fs, both) {
            Ok((fid, file)) => (fid, file, true),
            Err(Errno::EACCES | Errno::EROFS | Errno::ETXTBSY | Errno::EPERM) => {
                let (fid, file) = self.open_host(&fs, FileHow::READ | FileHow::KEEP)?;
                (fid, file, false)
            }
            Err(e) => return Err(e),
        };
        {
            let mut state = self.state.lock();
            if fid != Fid::NONE {
                state.kept = Some(fid);
            }
            state.read.get_or_insert_with(|| Arc::clone(&file));
        }
        if writes {
            self.set_write(file, true);
        }
        Ok(())
    }

    /// One of the names is gone.
    fn lost_name(&self, parent: &Self, name: &[u8]) {
        let mut state = self.state.lock();
        let gone: Vec<Place> = {
            let is_it = |p: &mut Place| *p.name == *name && core::ptr::eq(Arc::as_ptr(&p.parent), parent);
            state.places.extract_if(.., is_it).collect()
        };
        state.attr.nlink =
            if self.kind == FileKind::Directory { 0 } else { state.attr.nlink.saturating_sub(1) };
        state.attr.ctime = Timestamp::now();
        drop(state);
        drop(gone);
    }

    fn moved(&self, from: (&Self, &[u8]), to: (&Arc<Self>, &[u8])) {
        let mut state = self.state.lock();
        let mut old = None;
        for place in &mut state.places {
            if *place.name == *from.1 && core::ptr::eq(Arc::as_ptr(&place.parent), from.0) {
                let new = Place { parent: Arc::clone(to.0), name: Arc::from(to.1) };
                old = Some(core::mem::replace(place, new));
                break;
            }
        }
        state.attr.ctime = Timestamp::now();
        drop(state);
        drop(old);
    }

    fn open_host(&self, fs: &GoferFs, how: FileHow) -> Result<(Fid, Arc<OwnedFd>)> {
        let _tree = fs.tree.read();
        let place = self.locate(fs)?;
        let (fid, file) = fs.session.call(&Request::OpenFile { at: place.at()?, how }, |reply| {
            Ok((reply.body.fid(), reply.files.pop()))
        })?;
        Ok((fid, Arc::new(file.ok_or(Errno::EIO)?)))
    }

    /// The host file to read from if it is open.
    fn open_to_read(&self, fs: &GoferFs) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        if state.write_reads
            && let Some(file) = &state.write
        {
            return Some(Arc::clone(file));
        }
        let file = Arc::clone(state.read.as_ref()?);
        if core::mem::take(&mut state.is_ahead) {
            drop(state);
            self.was_of_use(fs);
        }
        Some(file)
    }

    /// The host file to read from, opened if need be.
    pub(crate) fn file_to_read(&self, fs: &GoferFs) -> Result<Arc<OwnedFd>> {
        if let Some(file) = self.open_to_read(fs) {
            return Ok(file);
        }
        let file = match self.open_together(fs)? {
            Some(file) => file,
            None => self.open_host(fs, FileHow::READ)?.1,
        };
        let mut state = self.state.lock();
        Ok(Arc::clone(state.read.get_or_insert(file)))
    }

    /// The host file to write to, opened if need be; for reading too where the host allows it.
    pub(crate) fn file_to_write(&self, fs: &GoferFs) -> Result<Arc<OwnedFd>> {
        if let Some(file) = &self.state.lock().write {
            return Ok(Arc::clone(file));
        }
        let (file, reads) = match self.open_host(fs, FileHow::READ | FileHow::WRITE) {
            Ok((_, file)) => (file, true),
            Err(Errno::EACCES) => (self.open_host(fs, FileHow::WRITE)?.1, false),
            Err(e) => return Err(e),
        };
        Ok(self.set_write(file, reads))
    }

    fn set_write(&self, file: Arc<OwnedFd>, reads: bool) -> Arc<OwnedFd> {
        let mut state = self.state.lock();
        if let Some(first) = &state.write {
            return Arc::clone(first);
        }
        state.write = Some(Arc::clone(&file));
        state.write_reads = reads;
        file
    }

    pub(crate) fn has_host_file(&self) -> bool {
        self.state.lock().has_host_file()
    }

    pub(crate) fn closed(self: &Arc<Self>) {
        let enters = {
            let mut state = self.state.lock();
            state.opens = state.opens.saturating_sub(1);
            state.was_used = state.is_queued;
            state.enters_queue()
        };
        if enters && let Ok(fs) = self.fs() {
            fs.now_idle(self);
        }
    }

    /// Leaves the queue of idle files, and gives up the host files if nobody has the file open. False if it has been open since
    /// it was asked last, and stays.
    pub(crate) fn close_idle(&self) -> bool {
        let mut state = self.state.lock();
        if core::mem::take(&mut state.was_used) {
            return false;
        }
        state.is_queued = false;
        if state.opens == 0 {
            state.is_ahead = false;
            let files = (state.read.take(), state.write.take());
            if files.1.is_some() {
                // What was written has changed the attributes on the host.
                state.stale = true;
            }
            drop(state);
            drop(files);
        }
        true
    }

    /// Device and inode number as the sandbox sees them.
    pub(crate) fn text_slot(&self) -> &TextSlot {
        &self.text
    }

    /// A number that changes when the contents do, as far as that is known.
    pub(crate) fn contents_stamp(&self) -> u64 {
        let attr = self.state.lock().attr;
        let time = |t: Timestamp| t.sec.cast_unsigned().wrapping_mul(1_000_000_007) ^ u64::from(t.nsec);
        attr.size ^ time(attr.mtime).rotate_left(20) ^ time(attr.ctime).rotate_left(40)
    }

    pub(crate) fn device_and_ino(&self) -> (u64, u64) {
        let attr = self.state.lock().attr;
        (attr.dev, attr.ino)
    }

    fn current_attr(&self) -> Result<Attr> {
        let fs = self.fs()?;
        if fs.is_fixed() {
            return Ok(self.state.lock().attr);
        }
        {
            let mut state = self.state.lock();
            let open = state.write.clone().or_else(|| state.read.clone().filter(|_| fs.options.shared));
            if let Some(file) = open {
                refresh_from(&mut state.attr, file.as_fd())?;
                return Ok(state.attr);
            }
            let nameless = state.places.is_empty() && state.kept.is_none() && !self.is_root;
            if nameless || (!state.stale && fs.fresh_enough(state.checked)) {
                return Ok(state.attr);
            }
        }
        let (found, _) = self.walk(&fs, &[])?;
        let seed = found.first().ok_or(Errno::EIO)?;
        if !self.is_same(seed) {
            // Somebody replaced it on the host.
            return Err(Errno::ESTALE);
        }
        let mut state = self.state.lock();
        state.attr = seed.attr;
        state.checked = seed.checked;
        state.stale = false;
        Ok(state.attr)
    }

    fn xattr_request(&self, name: &[u8]) -> Result<Vec<u8>> {
        let fs = self.fs()?;
        let _tree = fs.tree.read();
        let place = self.locate(&fs)?;
        let name = Name::new(name).map_err(|_| Errno::ENODATA)?;
        fs.session
            .call(&Request::GetXattr { at: place.at()?, name }, |reply| Ok(reply.body.bytes()?.to_vec()))
    }
}

/// An object to make.
#[derive(Clone, Copy)]
enum New<'a> {
    File {
        mode: u32,
    },
    Directory {
        mode: u32,
    },
    Symlink {
        target: &'a [u8],
    },
    /// `mode` holds the type.
    Node {
        mode: u32,
    },
}

/// Takes over what `fstat` says of an open file, but for its owner: this process may stand in a user namespace that does
/// not know all ids.
fn refresh_from(attr: &mut Attr, file: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let st = rustix::fs::fstat(file).map_err(from_rustix)?;
    let time = |sec: i64, nsec: u64| Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    attr.mode = st.st_mode;
    attr.nlink = u32::try_from(st.st_nlink).unwrap_or(u32::MAX);
    attr.size = st.st_size.cast_unsigned();
    attr.blocks = st.st_blocks.cast_unsigned();
    attr.atime = time(st.st_atime, st.st_atime_nsec);
    attr.mtime = time(st.st_mtime, st.st_mtime_nsec);
    attr.ctime = time(st.st_ctime, st.st_ctime_nsec);
    Ok(())
}
