//! `/proc` itself: the files that are there for good, then a directory a process.

use core::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::{Kernel, PidNs};
use sentry_vfs::pseudo::{PseudoFs, list_entries};
use sentry_vfs::{Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, Inode, OpenFlags, SetAttr};

use crate::process::{Subject, TaskDir};
use crate::{global, sysctl, task_of};

/// Cookies of process directories: this plus the process id.
const PID_COOKIES: u64 = 1 << 20;

pub(crate) struct Root {
    fs: Arc<PseudoFs>,
    kernel: Arc<Kernel>,
    ns: Arc<PidNs>,
    attr: Attr,
    fixed: BTreeMap<Vec<u8>, Arc<dyn Inode>>,
}

impl Root {
    pub fn new(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>, ns: &Arc<PidNs>) -> Arc<Self> {
        let mut fixed = global::files(fs, kernel);
        let own = |thread: bool| -> Arc<dyn Inode> {
            Arc::new(SelfLink { attr: link_attr(fs), fs: Arc::clone(fs), ns: Arc::clone(ns), thread })
        };
        fixed.push(("self", own(false)));
        fixed.push(("thread-self", own(true)));
        fixed.push(("mounts", fs.link("self/mounts")));
        fixed.push(("net", fs.link("self/net")));
        fixed.push(("sys", sysctl::tree(fs, kernel)));
        Arc::new(Self {
            fs: Arc::clone(fs),
            kernel: Arc::clone(kernel),
            ns: Arc::clone(ns),
            attr: Attr { nlink: 8, ..Attr::new(FileKind::Directory, 0o555, 1, fs.dev()) },
            fixed: fixed.into_iter().map(|(name, inode)| (name.as_bytes().to_vec(), inode)).collect(),
        })
    }
}

fn link_attr(fs: &Arc<PseudoFs>) -> Attr {
    Attr::new(FileKind::Symlink, 0o777, fs.next_ino(), fs.dev())
}

/// A process or thread number as a name, without leading zeroes.
pub(crate) fn parse_number(name: &[u8]) -> Option<i32> {
    if name.first().is_none_or(|b| *b == b'0' || !b.is_ascii_digit()) {
        return None;
    }
    core::str::from_utf8(name).ok()?.parse().ok()
}

impl Inode for Root {
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
        if let Some(inode) = self.fixed.get(name) {
            return Ok(Arc::clone(inode));
        }
        let tid = parse_number(name).and_then(|n| self.ns.global(n)).ok_or(Errno::ENOENT)?;
        // A thread's own number works as a name, though it is not listed.
        let task = self.kernel.task(tid).ok_or(Errno::ENOENT)?;
        let subject = if task.pid() == tid {
            Subject::process(&self.kernel, &self.ns, tid)
        } else {
            Subject::thread(&self.kernel, &self.ns, tid)
        };
        Ok(TaskDir::inode(&self.fs, subject))
    }
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let mut wanted = true;
        if cookie < PID_COOKIES {
            let fixed = self.fixed.iter().map(|(n, i)| (n.clone(), Arc::clone(i)));
            list_entries(cookie, fixed, &mut |entry| {
                wanted = sink(entry);
                wanted
            })?;
        }
        let mut numbers: Vec<i32> =
            self.kernel.processes().iter().map(|g| self.ns.local(g.pid())).filter(|n| *n > 0).collect();
        numbers.sort_unstable();
        for number in numbers {
            let pid = u64::from(number.unsigned_abs());
            let next_cookie = PID_COOKIES + pid;
            if !wanted {
                break;
            }
            if next_cookie > cookie {
                let name = pid.to_string().into_bytes();
                wanted = sink(DirEntry {
                    name,
                    ino: crate::process::ino(number, 0),
                    kind: FileKind::Directory,
                    next_cookie,
                });
            }
        }
        Ok(())
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::EISDIR)
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

/// `/proc/self` and `/proc/thread-self`: another target for each caller.
struct SelfLink {
    attr: Attr,
    fs: Arc<PseudoFs>,
    ns: Arc<PidNs>,
    thread: bool,
}

impl Inode for SelfLink {
    fn kind(&self) -> FileKind {
        FileKind::Symlink
    }
    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn readlink(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let task = task_of(caller).ok_or(Errno::ENOENT)?;
        let (pid, tid) = (self.ns.local(task.pid()), self.ns.local(task.tid()));
        if pid == 0 {
            return Err(Errno::ENOENT);
        }
        let text = if self.thread { format!("{pid}/task/{tid}") } else { pid.to_string() };
        Ok(text.into_bytes())
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
