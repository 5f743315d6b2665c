//! What a call gives back to its caller's memory, on the way there together with the task.
//!
//! A copy to application memory by the Sentry is a host call of its own. Small results (a `struct stat`, the byte read from a
//! pipe) are kept here instead and handed to the platform when the task goes back to its application: the task's own
//! thread copies them before the first instruction. Only what the mappings allow is kept, so that a bad address is
//! `EFAULT` at the usual place, with nothing consumed. What makes memory change meanwhile (another thread's `munmap`)
//! is found by the copy: it is made by the Sentry then, and the call ends with `EFAULT` if that fails too.
//!
//! Nobody may see a call's effects and miss its results: they are copied at once before the task sleeps, stops, takes a
//! signal or shows itself to a tracer.

use std::sync::Arc;

use platform::Context;
use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result};
use sentry_memory::UserMemory;

use crate::Task;

/// The most that travels with one return.
const BYTES_MAX: usize = platform::GIVEN_BYTES;
const PIECES_MAX: usize = platform::GIVEN_PIECES;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: Vec<(u64, usize)>,
    bytes: Vec<u8>,
}

pub(crate) type SharedOutbox = Arc<Mutex<Outbox, { rank::LEAF }>>;

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn has_room(&self, len: usize) -> bool {
        self.pieces.len() < PIECES_MAX && self.bytes.len() + len <= BYTES_MAX
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes.clear();
    }

    /// Hands everything to `context`. False when it takes nothing.
    pub fn give_to(&self, context: &mut dyn Context) -> bool {
        context.give(&self.pieces, &self.bytes)
    }
}

/// Copies what `outbox` holds now, and empties it.
pub(crate) fn flush(task: &Task, outbox: &SharedOutbox) -> Result<()> {
    let Outbox { pieces, bytes } = {
        let mut outbox = outbox.lock();
        if outbox.is_empty() {
            return Ok(());
        }
        core::mem::take(&mut *outbox)
    };
    let mut rest = bytes.as_slice();
    let mut result = Ok(());
    for (addr, len) in pieces {
        let (part, more) = rest.split_at(len.min(rest.len()));
        result = result.and(task.copy_out(addr, part));
        rest = more;
    }
    result
}

/// The memory of a call's own caller: small results that are written to it reach it when the task goes back.
pub struct CallerMemory {
    pub(crate) task: Arc<Task>,
    pub(crate) outbox: SharedOutbox,
}

impl core::fmt::Debug for CallerMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "CallerMemory({})", self.task.tid())
    }
}

/// Keeps `src` for `addr` if it is small and the mappings allow it.
pub(crate) fn keep(task: &Task, outbox: &SharedOutbox, addr: u64, src: &[u8]) -> bool {
    if src.len() > BYTES_MAX || !task.mm().takes(addr, src.len()) {
        return false;
    }
    let mut outbox = outbox.lock();
    if !outbox.has_room(src.len()) {
        return false;
    }
    outbox.pieces.push((addr, src.len()));
    outbox.bytes.extend_from_slice(src);
    true
}

impl UserMemory for CallerMemory {
    fn copy_in_partial(&self, addr: u64, dst: &mut [u8]) -> Result<usize> {
        flush(&self.task, &self.outbox)?;
        self.task.copy_in_partial(addr, dst)
    }

    fn copy_out_partial(&self, addr: u64, src: &[u8]) -> Result<usize> {
        if keep(&self.task, &self.outbox, addr, src) {
            return Ok(src.len());
        }
        flush(&self.task, &self.outbox).map_err(|_| Errno::EFAULT)?;
        self.task.copy_out_partial(addr, src)
    }
}
