//! The open files of a terminal: the program's side and the master.

use core::any::Any;
use std::sync::Arc;

use abi::tty::{cc, lflag, pkt};
use sentry_base::{Errno, Events, Nanos, Result, WaitQueue, mono_now};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{Caller, FileKind, FileOps, IoCtx, IoStart, OpenFlags, Pos, WaitLimit};

use super::{State, Terminals, Tty};

/// The most that one call moves.
const CHUNK: usize = 4096;

/// `VTIME` counts tenths of a second.
const TENTH: Nanos = 100_000_000;

/// An open slave: what a program reads and writes.
#[derive(Debug)]
pub struct TtyFile {
    tty: Arc<Tty>,
}

impl TtyFile {
    /// The terminal must have counted this file already.
    pub(super) fn new(tty: Arc<Tty>) -> Self {
        Self { tty }
    }

    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }
}

impl Drop for TtyFile {
    fn drop(&mut self) {
        self.tty.close_slave();
    }
}

impl State {
    /// `VMIN` and `VTIME` (in nanoseconds) of a raw terminal; of a canonical one, any line will do.
    fn min_time(&self) -> (usize, Nanos) {
        if self.ldisc.l(lflag::ICANON) {
            (1, 0)
        } else {
            (usize::from(self.ldisc.cc(cc::VMIN)), Nanos::from(self.ldisc.cc(cc::VTIME)) * TENTH)
        }
    }

    /// Whether a read of `want` bytes may return what there is. Who does not wait gets whatever has come.
    fn satisfies(&self, want: usize, waits: bool) -> bool {
        let available = self.ldisc.available();
        let (min, time) = self.min_time();
        match (min, time) {
            (0, 0) => true,
            (0, _) => available > 0,
            _ if !waits => available > 0,
            (_, 0) => available >= min.min(want),
            // The time counts from byte to byte, and only once there is one.
            _ => available >= min.min(want) || (available > 0 && self.is_idle_for(time)),
        }
    }

    fn is_idle_for(&self, time: Nanos) -> bool {
        mono_now().saturating_sub(self.typed_at) >= time
    }
}

impl FileOps for TtyFile {
    fn readiness(&self) -> Events {
        let state = self.tty.state.lock();
        if state.hung_up {
            return Events::READABLE | Events::WRITABLE | Events::ERR | Events::HUP;
        }
        let mut events = Events::empty();
        let (min, time) = state.min_time();
        let enough = if time == 0 { min.max(1) } else { 1 };
        if state.ldisc.available() >= enough {
            events |= Events::READABLE;
        }
        if state.ldisc.output_room() > 0 {
            events |= Events::WRITABLE;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.tty.slave_queue)
    }

    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if self.tty.is_hung_up() {
            return Ok(IoStart::Done(0));
        }
        self.tty.check_change(io.caller, libc::SIGTTIN)?;
        let want = dst.remaining();
        if want == 0 {
            return Ok(IoStart::Done(0));
        }
        let (data, had_room) = {
            let state = self.tty.state.lock();
            let had_room = state.ldisc.input_room();
            if !state.satisfies(want, !io.flags.contains(OpenFlags::NONBLOCK)) {
                return Ok(IoStart::WouldBlock);
            }
            drop(state);
            (self.tty.with_ldisc(|ldisc, effects| ldisc.read(want.min(CHUNK), effects)), had_room)
        };
        // Somebody may type into the room, and the next reader may find the rest.
        if !had_room {
            self.tty.master_queue.notify(Events::WRITABLE);
        }
        if self.tty.state.lock().ldisc.available() > 0 {
            self.tty.slave_queue.notify(Events::READABLE);
        }
        if data.is_empty() {
            return Ok(IoStart::Done(0));
        }
        dst.write(&data).map(IoStart::Done)
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if self.tty.is_hung_up() {
            return Err(Errno::EIO);
        }
        if self.tty.stops_writers() {
            self.tty.check_change(io.caller, libc::SIGTTOU)?;
        }
        if src.remaining() == 0 {
            return Ok(IoStart::Done(0));
        }
        let room = self.tty.state.lock().ldisc.output_room();
        if room == 0 {
            return Ok(IoStart::WouldBlock);
        }
        let mut bytes = vec![0; src.remaining().min(room).min(CHUNK)];
        let n = src.read(&mut bytes)?;
        self.tty.state.lock().ldisc.write(bytes.get(..n).unwrap_or_default());
        self.tty.master_queue.notify(Events::READABLE);
        Ok(IoStart::Done(n))
    }

    fn wait_limit(&self, writing: bool) -> Option<WaitLimit> {
        if writing {
            return None;
        }
        let state = self.tty.state.lock();
        let (min, time) = state.min_time();
        let counts = time > 0 && (min == 0 || state.ldisc.available() > 0);
        counts.then_some(WaitLimit { ns: time, then: Ok(0) })
    }

    fn wait_stamp(&self) -> u64 {
        let state = self.tty.state.lock();
        let (min, time) = state.min_time();
        if min > 0 && time > 0 { state.typed } else { 0 }
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        self.tty.ioctl(io, command, arg, false)
    }

    fn kind(&self) -> FileKind {
        FileKind::CharDevice
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open master (`/dev/ptmx`). Closing it hangs the terminal up.
#[derive(Debug)]
pub struct MasterFile {
    tty: Arc<Tty>,
    terminals: Arc<Terminals>,
}

impl MasterFile {
    pub(super) fn new(tty: Arc<Tty>, terminals: Arc<Terminals>) -> Self {
        Self { tty, terminals }
    }

    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }

    /// `TIOCGPTPEER`: the other side, whatever devpts it is in.
    pub fn open_peer(&self, flags: OpenFlags, caller: &dyn Caller) -> Result<Arc<dyn FileOps>> {
        self.terminals.open_slave(self.tty.index(), flags, caller)
    }
}

impl Drop for MasterFile {
    fn drop(&mut self) {
        self.terminals.remove(self.tty.index());
        self.tty.vhangup();
    }
}

impl FileOps for MasterFile {
    fn readiness(&self) -> Events {
        let state = self.tty.state.lock();
        let mut events = Events::empty();
        if state.ldisc.output_len() > 0 {
            events |= Events::READABLE;
        }
        if state.packet && state.status != 0 {
            events |= Events::READABLE | Events::PRI;
        }
        if state.slaves_gone || state.hung_up {
            events |= Events::HUP;
        }
        if state.ldisc.input_room() {
            events |= Events::WRITABLE;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.tty.master_queue)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if dst.remaining() == 0 {
            return Ok(IoStart::Done(0));
        }
        let (packet, gone) = {
            let mut state = self.tty.state.lock();
            if state.packet && state.status != 0 {
                let status = core::mem::take(&mut state.status);
                drop(state);
                return dst.write(&[status]).map(IoStart::Done);
            }
            if state.ldisc.output_len() == 0 {
                return if state.slaves_gone || state.hung_up {
                    Err(Errno::EIO)
                } else {
                    Ok(IoStart::WouldBlock)
                };
            }
            (state.packet, state.hung_up)
        };
        if gone {
            return Err(Errno::EIO);
        }
        let mut moved = 0;
        if packet {
            moved += dst.write(&[pkt::DATA])?;
        }
        let data = self.tty.take_output(dst.remaining().min(CHUNK));
        if !data.is_empty() {
            moved += dst.write(&data)?;
        }
        Ok(IoStart::Done(moved))
    }

    fn try_write(&self, _io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if src.remaining() == 0 {
            return Ok(IoStart::Done(0));
        }
        if !self.tty.input_room() {
            return Ok(IoStart::WouldBlock);
        }
        let mut bytes = vec![0; src.remaining().min(CHUNK)];
        let n = src.clone().read(&mut bytes)?;
        let n = self.tty.input(bytes.get(..n).unwrap_or_default());
        // Only what there was room for is taken.
        Ok(IoStart::Done(src.skip(n)))
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        self.tty.ioctl(io, command, arg, true)
    }

    fn kind(&self) -> FileKind {
        FileKind::CharDevice
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
