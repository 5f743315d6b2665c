//! poll(2), ppoll(2), select(2), pselect6(2).

use std::sync::Arc;

use abi::poll::PollFd;
use abi::signal::SigSet;
use abi::time::{Timespec, Timeval};
use sentry_base::{Errno, Events, Nanos, Observer, Result, WaitClass, WaitEnd, WaitId, mono_now};
use sentry_kernel::{Call, Current, IntoRax, Restart, RestartBlock, Stop, SysResult};
use sentry_vfs::FileDescription;
use zerocopy::{FromBytes, IntoBytes};

use crate::args::Ptr;
use crate::sys_epoll::read_mask;
use crate::table::syscalls;

syscalls! {
    7 poll(fds: Ptr, count: u64, timeout: i32) [call];
    23 select(count: i32, read: Ptr, write: Ptr, except: Ptr, timeout: Ptr) [call];
    270 pselect6(count: i32, read: Ptr, write: Ptr, except: Ptr, timeout: Ptr, mask: Ptr) [call];
    271 ppoll(fds: Ptr, count: u64, timeout: Ptr, mask: Ptr, size: usize) [call];
}

/// One file to watch.
struct Watch {
    file: Option<Arc<FileDescription>>,
    mask: Events,
    /// What was found.
    found: Events,
}

impl Watch {
    fn look(&mut self) -> bool {
        if let Some(file) = &self.file {
            self.found = file.ops().readiness() & self.mask;
        }
        !self.found.is_empty()
    }
}

/// The files, each looked at; how many have something to say.
fn look(watches: &mut [Watch]) -> usize {
    watches.iter_mut().map(|w| usize::from(w.look())).sum()
}

/// When a wait ends; `None` is never.
type Deadline = Option<Nanos>;

/// How a wait for any of several files ended.
enum Polled {
    Found(usize),
    Interrupted,
}

/// Waits until one of the files has something to say.
async fn wait(cx: &mut Current, watches: &mut [Watch], deadline: Deadline) -> Polled {
    let sleeper = Arc::clone(cx.sleeper());
    sleeper.arm();
    let ids: Vec<Option<WaitId>> = watches
        .iter()
        .map(|w| {
            let queue = w.file.as_ref()?.ops().wait_queue()?;
            Some(queue.add(w.mask, Arc::clone(&sleeper) as Arc<dyn Observer>))
        })
        .collect();
    let end = loop {
        let found = look(watches);
        if found > 0 {
            break Polled::Found(found);
        }
        match cx.sleep(WaitClass::Interruptible, deadline).await {
            WaitEnd::Ready => {}
            WaitEnd::TimedOut => break Polled::Found(look(watches)),
            WaitEnd::Interrupted | WaitEnd::Killed => break Polled::Interrupted,
        }
    };
    for (watch, id) in watches.iter().zip(ids) {
        if let (Some(file), Some(id)) = (&watch.file, id)
            && let Some(queue) = file.ops().wait_queue()
        {
            queue.remove(id);
        }
    }
    end
}

/// `poll` without its timeout: the entries as read, and the files behind them.
struct PollSet {
    at: u64,
    entries: Vec<PollFd>,
    watches: Vec<Watch>,
}

/// `events` and `revents` are the low half of the event word.
fn low_events(events: i16) -> Events {
    Events::from_bits_truncate(u32::from(events.cast_unsigned()))
}

impl PollSet {
    fn read(cx: &Current, fds: Ptr, count: u64) -> Result<Self> {
        if count > cx.rlimit(libc::RLIMIT_NOFILE) {
            return Err(Errno::EINVAL);
        }
        let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
        let mut entries = vec![PollFd::default(); count];
        cx.copy_in(fds.0, entries.as_mut_bytes())?;
        let watches = entries
            .iter()
            .map(|entry| {
                let mask = low_events(entry.events) | Events::ALWAYS;
                match cx.file(entry.fd) {
                    Ok(file) => Watch { file: Some(file), mask, found: Events::empty() },
                    Err(_) if entry.fd < 0 => Watch { file: None, mask, found: Events::empty() },
                    Err(_) => Watch { file: None, mask, found: Events::NVAL },
                }
            })
            .collect();
        Ok(Self { at: fds.0, entries, watches })
    }

    /// Stores `revents`, and nothing else: another thread may be changing the rest.
    fn store(&self, cx: &Current) -> Result<()> {
        for (i, (entry, watch)) in (0_u64..).zip(self.entries.iter().zip(&self.watches)) {
            let found = u16::try_from(watch.found.bits()).unwrap_or(0).cast_signed();
            if found != entry.revents {
                cx.copy_out(self.at.wrapping_add(i * 8 + 6), &found.to_ne_bytes())?;
            }
        }
        Ok(())
    }
}

fn millis(timeout: i32) -> Deadline {
    u64::try_from(timeout).ok().map(|ms| mono_now().saturating_add(ms * 1_000_000))
}

fn poll(cx: &mut Current, fds: Ptr, count: u64, timeout: i32) -> Call<'_> {
    let mut set = match PollSet::read(cx, fds, count) {
        Ok(set) => set,
        Err(errno) => return Call::Done(Err(errno.into())),
    };
    let found = look(&mut set.watches);
    if found > 0 || timeout == 0 {
        return Call::Done(set.store(cx).map(|()| found.into_rax()).map_err(Into::into));
    }
    Call::Wait(Box::pin(
        async move { poll_on(cx, set, fds, count, millis(timeout)).await.map(IntoRax::into_rax) },
    ))
}

async fn poll_on(
    cx: &mut Current,
    mut set: PollSet,
    fds: Ptr,
    count: u64,
    deadline: Deadline,
) -> SysResult<usize> {
    match wait(cx, &mut set.watches, deadline).await {
        Polled::Found(found) => {
            set.store(cx)?;
            Ok(found)
        }
        Polled::Interrupted => {
            cx.set_restart_block(RestartBlock::Poll { fds: fds.0, nfds: count, deadline });
            Err(Stop::Restart(Restart::Block))
        }
    }
}

/// Goes on with a `poll` that was interrupted (`restart_syscall(2)`).
pub(crate) async fn restart_poll(
    cx: &mut Current,
    fds: u64,
    count: u64,
    deadline: Deadline,
) -> SysResult<u64> {
    let fds = Ptr(fds);
    let set = PollSet::read(cx, fds, count)?;
    poll_on(cx, set, fds, count, deadline).await.map(IntoRax::into_rax)
}

/// The timeout of `ppoll` and `pselect6`, which Linux updates with what is left.
struct Timeout {
    at: Ptr,
    deadline: Deadline,
    /// No wait at all: a look.
    zero: bool,
    micros: bool,
}

impl Timeout {
    fn read(cx: &Current, at: Ptr, micros: bool) -> Result<Self> {
        if at.is_null() {
            return Ok(Self { at, deadline: None, zero: false, micros });
        }
        let ns = if micros {
            // Linux normalizes the microseconds of select(2) and refuses only what is negative.
            let time: Timeval = cx.read_obj(at.0)?;
            let sec = u64::try_from(time.sec).map_err(|_| Errno::EINVAL)?;
            let usec = u64::try_from(time.usec).map_err(|_| Errno::EINVAL)?;
            sec.saturating_mul(1_000_000_000).saturating_add(usec.saturating_mul(1000))
        } else {
            cx.read_obj::<Timespec>(at.0)?.to_nanos().ok_or(Errno::EINVAL)?
        };
        Ok(Self { at, deadline: Some(mono_now().saturating_add(ns)), zero: ns == 0, micros })
    }

    /// Stores what is left; a failure is not reported, as in Linux.
    fn store(&self, cx: &Current) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_sub(mono_now());
            let _ = if self.micros {
                cx.write_obj(self.at.0, &Timeval::from_nanos(left))
            } else {
                cx.write_obj(self.at.0, &Timespec::from_nanos(left))
            };
        }
    }
}

fn ppoll(cx: &mut Current, fds: Ptr, count: u64, timeout: Ptr, mask: Ptr, size: usize) -> Call<'_> {
    let parsed = || -> Result<(Timeout, Option<SigSet>)> {
        Ok((Timeout::read(cx, timeout, false)?, read_mask(cx, mask, size)?))
    };
    let (timeout, mask) = match parsed() {
        Ok(parsed) => parsed,
        Err(errno) => return Call::Done(Err(errno.into())),
    };
    if let Some(mask) = mask {
        cx.set_temporary_mask(mask);
    }
    let mut set = match PollSet::read(cx, fds, count) {
        Ok(set) => set,
        Err(errno) => return Call::Done(Err(errno.into())),
    };
    let found = look(&mut set.watches);
    // A signal that the mask has let in comes before an empty answer.
    if found > 0 || (timeout.zero && !cx.sleeper().is_interrupted()) {
        timeout.store(cx);
        return Call::Done(set.store(cx).map(|()| found.into_rax()).map_err(Into::into));
    }
    Call::Wait(Box::pin(async move {
        let end = wait(cx, &mut set.watches, timeout.deadline).await;
        timeout.store(cx);
        match end {
            Polled::Found(found) => {
                set.store(cx)?;
                Ok(found.into_rax())
            }
            Polled::Interrupted => Err(Stop::Restart(Restart::NoHand)),
        }
    }))
}

/// What makes a descriptor readable, writable and exceptional for `select` (`fs/select.c`).
const SELECT_EVENTS: [Events; 3] = [
    Events::from_bits_truncate(
        Events::READABLE.bits() | Events::RDBAND.bits() | Events::HUP.bits() | Events::ERR.bits(),
    ),
    Events::from_bits_truncate(Events::WRITABLE.bits() | Events::WRBAND.bits() | Events::ERR.bits()),
    Events::PRI,
];

/// The three sets of a `select`.
struct SelectSets {
    at: [Ptr; 3],
    /// Bits as read; empty for a null pointer.
    asked: [Vec<u64>; 3],
    fds: Vec<usize>,
    watches: Vec<Watch>,
}

fn bit_of(words: &[u64], fd: usize) -> bool {
    words.get(fd / 64).is_some_and(|w| w & (1 << (fd % 64)) != 0)
}

impl SelectSets {
    fn read(cx: &Current, count: i32, at: [Ptr; 3]) -> Result<Self> {
        let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
        // Linux cuts the count to the size of the descriptor table.
        let most = cx.rlimit(libc::RLIMIT_NOFILE).clamp(1024, 1 << 20);
        let count = count.min(usize::try_from(most).unwrap_or(1024));
        let mut asked = [Vec::new(), Vec::new(), Vec::new()];
        for (words, at) in asked.iter_mut().zip(at) {
            if !at.is_null() {
                words.resize(count.div_ceil(64), 0_u64);
                cx.copy_in(at.0, words.as_mut_bytes())?;
            }
        }
        let mut fds = Vec::new();
        let mut watches = Vec::new();
        for fd in 0..count {
            let mut mask = Events::empty();
            for (words, events) in asked.iter().zip(SELECT_EVENTS) {
                if bit_of(words, fd) {
                    mask |= events;
                }
            }
            if mask.is_empty() {
                continue;
            }
            let number = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
            fds.push(fd);
            watches.push(Watch { file: Some(cx.file(number)?), mask, found: Events::empty() });
        }
        Ok(Self { at, asked, fds, watches })
    }

    /// Stores the bits that are set; returns how many.
    fn store(&self, cx: &Current) -> Result<usize> {
        let mut total = 0;
        for ((words, at), events) in self.asked.iter().zip(self.at).zip(SELECT_EVENTS) {
            if at.is_null() {
                continue;
            }
            let mut out = vec![0_u64; words.len()];
            for (fd, watch) in self.fds.iter().zip(&self.watches) {
                if bit_of(words, *fd)
                    && watch.found.intersects(events)
                    && let Some(word) = out.get_mut(fd / 64)
                {
                    *word |= 1 << (fd % 64);
                    total += 1;
                }
            }
            cx.copy_out(at.0, out.as_bytes())?;
        }
        Ok(total)
    }
}

fn select_common(
    cx: &mut Current,
    count: i32,
    at: [Ptr; 3],
    timeout: Timeout,
    mask: Option<SigSet>,
) -> Call<'_> {
    if let Some(mask) = mask {
        cx.set_temporary_mask(mask);
    }
    let mut sets = match SelectSets::read(cx, count, at) {
        Ok(sets) => sets,
        Err(errno) => return Call::Done(Err(errno.into())),
    };
    if look(&mut sets.watches) > 0 || timeout.zero {
        timeout.store(cx);
        return Call::Done(sets.store(cx).map(IntoRax::into_rax).map_err(Into::into));
    }
    Call::Wait(Box::pin(async move {
        let end = wait(cx, &mut sets.watches, timeout.deadline).await;
        timeout.store(cx);
        match end {
            Polled::Found(_) => Ok(sets.store(cx)?.into_rax()),
            Polled::Interrupted => Err(Stop::Restart(Restart::NoHand)),
        }
    }))
}

fn select(cx: &mut Current, count: i32, read: Ptr, write: Ptr, except: Ptr, timeout: Ptr) -> Call<'_> {
    match Timeout::read(cx, timeout, true) {
        Ok(timeout) => select_common(cx, count, [read, write, except], timeout, None),
        Err(errno) => Call::Done(Err(errno.into())),
    }
}

/// The sixth argument of `pselect6`: a mask and its size.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct MaskArg {
    mask: u64,
    size: u64,
}

fn pselect6(
    cx: &mut Current,
    count: i32,
    read: Ptr,
    write: Ptr,
    except: Ptr,
    timeout: Ptr,
    mask: Ptr,
) -> Call<'_> {
    let parsed = || -> Result<(Timeout, Option<SigSet>)> {
        let mask = if mask.is_null() {
            None
        } else {
            let arg: MaskArg = cx.read_obj(mask.0)?;
            read_mask(cx, Ptr(arg.mask), usize::try_from(arg.size).unwrap_or(usize::MAX))?
        };
        Ok((Timeout::read(cx, timeout, false)?, mask))
    };
    match parsed() {
        Ok((timeout, mask)) => select_common(cx, count, [read, write, except], timeout, mask),
        Err(errno) => Call::Done(Err(errno.into())),
    }
}
