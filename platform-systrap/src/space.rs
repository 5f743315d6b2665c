//! Address spaces: a stub process and its agent.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hostsys::memory;
use parking_lot::Mutex;
use platform::{
    Addr, AddrRange, AddressSpace, Advice, AtomicOp, Barrier, Cause, Fault, FaultMode, HostFd, Kept,
    MapSource, PAGE_SIZE, Prot, Sharing, SpaceError,
};

use crate::Inner;
use crate::agent::{Call, INJECTED, Process, write_orders};
use crate::channel::Arena;
use crate::context::SystrapContext;
use crate::frame::Channel;
use crate::layout::{
    self, CHANNELS, GROUP, GROUP_SLOTS, MAX_GROUPS_OF_SPACE, MAX_ORDERS, ORDERS, SCRATCH, SCRATCH_LEN, SLOT,
    atomic, word,
};
use crate::stub::{CLONE_PROCESS_FLAGS, CLONE_THREAD_FLAGS};
use crate::thread::Thread;

/// An address space of the platform.
#[derive(Debug)]
pub struct Space {
    platform: Arc<Inner>,
    pub(crate) process: Arc<Process>,
    /// Slots that have a thread: the next one has none.
    next_slot: Mutex<u64>,
    /// Orders that are collected.
    held: Mutex<Option<Held>>,
    /// Whether there are any.
    holds: AtomicBool,
    /// Whether [`SCRATCH`] is mapped. Held while its contents count.
    scratch: Mutex<bool>,
}

/// What was ordered of a space in which nothing runs yet.
#[derive(Debug, Default)]
struct Held {
    calls: Vec<Call>,
    /// The agent finds them from [`INJECTED`] on.
    files: Vec<OwnedFd>,
}

/// Files that are collected at most: an agent's table is small.
const MAX_HELD: usize = 32;

/// One batch of what [`AddressSpace::resident`] asks for: ranges with their indices, and their pages in all.
#[derive(Debug, Default)]
struct Batch {
    ranges: Vec<(usize, AddrRange)>,
    pages: u64,
}

impl Space {
    /// A space on `process`, whose first `nr_threads` slots have parked threads.
    fn new(platform: Arc<Inner>, process: Arc<Process>, nr_threads: u64) -> Self {
        process.spares.lock().extend(0..nr_threads);
        Self {
            platform,
            process,
            next_slot: Mutex::new(nr_threads),
            held: Mutex::new(None),
            holds: AtomicBool::new(false),
            scratch: Mutex::new(false),
        }
    }

    pub(crate) fn platform(&self) -> &Inner {
        &self.platform
    }

    fn order(&self, calls: &[Call]) -> Result<(), SpaceError> {
        self.flush()?;
        self.process.order(&self.platform.listener, calls, None).map(drop)
    }

    /// Gives orders that change mappings alone, or keeps them for later. Each of `calls` that maps a file has it as
    /// descriptor [`INJECTED`]; none of them closes it.
    fn order_maps(&self, calls: &[Call], file: Option<HostFd<'_>>) -> Result<(), SpaceError> {
        if self.holds.load(Ordering::Relaxed) && self.keep(calls, file) {
            return Ok(());
        }
        self.flush()?;
        let Some(file) = file else { return self.order(calls) };
        for some in calls.chunks(MAX_ORDERS - 1) {
            let close = Call::new(libc::SYS_close, [INJECTED]);
            let calls: Vec<Call> = some.iter().copied().chain([close]).collect();
            self.process.order(&self.platform.listener, &calls, Some(file))?;
        }
        Ok(())
    }

    fn keep(&self, calls: &[Call], file: Option<HostFd<'_>>) -> bool {
        let mut held = self.held.lock();
        let Some(held) = &mut *held else { return false };
        let mut number = INJECTED;
        if let Some(file) = file {
            if held.files.len() >= MAX_HELD {
                return false;
            }
            // The caller's may be closed by then.
            let Ok(own) = file.try_clone_to_owned() else { return false };
            number += held.files.len() as u64;
            held.files.push(own);
        }
        held.calls.extend(calls.iter().map(|call| call.with_file(number)));
        true
    }

    /// Gives the orders that were kept.
    fn flush(&self) -> Result<(), SpaceError> {
        if !self.holds.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut held = self.held.lock();
        let Some(Held { mut calls, files }) = held.as_mut().map(std::mem::take) else { return Ok(()) };
        if calls.is_empty() {
            return Ok(());
        }
        calls.extend((INJECTED..).take(files.len()).map(|file| Call::new(libc::SYS_close, [file])));
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.process.order_all(&self.platform.listener, &calls, &files)
    }

    fn channel(&self, slot: u64) -> Result<Channel, SpaceError> {
        let groups = self.process.groups.lock();
        let group = groups.get((slot / GROUP_SLOTS) as usize).ok_or(SpaceError::Limit)?;
        let window = self.platform.arena.slot(*group, slot % GROUP_SLOTS);
        Ok(Channel { window, address: CHANNELS + slot * SLOT, takes_calls: self.platform.takes_calls() })
    }

    /// A parked thread: a spare one, or a new one.
    fn thread(&self) -> Result<Thread, SpaceError> {
        if let Some(slot) = self.process.spares.lock().pop() {
            return Ok(Thread::new(
                &self.platform.running,
                Arc::clone(&self.process),
                self.channel(slot)?,
                slot,
            ));
        }
        let mut next = self.next_slot.lock();
        let slot = *next;
        self.have_group(slot)?;
        let channel = self.channel(slot)?;
        channel.window.store32(word::STATE, layout::state::POSTED);
        self.order(&[self.platform.thread_call(slot)])?;
        *next += 1;
        Ok(Thread::new(&self.platform.running, Arc::clone(&self.process), channel, slot))
    }

    /// Maps the group of `slot`, if it is not.
    fn have_group(&self, slot: u64) -> Result<(), SpaceError> {
        let index = (slot / GROUP_SLOTS) as usize;
        if index < self.process.groups.lock().len() {
            return Ok(());
        }
        if index >= MAX_GROUPS_OF_SPACE {
            return Err(SpaceError::Limit);
        }
        let arena = &self.platform.arena;
        let group = arena.take_group().ok_or(SpaceError::Limit)?;
        // Listed before it is mapped: a mapping that was made and not reported must still be accounted for.
        self.process.groups.lock().push(group);
        let calls = map_group(index as u64, group);
        let mapped = self.process.order(&self.platform.listener, &calls, Some(arena.file()));
        if mapped.is_err() {
            self.process.kill(Cause::Protocol("no room for a channel"));
        }
        mapped.map(drop)
    }

    pub(crate) fn context(self: &Arc<Self>) -> Result<SystrapContext, SpaceError> {
        Ok(SystrapContext::new(Arc::clone(self), Arc::new(self.thread()?)))
    }

    /// Clones the process. `extra` calls are made in the child before anything runs there.
    pub(crate) fn clone_process(
        platform: &Arc<Inner>,
        parent: &Process,
        extra: &[Call],
    ) -> Result<Self, SpaceError> {
        let arena = &platform.arena;
        let group = arena.take_group().ok_or(SpaceError::Limit)?;
        let orders = arena.orders(group);
        arena.slot(group, 0).store32(word::STATE, layout::state::POSTED);
        let mut calls = map_group(0, group).to_vec();
        calls.push(Call::new(libc::SYS_madvise, [ORDERS, PAGE_SIZE, libc::MADV_DONTFORK as u64]));
        calls.extend_from_slice(extra);
        calls.push(platform.thread_call(0));
        write_orders(&orders, &calls);

        let _birth = platform.reaper.birth();
        // The child finds the channel file where its parent has it at that moment.
        let clone = [
            Call::clone_at(CLONE_PROCESS_FLAGS, 0, platform.entries.fork_child, Arena::orders_offset(group)),
            Call::new(libc::SYS_close, [INJECTED]),
        ];
        let pid = match parent.order(&platform.listener, &clone, Some(arena.file())) {
            Ok(pid) => pid as i32,
            Err(error) => {
                // The group is lost if the parent died meanwhile: a child may or may not have it.
                if error != SpaceError::Gone {
                    arena.return_group(group);
                }
                return Err(match error {
                    SpaceError::Host(libc::EAGAIN) => SpaceError::Limit,
                    other => other,
                });
            }
        };
        let process = Arc::new(Process::new(pid, orders, group, calls.len()));
        platform.reaper.register(&process);
        Ok(Self::new(Arc::clone(platform), process, 1))
    }

    /// Waits until the process of a new space has all that it needs. Not needed for what is done by orders.
    pub(crate) fn settle(&self) -> Result<(), SpaceError> {
        self.process.meet(&self.platform.listener)
    }

    fn check(range: AddrRange) -> Result<(), SpaceError> {
        let usable = layout::user_range().contains_range(&range) || range_is_low(range);
        if usable && range.is_page_aligned() && !range.is_empty() {
            Ok(())
        } else {
            Err(SpaceError::BadRange)
        }
    }

    /// The part of a copy that applications may name.
    fn readable(at: Addr, len: usize, vdso: Option<AddrRange>) -> usize {
        let end = match vdso {
            Some(vdso) if vdso.contains(at) => vdso.end,
            _ => layout::STUB_BASE,
        };
        usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(len)
    }

    fn copy(
        &self,
        at: Addr,
        len: usize,
        access: Prot,
        copy: impl FnOnce(i32) -> std::io::Result<usize>,
    ) -> Result<usize, Fault> {
        let fault = Fault { addr: at, access };
        self.flush().map_err(|_| fault)?;
        match self.process.with_pid(copy) {
            Some(Ok(copied)) if copied > 0 || len == 0 => Ok(copied),
            _ => Err(fault),
        }
    }

    /// Has the agent do `calls`, which leave `into.len()` bytes in the scratch memory, and reads those.
    fn ask(&self, mapped: &mut bool, calls: &[Call], into: &mut [u8]) -> Result<(), SpaceError> {
        let mut all = Vec::with_capacity(calls.len() + 2);
        if !*mapped {
            let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            let flags =
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE) as u64;
            all.push(Call::new(libc::SYS_mmap, [SCRATCH, SCRATCH_LEN, prot, flags, u64::MAX, 0]));
            let advice = libc::MADV_DONTFORK as u64;
            all.push(Call::new(libc::SYS_madvise, [SCRATCH, SCRATCH_LEN, advice]));
        }
        all.extend_from_slice(calls);
        self.order(&all)?;
        *mapped = true;
        match self.process.with_pid(|pid| memory::read_process(pid, SCRATCH, into)) {
            Some(Ok(read)) if read == into.len() => Ok(()),
            _ => Err(SpaceError::Gone),
        }
    }

    fn ask_resident(
        &self,
        mapped: &mut bool,
        batch: &Batch,
        tell: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), SpaceError> {
        let mut at = SCRATCH;
        let mut calls = Vec::with_capacity(batch.ranges.len());
        for (_, range) in &batch.ranges {
            calls.push(Call::new(libc::SYS_mincore, [range.start, range.len(), at]));
            at += range.len() / PAGE_SIZE;
        }
        let mut bytes = vec![0; usize::try_from(batch.pages).map_err(|_| SpaceError::BadRange)?];
        self.ask(mapped, &calls, &mut bytes)?;
        let mut rest = bytes.as_slice();
        for (index, range) in &batch.ranges {
            let pages = (range.len() / PAGE_SIZE) as usize;
            let (part, more) = rest.split_at(pages.min(rest.len()));
            tell(*index, part);
            rest = more;
        }
        Ok(())
    }

    /// Has the agent do one operation, on a page that it writes to first: an address that faults is an error there.
    ///
    /// Between the two orders none but the host can take the page away, as it does when someone else makes the mapped file
    /// shorter: then the process dies, as it would of its own next access.
    fn atomic(&self, at: Addr, operation: u64, operand: u32, expected: u32) -> Result<u32, Fault> {
        let page = at - at % PAGE_SIZE;
        let advice = libc::MADV_POPULATE_WRITE as u64;
        let calls = [
            Call::new(libc::SYS_madvise, [page, PAGE_SIZE, advice]),
            Call::atomic(operation, at, operand, expected),
        ];
        let old = self.flush().and_then(|()| self.process.order(&self.platform.listener, &calls, None));
        old.map(|old| old as u32).map_err(|_| Fault { addr: at, access: Prot::WRITE })
    }
}

/// Below the usual lowest address the host decides (`vm.mmap_min_addr`), but the first page is never mapped.
fn range_is_low(range: AddrRange) -> bool {
    range.start >= PAGE_SIZE && range.end <= layout::STUB_BASE
}

/// Maps group number `index` of a process; the channel file is injected, and closed at the end.
fn map_group(index: u64, group: u64) -> [Call; 3] {
    let at = CHANNELS + index * GROUP;
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    [
        Call::new(libc::SYS_mmap, [at, GROUP, prot, flags, INJECTED, group * GROUP]),
        Call::new(libc::SYS_madvise, [at, GROUP, libc::MADV_DONTFORK as u64]),
        Call::new(libc::SYS_close, [INJECTED]),
    ]
}

impl Inner {
    /// The call that makes the thread of `slot`.
    pub(crate) fn thread_call(&self, slot: u64) -> Call {
        let channel = CHANNELS + slot * SLOT;
        Call::clone_at(CLONE_THREAD_FLAGS, channel + word::TID as u64, self.entries.thread_child, channel)
    }
}

impl AddressSpace for Space {
    fn map(
        &self,
        range: AddrRange,
        source: MapSource<'_>,
        prot: Prot,
        sharing: Sharing,
    ) -> Result<(), SpaceError> {
        Self::check(range)?;
        let anonymous = libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let sharing = match sharing {
            Sharing::Private => libc::MAP_PRIVATE,
            Sharing::Shared => libc::MAP_SHARED,
        };
        let map = |prot: Prot, flags: i32, fd: u64, offset: u64| {
            let flags = (flags | libc::MAP_FIXED) as u64;
            Call::new(libc::SYS_mmap, [range.start, range.len(), u64::from(prot.bits()), flags, fd, offset])
        };
        let (call, file) = match source {
            MapSource::Zero => (map(prot, sharing | anonymous, u64::MAX, 0), None),
            MapSource::Reserve => (map(Prot::empty(), libc::MAP_PRIVATE | anonymous, u64::MAX, 0), None),
            MapSource::File { file, offset, .. } => {
                (map(prot, sharing | libc::MAP_NORESERVE, INJECTED, offset), Some(file))
            }
        };
        self.order_maps(&[call], file)
    }

    fn map_parts(&self, parts: &[(AddrRange, u64)], file: HostFd<'_>, prot: Prot) -> Result<(), SpaceError> {
        parts.iter().try_for_each(|(range, _)| Self::check(*range))?;
        let flags = (libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED) as u64;
        let prot = u64::from(prot.bits());
        let map = |(range, offset): &(AddrRange, u64)| {
            Call::new(libc::SYS_mmap, [range.start, range.len(), prot, flags, INJECTED, *offset])
        };
        let calls: Vec<Call> = parts.iter().map(map).collect();
        self.order_maps(&calls, Some(file))
    }

    fn hold(&self) {
        *self.held.lock() = Some(Held::default());
        self.holds.store(true, Ordering::Relaxed);
    }

    fn release(&self) -> Result<(), SpaceError> {
        let flushed = self.flush();
        self.holds.store(false, Ordering::Relaxed);
        *self.held.lock() = None;
        flushed
    }

    fn unmap(&self, range: AddrRange) -> Result<(), SpaceError> {
        Self::check(range)?;
        self.order_maps(&[Call::new(libc::SYS_munmap, [range.start, range.len()])], None)
    }

    fn protect(&self, range: AddrRange, prot: Prot) -> Result<(), SpaceError> {
        Self::check(range)?;
        self.order_maps(
            &[Call::new(libc::SYS_mprotect, [range.start, range.len(), u64::from(prot.bits())])],
            None,
        )
    }

    fn move_pages(&self, from: AddrRange, to: Addr, new_len: u64) -> Result<(), SpaceError> {
        Self::check(from)?;
        let target = AddrRange::new(to, new_len).ok_or(SpaceError::BadRange)?;
        Self::check(target)?;
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let whole = Call::new(libc::SYS_mremap, [from.start, from.len(), new_len, flags, to]);
        match self.order(&[whole]) {
            // Before Linux 6.17 one call moves one host mapping only, and what is one mapping to the application may be
            // several to the host. Halves find where they meet.
            Err(SpaceError::Host(libc::EFAULT)) if from.len() > PAGE_SIZE && new_len >= from.len() => {
                let half = (from.len() / 2).next_multiple_of(PAGE_SIZE);
                let middle = from.start + half;
                self.move_pages(AddrRange { start: from.start, end: middle }, to, half)?;
                self.move_pages(AddrRange { start: middle, end: from.end }, to + half, new_len - half)
            }
            other => other,
        }
    }

    fn advise(&self, range: AddrRange, advice: Advice) -> Result<(), SpaceError> {
        Self::check(range)?;
        let advice = match advice {
            Advice::Normal => libc::MADV_NORMAL,
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Free => libc::MADV_FREE,
            Advice::WillNeed => libc::MADV_WILLNEED,
            Advice::HugePage => libc::MADV_HUGEPAGE,
            Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
            Advice::PopulateRead => libc::MADV_POPULATE_READ,
            Advice::PopulateWrite => libc::MADV_POPULATE_WRITE,
        };
        self.order(&[Call::new(libc::SYS_madvise, [range.start, range.len(), advice as u64])])
    }

    fn fork(&self, skip: &[AddrRange], wipe: &[AddrRange]) -> Result<Arc<dyn AddressSpace>, SpaceError> {
        let skipped =
            skip.iter().map(|range| (range, Call::new(libc::SYS_munmap, [range.start, range.len()])));
        let wiped = wipe.iter().map(|range| {
            let advice = libc::MADV_DONTNEED as u64;
            (range, Call::new(libc::SYS_madvise, [range.start, range.len(), advice]))
        });
        let mut extra = Vec::new();
        for (range, call) in skipped.chain(wiped) {
            Self::check(*range)?;
            extra.push(call);
        }
        self.flush()?;
        // What does not fit into the first orders is done after: nothing runs in the child yet.
        let fits = extra.len().min(MAX_ORDERS - 6);
        let (first, rest) = extra.split_at(fits);
        let child = Self::clone_process(&self.platform, &self.process, first)?;
        for calls in rest.chunks(MAX_ORDERS) {
            child.order(calls)?;
        }
        if !extra.is_empty() {
            // A copy into the child may not come before what is wiped.
            child.settle()?;
        }
        Ok(Arc::new(child))
    }

    fn copy_in(&self, from: Addr, dst: &mut [u8], _mode: FaultMode) -> Result<usize, Fault> {
        let len = Self::readable(from, dst.len(), self.platform.vdso);
        if len == 0 && !dst.is_empty() {
            return Err(Fault { addr: from, access: Prot::READ });
        }
        let Some(part) = dst.get_mut(..len) else { return Ok(0) };
        self.copy(from, len, Prot::READ, |pid| memory::read_process(pid, from, part))
    }

    fn copy_out(&self, to: Addr, src: &[u8], _mode: FaultMode) -> Result<usize, Fault> {
        let len = Self::readable(to, src.len(), None);
        if len == 0 && !src.is_empty() {
            return Err(Fault { addr: to, access: Prot::WRITE });
        }
        let Some(part) = src.get(..len) else { return Ok(0) };
        self.copy(to, len, Prot::WRITE, |pid| memory::write_process(pid, to, part))
    }

    fn bury(&self, _range: AddrRange, kept: Vec<Kept>) {
        // The process dies when the last context has let go of this space, and its memory with it.
        self.process.keep(kept);
    }

    fn barrier(&self, reach: Barrier) -> Result<(), SpaceError> {
        let command = |command: i32| Call::new(libc::SYS_membarrier, [command as u64]);
        // The host wants a process to register first; to do so again costs next to nothing.
        match reach {
            Barrier::Threads => self.order(&[
                command(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED),
                command(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED),
            ]),
            Barrier::Code => self.order(&[
                command(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE),
                command(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE),
            ]),
            Barrier::Everywhere => self.order(&[command(libc::MEMBARRIER_CMD_GLOBAL)]),
        }
    }

    fn resident(&self, ranges: &[AddrRange], tell: &mut dyn FnMut(usize, &[u8])) -> Result<(), SpaceError> {
        // Two orders may go to the mapping of the scratch memory.
        const MOST: usize = MAX_ORDERS - 2;
        let mut mapped = self.scratch.lock();
        let mut batch = Batch::default();
        let mut flush = |batch: &mut Batch, tell: &mut dyn FnMut(usize, &[u8])| {
            let full = std::mem::take(batch);
            match self.ask_resident(&mut mapped, &full, tell) {
                // A range that is not mapped in whole ends its batch: the others are asked for one by one.
                Err(SpaceError::Host(_)) if full.ranges.len() > 1 => {
                    for (index, range) in full.ranges {
                        let one = Batch { pages: range.len() / PAGE_SIZE, ranges: vec![(index, range)] };
                        match self.ask_resident(&mut mapped, &one, tell) {
                            Ok(()) | Err(SpaceError::Host(_)) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(())
                }
                Ok(()) | Err(SpaceError::Host(_)) => Ok(()),
                Err(error) => Err(error),
            }
        };
        for (index, range) in ranges.iter().enumerate() {
            Self::check(*range)?;
            let mut rest = *range;
            while !rest.is_empty() {
                let pages = (rest.len() / PAGE_SIZE).min(SCRATCH_LEN - batch.pages);
                let end = rest.start + pages * PAGE_SIZE;
                if pages > 0 {
                    batch.ranges.push((index, AddrRange { start: rest.start, end }));
                    batch.pages += pages;
                }
                rest.start = end;
                if batch.pages == SCRATCH_LEN || batch.ranges.len() == MOST {
                    flush(&mut batch, tell)?;
                }
            }
        }
        if batch.ranges.is_empty() { Ok(()) } else { flush(&mut batch, tell) }
    }

    fn peak_resident_bytes(&self) -> u64 {
        /// Offset of `ru_maxrss` (in KiB) in `struct rusage`.
        const MAXRSS: usize = 32;
        let mut usage = [0; MAXRSS + 8];
        let asked =
            self.ask(&mut self.scratch.lock(), &[Call::new(libc::SYS_getrusage, [0, SCRATCH])], &mut usage);
        let kib = usage.get(MAXRSS..).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        if asked.is_ok() { kib.saturating_mul(1024) } else { 0 }
    }

    fn call_entry(&self) -> Option<Addr> {
        self.platform.takes_calls().then_some(self.platform.entries.call)
    }

    fn on_death(&self, tell: platform::DeathWatch) {
        self.process.watch(tell);
    }

    fn atomic_u32(&self, at: Addr, op: AtomicOp) -> Result<u32, Fault> {
        let access = if op == AtomicOp::Load { Prot::READ } else { Prot::WRITE };
        if !at.is_multiple_of(4) || at >= layout::STUB_BASE {
            return Err(Fault { addr: at, access });
        }
        match op {
            AtomicOp::Load => {
                // The whole aligned word around it: the host copies that with one load, but bytes of less one by one.
                let mut both = [0; 8];
                let copied = self.copy_in(at & !7, &mut both, FaultMode::NoFault);
                if copied != Ok(8) {
                    return Err(Fault { addr: at, access });
                }
                let both = u64::from_ne_bytes(both);
                Ok((both >> ((at & 4) * 8)) as u32)
            }
            AtomicOp::Store(value) => self.atomic(at, atomic::STORE, value, 0),
            AtomicOp::Add(value) => self.atomic(at, atomic::ADD, value, 0),
            AtomicOp::Or(value) => self.atomic(at, atomic::OR, value, 0),
            AtomicOp::And(value) => self.atomic(at, atomic::AND, value, 0),
            AtomicOp::Xor(value) => self.atomic(at, atomic::XOR, value, 0),
            AtomicOp::CompareExchange { current, new } => {
                self.atomic(at, atomic::COMPARE_EXCHANGE, new, current)
            }
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Contexts hold the space, so none is left. The reaper does the rest.
        self.process.unwatch();
        self.process.kill(Cause::HostSignal(libc::SIGKILL));
    }
}
