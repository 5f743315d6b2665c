//! `/proc/PID` and `/proc/PID/task/TID`.

use core::any::Any;
use core::fmt::Write;
use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_kernel::ptrace::{Access, may_access};
use sentry_kernel::{Kernel, PidNs, Task, TaskState};
use sentry_memory::UserMemory;
use sentry_vfs::pseudo::{Content, PseudoFile, PseudoFs, list_entries};
use sentry_vfs::{
    Attr, Caller, DirEntry, FileKind, FileOps, FileSystem, IdKind, Inode, Location, MountInfo, OpenFlags,
    SetAttr, cap,
};

use crate::fds::{FdDir, FdView};
use crate::namespaces::NsDir;
use crate::root::parse_number;
use crate::smaps::{self, Detail};
use crate::{status, task_of};

/// The inode number of entry `entry` of a task's directory.
pub(crate) fn ino(tid: i32, entry: u64) -> u64 {
    (u64::from(tid.unsigned_abs()) << 32) | (1 << 16) | entry
}

/// What a directory is about: a process, or one thread of it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    kernel: Arc<Kernel>,
    /// The PID namespace that the file system shows.
    ns: Arc<PidNs>,
    /// The Sentry's number.
    tid: i32,
    thread: bool,
}

impl Subject {
    pub fn process(kernel: &Arc<Kernel>, ns: &Arc<PidNs>, pid: i32) -> Self {
        Self { kernel: Arc::clone(kernel), ns: Arc::clone(ns), tid: pid, thread: false }
    }

    pub fn thread(kernel: &Arc<Kernel>, ns: &Arc<PidNs>, tid: i32) -> Self {
        Self { kernel: Arc::clone(kernel), ns: Arc::clone(ns), tid, thread: true }
    }

    /// The number of a process, thread, group or session in the namespace that is shown.
    pub fn show(&self, number: i32) -> i32 {
        self.ns.local(number)
    }

    /// The namespace that is shown.
    pub fn ns(&self) -> &PidNs {
        &self.ns
    }

    pub fn is_thread(&self) -> bool {
        self.thread
    }

    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The task, or `ESRCH` once it is gone.
    pub fn task(&self) -> Result<Arc<Task>> {
        self.kernel.task(self.tid).ok_or(Errno::ESRCH)
    }

    /// Whether it has ended and waits to be reaped.
    pub fn is_zombie(task: &Task) -> bool {
        matches!(task.state(), TaskState::Dead | TaskState::Exiting) && task.group().nr_threads() == 0
    }

    /// The task, if `caller` may look into it (`ptrace_may_access`, `PTRACE_MODE_READ`).
    pub fn inspect(&self, caller: &dyn Caller) -> Result<Arc<Task>> {
        let task = self.task()?;
        let allowed = task_of(caller).is_some_and(|c| may_access(c, &task, Access::Read));
        if allowed { Ok(task) } else { Err(Errno::EACCES) }
    }
}

/// One entry of a task's directory.
#[derive(Debug, Clone, Copy)]
enum Entry {
    /// A file of these permission bits.
    File(u32, FileText),
    Link(LinkTarget),
    Fds(FdView),
    Tasks,
    Namespaces,
    Net,
    Attr,
    Mem,
    Pagemap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileText {
    Autogroup,
    Auxv,
    Cgroup,
    Children,
    CoredumpFilter,
    Cpuset,
    Cmdline,
    Comm,
    Environ,
    Io,
    Limits,
    Maps,
    Smaps,
    SmapsRollup,
    Mountinfo,
    Mounts,
    OomAdj,
    OomScore,
    OomScoreAdj,
    Personality,
    ProjidMap,
    Sched,
    Schedstat,
    Stack,
    Stat,
    Statm,
    Status,
    IdMap(IdKind),
    Mountstats,
    Setgroups,
    Syscall,
    Timers,
    TimerSlack,
    Wchan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    Cwd,
    Root,
    Exe,
}

const ENTRIES: &[(&str, Entry)] = &[
    ("attr", Entry::Attr),
    ("autogroup", Entry::File(0o644, FileText::Autogroup)),
    ("auxv", Entry::File(0o400, FileText::Auxv)),
    ("cgroup", Entry::File(0o444, FileText::Cgroup)),
    ("children", Entry::File(0o444, FileText::Children)),
    ("cmdline", Entry::File(0o444, FileText::Cmdline)),
    ("comm", Entry::File(0o644, FileText::Comm)),
    ("coredump_filter", Entry::File(0o644, FileText::CoredumpFilter)),
    ("cpuset", Entry::File(0o444, FileText::Cpuset)),
    ("cwd", Entry::Link(LinkTarget::Cwd)),
    ("environ", Entry::File(0o400, FileText::Environ)),
    ("exe", Entry::Link(LinkTarget::Exe)),
    ("fd", Entry::Fds(FdView::Links)),
    ("fdinfo", Entry::Fds(FdView::Info)),
    ("gid_map", Entry::File(0o644, FileText::IdMap(IdKind::Group))),
    ("io", Entry::File(0o400, FileText::Io)),
    ("limits", Entry::File(0o444, FileText::Limits)),
    ("maps", Entry::File(0o444, FileText::Maps)),
    ("mem", Entry::Mem),
    ("mountinfo", Entry::File(0o444, FileText::Mountinfo)),
    ("mounts", Entry::File(0o444, FileText::Mounts)),
    ("mountstats", Entry::File(0o400, FileText::Mountstats)),
    ("net", Entry::Net),
    ("ns", Entry::Namespaces),
    ("oom_adj", Entry::File(0o444, FileText::OomAdj)),
    ("oom_score", Entry::File(0o444, FileText::OomScore)),
    ("oom_score_adj", Entry::File(0o644, FileText::OomScoreAdj)),
    ("pagemap", Entry::Pagemap),
    ("personality", Entry::File(0o400, FileText::Personality)),
    ("projid_map", Entry::File(0o644, FileText::ProjidMap)),
    ("root", Entry::Link(LinkTarget::Root)),
    ("sched", Entry::File(0o644, FileText::Sched)),
    ("schedstat", Entry::File(0o444, FileText::Schedstat)),
    ("setgroups", Entry::File(0o644, FileText::Setgroups)),
    ("smaps", Entry::File(0o444, FileText::Smaps)),
    ("smaps_rollup", Entry::File(0o444, FileText::SmapsRollup)),
    ("stack", Entry::File(0o400, FileText::Stack)),
    ("stat", Entry::File(0o444, FileText::Stat)),
    ("statm", Entry::File(0o444, FileText::Statm)),
    ("status", Entry::File(0o444, FileText::Status)),
    ("syscall", Entry::File(0o400, FileText::Syscall)),
    ("task", Entry::Tasks),
    ("timers", Entry::File(0o444, FileText::Timers)),
    ("timerslack_ns", Entry::File(0o666, FileText::TimerSlack)),
    ("uid_map", Entry::File(0o644, FileText::IdMap(IdKind::User))),
    ("wchan", Entry::File(0o444, FileText::Wchan)),
];

/// Entries that a thread's directory does not have. It has `children` instead.
const OF_PROCESSES: [&str; 6] =
    ["autogroup", "coredump_filter", "mountstats", "task", "timers", "timerslack_ns"];

/// The directory of one process or thread.
pub(crate) struct TaskDir {
    fs: Arc<PseudoFs>,
    subject: Subject,
}

impl TaskDir {
    pub fn inode(fs: &Arc<PseudoFs>, subject: Subject) -> Arc<dyn Inode> {
        Arc::new(Self { fs: Arc::clone(fs), subject })
    }

    fn entry(&self, number: u64, entry: Entry) -> Result<Arc<dyn Inode>> {
        let task = self.subject.task()?;
        let creds = task.creds();
        let number = ino(self.subject.tid, number + u64::from(self.subject.thread) * 0x100);
        Ok(match entry {
            Entry::File(mode, text) => {
                let content = Text { subject: self.subject.clone(), text };
                Arc::new(
                    PseudoFile::new(&self.fs, number, mode, Box::new(content))
                        .owned_by(creds.euid, creds.egid),
                )
            }
            Entry::Link(target) => Arc::new(TaskLink {
                attr: owned(FileKind::Symlink, 0o777, number, &self.fs, &task),
                fs: Arc::clone(&self.fs),
                subject: self.subject.clone(),
                target,
            }),
            Entry::Fds(view) => FdDir::inode(&self.fs, self.subject.clone(), view, number, &task),
            Entry::Tasks => Arc::new(Threads {
                attr: Attr { nlink: 3, ..owned(FileKind::Directory, 0o555, number, &self.fs, &task) },
                fs: Arc::clone(&self.fs),
                subject: self.subject.clone(),
            }),
            Entry::Namespaces => {
                let attr = owned(FileKind::Directory, 0o511, number, &self.fs, &task);
                NsDir::inode(&self.fs, self.subject.clone(), attr)
            }
            Entry::Net => crate::net::dir(&self.fs, &task),
            Entry::Mem | Entry::Pagemap => {
                let pages = matches!(entry, Entry::Pagemap);
                let mode = if pages { 0o400 } else { 0o600 };
                Arc::new(crate::mem::MemFile {
                    attr: owned(FileKind::Regular, mode, number, &self.fs, &task),
                    fs: Arc::clone(&self.fs),
                    subject: self.subject.clone(),
                    pages,
                })
            }
            Entry::Attr => self.fs.dir([("current", self.fs.fixed("unconfined\n"))]),
        })
    }

    fn entries(&self) -> impl Iterator<Item = (u64, &'static str, Entry)> {
        let thread = self.subject.thread;
        (1..).zip(ENTRIES).map(|(n, (name, entry))| (n, *name, *entry)).filter(move |(_, name, _)| {
            if thread { !OF_PROCESSES.contains(name) } else { *name != "children" }
        })
    }
}

fn owned(kind: FileKind, mode: u32, ino: u64, fs: &Arc<PseudoFs>, task: &Task) -> Attr {
    let creds = task.creds();
    Attr { uid: creds.euid, gid: creds.egid, ..Attr::new(kind, mode, ino, fs.dev()) }
}

/// The parts of an inode that are alike for all here.
macro_rules! plain_inode {
    ($kind:expr) => {
        fn kind(&self) -> FileKind {
            $kind
        }
        fn set_attr(&self, _set: &SetAttr) -> Result<()> {
            Err(Errno::EPERM)
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
    };
}
pub(crate) use plain_inode;

impl Inode for TaskDir {
    plain_inode!(FileKind::Directory);

    fn attr(&self) -> Result<Attr> {
        let task = self.subject.task().map_err(|_| Errno::ENOENT)?;
        let number = ino(self.subject.tid, u64::from(self.subject.thread) * 0x100);
        Ok(Attr { nlink: 9, ..owned(FileKind::Directory, 0o555, number, &self.fs, &task) })
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let found = self.entries().find(|(_, n, _)| n.as_bytes() == name);
        let (number, _, entry) = found.ok_or(Errno::ENOENT)?;
        self.entry(number, entry).map_err(|_| Errno::ENOENT)
    }
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let made = self
            .entries()
            .filter_map(|(n, name, e)| Some((name.as_bytes().to_vec(), self.entry(n, e).ok()?)));
        list_entries(cookie, made, sink)
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::EISDIR)
    }
    fn process(&self) -> Option<i32> {
        (!self.subject.thread).then_some(self.subject.tid)
    }
    fn volatile_names(&self) -> bool {
        true
    }
}

/// `/proc/PID/task`.
struct Threads {
    attr: Attr,
    fs: Arc<PseudoFs>,
    subject: Subject,
}

impl Inode for Threads {
    plain_inode!(FileKind::Directory);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let tid = parse_number(name).and_then(|n| self.subject.ns.global(n)).ok_or(Errno::ENOENT)?;
        let task = self.subject.kernel.task(tid).ok_or(Errno::ENOENT)?;
        if task.pid() != self.subject.task().map_err(|_| Errno::ENOENT)?.pid() {
            return Err(Errno::ENOENT);
        }
        Ok(TaskDir::inode(&self.fs, Subject::thread(&self.subject.kernel, &self.subject.ns, tid)))
    }
    fn list(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let task = self.subject.task().map_err(|_| Errno::ENOENT)?;
        let mut tids: Vec<i32> = task.group().threads().iter().map(|t| t.tid()).collect();
        if tids.is_empty() {
            tids.push(task.tid());
        }
        let mut tids: Vec<i32> = tids.into_iter().map(|tid| self.subject.show(tid)).collect();
        tids.sort_unstable();
        for tid in tids {
            let next_cookie = u64::from(tid.unsigned_abs()) + 3;
            if next_cookie <= cookie {
                continue;
            }
            let entry = DirEntry {
                name: tid.to_string().into_bytes(),
                ino: ino(tid, 0x100),
                kind: FileKind::Directory,
                next_cookie,
            };
            if !sink(entry) {
                break;
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
}

/// `cwd`, `root`, `exe`.
struct TaskLink {
    attr: Attr,
    fs: Arc<PseudoFs>,
    subject: Subject,
    target: LinkTarget,
}

impl TaskLink {
    fn target(&self, caller: &dyn Caller) -> Result<Location> {
        let task = self.subject.inspect(caller)?;
        match self.target {
            LinkTarget::Cwd => Ok(task.fs().cwd()),
            LinkTarget::Root => Ok(task.fs().root()),
            LinkTarget::Exe => task.exe().and_then(|f| f.location().cloned()).ok_or(Errno::ENOENT),
        }
    }
}

impl Inode for TaskLink {
    plain_inode!(FileKind::Symlink);

    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }
    fn readlink(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let target = self.target(caller)?;
        let root = task_of(caller).ok_or(Errno::ENOENT)?.fs().root();
        Ok(target.display_path(&root))
    }
    fn magic_link(&self, caller: &dyn Caller) -> Option<Result<Location>> {
        Some(self.target(caller))
    }
    fn open(self: Arc<Self>, _flags: OpenFlags, _caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ELOOP)
    }
}

/// The text of one file of a task's directory.
struct Text {
    subject: Subject,
    text: FileText,
}

/// A range of a task's memory that holds strings, at most 2 MiB of it.
fn strings(task: &Task, start: u64, end: u64) -> Vec<u8> {
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0).min(2 << 20);
    let mut text = vec![0; len];
    let got = task.mm().copy_in_partial(start, &mut text).unwrap_or(0);
    text.truncate(got);
    text
}

impl Content for Text {
    fn text(&self, caller: &dyn Caller) -> Result<Vec<u8>> {
        let subject = &self.subject;
        let private = matches!(
            self.text,
            FileText::Auxv
                | FileText::Environ
                | FileText::Io
                | FileText::Maps
                | FileText::Smaps
                | FileText::SmapsRollup
                | FileText::Personality
                | FileText::Stack
                | FileText::Syscall
        );
        let task = if private { subject.inspect(caller)? } else { subject.task()? };
        let caller_root = || task_of(caller).map(|c| c.fs().root()).ok_or(Errno::ENOENT);
        let text = match self.text {
            FileText::Auxv => return Ok(task.mm().layout().auxv),
            FileText::Cmdline => {
                let layout = task.mm().layout();
                return Ok(strings(&task, layout.arg_start, layout.arg_end));
            }
            FileText::Environ => {
                let layout = task.mm().layout();
                return Ok(strings(&task, layout.env_start, layout.env_end));
            }
            FileText::Maps => return Ok(smaps::maps(&task, Detail::Maps)),
            FileText::Smaps => return Ok(smaps::maps(&task, Detail::Smaps)),
            FileText::SmapsRollup => return Ok(smaps::maps(&task, Detail::Rollup)),
            FileText::Mountinfo => return mounts(&task, MountInfo::mountinfo_line),
            FileText::Mounts => return mounts(&task, MountInfo::mounts_line),
            FileText::Mountstats => return mounts(&task, MountInfo::mountstats_line),
            FileText::Comm => {
                let mut comm = task.comm();
                comm.push(b'\n');
                return Ok(comm);
            }
            FileText::Cgroup => {
                let _ = caller_root()?;
                "0::/\n".to_owned()
            }
            FileText::Io => status::io(if subject.is_thread() { task.io().now() } else { task.group().io() }),
            FileText::Limits => status::limits(task.group()),
            FileText::OomAdj | FileText::OomScore => "0\n".to_owned(),
            FileText::OomScoreAdj => format!("{}\n", task.group().oom_score_adj()),
            FileText::Personality => format!("{:08x}\n", task.personality()),
            FileText::Stat => status::stat(subject, &task, caller.tid()),
            FileText::Statm => status::statm(&task),
            FileText::Status => status::status(subject, &task, caller),
            FileText::IdMap(kind) => task.creds().user_ns.map_text(kind, &caller.creds().user_ns),
            FileText::Setgroups => task.creds().user_ns.setgroups_text().to_owned(),
            FileText::Wchan => "0".to_owned(),
            FileText::Autogroup => format!("/autogroup-1 nice {}\n", task.scheduling().nice),
            FileText::Children => children(subject, &task),
            FileText::CoredumpFilter => "00000033\n".to_owned(),
            FileText::Cpuset => "/\n".to_owned(),
            FileText::ProjidMap => String::new(),
            FileText::Sched => status::sched(subject, &task),
            FileText::Schedstat => {
                let (utime, stime) = task.cpu_times();
                format!("{} 0 0\n", utime.saturating_add(stime))
            }
            // The Sentry has no stack of the kernel to show.
            FileText::Stack | FileText::Timers => String::new(),
            FileText::Syscall => "running\n".to_owned(),
            FileText::TimerSlack => format!("{}\n", task.timer_slack_ns()),
        };
        Ok(text.into_bytes())
    }

    fn store(&self, caller: &dyn Caller, data: &[u8]) -> Result<usize> {
        let task = self.subject.task()?;
        match self.text {
            FileText::Comm => {
                if task_of(caller).is_none_or(|c| c.pid() != task.pid()) {
                    return Err(Errno::EINVAL);
                }
                task.set_comm(data.strip_suffix(b"\n").unwrap_or(data));
                Ok(data.len())
            }
            FileText::OomScoreAdj => {
                let text = core::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
                let value: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
                if !(-1000..=1000).contains(&value) {
                    return Err(Errno::EINVAL);
                }
                if value < task.group().oom_score_adj() && !caller.creds().has_cap(cap::SYS_RESOURCE) {
                    return Err(Errno::EACCES);
                }
                task.group().set_oom_score_adj(value);
                Ok(data.len())
            }
            FileText::TimerSlack => {
                if !caller.creds().has_cap_in(&task.creds().user_ns, cap::SYS_NICE)
                    && task_of(caller).is_none_or(|c| c.pid() != task.pid())
                {
                    return Err(Errno::EPERM);
                }
                let text = core::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
                let slack: u64 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
                task.set_timer_slack_ns(if slack == 0 { 50_000 } else { slack });
                Ok(data.len())
            }
            FileText::CoredumpFilter | FileText::Autogroup => Ok(data.len()),
            FileText::IdMap(kind) => {
                task.creds().user_ns.set_map(kind, data, &caller.creds())?;
                Ok(data.len())
            }
            FileText::Setgroups => {
                task.creds().user_ns.write_setgroups(data, &caller.creds())?;
                Ok(data.len())
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The numbers of the children that a thread made, as in `/proc/PID/task/TID/children`.
fn children(subject: &Subject, task: &Task) -> String {
    let mut text = String::new();
    for pid in task.children() {
        let _ = write!(text, "{} ", subject.show(pid));
    }
    text
}

fn mounts(task: &Task, line: fn(&MountInfo) -> Vec<u8>) -> Result<Vec<u8>> {
    if Subject::is_zombie(task) {
        return Err(Errno::EINVAL);
    }
    Ok(task.mount_ns().mounts(&task.fs().root()).iter().flat_map(line).collect())
}
