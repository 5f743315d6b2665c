//! Who has a regular file open: what keeps a running program from being written to (`deny_write_access`,
//! `get_write_access`), and leases (`F_SETLEASE` of `fcntl(2)`, `fs/locks.c`).

use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use sentry_base::lock::rank;
use sentry_base::{Errno, Events, Mutex, Nanos, Result, WaitQueue, mono_now};

use crate::{FileDescription, Inode, SignalSink};

/// For how long a holder may keep others waiting (`fs.lease-break-time`).
const BREAK_TIME_NS: Nanos = 45_000_000_000;

/// How an open description uses its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Read,
    Write,
    /// A program that runs: nobody may write to it.
    Run,
}

const READ: u8 = 0;
const WRITE: u8 = 1;
const RUN: u8 = 2;
const OVER: u8 = 3;

/// The kind of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    Read,
    Write,
}

/// A lease that somebody has asked the holder to give up.
#[derive(Debug, Clone, Copy)]
struct Breaking {
    /// What is left of the lease in the end; `None` for nothing.
    to: Option<LeaseKind>,
    deadline: Nanos,
}

struct Lease {
    /// The description that holds it.
    holder: u64,
    file: Weak<FileDescription>,
    kind: LeaseKind,
    breaking: Option<Breaking>,
    sink: Arc<dyn SignalSink>,
    /// The descriptor that its holder asked with.
    fd: i32,
}

#[derive(Default)]
struct State {
    readers: u32,
    writers: u32,
    runners: u32,
    leases: Vec<Lease>,
}

/// The users of one inode. Lives in the inode.
#[derive(Default)]
pub struct Usage {
    state: Mutex<State, { rank::LEAF }>,
    queue: WaitQueue,
}

impl core::fmt::Debug for Usage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Usage")
    }
}

/// One use, given up when dropped.
#[derive(Debug)]
pub struct InUse {
    inode: Arc<dyn Inode>,
    how: AtomicU8,
}

impl InUse {
    /// Enters a use. `ETXTBSY` for writing to a program that runs, and for running what is open for writing. `None` for
    /// a file that does not count its users.
    pub fn begin(inode: &Arc<dyn Inode>, how: Use) -> Result<Option<Self>> {
        let Some(usage) = inode.usage() else { return Ok(None) };
        let how = {
            let mut state = usage.state.lock();
            match how {
                Use::Read => {
                    state.readers += 1;
                    READ
                }
                Use::Write if state.runners > 0 => return Err(Errno::ETXTBSY),
                Use::Write => {
                    state.writers += 1;
                    WRITE
                }
                Use::Run if state.writers > 0 => return Err(Errno::ETXTBSY),
                Use::Run => {
                    state.runners += 1;
                    RUN
                }
            }
        };
        Ok(Some(Self { inode: Arc::clone(inode), how: AtomicU8::new(how) }))
    }

    /// Lets others write to what was opened as a program (the interpreter of one that runs now).
    pub fn allow_write(&self) {
        if self.how.load(Ordering::Relaxed) == RUN {
            self.end();
        }
    }

    fn end(&self) {
        let how = self.how.swap(OVER, Ordering::Relaxed);
        let Some(usage) = self.inode.usage() else { return };
        let mut state = usage.state.lock();
        let count = match how {
            READ => &mut state.readers,
            WRITE => &mut state.writers,
            RUN => &mut state.runners,
            _ => return,
        };
        *count = count.saturating_sub(1);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.end();
    }
}

/// What stands in the way of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leased {
    Free,
    /// Until this time (`CLOCK_MONOTONIC`) the holder may give the lease up.
    Until(Nanos),
}

impl Usage {
    /// Notified when a lease is given up.
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// Takes, changes or (with `None`) gives up a description's lease. `EAGAIN` where others have the file open in a way
    /// that it would not allow, or where there is nothing to give up.
    pub fn set_lease(
        &self,
        file: &Arc<FileDescription>,
        kind: Option<LeaseKind>,
        sink: Arc<dyn SignalSink>,
        fd: i32,
    ) -> Result<()> {
        let changed = {
            let mut state = self.state.lock();
            let at = state.leases.iter().position(|l| l.holder == file.id());
            match kind {
                None => {
                    let at = at.ok_or(Errno::EAGAIN)?;
                    drop(state.leases.swap_remove(at));
                    true
                }
                Some(kind) => {
                    let others = state.leases.iter().any(|l| {
                        l.holder != file.id() && (kind == LeaseKind::Write || l.kind == LeaseKind::Write)
                    });
                    let open = match kind {
                        LeaseKind::Read => state.writers > 0 || file.flags().writes(),
                        LeaseKind::Write => state.readers + state.writers > 1,
                    };
                    let broken = at.and_then(|at| state.leases.get(at)?.breaking);
                    if broken.is_some_and(|b| b.to != Some(kind)) || (broken.is_none() && (others || open)) {
                        return Err(Errno::EAGAIN);
                    }
                    let lease = Lease {
                        holder: file.id(),
                        file: Arc::downgrade(file),
                        kind,
                        breaking: None,
                        sink,
                        fd,
                    };
                    match at.and_then(|at| state.leases.get_mut(at)) {
                        Some(slot) => *slot = lease,
                        None => state.leases.push(lease),
                    }
                    true
                }
            }
        };
        if changed {
            self.queue.notify(Events::OUT);
        }
        Ok(())
    }

    /// `F_GETLEASE`: the kind that a description's lease has, or will have once it is broken.
    pub fn lease_of(&self, file: &FileDescription) -> Option<LeaseKind> {
        let state = self.state.lock();
        let lease = state.leases.iter().find(|l| l.holder == file.id())?;
        lease.breaking.map_or(Some(lease.kind), |b| b.to)
    }

    /// The description is going away, and its lease with it.
    pub(crate) fn drop_lease(&self, holder: u64) {
        let gone = {
            let mut state = self.state.lock();
            let before = state.leases.len();
            state.leases.retain(|l| l.holder != holder);
            state.leases.len() != before
        };
        if gone {
            self.queue.notify(Events::OUT);
        }
    }

    /// Asks the holders of leases that forbid an open to give them up (`break_lease`). What was asked for long ago is
    /// taken from them.
    pub fn break_leases(&self, writes: bool) -> Leased {
        let now = mono_now();
        let mut told = Vec::new();
        let mut until = None;
        {
            let mut state = self.state.lock();
            if state.leases.is_empty() {
                return Leased::Free;
            }
            let to = (!writes).then_some(LeaseKind::Read);
            state.leases.retain_mut(|lease| {
                if !writes && lease.kind == LeaseKind::Read {
                    return true;
                }
                match &mut lease.breaking {
                    None => {
                        lease.breaking = Some(Breaking { to, deadline: now.saturating_add(BREAK_TIME_NS) });
                        told.push((Weak::clone(&lease.file), Arc::clone(&lease.sink), lease.fd));
                    }
                    Some(breaking) => {
                        if writes {
                            breaking.to = None;
                        }
                        if breaking.deadline <= now {
                            match breaking.to {
                                None => return false,
                                Some(kind) => (lease.kind, lease.breaking) = (kind, None),
                            }
                            return true;
                        }
                    }
                }
                let deadline = lease.breaking.map_or(now, |b| b.deadline);
                until = Some(until.map_or(deadline, |u: Nanos| u.min(deadline)));
                true
            });
        }
        for (file, sink, fd) in told {
            if let Some(file) = file.upgrade() {
                sink.signal_owner(&file, fd);
            }
        }
        until.map_or(Leased::Free, Leased::Until)
    }
}
