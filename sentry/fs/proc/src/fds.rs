//! `/proc/PID/fd` and `/proc/PID/fdinfo`.

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::Task;
use sentry_vfs::pseudo::{Content, PseudoFile, PseudoFs};
use sentry_vfs::{
    Attr, Caller, Dentry, DirEntry, FileDescription, FileKind, FileOps, FileSystem, Inode, Location, Mount,
    OpenFlags, SetAttr,
};

use crate::process::{Subject, ino, plain_inode};
use crate::task_of;

/// Which of the two directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FdView {
    Links,
    Info,
}

pub(crate) struct FdDir {
    attr: Attr,
    fs: Arc<PseudoFs>,
    subject: Subject,
    view: FdView,
}

impl FdDir {
    pub fn inode(
        fs: &Arc<PseudoFs>,
        subject: Subject,
        view: FdView,
        ino: u64,
        task: &Task,
    ) -> Arc<dyn Inode> {
        let creds = task.creds();
        let mode = if view == FdView::Links { 0o500 } else { 0o555 };
        let attr = Attr::new(FileKind::Directory, mode, ino, fs.dev());
        Arc::new(Self {
            attr: Attr { uid: creds.euid, gid: creds.egid, nlink: 2, ..attr },
            fs: Arc::clone(fs),
            subject,
            view,
        })
    }

    fn ino_of(&self, fd: i32) -> u64 {
        let base = if self.view == FdView::Links { 0x1000 } else { 0x8000 };
        ino(self.subject.tid(), base + u64::from(fd.unsigned_abs() & 0x3fff))
    }
}

impl Inode for FdDir {
    plain_inode!(FileKind::Directory);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let fd = match name {
            b"0" => 0,
            name => crate::root::parse_number(name).ok_or(Errno::ENOENT)?,
        };
        let task = self.subject.task().map_err(|_| Errno::ENOENT)?;
        let file = open_file(&task, fd)?;
        let creds = task.creds();
        Ok(match self.view {
            FdView::Links => {
                let flags = file.flags();
                let mut mode = 0;
                if flags.reads() || flags.contains(OpenFlags::PATH) {
                    mode |= 0o500;
                }
                if flags.writes() {
                    mode |= 0o300;
                }
                let attr = Attr::new(FileKind::Symlink, mode, self.ino_of(fd), self.fs.dev());
                Arc::new(FdLink {
                    attr: Attr { uid: creds.euid, gid: creds.egid, size: 64, ..attr },
                    fs: Arc::clone(&self.fs),
                    subject: self.subject.clone(),
                    fd,
                })
            }
            FdView::Info => {
                let content = Info { subject: self.subject.clone(), fd };
                Arc::new(
                    PseudoFile::new(&self.fs, self.ino_of(fd), 0o444, Box::new(content))
                        .owned_by(creds.euid, creds.egid),
                )
            }
        })
    }
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let task = self.subject.task().map_err(|_| Errno::ENOENT)?;
        let kind = if self.view == FdView::Links { FileKind::Symlink } else { FileKind::Regular };
        // Cookies are descriptor numbers plus 3.
        let mut from = u32::try_from(cookie.saturating_sub(2)).unwrap_or(u32::MAX);
        loop {
            let batch = task.fds().list(from, 64);
            let Some(last) = batch.last() else { return Ok(()) };
            from = last.unsigned_abs() + 1;
            for fd in batch.into_iter().filter(|fd| !task.has_closed(*fd)) {
                let name = fd.to_string().into_bytes();
                let next_cookie = u64::from(fd.unsigned_abs()) + 3;
                if !sink(DirEntry { name, ino: self.ino_of(fd), kind, next_cookie }) {
                    return Ok(());
                }
            }
        }
    }
    fn permission(&self, _mask: u32, caller: &dyn Caller) -> Option<Result<()>> {
        match self.view {
            FdView::Links => Some(self.subject.inspect(caller).map(drop)),
            FdView::Info => None,
        }
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::EISDIR)
    }
    fn volatile_names(&self) -> bool {
        true
    }
}

/// The file of a task's descriptor.
fn open_file(task: &Task, fd: i32) -> Result<Arc<FileDescription>> {
    if task.has_closed(fd) {
        return Err(Errno::ENOENT);
    }
    task.fds().get(fd).map_err(|_| Errno::ENOENT)
}

struct FdLink {
    attr: Attr,
    fs: Arc<PseudoFs>,
    subject: Subject,
    fd: i32,
}

impl FdLink {
    fn file(&self, caller: &dyn Caller) -> Result<Arc<FileDescription>> {
        open_file(&*self.subject.inspect(caller)?, self.fd)
    }
}

impl Inode for FdLink {
    plain_inode!(FileKind::Symlink);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn readlink(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let file = self.file(caller)?;
        if let Some(text) = file.ops().link_text() {
            return Ok(text.into_bytes());
        }
        match file.location() {
            Some(location) => {
                let root = task_of(caller).ok_or(Errno::ENOENT)?.fs().root();
                Ok(location.display_path(&root))
            }
            None => Ok(b"anon_inode:[unknown]".to_vec()),
        }
    }
    fn magic_link(&self, caller: &dyn Caller) -> Option<Result<Location>> {
        let file = match self.file(caller) {
            Ok(file) => file,
            Err(errno) => return Some(Err(errno)),
        };
        if let Some(location) = file.location() {
            return Some(Ok(location.clone()));
        }
        // A pipe or socket has no place: it gets one of its own, to be looked at. `magic_file` opens it.
        let inode: Arc<dyn Inode> = Arc::new(Placeless { file, fs: Arc::clone(&self.fs) });
        let mount = Mount::detached(Arc::clone(&self.fs) as Arc<dyn FileSystem>);
        Some(Ok(Location { mount, dentry: Dentry::detached(inode, None, b"") }))
    }
    fn magic_file(&self, caller: &dyn Caller) -> Option<Arc<FileDescription>> {
        self.file(caller).ok().filter(|file| file.location().is_none())
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
}

/// An open file without a name, as something to call `stat` on.
struct Placeless {
    file: Arc<FileDescription>,
    fs: Arc<PseudoFs>,
}

impl Inode for Placeless {
    fn kind(&self) -> FileKind {
        self.file.ops().kind()
    }
    fn attr(&self) -> Result<Attr> {
        self.file.attr()
    }
    fn set_attr(&self, _set: &SetAttr) -> Result<()> {
        Err(Errno::EPERM)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
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

struct Info {
    subject: Subject,
    fd: i32,
}

impl Content for Info {
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let task = self.subject.inspect(caller)?;
        let file = open_file(&task, self.fd)?;
        task.settle_positions();
        let position = *file.position().lock();
        let mut flags = file.flags();
        flags.set(OpenFlags::CLOEXEC, task.fds().cloexec(self.fd).unwrap_or(false));
        let ino = file.attr().map_or(0, |a| a.ino);
        let text = format!(
            "pos:\t{position}\nflags:\t0{:o}\nmnt_id:\t{}\nino:\t{ino}\n{}",
            flags.bits(),
            file.location().map_or(0, |l| l.mount.id()),
            file.ops().fdinfo()
        );
        Ok(text.into_bytes())
    }
}
