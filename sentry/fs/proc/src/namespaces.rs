//! `/proc/PID/ns`: links to the namespaces of a task (`namespaces(7)`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::ns::Namespace;
use sentry_vfs::pseudo::{PseudoFs, list_entries};
use sentry_vfs::{
    Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, Inode, Location, OpenFlags, SetAttr,
};

use crate::process::{Subject, plain_inode};

const NAMES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

pub(crate) struct NsDir {
    attr: Attr,
    fs: Arc<PseudoFs>,
    subject: Subject,
}

impl NsDir {
    pub fn inode(fs: &Arc<PseudoFs>, subject: Subject, attr: Attr) -> Arc<dyn Inode> {
        Arc::new(Self { attr: Attr { nlink: 2, ..attr }, fs: Arc::clone(fs), subject })
    }

    fn link(&self, name: &'static str) -> Arc<dyn Inode> {
        let attr = Attr { mode: FileKind::Symlink.mode_bits() | 0o777, ino: self.fs.next_ino(), ..self.attr };
        let link = NsLink { attr, fs: Arc::clone(&self.fs), subject: self.subject.clone(), name };
        Arc::new(link)
    }
}

impl Inode for NsDir {
    plain_inode!(FileKind::Directory);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let name = NAMES.iter().find(|n| n.as_bytes() == name).ok_or(Errno::ENOENT)?;
        Ok(self.link(name))
    }
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        list_entries(cookie, NAMES.iter().map(|name| (name.as_bytes().to_vec(), self.link(name))), sink)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::EISDIR)
    }
    fn volatile_names(&self) -> bool {
        true
    }
}

struct NsLink {
    attr: Attr,
    fs: Arc<PseudoFs>,
    subject: Subject,
    name: &'static str,
}

impl NsLink {
    fn namespace(&self, caller: &dyn Caller) -> Result<Namespace> {
        let task = self.subject.inspect(caller)?;
        if Subject::is_zombie(&task) && self.name != "user" {
            return Err(Errno::ENOENT);
        }
        Namespace::of_task(&task, self.name)
    }
}

impl Inode for NsLink {
    plain_inode!(FileKind::Symlink);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn readlink(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let ns = self.namespace(caller)?;
        let text = ns.text();
        Ok(text.into_bytes())
    }
    fn magic_link(&self, caller: &dyn Caller) -> Option<Result<Location>> {
        let ns = self.namespace(caller);
        let nsfs = self.subject.task().map(|t| Arc::clone(t.kernel().nsfs()));
        Some(ns.and_then(|ns| nsfs?.location(ns)))
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
}
