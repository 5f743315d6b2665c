//! Making and entering namespaces: `unshare(2)`, `setns(2)`, and the part of `clone(2)` that makes them.

use std::sync::Arc;

use abi::process::CloneFlags;
use sentry_base::{Errno, Result};
use sentry_vfs::{Credentials, FileDescription, FsContext, MountMap, UserNs, cap};

use super::{Namespace, Namespaces, NsFile, ObjectNs, PidNs};
use crate::Task;
use crate::pidfd::PidFd;

/// `CLONE_NEWTIME`, which shares its bit with the exit signal of `clone(2)`.
const NEWTIME: u64 = 0x80;

/// What a change of namespaces comes to, before it is made.
#[derive(Debug)]
pub(crate) struct Changed {
    pub creds: Arc<Credentials>,
    pub set: Arc<Namespaces>,
    /// How to take root and working directory along into new mounts.
    pub places: Option<MountMap>,
}

impl Changed {
    /// Moves a file-system context, which nobody else uses, into the new mounts.
    pub fn move_places(&self, fs: &FsContext) {
        if let Some(map) = &self.places {
            fs.translate(map);
        }
    }
}

/// The user namespace of a new process or of the caller, with `CLONE_NEWUSER` (`create_user_ns`).
fn user_namespace(task: &Task, flags: CloneFlags) -> Result<Arc<Credentials>> {
    let old = task.creds();
    if !flags.contains(CloneFlags::NEWUSER) {
        return Ok(old);
    }
    // Who changed its root could leave it with the capabilities of the new namespace.
    if task.fs().root() != task.mount_ns().root() {
        return Err(Errno::EPERM);
    }
    let ns = UserNs::create(&old)?;
    Ok(Arc::new(old.in_new_user_ns(&ns)))
}

/// The namespaces that `flags` ask for, made for `task` (`create_new_namespaces`). `EPERM` without `CAP_SYS_ADMIN` in the
/// user namespace that they will belong to.
pub(crate) fn create(task: &Task, flags: CloneFlags) -> Result<Changed> {
    let creds = user_namespace(task, flags)?;
    let set = task.namespaces();
    if !flags.intersects(CloneFlags::NEW_ANY.difference(CloneFlags::NEWUSER)) {
        return Ok(Changed { creds, set, places: None });
    }
    let user_ns = Arc::clone(&creds.user_ns);
    if !creds.has_cap_here(cap::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let mut new = Namespaces::clone(&set);
    let mut places = None;
    if flags.contains(CloneFlags::NEWNS) {
        let (copy, map) = set.mnt.copy_for(&user_ns)?;
        new.mnt = copy;
        places = Some(map);
    }
    if flags.contains(CloneFlags::NEWUTS) {
        new.uts = set.uts.copy(&user_ns);
    }
    if flags.contains(CloneFlags::NEWIPC) {
        new.ipc = ObjectNs::new(&user_ns);
    }
    if flags.contains(CloneFlags::NEWPID) {
        new.pid_for_children = PidNs::create(&set.pid_for_children, &creds)?;
    }
    if flags.contains(CloneFlags::NEWCGROUP) {
        new.cgroup = ObjectNs::new(&user_ns);
    }
    if flags.contains(CloneFlags::NEWNET) {
        new.net = ObjectNs::new(&user_ns);
    }
    Ok(Changed { creds, set: Arc::new(new), places })
}

/// `unshare(2)`.
pub fn unshare(task: &Task, flags: u64) -> Result<()> {
    let mut flags = CloneFlags::from_bits_retain(flags);
    if flags.contains(CloneFlags::NEWUSER) {
        flags |= CloneFlags::THREAD | CloneFlags::FS;
    }
    if flags.contains(CloneFlags::NEWNS) {
        flags |= CloneFlags::FS;
    }
    let own = CloneFlags::FILES | CloneFlags::FS | CloneFlags::SYSVSEM;
    let single = CloneFlags::THREAD | CloneFlags::SIGHAND | CloneFlags::VM;
    // Time namespaces are not built in, as with `CONFIG_TIME_NS=n`.
    if flags.bits() & NEWTIME != 0 || !(own | single | CloneFlags::NEW_ANY).contains(flags) {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(single) && task.group().nr_threads() > 1 {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(CloneFlags::SIGHAND | CloneFlags::VM)
        && Arc::strong_count(&task.mm()) > 2
        && task.kernel().tasks().iter().any(|t| t.pid() != task.pid() && Arc::ptr_eq(&t.mm(), &task.mm()))
    {
        return Err(Errno::EINVAL);
    }
    let changed = create(task, flags)?;
    if flags.contains(CloneFlags::FS) {
        let fs = task.fs().fork();
        changed.move_places(&fs);
        task.set_fs(fs);
    }
    if flags.contains(CloneFlags::FILES) {
        task.set_fds(task.fds().fork());
    }
    // The changes that are to be taken back are those of the old namespace's semaphores.
    if flags.intersects(CloneFlags::SYSVSEM | CloneFlags::NEWIPC) {
        task.leave_sem_undo();
    }
    if flags.contains(CloneFlags::NEWIPC)
        && let Some(ipc) = task.ipc_of_made_shm()
    {
        task.leave_shm(&ipc);
    }
    task.set_namespaces(Arc::clone(&changed.set));
    task.set_creds(changed.creds);
    Ok(())
}

/// `setns(2)` with the file of one namespace, or with a pidfd for several kinds at once.
pub fn setns(task: &Task, file: &FileDescription, kinds: i32) -> Result<()> {
    if let Some(ns) = NsFile::of(file) {
        if kinds != 0 && kinds != ns.flag() {
            return Err(Errno::EINVAL);
        }
        return enter(task, core::slice::from_ref(ns));
    }
    let Ok(group) = PidFd::group_of(file) else { return Err(Errno::EINVAL) };
    let all = [
        (libc::CLONE_NEWUSER, "user"),
        (libc::CLONE_NEWNS, "mnt"),
        (libc::CLONE_NEWUTS, "uts"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWCGROUP, "cgroup"),
        (libc::CLONE_NEWNET, "net"),
        (0x80, "time"),
    ];
    let known = all.iter().fold(0, |set, (flag, _)| set | flag);
    if kinds == 0 || kinds & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let target = group.threads().first().cloned().ok_or(Errno::ESRCH)?;
    if !crate::ptrace::may_access(task, &target, crate::ptrace::Access::Read) {
        return Err(Errno::EPERM);
    }
    let wanted: Result<Vec<Namespace>> = all
        .iter()
        .filter(|(flag, _)| kinds & flag != 0)
        .map(|(_, name)| Namespace::of_task(&target, name))
        .collect();
    enter(task, &wanted?)
}

/// Enters namespaces, all or none, a user namespace first.
fn enter(task: &Task, wanted: &[Namespace]) -> Result<()> {
    let mut creds = task.creds();
    let mut set = Namespaces::clone(&task.namespaces());
    let mut mounts = None;
    for ns in wanted {
        let allowed = |owner: &UserNs| {
            if creds.has_cap_in(owner, cap::SYS_ADMIN) && creds.has_cap_here(cap::SYS_ADMIN) {
                Ok(())
            } else {
                Err(Errno::EPERM)
            }
        };
        match ns {
            Namespace::User(ns) => {
                if *ns == creds.user_ns || task.group().nr_threads() > 1 || task.shares_fs() {
                    return Err(Errno::EINVAL);
                }
                if !creds.has_cap_in(ns, cap::SYS_ADMIN) {
                    return Err(Errno::EPERM);
                }
                creds = Arc::new(creds.in_new_user_ns(ns));
            }
            Namespace::Mnt(ns) => {
                allowed(ns.user_ns())?;
                if !creds.has_cap_here(cap::SYS_CHROOT) {
                    return Err(Errno::EPERM);
                }
                if task.shares_fs() {
                    return Err(Errno::EINVAL);
                }
                set.mnt = Arc::clone(ns);
                mounts = Some(Arc::clone(ns));
            }
            Namespace::Pid(ns) => {
                allowed(ns.user_ns())?;
                if !ns.is_same_or_below(task.group().pid_ns()) {
                    return Err(Errno::EINVAL);
                }
                set.pid_for_children = Arc::clone(ns);
            }
            Namespace::Uts(ns) => {
                allowed(ns.user_ns())?;
                set.uts = Arc::clone(ns);
            }
            Namespace::Ipc(ns) => {
                allowed(ns.user_ns())?;
                set.ipc = Arc::clone(ns);
            }
            Namespace::Net(ns) => {
                allowed(ns.user_ns())?;
                set.net = Arc::clone(ns);
            }
            Namespace::Cgroup(ns) => {
                allowed(ns.user_ns())?;
                set.cgroup = Arc::clone(ns);
            }
            Namespace::Time(ns) => {
                allowed(ns.user_ns())?;
                set.time = Arc::clone(ns);
            }
        }
    }
    if let Some(ns) = mounts {
        let root = ns.root();
        let fs = task.fs();
        fs.set_root(root.clone());
        fs.set_cwd(root);
    }
    task.set_namespaces(Arc::new(set));
    task.set_creds(creds);
    Ok(())
}
