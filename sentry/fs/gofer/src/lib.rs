//! Host files in the sandbox's tree: a file system whose every name and attribute comes from the gofer.
//!
//! The aim is to ask seldom. A walk of several names is one request ([`Inode::prefetch`](sentry_vfs::Inode::prefetch)),
//! a listing brings the attributes of its entries and makes absent names known, a file that is opened to read is not
//! opened on the host before its first read or mapping. Data is then read and mapped through the donated descriptor,
//! without the gofer. Files that are likely to be next are opened while the program is still at others.
//!
//! **Trust.** An *exclusive* mount changes through this file system alone: what is known of it holds for ever. A
//! *shared* one may change on the host at any time: what is known of it holds for 2 ms.
//!
//! **Invariants.** A descriptor here is a regular file's. A child holds its parent; a parent knows its children weakly.
//! The number of host descriptors that are kept open without anyone using them is bounded.
//!
//! **Lock ranks:** tree 132 (held shared over every request, exclusively over one that moves names), a directory's
//! cache 134, an inode's state 136; connections and tables are leaves.
//!
//! **Threat.** Replies are decoded totally; a gofer that breaks the protocol is given up.

mod dir;
mod file;
mod inode;
mod session;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use gofer_protocol::{Fid, Path, Place, Request, WireAttr};
use sentry_base::lock::rank;
use sentry_base::{Errno, KeyedMap, Mutex, Nanos, Result, RwLock, mono_now};
use sentry_vfs::{Attr, FileSystem, Inode, StatFs, Timestamp};

use dir::Seed;
use inode::Foretold;

pub use inode::GoferInode;
pub use session::{ConnectError, OnLoss, Session};

mod ranks {
    pub const TREE: u16 = 132;
    pub const DIR: u16 = 134;
    pub const INODE: u16 = 136;
}

/// For how long what a shared mount answered is taken to hold, in nanoseconds.
const SHARED_VALID_NS: Nanos = 2_000_000;

/// Descriptors that stay open although no open file uses them, in each file system.
const IDLE_FILES: usize = 1024;

/// Inodes of recent walks that are kept until the path walk comes for them.
const RECENT: usize = 64;

/// How a mount of the gofer is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Refuse every change here too.
    pub read_only: bool,
    /// Others may change the files.
    pub shared: bool,
    /// The device number of the files.
    pub dev: u64,
}

/// One mount of the gofer as a file system.
pub struct GoferFs {
    session: Arc<Session>,
    fid: Fid,
    options: Options,
    root: Arc<GoferInode>,
    /// Host devices in the tree, in order of appearance: the same inode number may occur once on each.
    devices: Mutex<Vec<u64>, { rank::LEAF }>,
    /// Files with several names, so that they are one inode.
    linked: Mutex<KeyedMap<(u64, u64), Weak<GoferInode>>, { rank::LEAF }>,
    tree: RwLock<(), { ranks::TREE }>,
    recent: Mutex<VecDeque<Arc<GoferInode>>, { rank::LEAF }>,
    idle: Mutex<VecDeque<Weak<GoferInode>>, { rank::LEAF }>,
    foretold: Mutex<Foretold, { rank::LEAF }>,
}

impl core::fmt::Debug for GoferFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "GoferFs({:?}, {:?})", self.fid, self.options)
    }
}

impl GoferFs {
    /// The file system of the gofer's mount number `mount`.
    pub fn attach(session: &Arc<Session>, mount: u32, options: Options) -> Result<Arc<Self>> {
        let (fid, wire) =
            session.call(&Request::Attach { mount }, |reply| Ok((reply.body.fid(), reply.body.attr()?)))?;
        let root = Seed {
            attr: attr_of(&wire, options.dev, 0),
            host: (wire.dev, wire.ino),
            target: Box::default(),
            checked: mono_now(),
        };
        Ok(Arc::new_cyclic(|this| Self {
            session: Arc::clone(session),
            fid,
            options,
            root: GoferInode::new(this, &root, None),
            devices: Mutex::new(vec![wire.dev]),
            linked: Mutex::default(),
            tree: RwLock::default(),
            recent: Mutex::default(),
            idle: Mutex::default(),
            foretold: Mutex::default(),
        }))
    }

    /// Nothing ever changes: what is known needs no second look.
    fn is_fixed(&self) -> bool {
        self.options.read_only && !self.options.shared
    }

    fn fresh_enough(&self, checked: Nanos) -> bool {
        !self.options.shared || mono_now().saturating_sub(checked) < SHARED_VALID_NS
    }

    fn seed(&self, wire: &WireAttr, target: &[u8], checked: Nanos) -> Seed {
        Seed {
            attr: attr_of(wire, self.options.dev, self.device_index(wire.dev)),
            host: (wire.dev, wire.ino),
            target: target.into(),
            checked,
        }
    }

    fn device_index(&self, dev: u64) -> usize {
        let mut devices = self.devices.lock();
        devices.iter().position(|d| *d == dev).unwrap_or_else(|| {
            devices.push(dev);
            devices.len() - 1
        })
    }
    /// Keeps an inode alive for the path walk that is about to look it up.
    fn remember(&self, inode: Arc<GoferInode>) {
        let oldest = {
            let mut recent = self.recent.lock();
            recent.push_back(inode);
            if recent.len() > RECENT { recent.pop_front() } else { None }
        };
        drop(oldest);
    }

    /// The path walk has come for an inode.
    fn forget_recent(&self, inode: &Arc<GoferInode>) {
        let found = {
            let mut recent = self.recent.lock();
            let at = recent.iter().position(|r| Arc::ptr_eq(r, inode));
            at.and_then(|at| recent.remove(at))
        };
        drop(found);
    }

    /// Enters an inode whose last open file was closed. Where there are too many, the one that waited longest gives up its
    /// descriptors, unless it was used meanwhile, which is forgiven once.
    fn now_idle(&self, inode: &Arc<GoferInode>) {
        let mut entering = Arc::downgrade(inode);
        for _ in 0..=IDLE_FILES {
            let oldest = {
                let mut idle = self.idle.lock();
                idle.push_back(entering);
                if idle.len() > IDLE_FILES { idle.pop_front() } else { None }
            };
            match oldest.and_then(|weak| weak.upgrade()) {
                Some(oldest) if !oldest.close_idle() => entering = Arc::downgrade(&oldest),
                _ => return,
            }
        }
    }
}

impl FileSystem for GoferFs {
    fn name(&self) -> &'static str {
        "gofer"
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        let at = Place { fid: self.fid, path: Path::EMPTY };
        let st = self.session.call(&Request::StatFs { at }, |reply| Ok(reply.body.stat_fs()?))?;
        Ok(StatFs {
            magic: st.magic,
            block_size: st.block_size,
            blocks: st.blocks,
            blocks_free: st.blocks_free,
            blocks_available: st.blocks_available,
            files: st.files,
            files_free: st.files_free,
            name_max: st.name_max,
            flags: if self.options.read_only { libc::ST_RDONLY } else { 0 },
        })
    }

    fn dev(&self) -> u64 {
        self.options.dev
    }

    fn read_only(&self) -> bool {
        self.options.read_only
    }

    fn sync(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let at = Place { fid: self.fid, path: Path::EMPTY };
        self.session.call(&Request::Sync { at }, |_| Ok(()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The attributes as the sandbox sees them; `device` is the index of the host's device among the mount's.
fn attr_of(wire: &WireAttr, dev: u64, device: usize) -> Attr {
    let time = |t: gofer_protocol::WireTime| Timestamp { sec: t.sec, nsec: t.nsec };
    Attr {
        dev,
        ino: wire.ino ^ ((device as u64) << 56),
        mode: wire.mode,
        nlink: wire.nlink,
        uid: wire.uid,
        gid: wire.gid,
        rdev: wire.rdev,
        size: wire.size,
        blksize: wire.blksize,
        blocks: wire.blocks,
        atime: time(wire.atime),
        mtime: time(wire.mtime),
        ctime: time(wire.ctime),
        btime: (wire.has_btime == 1).then(|| time(wire.btime)),
    }
}

fn from_rustix(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

#[cfg(test)]
mod tests;
