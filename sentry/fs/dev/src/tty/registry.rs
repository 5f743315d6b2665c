//! All terminals of a sandbox: numbers, `/dev/ptmx`, `/dev/tty`, `/dev/console`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use sentry_base::{Errno, Mutex, Result, lock::rank};
use sentry_vfs::{Caller, FileOps, OpenFlags, SignalSink};

use super::{HostSide, MasterFile, Tty};

/// `/proc/sys/kernel/pty/max`.
const MAX_TERMINALS: u32 = 4096;

/// The group of terminals, as distributions mount devpts (`gid=5`).
const TTY_GROUP: u32 = 5;

/// The terminals of a sandbox.
pub struct Terminals {
    me: Weak<Terminals>,
    sink: Arc<dyn SignalSink>,
    open: Mutex<BTreeMap<u32, Arc<Tty>>, { rank::LEAF }>,
    console: Mutex<Option<Arc<Tty>>, { rank::LEAF }>,
}

impl core::fmt::Debug for Terminals {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Terminals({})", self.open.lock().len())
    }
}

impl Terminals {
    /// `sink` delivers the signals of typed characters, resizes and hang-ups.
    pub fn new(sink: Arc<dyn SignalSink>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            sink,
            open: Mutex::new(BTreeMap::new()),
            console: Mutex::new(None),
        })
    }

    fn create(&self, uid: u32, locked: bool) -> Result<Arc<Tty>> {
        let mut open = self.open.lock();
        let index = (0..MAX_TERMINALS).find(|i| !open.contains_key(i)).ok_or(Errno::ENOSPC)?;
        let tty = Tty::new(index, Arc::clone(&self.sink), uid, TTY_GROUP, locked);
        open.insert(index, Arc::clone(&tty));
        Ok(tty)
    }

    /// Opens `/dev/ptmx`: a new terminal, locked until `TIOCSPTLCK` says otherwise.
    pub fn open_master(&self, caller: &dyn Caller) -> Result<Arc<MasterFile>> {
        let me = self.me.upgrade().ok_or(Errno::EIO)?;
        let tty = self.create(caller.creds().fsuid, true)?;
        Ok(Arc::new(MasterFile::new(tty, me)))
    }

    /// A terminal whose far side is the host. It belongs to `uid`.
    pub fn new_host_terminal(&self, uid: u32) -> Result<HostSide> {
        let me = self.me.upgrade().ok_or(Errno::EIO)?;
        let tty = self.create(uid, false)?;
        Ok(HostSide::new(tty, me))
    }

    /// The container's console: such a terminal that is also `/dev/console` from now on.
    pub fn new_console(&self, uid: u32) -> Result<HostSide> {
        let side = self.new_host_terminal(uid)?;
        *self.console.lock() = Some(Arc::clone(side.tty()));
        Ok(side)
    }

    /// Opens `/dev/pts/INDEX`; `ENXIO` where there is none, `EIO` for one that is locked.
    pub fn open_slave(&self, index: u32, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let tty = self.get(index).ok_or(Errno::ENXIO)?;
        let file = tty.open_slave(caller, flags.reads(), flags.contains(OpenFlags::NOCTTY))?;
        Ok(file)
    }

    /// Opens `/dev/tty`: the caller's controlling terminal, `ENXIO` without one.
    pub fn open_controlling(&self, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let terminal = caller.controlling_terminal().ok_or(Errno::ENXIO)?;
        let tty = terminal.as_any().downcast_ref::<Tty>().ok_or(Errno::ENXIO)?;
        if tty.is_hung_up() {
            return Err(Errno::ENXIO);
        }
        let file = tty.open_slave(caller, false, true)?;
        Ok(file)
    }

    /// Opens `/dev/console`; `ENXIO` in a container without a terminal.
    pub fn open_console(&self, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let tty = self.console.lock().clone().ok_or(Errno::ENXIO)?;
        let file = tty.open_slave(caller, flags.reads(), flags.contains(OpenFlags::NOCTTY))?;
        Ok(file)
    }

    pub(crate) fn get(&self, index: u32) -> Option<Arc<Tty>> {
        self.open.lock().get(&index).map(Arc::clone)
    }

    /// The numbers in use, in order.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.open.lock().keys().copied().collect()
    }

    pub(super) fn remove(&self, index: u32) {
        let gone = self.open.lock().remove(&index);
        let mut console = self.console.lock();
        if let (Some(gone), Some(now)) = (&gone, &*console)
            && Arc::ptr_eq(gone, now)
        {
            *console = None;
        }
    }
}
