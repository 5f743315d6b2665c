//! Descriptors of processes (`pidfd_open(2)`).

use core::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Events, Result, WaitQueue};
use sentry_vfs::{FileDescription, FileOps, OpenFlags};

use crate::{Current, Task, ThreadGroup};

/// A file that stands for a process; readable once the process has ended.
#[derive(Debug)]
pub struct PidFd {
    group: Arc<ThreadGroup>,
}

impl PidFd {
    /// A new description for `group`; `flags` may hold `NONBLOCK`.
    pub fn open(group: Arc<ThreadGroup>, flags: OpenFlags) -> Arc<FileDescription> {
        FileDescription::new(Arc::new(Self { group }), flags | OpenFlags::RDWR, None)
    }

    /// The process that a description stands for; `EBADF` for another kind of file.
    pub fn group_of(file: &FileDescription) -> Result<Arc<ThreadGroup>> {
        let fd = file.ops().as_any().downcast_ref::<Self>().ok_or(Errno::EBADF)?;
        Ok(Arc::clone(&fd.group))
    }
}

impl FileOps for PidFd {
    fn readiness(&self) -> Events {
        if self.group.nr_threads() == 0 { Events::READABLE } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.group.exit_events())
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:[pidfd]".to_owned())
    }

    fn fdinfo(&self) -> String {
        // The pid of the first namespace that the reader's `/proc` may show; -1 once it was waited for.
        let ns = self.group.pid_ns();
        let numbers: Vec<String> = ns.locals(self.group.pid()).iter().map(|n| format!("\t{n}")).collect();
        format!("Pid:\t{}\nNSpid:{}\n", self.group.pid(), numbers.concat())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Makes a pidfd in the caller's table.
pub fn install(task: &Task, group: &Arc<ThreadGroup>, flags: OpenFlags) -> Result<i32> {
    let file = PidFd::open(Arc::clone(group), flags);
    task.fds().add(file, true, task.rlimit(abi::process::rlimit::NOFILE))
}

/// `CLONE_PIDFD`: the descriptor goes to `addr` of the parent.
pub(crate) fn install_for_clone(cx: &Current, group: &Arc<ThreadGroup>, addr: u64) -> Result<()> {
    let fd = install(&cx.task, group, OpenFlags::empty())?;
    cx.copy_out(addr, &fd.to_le_bytes())
}
