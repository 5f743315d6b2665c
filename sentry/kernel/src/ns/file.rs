//! The files of namespaces: what `/proc/PID/ns/*` leads to (`ioctl_nsfs(2)`, `fs/nsfs.c`).

use core::any::Any;
use std::sync::{Arc, OnceLock, Weak};

use sentry_base::{Errno, Result};
use sentry_vfs::pseudo::PseudoFs;
use sentry_vfs::{
    Attr, Caller, Credentials, Dentry, FileDescription, FileKind, FileOps, FileSystem, Inode, IoCtx,
    Location, Mount, MountNamespace, OpenFlags, SetAttr, StatFs, UserNs,
};

use super::{ObjectNs, PidNs, UtsNs};
use crate::Task;

/// `NSFS_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: u64 = 0x6e73_6673;
const NS_GET_USERNS: u32 = 0xb701;
const NS_GET_PARENT: u32 = 0xb702;
const NS_GET_NSTYPE: u32 = 0xb703;
const NS_GET_OWNER_UID: u32 = 0xb704;

/// A namespace of any kind.
#[derive(Debug, Clone)]
pub enum Namespace {
    Cgroup(Arc<ObjectNs>),
    Ipc(Arc<ObjectNs>),
    Mnt(Arc<MountNamespace>),
    Net(Arc<ObjectNs>),
    Pid(Arc<PidNs>),
    Time(Arc<ObjectNs>),
    User(Arc<UserNs>),
    Uts(Arc<UtsNs>),
}

impl Namespace {
    /// A task's namespace by its name in `/proc/PID/ns`; `ENOENT` for other names and for what the task has not.
    pub fn of_task(task: &Task, name: &str) -> Result<Self> {
        let set = task.namespaces();
        Ok(match name {
            "cgroup" => Self::Cgroup(Arc::clone(&set.cgroup)),
            "ipc" => Self::Ipc(Arc::clone(&set.ipc)),
            "mnt" => Self::Mnt(Arc::clone(&set.mnt)),
            "net" => Self::Net(Arc::clone(&set.net)),
            "pid" => Self::Pid(Arc::clone(task.group().pid_ns())),
            "pid_for_children" => {
                let ns = &set.pid_for_children;
                // It exists for others once it has its init.
                if !ns.is_first() && ns.init().is_none() && !ns.is_same(task.group().pid_ns()) {
                    return Err(Errno::ENOENT);
                }
                Self::Pid(Arc::clone(ns))
            }
            "time" | "time_for_children" => Self::Time(Arc::clone(&set.time)),
            "user" => Self::User(Arc::clone(&task.creds().user_ns)),
            "uts" => Self::Uts(Arc::clone(&set.uts)),
            _ => return Err(Errno::ENOENT),
        })
    }

    pub fn ino(&self) -> u64 {
        match self {
            Self::Cgroup(ns) | Self::Ipc(ns) | Self::Net(ns) | Self::Time(ns) => ns.ino(),
            Self::Mnt(ns) => ns.id(),
            Self::Pid(ns) => ns.ino(),
            Self::User(ns) => ns.ino(),
            Self::Uts(ns) => ns.ino(),
        }
    }

    /// The kind's name, as links show it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "cgroup",
            Self::Ipc(_) => "ipc",
            Self::Mnt(_) => "mnt",
            Self::Net(_) => "net",
            Self::Pid(_) => "pid",
            Self::Time(_) => "time",
            Self::User(_) => "user",
            Self::Uts(_) => "uts",
        }
    }

    /// The `CLONE_NEW*` flag of its kind.
    pub fn flag(&self) -> i32 {
        match self {
            Self::Cgroup(_) => libc::CLONE_NEWCGROUP,
            Self::Ipc(_) => libc::CLONE_NEWIPC,
            Self::Mnt(_) => libc::CLONE_NEWNS,
            Self::Net(_) => libc::CLONE_NEWNET,
            Self::Pid(_) => libc::CLONE_NEWPID,
            Self::Time(_) => 0x80,
            Self::User(_) => libc::CLONE_NEWUSER,
            Self::Uts(_) => libc::CLONE_NEWUTS,
        }
    }

    /// The text of its link: `uts:[4026531838]`.
    pub fn text(&self) -> String {
        format!("{}:[{}]", self.kind(), self.ino())
    }

    /// The user namespace that it belongs to; `None` for the first user namespace itself.
    pub fn owner(&self) -> Option<Arc<UserNs>> {
        match self {
            Self::Cgroup(ns) | Self::Ipc(ns) | Self::Net(ns) | Self::Time(ns) => {
                Some(Arc::clone(ns.user_ns()))
            }
            Self::Mnt(ns) => Some(Arc::clone(ns.user_ns())),
            Self::Pid(ns) => Some(Arc::clone(ns.user_ns())),
            Self::User(ns) => ns.parent().cloned(),
            Self::Uts(ns) => Some(Arc::clone(ns.user_ns())),
        }
    }
}

/// The file system of namespaces, which is mounted nowhere.
pub struct NsFs {
    me: Weak<NsFs>,
    dev: u64,
    mount: OnceLock<Arc<Mount>>,
    root: Arc<dyn Inode>,
}

impl core::fmt::Debug for NsFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("NsFs")
    }
}

impl NsFs {
    pub(crate) fn new() -> Arc<Self> {
        // The number of the kernel's own file system; names of its files are never looked up.
        let dev = libc::makedev(0, 4);
        let fs = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            dev,
            mount: OnceLock::new(),
            root: PseudoFs::new("nsfs", MAGIC, dev, 1).dir([]),
        });
        let _ = fs.mount.set(Mount::detached(Arc::clone(&fs) as Arc<dyn FileSystem>));
        fs
    }

    /// The place of a namespace's file.
    pub fn location(&self, ns: Namespace) -> Result<Location> {
        let mount = Arc::clone(self.mount.get().ok_or(Errno::ENOENT)?);
        let name = ns.text();
        let inode: Arc<dyn Inode> = Arc::new(NsInode { fs: Weak::clone(&self.me), dev: self.dev, ns });
        Ok(Location { mount, dentry: Dentry::nameless(inode, name.as_bytes()) })
    }
}

impl FileSystem for NsFs {
    fn name(&self) -> &'static str {
        "nsfs"
    }
    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root)
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, block_size: 4096, name_max: 255, ..StatFs::default() })
    }
    fn dev(&self) -> u64 {
        self.dev
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct NsInode {
    fs: Weak<NsFs>,
    dev: u64,
    ns: Namespace,
}

impl Inode for NsInode {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr { nlink: 1, ..Attr::new(FileKind::Regular, 0o444, self.ns.ino(), self.dev) })
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn mount_namespace(&self) -> Option<u64> {
        match &self.ns {
            Namespace::Mnt(ns) => Some(ns.id()),
            _ => None,
        }
    }
    fn open(self: Arc<Self>, flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        if flags.writes() {
            return Err(Errno::EPERM);
        }
        Ok(Arc::new(NsFile { fs: Weak::clone(&self.fs), ns: self.ns.clone() }))
    }
    fn filesystem(&self) -> Arc<dyn FileSystem> {
        match self.fs.upgrade() {
            Some(fs) => fs,
            None => NsFs::new(),
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// An open namespace.
#[derive(Debug)]
pub struct NsFile {
    fs: Weak<NsFs>,
    ns: Namespace,
}

impl NsFile {
    /// The namespace that a description stands for; `None` for another kind of file.
    pub fn of(file: &FileDescription) -> Option<&Namespace> {
        file.ops().as_any().downcast_ref::<Self>().map(|f| &f.ns)
    }

    fn open_other(&self, caller: &dyn Caller, ns: Namespace) -> Result<i64> {
        let task = caller.as_any().downcast_ref::<Task>().ok_or(Errno::ENOTTY)?;
        let at = self.fs.upgrade().ok_or(Errno::EIO)?.location(ns.clone())?;
        let ops = Arc::new(Self { fs: Weak::clone(&self.fs), ns });
        let file = FileDescription::new(ops, OpenFlags::empty(), Some(at));
        task.fds().add(file, true, task.rlimit(abi::process::rlimit::NOFILE)).map(i64::from)
    }

    /// The user namespace that owns this one, if `creds` may see it (`ns_get_owner`).
    fn owner(&self, creds: &Credentials) -> Result<Arc<UserNs>> {
        self.ns.owner().filter(|ns| ns.is_same_or_below(&creds.user_ns)).ok_or(Errno::EPERM)
    }

    fn parent(&self, caller: &dyn Caller) -> Result<Namespace> {
        let task = caller.as_any().downcast_ref::<Task>().ok_or(Errno::ENOTTY)?;
        match &self.ns {
            Namespace::User(_) => self.owner(&caller.creds()).map(Namespace::User),
            Namespace::Pid(ns) => ns
                .parent()
                .filter(|parent| parent.is_same_or_below(task.group().pid_ns()))
                .map(|parent| Namespace::Pid(Arc::clone(parent)))
                .ok_or(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl FileOps for NsFile {
    fn ioctl(&self, io: &IoCtx<'_>, cmd: u32, arg: u64) -> Result<i64> {
        match cmd {
            NS_GET_USERNS => {
                let owner = self.owner(&io.caller.creds())?;
                self.open_other(io.caller, Namespace::User(owner))
            }
            NS_GET_PARENT => {
                let parent = self.parent(io.caller)?;
                self.open_other(io.caller, parent)
            }
            NS_GET_NSTYPE => Ok(i64::from(self.ns.flag())),
            NS_GET_OWNER_UID => {
                let Namespace::User(ns) = &self.ns else { return Err(Errno::EINVAL) };
                let uid = io.caller.creds().user_ns.show_uid(ns.owner());
                io.caller.mem().copy_out(arg, &uid.to_ne_bytes())?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn link_text(&self) -> Option<String> {
        Some(self.ns.text())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sentry_vfs::testing::TestCaller;
    use sentry_vfs::{FsContextView, LookupFlags, MountFlags, PathCx, Vfs};

    fn namespace(vfs: &Arc<Vfs>) -> Arc<MountNamespace> {
        let fs = PseudoFs::new("test", 0, 1, 1);
        fs.set_root(fs.dir([("f", fs.fixed(""))]));
        MountNamespace::new(vfs, fs, MountFlags::empty(), "none")
    }

    fn hold(ns: &Arc<MountNamespace>, nsfs: &NsFs, other: Arc<MountNamespace>) -> Result<Location> {
        let (caller, creds, root) = (TestCaller::new(1), Credentials::root(), ns.root());
        let view = FsContextView { root: root.clone(), cwd: root, umask: 0 };
        let at = PathCx::new(ns, &view, &creds, &caller).lookup(None, b"/f", LookupFlags::empty())?;
        ns.bind(&nsfs.location(Namespace::Mnt(other))?, &at, false)
    }

    #[test]
    fn a_chain_of_mount_namespaces_needs_no_stack() {
        let (vfs, nsfs) = (Vfs::new(), NsFs::new());
        let first = namespace(&vfs);
        let mut last = Arc::clone(&first);
        let mut end = Weak::new();
        for _ in 0..5000 {
            let next = namespace(&vfs);
            hold(&last, &nsfs, Arc::clone(&next)).unwrap();
            end = Arc::downgrade(&next);
            last = next;
        }
        drop(last);
        assert!(end.upgrade().is_some());
        std::thread::Builder::new()
            .stack_size(128 * 1024)
            .spawn(move || drop(first))
            .unwrap()
            .join()
            .unwrap();
        assert!(end.upgrade().is_none());
    }

    #[test]
    fn no_mount_namespace_holds_itself_or_an_older_one() {
        let (vfs, nsfs) = (Vfs::new(), NsFs::new());
        let (older, newer) = (namespace(&vfs), namespace(&vfs));
        assert_eq!(hold(&older, &nsfs, Arc::clone(&older)), Err(Errno::EINVAL));
        assert_eq!(hold(&newer, &nsfs, Arc::clone(&older)), Err(Errno::EINVAL));
        assert!(hold(&older, &nsfs, newer).is_ok());
    }
}
