//! A task for tests: flat memory, fixed ids, signals written down.

use core::any::Any;
use std::sync::Arc;

use parking_lot::Mutex;
use sentry_base::{Errno, Result};
use sentry_memory::UserMemory;

use crate::{Caller, Credentials, IoCtx, JobControl, OpenFlags, SignalSink, Terminal};

/// Where the memory of a [`TestCaller`] begins.
pub const BASE: u64 = 0x1_0000;

/// A caller with 64 KiB of memory at [`BASE`].
pub struct TestCaller {
    pub memory: Mutex<Vec<u8>>,
    pub creds: Mutex<Arc<Credentials>>,
    pub pid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub orphaned: bool,
    /// Signals that count as ignored.
    pub ignored: Vec<i32>,
    /// What was sent: (process group or 0 for the caller itself, signal).
    pub signals: Mutex<Vec<(i32, i32)>>,
    pub terminal: Mutex<Option<Arc<dyn Terminal>>>,
}

impl core::fmt::Debug for TestCaller {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "TestCaller({})", self.pid)
    }
}

impl TestCaller {
    /// Root, process `pid`, leader of its own group and session.
    pub fn new(pid: i32) -> Self {
        Self {
            memory: Mutex::new(vec![0; 0x1_0000]),
            creds: Mutex::new(Arc::new(Credentials::root())),
            pid,
            pgid: pid,
            sid: pid,
            orphaned: false,
            ignored: Vec::new(),
            signals: Mutex::new(Vec::new()),
            terminal: Mutex::new(None),
        }
    }

    pub fn io(&self, flags: OpenFlags) -> IoCtx<'_> {
        IoCtx { caller: self, flags }
    }

    /// What was sent since the last call.
    pub fn sent(&self) -> Vec<(i32, i32)> {
        core::mem::take(&mut self.signals.lock())
    }
}

impl UserMemory for TestCaller {
    fn copy_in_partial(&self, addr: u64, dst: &mut [u8]) -> Result<usize> {
        let memory = self.memory.lock();
        let at = addr.checked_sub(BASE).and_then(|a| usize::try_from(a).ok()).ok_or(Errno::EFAULT)?;
        let rest = memory.get(at..).filter(|r| !r.is_empty()).ok_or(Errno::EFAULT)?;
        let n = rest.len().min(dst.len());
        if let (Some(to), Some(from)) = (dst.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn copy_out_partial(&self, addr: u64, src: &[u8]) -> Result<usize> {
        let mut memory = self.memory.lock();
        let at = addr.checked_sub(BASE).and_then(|a| usize::try_from(a).ok()).ok_or(Errno::EFAULT)?;
        let rest = memory.get_mut(at..).filter(|r| !r.is_empty()).ok_or(Errno::EFAULT)?;
        let n = rest.len().min(src.len());
        if let (Some(to), Some(from)) = (rest.get_mut(..n), src.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }
}

impl JobControl for TestCaller {
    fn pgid(&self) -> i32 {
        self.pgid
    }
    fn sid(&self) -> i32 {
        self.sid
    }
    fn session_of_group(&self, _pgid: i32) -> Option<i32> {
        Some(self.sid)
    }
    fn group_is_orphaned(&self) -> bool {
        self.orphaned
    }
    fn ignores_or_blocks(&self, signal: i32) -> bool {
        self.ignored.contains(&signal)
    }
    fn signal_group(&self, pgid: i32, signal: i32) {
        self.signals.lock().push((pgid, signal));
    }
    fn controlling_terminal(&self) -> Option<Arc<dyn Terminal>> {
        self.terminal.lock().clone()
    }
    fn set_controlling_terminal(&self, terminal: Arc<dyn Terminal>, _steal: bool) -> Result<()> {
        if self.sid != self.pid || self.terminal.lock().is_some() {
            return Err(Errno::EPERM);
        }
        terminal.set_session(self.sid);
        terminal.set_foreground(self.pgid);
        *self.terminal.lock() = Some(terminal);
        Ok(())
    }
    fn drop_controlling_terminal(&self) -> Result<()> {
        self.terminal.lock().take().map(|_| ()).ok_or(Errno::ENOTTY)
    }
}

impl SignalSink for TestCaller {
    fn signal_group(&self, pgid: i32, signal: i32) {
        self.signals.lock().push((pgid, signal));
    }
}

impl Caller for TestCaller {
    fn creds(&self) -> Arc<Credentials> {
        Arc::clone(&self.creds.lock())
    }
    fn mem(&self) -> &dyn UserMemory {
        self
    }
    fn tid(&self) -> i32 {
        self.pid
    }
    fn pid(&self) -> i32 {
        self.pid
    }
    fn rlimit(&self, _resource: u32) -> u64 {
        1024
    }
    fn signal_self(&self, signal: i32) {
        self.signals.lock().push((0, signal));
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
