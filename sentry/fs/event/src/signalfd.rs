//! signalfd: pending signals as something to read (`signalfd(2)`, `fs/signalfd.c`).

use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use abi::poll::SignalfdSiginfo;
use sentry_base::{Errno, Events, Result, WaitQueue};
use sentry_memory::UserWriter;
use sentry_vfs::{Attr, Caller, FileOps, IoCtx, IoStart, Pos};
use zerocopy::{FromZeros, IntoBytes};

/// The pending signals of a process, as the kernel keeps them.
pub trait SignalSource: Send + Sync {
    /// Takes one pending signal of `mask` (bit `n - 1` for signal `n`) that is due to the caller, its own first: a
    /// `siginfo_t`.
    fn dequeue(&self, caller: &dyn Caller, mask: u64) -> Option<[u8; 128]>;
    /// The pending signals of the process that made the file.
    fn pending(&self) -> u64;
    /// Told with [`Events::IN`] when a signal becomes pending.
    fn wait_queue(&self) -> &WaitQueue;
}

impl core::fmt::Debug for dyn SignalSource {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SignalSource")
    }
}

/// SIGKILL and SIGSTOP cannot be taken.
const UNTAKEABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// An open signalfd.
#[derive(Debug)]
pub struct SignalFd {
    source: Arc<dyn SignalSource>,
    mask: AtomicU64,
}

impl SignalFd {
    pub fn new(source: Arc<dyn SignalSource>, mask: u64) -> Arc<Self> {
        Arc::new(Self { source, mask: AtomicU64::new(mask & !UNTAKEABLE) })
    }

    /// Replaces the set of signals (`signalfd4` on an open one).
    pub fn set_mask(&self, mask: u64) {
        self.mask.store(mask & !UNTAKEABLE, Ordering::SeqCst);
        self.source.wait_queue().notify(Events::IN);
    }
}

/// A field of a `siginfo_t`, 4 bytes at `at`.
fn word(info: &[u8; 128], at: usize) -> u32 {
    info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(info: &[u8; 128], at: usize) -> u64 {
    info.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// What is read for a `siginfo_t` (`signalfd_copyinfo`): which fields hold depends on who sent it.
fn to_signalfd(info: &[u8; 128]) -> SignalfdSiginfo {
    let mut out = SignalfdSiginfo::new_zeroed();
    out.signo = word(info, 0);
    out.errno = word(info, 4).cast_signed();
    out.code = word(info, 8).cast_signed();
    let signal = out.signo.cast_signed();
    match out.code {
        libc::SI_TIMER => {
            out.tid = word(info, 16);
            out.overrun = word(info, 20);
            out.int = word(info, 24).cast_signed();
            out.ptr = long(info, 24);
        }
        libc::SI_QUEUE | libc::SI_MESGQ | libc::SI_ASYNCIO => {
            out.pid = word(info, 16);
            out.uid = word(info, 20);
            out.int = word(info, 24).cast_signed();
            out.ptr = long(info, 24);
        }
        code if code > 0 && code < libc::SI_KERNEL => match signal {
            libc::SIGCHLD => {
                out.pid = word(info, 16);
                out.uid = word(info, 20);
                out.status = word(info, 24).cast_signed();
                out.utime = long(info, 32);
                out.stime = long(info, 40);
            }
            libc::SIGILL | libc::SIGFPE | libc::SIGSEGV | libc::SIGBUS | libc::SIGTRAP => {
                out.addr = long(info, 16);
                out.addr_lsb = u16::try_from(word(info, 24) & 0xffff).unwrap_or(0);
            }
            libc::SIGIO => {
                out.band = word(info, 16);
                out.fd = word(info, 24).cast_signed();
            }
            libc::SIGSYS => {
                out.call_addr = long(info, 16);
                out.syscall = word(info, 24).cast_signed();
                out.arch = word(info, 28);
            }
            _ => {
                out.pid = word(info, 16);
                out.uid = word(info, 20);
            }
        },
        _ => {
            out.pid = word(info, 16);
            out.uid = word(info, 20);
        }
    }
    out
}

impl FileOps for SignalFd {
    fn readiness(&self) -> Events {
        if self.source.pending() & self.mask.load(Ordering::SeqCst) != 0 {
            Events::IN
        } else {
            Events::empty()
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.source.wait_queue())
    }

    fn try_read(&self, io: &IoCtx<'_>, dst: &mut UserWriter<'_>, _pos: Pos) -> Result<IoStart<usize>> {
        const SIZE: usize = size_of::<SignalfdSiginfo>();
        if dst.remaining() < SIZE {
            return Err(Errno::EINVAL);
        }
        let mask = self.mask.load(Ordering::SeqCst);
        let mut total = 0;
        while dst.remaining() >= SIZE {
            let Some(info) = self.source.dequeue(io.caller, mask) else { break };
            match dst.write(to_signalfd(&info).as_bytes()) {
                Ok(SIZE) => total += SIZE,
                _ if total > 0 => break,
                _ => return Err(Errno::EFAULT),
            }
        }
        Ok(if total == 0 { IoStart::WouldBlock } else { IoStart::Done(total) })
    }

    fn attr(&self) -> Option<Result<Attr>> {
        Some(Ok(crate::anon_attr()))
    }

    fn link_text(&self) -> Option<String> {
        Some("anon_inode:[signalfd]".into())
    }

    fn fdinfo(&self) -> String {
        format!("sigmask:\t{:016x}\n", self.mask.load(Ordering::SeqCst))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
