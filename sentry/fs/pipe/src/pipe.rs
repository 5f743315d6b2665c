//! The pipe, its two kinds of ends, and the opening of FIFOs.

use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::Arc;

use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::{Attr, Caller, FileKind, FileOps, IoCtx, IoStart, OpenFlags, Pos, cap};

use crate::ring::Ring;

/// Bytes of a slot, and `PIPE_BUF`.
pub const PAGE: usize = 4096;
/// Slots of a new pipe: 64 KiB.
pub const DEFAULT_SLOTS: usize = 16;
/// `/proc/sys/fs/pipe-max-size`, in bytes.
pub const MAX_SIZE: usize = 1 << 20;
/// The most that `F_SETPIPE_SZ` gives even to the privileged, in bytes.
const PRIVILEGED_MAX: usize = 1 << 26;

/// The device number of pipefs.
const PIPEFS_DEV: u64 = 13;

/// One page of Linux's pipe: what a write put there.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Bytes already read from the page.
    offset: usize,
    len: usize,
    /// Written with `O_DIRECT`: read on its own, the rest thrown away.
    packet: bool,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    slots: VecDeque<Slot>,
    max_slots: usize,
    readers: usize,
    writers: usize,
    /// Opens for reading and for writing so far: a FIFO's opener waits for the other one to move.
    reader_opens: u64,
    writer_opens: u64,
}

impl State {
    fn full(&self) -> bool {
        self.slots.len() >= self.max_slots
    }

    /// How much of a write of `total` bytes fits: into the last page, and into fresh ones.
    fn room(&self, total: usize) -> (usize, usize) {
        let tail = total % PAGE;
        let merge = match self.slots.back() {
            Some(last) if tail > 0 && !last.packet && last.offset + last.len + tail <= PAGE => tail,
            _ => 0,
        };
        let free = self.max_slots.saturating_sub(self.slots.len());
        (merge, (total - merge).min(free.saturating_mul(PAGE)))
    }

    /// Accounts `n` bytes that were appended to the ring.
    fn account(&mut self, n: usize, merge: usize, packet: bool) {
        let merged = n.min(merge);
        if let Some(last) = self.slots.back_mut().filter(|_| merged > 0) {
            last.len += merged;
        }
        let mut rest = n - merged;
        while rest > 0 {
            let len = rest.min(PAGE);
            self.slots.push_back(Slot { offset: 0, len, packet });
            rest -= len;
        }
    }

    /// Bytes that one read of `want` takes: never past a packet.
    fn readable(&self, want: usize) -> usize {
        let mut n = 0;
        for slot in &self.slots {
            n += slot.len.min(want - n);
            if n == want || slot.packet {
                break;
            }
        }
        n
    }

    /// Removes `n` bytes from the front, and what is left of a packet that was read in part.
    fn consume(&mut self, n: usize) {
        let mut rest = n;
        let mut dropped = 0;
        while rest > 0 {
            let Some(slot) = self.slots.front_mut() else { break };
            let take = slot.len.min(rest);
            rest -= take;
            if slot.packet {
                dropped += slot.len - take;
                self.slots.pop_front();
            } else {
                slot.len -= take;
                slot.offset += take;
                if slot.len == 0 {
                    self.slots.pop_front();
                }
            }
        }
        self.ring.consume(n + dropped);
    }
}

/// A pipe: what its ends share, and what hangs on the inode of a FIFO.
#[derive(Debug)]
pub struct Pipe {
    /// The attributes of a pipe of `pipe(2)`; `None` for a FIFO, whose inode has them.
    attr: Option<Attr>,
    state: Mutex<State, { rank::FILE_DATA }>,
    queue: WaitQueue,
}

impl Pipe {
    /// The pipe of a FIFO.
    pub fn fifo() -> Arc<Self> {
        Self::new(None)
    }

    fn new(attr: Option<Attr>) -> Arc<Self> {
        Arc::new(Self {
            attr,
            state: Mutex::new(State {
                ring: Ring::default(),
                slots: VecDeque::new(),
                max_slots: DEFAULT_SLOTS,
                readers: 0,
                writers: 0,
                reader_opens: 0,
                writer_opens: 0,
            }),
            queue: WaitQueue::new(),
        })
    }

    fn end(self: &Arc<Self>, flags: OpenFlags, seen_writers: Option<u64>) -> PipeEnd {
        PipeEnd {
            pipe: Arc::clone(self),
            reads: flags.reads(),
            writes: flags.writes(),
            packets: AtomicBool::new(self.attr.is_some() && flags.contains(OpenFlags::DIRECT)),
            seen_writers,
        }
    }
}

/// A new pipe, owned by the caller: its reading and its writing end. `flags`: `O_DIRECT` (the others belong to the
/// descriptions).
pub fn pipe(caller: &dyn Caller, flags: OpenFlags) -> (Arc<PipeEnd>, Arc<PipeEnd>) {
    static NEXT_INO: AtomicU64 = AtomicU64::new(0x4000);
    let creds = caller.creds();
    let ino = NEXT_INO.fetch_add(1, Ordering::Relaxed);
    let attr = Attr {
        uid: creds.fsuid,
        gid: creds.fsgid,
        btime: None,
        ..Attr::new(FileKind::Fifo, 0o600, ino, PIPEFS_DEV)
    };
    let pipe = Pipe::new(Some(attr));
    {
        let mut state = pipe.state.lock();
        state.readers = 1;
        state.writers = 1;
        state.reader_opens = 1;
        state.writer_opens = 1;
    }
    let packet = flags & OpenFlags::DIRECT;
    (Arc::new(pipe.end(packet, None)), Arc::new(pipe.end(packet | OpenFlags::WRONLY, None)))
}

/// The opening of a FIFO: over, or waiting for a partner.
#[derive(Debug)]
pub enum FifoOpen {
    Done(Arc<PipeEnd>),
    Wait(FifoWait),
}

/// A FIFO's end that waits for its first partner. Dropping it closes the end.
#[derive(Debug)]
pub struct FifoWait {
    end: Arc<PipeEnd>,
    /// The partner's opens when the wait began.
    seen: u64,
}

impl FifoWait {
    /// Told, with any event, when a partner opens.
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.end.pipe.queue
    }

    /// The open end, once a partner has opened (even if it has closed again).
    pub fn try_finish(&self) -> IoStart<Arc<PipeEnd>> {
        let state = self.end.pipe.state.lock();
        let now = if self.end.reads { state.writer_opens } else { state.reader_opens };
        if now == self.seen { IoStart::WouldBlock } else { IoStart::Done(Arc::clone(&self.end)) }
    }
}

/// Opens a FIFO (`fifo(7)`, `fifo_open` of `fs/pipe.c`): `ENXIO` for a non-blocking writer without a reader.
pub fn open_fifo(pipe: &Arc<Pipe>, flags: OpenFlags) -> Result<FifoOpen> {
    let nonblock = flags.contains(OpenFlags::NONBLOCK);
    let (reads, writes) = (flags.reads(), flags.writes());
    let mut seen_writers = None;
    let mut wait_for = None;
    {
        let mut state = pipe.state.lock();
        if writes && !reads && nonblock && state.readers == 0 {
            return Err(Errno::ENXIO);
        }
        if reads {
            state.reader_opens += 1;
            state.readers += 1;
        }
        if writes {
            state.writer_opens += 1;
            state.writers += 1;
        }
        if reads && !writes && state.writers == 0 {
            if nonblock {
                // No POLLHUP before a writer has come and gone.
                seen_writers = Some(state.writer_opens);
            } else {
                wait_for = Some(state.writer_opens);
            }
        } else if writes && !reads && state.readers == 0 {
            wait_for = Some(state.reader_opens);
        }
    }
    let end = Arc::new(pipe.end(flags, seen_writers));
    pipe.queue.notify(Events::READABLE | Events::WRITABLE);
    Ok(match wait_for {
        None => FifoOpen::Done(end),
        Some(seen) => FifoOpen::Wait(FifoWait { end, seen }),
    })
}

/// An open end of a pipe, or both (`O_RDWR` on a FIFO).
#[derive(Debug)]
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    packets: AtomicBool,
    /// Opens for writing when this end was opened without blocking and without a writer.
    seen_writers: Option<u64>,
}

impl PipeEnd {
    /// Whether both are ends of the same pipe.
    pub fn same_pipe(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pipe, &other.pipe)
    }

    pub fn is_reader(&self) -> bool {
        self.reads
    }

    pub fn is_writer(&self) -> bool {
        self.writes
    }

    /// The capacity in bytes (`F_GETPIPE_SZ`).
    pub fn size(&self) -> usize {
        self.pipe.state.lock().max_slots * PAGE
    }

    /// Changes the capacity (`F_SETPIPE_SZ`): rounded up to a power of two of pages. `EPERM` above
    /// [`MAX_SIZE`] without `CAP_SYS_RESOURCE`, `EBUSY` for less than what is held.
    pub fn set_size(&self, caller: &dyn Caller, bytes: u64) -> Result<usize> {
        let bytes = usize::try_from(bytes).ok().filter(|b| *b <= 1 << 31).ok_or(Errno::EINVAL)?;
        let bytes = bytes.max(PAGE).next_power_of_two();
        let mut state = self.pipe.state.lock();
        let grows = bytes > state.max_slots * PAGE;
        if grows && bytes > MAX_SIZE && !caller.creds().has_cap(cap::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        if bytes > PRIVILEGED_MAX {
            return Err(Errno::ENOMEM);
        }
        let slots = bytes / PAGE;
        if slots < state.slots.len() {
            return Err(Errno::EBUSY);
        }
        let was_full = state.full();
        state.max_slots = slots;
        let wake = was_full && !state.full();
        drop(state);
        if wake {
            self.pipe.queue.notify(Events::WRITABLE);
        }
        Ok(bytes)
    }

    /// Takes up to `max` bytes out, for `splice(2)`; empty at the end of the file.
    pub fn take(&self, max: usize) -> IoStart<Vec<u8>> {
        let mut out = Vec::new();
        let mut state = self.pipe.state.lock();
        let n = state.readable(max);
        if n == 0 {
            return if state.writers == 0 || max == 0 { IoStart::Done(out) } else { IoStart::WouldBlock };
        }
        out.reserve_exact(n);
        let _ = state.ring.peek_with(n, |part| {
            out.extend_from_slice(part);
            Ok(part.len())
        });
        let was_full = state.full();
        state.consume(n);
        drop(state);
        if was_full {
            self.pipe.queue.notify(Events::WRITABLE);
        }
        IoStart::Done(out)
    }

    /// Puts back what [`PipeEnd::take`] took and nobody wanted.
    pub fn give_back(&self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut state = self.pipe.state.lock();
        state.ring.push_front(data);
        for chunk in data.rchunks(PAGE) {
            // Not to be merged into: a full page.
            state.slots.push_front(Slot { offset: PAGE - chunk.len(), len: chunk.len(), packet: false });
        }
        drop(state);
        self.pipe.queue.notify(Events::READABLE);
    }

    /// A copy of up to `max` bytes that stay in the pipe, for `tee(2)`; empty at the end of the file.
    pub fn peek(&self, max: usize) -> IoStart<Vec<u8>> {
        let mut out = Vec::new();
        let state = self.pipe.state.lock();
        let n = state.readable(max);
        if n == 0 && state.writers > 0 && max > 0 {
            return IoStart::WouldBlock;
        }
        let _ = state.ring.peek_with(n, |part| {
            out.extend_from_slice(part);
            Ok(part.len())
        });
        IoStart::Done(out)
    }

    /// Bytes that a write of `want` could place now; `EPIPE` (and SIGPIPE) without a reader.
    pub fn room(&self, caller: &dyn Caller, want: usize) -> Result<usize> {
        let state = self.pipe.state.lock();
        if state.readers == 0 {
            drop(state);
            caller.signal_self(libc::SIGPIPE);
            return Err(Errno::EPIPE);
        }
        let free = state.max_slots.saturating_sub(state.slots.len());
        Ok(want.min(free.saturating_mul(PAGE)))
    }

    /// Appends all of `data`, for `splice(2)`, whose caller has asked for [`PipeEnd::room`]: a writer that came in
    /// between may leave the pipe fuller than full for a moment.
    pub fn append(&self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut state = self.pipe.state.lock();
        let mut rest = data;
        let pushed = state.ring.push_with(data.len(), |part| {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            if let Some(to) = part.get_mut(..now.len()) {
                to.copy_from_slice(now);
            }
            rest = later;
            Ok(now.len())
        });
        state.account(pushed.unwrap_or(0), 0, false);
        drop(state);
        self.pipe.queue.notify(Events::READABLE);
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        let mut events = Events::empty();
        if self.reads {
            state.readers = state.readers.saturating_sub(1);
            if state.readers == 0 {
                events |= Events::WRITABLE | Events::ERR;
            }
        }
        if self.writes {
            state.writers = state.writers.saturating_sub(1);
            if state.writers == 0 {
                events |= Events::READABLE | Events::HUP;
            }
        }
        if state.readers == 0 && state.writers == 0 {
            // A FIFO that nobody has open holds nothing.
            state.ring.clear();
            state.slots.clear();
            state.max_slots = DEFAULT_SLOTS;
        }
        drop(state);
        if !events.is_empty() {
            self.pipe.queue.notify(events);
        }
    }
}

impl FileOps for PipeEnd {
    fn readiness(&self) -> Events {
        let state = self.pipe.state.lock();
        let mut events = Events::empty();
        if self.reads {
            if !state.slots.is_empty() {
                events |= Events::READABLE;
            }
            if state.writers == 0 && self.seen_writers != Some(state.writer_opens) {
                events |= Events::HUP;
            }
        }
        if self.writes {
            if !state.full() {
                events |= Events::WRITABLE;
            }
            if state.readers == 0 {
                events |= Events::ERR;
            }
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pipe.queue)
    }

    fn try_read(&self, _io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if !self.reads {
            return Err(Errno::EBADF);
        }
        let want = dst.remaining();
        if want == 0 {
            return Ok(IoStart::Done(0));
        }
        let mut state = self.pipe.state.lock();
        let n = state.readable(want);
        if n == 0 {
            return Ok(if state.writers == 0 { IoStart::Done(0) } else { IoStart::WouldBlock });
        }
        let moved = state.ring.peek_with(n, |part| dst.write(part))?;
        let was_full = state.full();
        state.consume(moved);
        let wake = was_full && !state.full();
        drop(state);
        if wake {
            self.pipe.queue.notify(Events::WRITABLE);
        }
        Ok(IoStart::Done(moved))
    }

    fn try_write(&self, io: &IoCtx<'_>, src: &mut UserReader<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        if !self.writes {
            return Err(Errno::EBADF);
        }
        let total = src.remaining();
        if total == 0 {
            return Ok(IoStart::Done(0));
        }
        let mut state = self.pipe.state.lock();
        if state.readers == 0 {
            drop(state);
            io.caller.signal_self(libc::SIGPIPE);
            return Err(Errno::EPIPE);
        }
        let (merge, fresh) = state.room(total);
        if merge + fresh == 0 {
            return Ok(IoStart::WouldBlock);
        }
        let moved = state.ring.push_with(merge + fresh, |part| src.read(part))?;
        let packet = self.packets.load(Ordering::Relaxed);
        state.account(moved, merge, packet);
        drop(state);
        self.pipe.queue.notify(Events::READABLE);
        Ok(IoStart::Done(moved))
    }

    fn ioctl(&self, io: &IoCtx<'_>, command: u32, arg: u64) -> Result<i64> {
        if command != abi::tty::ioc::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let held = i32::try_from(self.pipe.state.lock().ring.len()).unwrap_or(i32::MAX);
        io.caller.mem().copy_out(arg, &held.to_ne_bytes())?;
        Ok(0)
    }

    fn flags_changed(&self, flags: OpenFlags) {
        self.packets.store(self.pipe.attr.is_some() && flags.contains(OpenFlags::DIRECT), Ordering::Relaxed);
    }

    fn attr(&self) -> Option<Result<Attr>> {
        self.pipe.attr.map(Ok)
    }

    fn link_text(&self) -> Option<String> {
        self.pipe.attr.map(|attr| format!("pipe:[{}]", attr.ino))
    }

    fn kind(&self) -> FileKind {
        FileKind::Fifo
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sentry_vfs::testing::TestCaller;

    fn write(caller: &TestCaller, end: &PipeEnd, data: &[u8]) -> Result<IoStart<usize>> {
        end.try_write(&caller.io(OpenFlags::default()), &mut UserReader::buffer(data), Pos::Stream)
    }

    fn read(caller: &TestCaller, end: &PipeEnd, n: usize) -> Result<IoStart<Vec<u8>>> {
        let mut buf = vec![0; n];
        let io = caller.io(OpenFlags::default());
        Ok(match end.try_read(&io, &mut UserWriter::buffer(&mut buf), Pos::Stream)? {
            IoStart::Done(n) => IoStart::Done(buf[..n].to_vec()),
            IoStart::WouldBlock => IoStart::WouldBlock,
        })
    }

    #[test]
    fn fills_and_empties_by_pages() {
        let c = TestCaller::new(1);
        let (r, w) = pipe(&c, OpenFlags::default());
        assert_eq!(read(&c, &r, 10), Ok(IoStart::WouldBlock));
        let data: Vec<u8> = (0..70_000_u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(write(&c, &w, &data), Ok(IoStart::Done(65_536)));
        assert_eq!(write(&c, &w, b"x"), Ok(IoStart::WouldBlock));
        assert!(!w.readiness().contains(Events::OUT));
        // A page that is read in part is not free yet.
        assert_eq!(read(&c, &r, 1), Ok(IoStart::Done(data[..1].to_vec())));
        assert_eq!(write(&c, &w, b"x"), Ok(IoStart::WouldBlock));
        assert_eq!(read(&c, &r, 4095), Ok(IoStart::Done(data[1..4096].to_vec())));
        assert_eq!(write(&c, &w, &data[..4096]), Ok(IoStart::Done(4096)));
        assert_eq!(read(&c, &r, 100_000), Ok(IoStart::Done([&data[4096..65_536], &data[..4096]].concat())));
        // Small writes share a page.
        for _ in 0..65_536 {
            assert_eq!(write(&c, &w, b"y"), Ok(IoStart::Done(1)));
        }
        assert_eq!(write(&c, &w, b"y"), Ok(IoStart::WouldBlock));
    }

    #[test]
    fn closing_is_seen_by_the_other_end() {
        let c = TestCaller::new(1);
        let (r, w) = pipe(&c, OpenFlags::default());
        write(&c, &w, b"last").unwrap();
        drop(w);
        assert_eq!(r.readiness(), Events::READABLE | Events::HUP);
        assert_eq!(read(&c, &r, 10), Ok(IoStart::Done(b"last".to_vec())));
        assert_eq!(read(&c, &r, 10), Ok(IoStart::Done(Vec::new())));
        let (r, w) = pipe(&c, OpenFlags::default());
        drop(r);
        assert!(w.readiness().contains(Events::ERR));
        assert_eq!(write(&c, &w, b""), Ok(IoStart::Done(0)));
        assert_eq!(write(&c, &w, b"x"), Err(Errno::EPIPE));
        assert_eq!(c.sent(), [(0, libc::SIGPIPE)]);
    }

    #[test]
    fn packets_are_read_one_by_one() {
        let c = TestCaller::new(1);
        let (r, w) = pipe(&c, OpenFlags::DIRECT);
        write(&c, &w, b"hello").unwrap();
        write(&c, &w, b"world").unwrap();
        assert_eq!(read(&c, &r, 3), Ok(IoStart::Done(b"hel".to_vec())));
        assert_eq!(read(&c, &r, 30), Ok(IoStart::Done(b"world".to_vec())));
    }

    #[test]
    fn fifos_wait_for_a_partner() {
        let fifo = Pipe::fifo();
        assert_eq!(open_fifo(&fifo, OpenFlags::WRONLY | OpenFlags::NONBLOCK).err(), Some(Errno::ENXIO));
        let FifoOpen::Wait(wait) = open_fifo(&fifo, OpenFlags::default()).unwrap() else { panic!("no wait") };
        assert!(matches!(wait.try_finish(), IoStart::WouldBlock));
        let FifoOpen::Done(w) = open_fifo(&fifo, OpenFlags::WRONLY).unwrap() else { panic!("no reader") };
        drop(w);
        let IoStart::Done(r) = wait.try_finish() else { panic!("partner missed") };
        assert_eq!(r.readiness(), Events::HUP);
        let FifoOpen::Done(early) = open_fifo(&fifo, OpenFlags::NONBLOCK).unwrap() else {
            panic!("O_NONBLOCK waits")
        };
        assert_eq!(early.readiness(), Events::empty());
        let FifoOpen::Done(_both) = open_fifo(&fifo, OpenFlags::RDWR).unwrap() else {
            panic!("O_RDWR waits")
        };
    }

    #[test]
    fn spliced_bytes_can_be_put_back() {
        let c = TestCaller::new(1);
        let (r, w) = pipe(&c, OpenFlags::default());
        write(&c, &w, b"abcdef").unwrap();
        let IoStart::Done(data) = r.take(4) else { panic!("nothing to take") };
        assert_eq!(data, b"abcd");
        r.give_back(&data[2..]);
        w.append(b"gh");
        assert_eq!(r.peek(3), IoStart::Done(b"cde".to_vec()));
        assert_eq!(read(&c, &r, 100), Ok(IoStart::Done(b"cdefgh".to_vec())));
        assert_eq!(r.set_size(&c, 5000), Ok(8192));
        assert_eq!(w.size(), 8192);
    }
}
