//! The devpts file system: a node for each terminal, and `ptmx` (`Documentation/filesystems/devpts.rst`).

use core::any::Any;
use std::sync::{Arc, Weak};

use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_vfs::{
    Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, FsType, Inode, OpenFlags, SetAttr, SetTime,
    StatFs, Timestamp,
};

use crate::tty::{DEVPTS_DEV, Terminals, Tty};

/// `DEVPTS_SUPER_MAGIC`.
const MAGIC: u64 = 0x1cd1;
/// Inode number of `ptmx`.
const PTMX_INO: u64 = 2;

/// A devpts over all terminals of the sandbox.
#[derive(Debug)]
pub struct DevPts {
    me: Weak<DevPts>,
    terminals: Arc<Terminals>,
    root: Mutex<Attr, { rank::LEAF }>,
    ptmx: Mutex<Attr, { rank::LEAF }>,
}

impl DevPts {
    pub fn new(terminals: Arc<Terminals>) -> Arc<Self> {
        let root = Attr { nlink: 2, ..Attr::new(FileKind::Directory, 0o755, 1, DEVPTS_DEV) };
        let ptmx = Attr {
            rdev: libc::makedev(5, 2),
            ..Attr::new(FileKind::CharDevice, 0o666, PTMX_INO, DEVPTS_DEV)
        };
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            terminals,
            root: Mutex::new(root),
            ptmx: Mutex::new(ptmx),
        })
    }

    fn node(&self, node: Node) -> Result<Arc<dyn Inode>> {
        let fs = self.me.upgrade().ok_or(Errno::EIO)?;
        Ok(Arc::new(PtsInode { fs, node }))
    }
}

impl FileSystem for DevPts {
    fn name(&self) -> &'static str {
        "devpts"
    }
    fn root(&self) -> Arc<dyn Inode> {
        let fs = self.me.upgrade().unwrap_or_else(|| Self::new(Arc::clone(&self.terminals)));
        Arc::new(PtsInode { fs, node: Node::Root })
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, block_size: 4096, name_max: 255, ..StatFs::default() })
    }
    fn dev(&self) -> u64 {
        DEVPTS_DEV
    }
    fn options(&self) -> String {
        "gid=5,mode=620,ptmxmode=666".into()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// devpts as `mount(2)` makes it. All mounts show all terminals of the sandbox.
#[derive(Debug)]
pub struct DevPtsType {
    pub terminals: Arc<Terminals>,
}

impl FsType for DevPtsType {
    fn mount(&self, _source: &str, data: &str, _caller: &dyn Caller) -> Result<Arc<dyn FileSystem>> {
        for option in data.split(',').filter(|o| !o.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let number = |radix| u32::from_str_radix(value, radix).is_ok();
            let known = match key {
                "uid" | "gid" | "max" => number(10),
                "mode" | "ptmxmode" => number(8),
                "newinstance" => value.is_empty(),
                _ => false,
            };
            if !known {
                return Err(Errno::EINVAL);
            }
        }
        let fs: Arc<dyn FileSystem> = DevPts::new(Arc::clone(&self.terminals));
        Ok(fs)
    }
}

#[derive(Debug, Clone)]
enum Node {
    Root,
    Ptmx,
    Slave(Arc<Tty>),
}

#[derive(Debug)]
struct PtsInode {
    fs: Arc<DevPts>,
    node: Node,
}

impl PtsInode {
    fn attr_of(&self) -> &Mutex<Attr, { rank::LEAF }> {
        match &self.node {
            Node::Root => &self.fs.root,
            Node::Ptmx => &self.fs.ptmx,
            Node::Slave(tty) => tty.attr(),
        }
    }
}

/// The number that a name of devpts stands for; no leading zeros.
fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|n: &u32| n.to_string() == text)
}

impl Inode for PtsInode {
    fn kind(&self) -> FileKind {
        match self.node {
            Node::Root => FileKind::Directory,
            _ => FileKind::CharDevice,
        }
    }

    fn attr(&self) -> Result<Attr> {
        Ok(*self.attr_of().lock())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let time = |set: SetTime| match set {
            SetTime::Now => Timestamp::now(),
            SetTime::At(at) => at,
        };
        let mut attr = self.attr_of().lock();
        if let Some(mode) = set.mode {
            attr.mode = (attr.mode & libc::S_IFMT) | (mode & 0o7777);
        }
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.map_or(attr.atime, time);
        attr.mtime = set.mtime.map_or(attr.mtime, time);
        attr.ctime = Timestamp::now();
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if !matches!(self.node, Node::Root) {
            return Err(Errno::ENOTDIR);
        }
        if name == b"ptmx" {
            return self.fs.node(Node::Ptmx);
        }
        let tty = number(name).and_then(|n| self.fs.terminals.get(n)).ok_or(Errno::ENOENT)?;
        self.fs.node(Node::Slave(tty))
    }

    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        if !matches!(self.node, Node::Root) {
            return Err(Errno::ENOTDIR);
        }
        let entry = |name: String, ino, next_cookie| DirEntry {
            name: name.into_bytes(),
            ino,
            kind: FileKind::CharDevice,
            next_cookie,
        };
        if cookie < 3 && !sink(entry("ptmx".into(), PTMX_INO, 3)) {
            return Ok(());
        }
        // The cookie is the number, so that terminals that come and go move no other.
        for index in self.fs.terminals.numbers() {
            let at = u64::from(index) + 4;
            if at > cookie && !sink(entry(index.to_string(), at - 1, at)) {
                break;
            }
        }
        Ok(())
    }

    fn open(self: Arc<Self>, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        match &self.node {
            Node::Root => Err(Errno::EISDIR),
            Node::Ptmx => Ok(self.fs.terminals.open_master(caller)?),
            Node::Slave(tty) => self.fs.terminals.open_slave(tty.index(), flags, caller),
        }
    }

    fn volatile_names(&self) -> bool {
        true
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

#[cfg(test)]
mod tests {
    use super::*;
    use sentry_vfs::testing::TestCaller;

    #[test]
    fn names_follow_the_terminals() {
        let terminals = Terminals::new(Arc::new(TestCaller::new(1)));
        let root = DevPts::new(Arc::clone(&terminals)).root();
        let names = || {
            let mut names = Vec::new();
            root.list(0, &mut |e| {
                names.push(String::from_utf8(e.name).unwrap());
                true
            })
            .unwrap();
            names
        };
        assert_eq!(names(), ["ptmx"]);
        let c = TestCaller::new(1);
        let masters: Vec<_> = (0..3).map(|_| terminals.open_master(&c).unwrap()).collect();
        assert_eq!(names(), ["ptmx", "0", "1", "2"]);
        assert_eq!(root.lookup(b"1").unwrap().attr().unwrap().rdev, libc::makedev(136, 1));
        assert_eq!(root.lookup(b"01").err(), Some(Errno::ENOENT));
        drop(masters);
        assert_eq!(root.lookup(b"1").err(), Some(Errno::ENOENT));
    }
}
