//! System V IPC and POSIX message queues: what an IPC namespace holds (`ipc_namespaces(7)`, `sysvipc(7)`,
//! `mq_overview(7)`).
//!
//! Objects are synchronous: an operation that would have to wait says so and names the queue to wait on. Waiting, user
//! memory and signals are the callers'.
//!
//! **Lock ranks:** `FileData` 50 for an object, leaf for the tables of names; no two objects are locked at once.
//!
//! **Threat.** Every number, size and count is the application's. The numbers of objects, the bytes in a queue and the
//! length of an operation are bounded by Linux's own limits.

mod limits;
mod mqueue;
mod msg;
mod perm;
mod registry;
mod sem;
mod shm;

use std::sync::Arc;

use sentry_base::{Result, real_now};

pub use limits::{Limit, Limits};
pub use mqueue::{MqOpen, Mqueue, MqueueFile, Notifier, Queues};
pub use msg::{MessageQueue, Pick, Received};
pub use perm::Perm;
pub use registry::{Entry, Registry};
pub use sem::{SemSet, Try, UndoList};
pub use shm::{Attachment, Segment, Segments};

/// Everything that an IPC namespace holds.
#[derive(Debug)]
pub struct IpcNamespace {
    /// What `/proc/sys` says of it.
    pub limits: Arc<Limits>,
    /// Shared memory segments.
    pub shm: Segments,
    /// Semaphore sets.
    pub sem: Registry<SemSet>,
    /// Message queues.
    pub msg: Registry<MessageQueue>,
    /// POSIX message queues.
    pub mqueues: Queues,
}

impl Default for IpcNamespace {
    fn default() -> Self {
        let limits = Arc::<Limits>::default();
        Self {
            shm: Segments::new(&limits),
            sem: Registry::new(&limits, Limit::SemMni),
            msg: Registry::new(&limits, Limit::MsgMni),
            mqueues: Queues::new(&limits),
            limits,
        }
    }
}

impl IpcNamespace {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Sets a limit, to hold for what is made from now on; `shm_rmid_forced` ends what nobody has a use for at once.
    pub fn set_limit(&self, limit: Limit, value: u64) -> Result<()> {
        self.limits.set(limit, value)?;
        if limit == Limit::ShmRmidForced && value != 0 {
            self.shm.begin_to_force();
        }
        Ok(())
    }
}

/// The time of day in seconds, as the status structures have it.
pub(crate) fn now_s() -> i64 {
    i64::try_from(real_now() / 1_000_000_000).unwrap_or(0)
}
