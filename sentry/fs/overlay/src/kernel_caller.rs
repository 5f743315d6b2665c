//! The Sentry itself as a caller: copying a file up is its own act, not that of the task that caused it.

use std::any::Any;
use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;
use sentry_vfs::{Caller, Credentials, IoCtx, JobControl, OpenFlags, Terminal};

/// Root without memory, terminal or signals.
pub(crate) struct KernelCaller;

/// I/O of the Sentry itself.
pub(crate) fn io(flags: OpenFlags) -> IoCtx<'static> {
    IoCtx { caller: &KernelCaller, flags }
}

impl UserMemory for KernelCaller {
    fn copy_in_partial(&self, _addr: u64, _dst: &mut [u8]) -> Result<usize> {
        Err(Errno::EFAULT)
    }

    fn copy_out_partial(&self, _addr: u64, _src: &[u8]) -> Result<usize> {
        Err(Errno::EFAULT)
    }
}

impl JobControl for KernelCaller {
    fn pgid(&self) -> i32 {
        0
    }

    fn sid(&self) -> i32 {
        0
    }

    fn session_of_group(&self, _pgid: i32) -> Option<i32> {
        None
    }

    fn group_is_orphaned(&self) -> bool {
        true
    }

    fn ignores_or_blocks(&self, _signal: i32) -> bool {
        true
    }

    fn signal_group(&self, _pgid: i32, _signal: i32) {}

    fn controlling_terminal(&self) -> Option<Arc<dyn Terminal>> {
        None
    }

    fn set_controlling_terminal(&self, _terminal: Arc<dyn Terminal>, _steal: bool) -> Result<()> {
        Err(Errno::EPERM)
    }

    fn drop_controlling_terminal(&self) -> Result<()> {
        Err(Errno::ENOTTY)
    }
}

impl Caller for KernelCaller {
    fn creds(&self) -> Arc<Credentials> {
        Arc::new(Credentials::root())
    }

    fn mem(&self) -> &dyn UserMemory {
        self
    }

    fn tid(&self) -> i32 {
        0
    }

    fn pid(&self) -> i32 {
        0
    }

    fn rlimit(&self, _resource: u32) -> u64 {
        u64::MAX
    }

    fn signal_self(&self, _signal: i32) {}

    fn as_any(&self) -> &dyn Any {
        self
    }
}
