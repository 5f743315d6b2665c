//! From device numbers to open devices.

use std::sync::Arc;

use sentry_base::{Errno, Result};
use sentry_vfs::{Caller, DeviceOpener, FileOps, OpenFlags, Vfs};

use crate::{PTS_MAJOR, Terminals, mem};

/// The major number of memory devices and of `/dev/tty` and its kin.
const MEM_MAJOR: u32 = 1;
const TTYAUX_MAJOR: u32 = 5;

/// Opens the character devices that every container has.
#[derive(Debug)]
pub struct Devices {
    terminals: Arc<Terminals>,
}

impl Devices {
    /// The major numbers to register this opener for.
    pub const MAJORS: [u32; 3] = [MEM_MAJOR, TTYAUX_MAJOR, PTS_MAJOR];

    pub fn new(terminals: Arc<Terminals>) -> Arc<Self> {
        Arc::new(Self { terminals })
    }

    /// Registers itself for its major numbers.
    pub fn register(self: &Arc<Self>, vfs: &Vfs) {
        for major in Self::MAJORS {
            vfs.register_char(major, Arc::clone(self) as Arc<dyn DeviceOpener>);
        }
    }

    /// Opens the device `rdev` (`makedev(3)`); `ENXIO` for one that is not there.
    pub fn open(&self, rdev: u64, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        let minor = libc::minor(rdev);
        match (libc::major(rdev), minor) {
            (MEM_MAJOR, _) => mem::open(minor),
            (TTYAUX_MAJOR, 0) => self.terminals.open_controlling(caller),
            (TTYAUX_MAJOR, 1) => self.terminals.open_console(flags, caller),
            (TTYAUX_MAJOR, 2) => Ok(self.terminals.open_master(caller)?),
            (PTS_MAJOR, _) => self.terminals.open_slave(minor, flags, caller),
            _ => Err(Errno::ENXIO),
        }
    }
}

impl DeviceOpener for Devices {
    fn open(&self, rdev: u64, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        Self::open(self, rdev, flags, caller)
    }
}
