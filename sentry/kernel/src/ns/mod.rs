//! Namespaces (`namespaces(7)`, `kernel/nsproxy.c`): what a task sees of the system's names.
//!
//! A task has one set of namespaces; a change makes a new set. The PID namespace that a process *is in* never changes and
//! belongs to its [`ThreadGroup`](crate::ThreadGroup); the set holds the one that its children will be in. The user
//! namespace belongs to the credentials.

mod change;
mod file;
mod object;
mod pid;

use std::sync::Arc;

use sentry_vfs::{MountNamespace, UserNs};

pub(crate) use change::create;
pub use change::{setns, unshare};
pub use file::{Namespace, NsFile, NsFs};
pub use object::{Extensions, ObjectNs, UtsNs};
pub use pid::PidNs;

/// The namespaces of a task.
#[derive(Debug, Clone)]
pub struct Namespaces {
    pub uts: Arc<UtsNs>,
    pub ipc: Arc<ObjectNs>,
    pub net: Arc<ObjectNs>,
    pub cgroup: Arc<ObjectNs>,
    pub time: Arc<ObjectNs>,
    pub mnt: Arc<MountNamespace>,
    /// The namespace that children will be in.
    pub pid_for_children: Arc<PidNs>,
}

/// The sandbox's first namespaces, but for the mounts, which come with its init.
#[derive(Debug)]
pub(crate) struct FirstNamespaces {
    pub uts: Arc<UtsNs>,
    pub ipc: Arc<ObjectNs>,
    pub net: Arc<ObjectNs>,
    pub cgroup: Arc<ObjectNs>,
    pub time: Arc<ObjectNs>,
    pub pid: Arc<PidNs>,
}

impl FirstNamespaces {
    pub fn new(names: crate::UtsNames) -> Self {
        let user = UserNs::initial();
        // `include/linux/proc_ns.h`; the network's has no number of its own there.
        let object = |ino| ObjectNs::with_ino(ino, &user);
        Self {
            uts: UtsNs::with_ino(0xefff_fffe, &user, names),
            ipc: object(0xefff_ffff),
            net: object(sentry_vfs::next_ns_ino()),
            cgroup: object(0xefff_fffb),
            time: object(0xefff_fffa),
            pid: PidNs::first(0xefff_fffc, &user),
        }
    }

    /// The set of a task that has all of them.
    pub fn with_mounts(&self, mnt: &Arc<MountNamespace>) -> Arc<Namespaces> {
        self.with_mounts_and_pids(mnt, &self.pid)
    }

    /// The set of a task that has all of them but for the one of numbers.
    pub fn with_mounts_and_pids(&self, mnt: &Arc<MountNamespace>, pid: &Arc<PidNs>) -> Arc<Namespaces> {
        Arc::new(Namespaces {
            uts: Arc::clone(&self.uts),
            ipc: Arc::clone(&self.ipc),
            net: Arc::clone(&self.net),
            cgroup: Arc::clone(&self.cgroup),
            time: Arc::clone(&self.time),
            mnt: Arc::clone(mnt),
            pid_for_children: Arc::clone(pid),
        })
    }
}
