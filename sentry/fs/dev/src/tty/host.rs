//! The host's side of a terminal: what the sandbox process relays to and from the user's own terminal.

use std::sync::Arc;

use abi::tty::Winsize;
use sentry_base::WaitQueue;

use super::{Terminals, Tty};

/// A handle on the far side of a terminal. Dropping it hangs the terminal up.
#[derive(Debug)]
pub struct HostSide {
    tty: Arc<Tty>,
    terminals: Arc<Terminals>,
}

impl HostSide {
    pub(super) fn new(tty: Arc<Tty>, terminals: Arc<Terminals>) -> Self {
        Self { tty, terminals }
    }

    /// The number of the terminal: programs open `/dev/pts/N`.
    pub fn index(&self) -> u32 {
        self.tty.index()
    }

    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }

    /// Types `bytes`; returns how many there was room for. Try the rest after [`HostSide::wait_queue`] says `OUT`.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        if self.tty.is_hung_up() { bytes.len() } else { self.tty.input(bytes) }
    }

    /// Takes up to `max` bytes that programs have written.
    pub fn take_output(&self, max: usize) -> Vec<u8> {
        self.tty.take_output(max)
    }

    /// Tells the terminal the size of the user's.
    pub fn resize(&self, rows: u16, cols: u16) {
        self.tty.resize(Winsize { rows, cols, ..Winsize::default() });
    }

    /// The user's terminal has gone: SIGHUP to the session's leader, end of file for readers.
    pub fn hang_up(&self) {
        self.tty.vhangup();
    }

    /// `IN` when there is output to take, `OUT` when there is room for input again.
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.tty.master_queue
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        self.terminals.remove(self.tty.index());
        self.tty.vhangup();
    }
}
