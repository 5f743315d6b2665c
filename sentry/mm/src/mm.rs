//! An address space: its mappings, its layout, its birth, copy and end.

use core::any::Any;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use platform::{Addr, AddrRange, AddressSpace, Kept, PAGE_SIZE, Platform, SpaceError};
use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, MutexGuard, Result};
use sentry_memory::MemoryFile;

use crate::detour::Detour;
use crate::flags::STACK_GUARD_GAP;
use crate::tree::VmaTree;
use crate::vma::{Backing, Vma};
use crate::{Mappable, MappedFile, MmLimits, VmFlags};

/// The lowest address that may be mapped (`vm.mmap_min_addr`).
pub(crate) const MMAP_MIN: Addr = 0x1_0000;

/// Where the parts of the program are (`struct mm_struct`, `/proc/PID/stat`, `prctl(PR_SET_MM)`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pub start_code: Addr,
    pub end_code: Addr,
    pub start_data: Addr,
    pub end_data: Addr,
    pub start_brk: Addr,
    pub brk: Addr,
    pub start_stack: Addr,
    pub arg_start: Addr,
    pub arg_end: Addr,
    pub env_start: Addr,
    pub env_end: Addr,
    /// The auxiliary vector as bytes (`/proc/PID/auxv`).
    pub auxv: Vec<u8>,
}

/// What the lock protects.
pub(crate) struct State {
    pub tree: VmaTree,
    pub layout: Layout,
    /// Where the search for free addresses begins, downwards.
    pub mmap_base: Addr,
    /// The search resumes here, because all holes above are shorter than `passed_hole`.
    pub search_from: Addr,
    pub passed_hole: u64,
    /// Flags for new mappings (`mlockall(MCL_FUTURE)`).
    pub future: VmFlags,
    /// `RLIMIT_STACK` as last seen, for stack growth.
    pub stack_limit: u64,
    /// The last address that faulted although its page was there, and how often in a row.
    pub last_fault: (Addr, u32),
    pub peak: u64,
    /// Text in which calls take a detour.
    pub detours: Vec<Detour>,
    /// Text that is mapped from now on is shown as it is in its file.
    pub keeps_text: bool,
}

/// How a new address space is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmConfig {
    /// False for `personality(ADDR_NO_RANDOMIZE)`.
    pub randomize: bool,
    /// `RLIMIT_STACK`, in bytes.
    pub stack_limit: u64,
}

impl Default for MmConfig {
    fn default() -> Self {
        Self { randomize: true, stack_limit: MmLimits::DEFAULT.stack }
    }
}

/// The memory of a process (`struct mm_struct`). Shared by the tasks that share memory.
pub struct Mm {
    id: u64,
    myself: Weak<Mm>,
    space: Arc<dyn AddressSpace>,
    user: AddrRange,
    vdso: Option<AddrRange>,
    stack_top: Addr,
    randomize: bool,
    memory: Arc<MemoryFile>,
    state: Mutex<State, { rank::MM_MAPPING }>,
    /// Bits of the `membarrier(2)` commands that this memory is registered for.
    barriers: AtomicU32,
    attachment: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl core::fmt::Debug for Mm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Mm({})", self.id)
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a refusal of the host means to the application.
pub(crate) fn space_errno(error: SpaceError) -> Errno {
    match error {
        SpaceError::Host(errno) => Errno::from_raw(errno),
        SpaceError::BadRange | SpaceError::Gone => Errno::ENOMEM,
        SpaceError::Limit => Errno::EAGAIN,
    }
}

/// A random page-aligned distance of at most `span`, which may be anything.
pub(crate) fn random_pages(span: u64) -> u64 {
    let pages = span / PAGE_SIZE;
    if pages == 0 { 0 } else { sentry_base::rand::next_u64() % pages * PAGE_SIZE }
}

/// Of the stack this much stays mapped, whatever its limit.
const STACK_KEPT: u64 = 132 << 10;
/// The stack starts at most this far below the top (`stack_maxrandom_size`).
const STACK_RANDOM: u64 = 1 << 34;
/// mmap_base is at most this far below its highest place (`mmap_rnd_bits` = 28).
const MMAP_RANDOM: u64 = 1 << 40;

impl Mm {
    /// An empty address space on the platform.
    pub fn new(platform: &dyn Platform, memory: &Arc<MemoryFile>, config: MmConfig) -> Result<Arc<Self>> {
        let space = platform.new_space().map_err(space_errno)?;
        Ok(Self::over(space, platform.user_range(), platform.vdso(), memory, config))
    }

    /// An address space over an empty host one.
    pub fn over(
        space: Arc<dyn AddressSpace>,
        user: AddrRange,
        vdso: Option<AddrRange>,
        memory: &Arc<MemoryFile>,
        config: MmConfig,
    ) -> Arc<Self> {
        let user = AddrRange { start: user.start.max(MMAP_MIN), end: user.end.max(MMAP_MIN) };
        // Linux's figures, scaled down for a platform that gives a smaller range.
        let stack_random = STACK_RANDOM.min(user.len() / 64);
        let mmap_random = MMAP_RANDOM.min(user.len() / 8);
        let random = |span| if config.randomize { random_pages(span) } else { 0 };
        let stack_top = user.end - random(stack_random);
        // mmap_base(): room for the stack between 128 MiB and five sixths of everything.
        let stack_room = config.stack_limit.saturating_add(STACK_GUARD_GAP).saturating_add(stack_random);
        let stack_room = stack_room.clamp((128_u64 << 20).min(user.len() / 6), user.len() / 6 * 5);
        let mmap_base = (user.end - stack_room - random(mmap_random)) & !(PAGE_SIZE - 1);
        let state = State {
            tree: VmaTree::default(),
            layout: Layout::default(),
            mmap_base,
            search_from: mmap_base,
            passed_hole: 0,
            future: VmFlags::empty(),
            stack_limit: config.stack_limit,
            last_fault: (0, 0),
            peak: 0,
            detours: Vec::new(),
            keeps_text: false,
        };
        Self::build(space, user, vdso, stack_top, config.randomize, Arc::clone(memory), state)
    }

    fn build(
        space: Arc<dyn AddressSpace>,
        user: AddrRange,
        vdso: Option<AddrRange>,
        stack_top: Addr,
        randomize: bool,
        memory: Arc<MemoryFile>,
        state: State,
    ) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            id: next_id(),
            myself: Weak::clone(myself),
            space,
            user,
            vdso,
            stack_top,
            randomize,
            memory,
            state: Mutex::new(state),
            barriers: AtomicU32::new(0),
            attachment: OnceLock::new(),
        })
    }

    /// Unique in this sandbox; the private part of a futex key.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// State of the kernel above that lives and dies with this memory, and that no copy of it has: contexts of
    /// asynchronous I/O. Set at most once.
    pub fn attachment(&self) -> &OnceLock<Arc<dyn Any + Send + Sync>> {
        &self.attachment
    }

    /// The platform's side, to create contexts in.
    pub fn space(&self) -> &Arc<dyn AddressSpace> {
        &self.space
    }

    pub fn memory_file(&self) -> &Arc<MemoryFile> {
        &self.memory
    }

    /// Addresses that may be mapped.
    pub fn user_range(&self) -> AddrRange {
        self.user
    }

    pub fn vdso(&self) -> Option<AddrRange> {
        self.vdso
    }

    /// The highest address of the stack, for the loader.
    pub fn stack_top(&self) -> Addr {
        self.stack_top
    }

    /// Whether addresses are randomized.
    pub fn randomizes(&self) -> bool {
        self.randomize
    }

    pub(crate) fn myself(&self) -> &Weak<Self> {
        &self.myself
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State, { rank::MM_MAPPING }> {
        self.state.lock()
    }

    /// A copy for `fork(2)`: private memory is copied on write, shared memory is shared. `EAGAIN` when the host is out
    /// of processes, `ENOMEM` when it is out of memory.
    pub fn fork(&self) -> Result<Arc<Self>> {
        let state = self.lock();
        let with = |flag| state.tree.iter().filter(move |v| v.flags.contains(flag)).map(Vma::range);
        let skip: Vec<_> = with(VmFlags::DONTCOPY).collect();
        let wipe: Vec<_> = with(VmFlags::WIPEONFORK).collect();
        let space = self.space.fork(&skip, &wipe).map_err(space_errno)?;
        let mut tree = VmaTree::default();
        for vma in state.tree.iter().filter(|v| !v.flags.contains(VmFlags::DONTCOPY)) {
            let mut vma = vma.clone();
            vma.flags.remove(VmFlags::LOCK_MASK);
            tree.insert(vma);
        }
        let child = State {
            tree,
            layout: state.layout.clone(),
            mmap_base: state.mmap_base,
            search_from: state.mmap_base,
            passed_hole: 0,
            future: VmFlags::empty(),
            stack_limit: state.stack_limit,
            last_fault: (0, 0),
            peak: state.tree.totals().all,
            detours: state.detours.clone(),
            keeps_text: state.keeps_text,
        };
        let mm = Self::build(
            space,
            self.user,
            self.vdso,
            self.stack_top,
            self.randomize,
            Arc::clone(&self.memory),
            child,
        );
        mm.barriers.store(self.barriers(), Ordering::Relaxed);
        // Registered before this space's lock is released: a truncation that is under way either has been here
        // already, or will find the child.
        let child = mm.lock();
        for vma in child.tree.iter() {
            if let Some(mappings) = vma.file().and_then(|f| f.file.mappings()) {
                mappings.register(mm.id, &mm.myself);
            }
        }
        drop(child);
        drop(state);
        Ok(mm)
    }

    /// The `membarrier(2)` commands that this memory is registered for.
    pub fn barriers(&self) -> u32 {
        self.barriers.load(Ordering::Relaxed)
    }

    /// Registers for the commands of `bits` (`MEMBARRIER_CMD_REGISTER_*`).
    pub fn add_barriers(&self, bits: u32) {
        self.barriers.fetch_or(bits, Ordering::Relaxed);
    }

    /// Where the program's parts are.
    pub fn layout(&self) -> Layout {
        self.lock().layout.clone()
    }

    /// Changes the layout (`prctl(PR_SET_MM)`, the loader).
    pub fn set_layout(&self, change: impl FnOnce(&mut Layout)) {
        change(&mut self.lock().layout);
    }

    /// `RLIMIT_STACK` has changed to this many bytes. The stack was mapped ahead of its use: what lies beyond the limit
    /// and was not used is taken back.
    pub fn set_stack_limit(&self, bytes: u64) {
        let mut state = self.lock();
        state.stack_limit = bytes;
        let start_stack = state.layout.start_stack;
        let Some(vma) = state.tree.find(start_stack).filter(|v| v.flags.contains(VmFlags::GROWSDOWN)) else {
            return;
        };
        let Some(keep) = bytes.max(STACK_KEPT).checked_next_multiple_of(PAGE_SIZE) else { return };
        let beyond = AddrRange { start: vma.start, end: vma.end.saturating_sub(keep).max(vma.start) };
        if beyond.is_empty() {
            return;
        }
        let (mut page, mut lowest_used) = (0, None);
        let asked = self.space.resident(&[beyond], &mut |_, pages| {
            for there in pages {
                if there & 1 != 0 && lowest_used.is_none() {
                    lowest_used = Some(beyond.start + page * PAGE_SIZE);
                }
                page += 1;
            }
        });
        let unused = AddrRange { start: beyond.start, end: lowest_used.unwrap_or(beyond.end) };
        if asked.is_ok() && !unused.is_empty() {
            let removed = self.remove(&mut state, unused);
            drop(state);
            drop(removed);
        }
    }

    /// Figures for `/proc/PID/{status,statm,stat}` and `getrusage(2)`.
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        let totals = state.tree.totals();
        let (peak, count) = (state.peak.max(totals.all), state.tree.count());
        drop(state);
        Usage {
            total: totals.all,
            peak,
            data: totals.data,
            exec: totals.exec,
            stack: totals.stack,
            locked: totals.locked,
            shared: totals.shared,
            count,
        }
    }

    /// Every mapping in order, the vDSO included.
    pub fn maps(&self) -> Vec<MapInfo> {
        let state = self.lock();
        let mut out: Vec<_> = state
            .tree
            .iter()
            .filter(|vma| !vma.flags.contains(VmFlags::HIDDEN))
            .map(|vma| MapInfo::of(vma, &state.layout))
            .collect();
        drop(state);
        if let Some(vdso) = self.vdso {
            let access =
                VmFlags::READ | VmFlags::EXEC | VmFlags::MAYREAD | VmFlags::MAYEXEC | VmFlags::MAYWRITE;
            let info = MapInfo {
                range: vdso,
                flags: access,
                offset: 0,
                identity: (0, 0),
                name: MapName::Vdso,
                is_anon: false,
            };
            let at = out.partition_point(|m| m.range.start < vdso.start);
            out.insert(at, info);
        }
        out
    }

    /// The mapping that holds `addr`.
    pub fn find(&self, addr: Addr) -> Option<MapInfo> {
        let state = self.lock();
        state.tree.find(addr).map(|vma| MapInfo::of(vma, &state.layout))
    }

    /// The file that is mapped at `addr`, with the byte of it (`/proc/PID/map_files`, core dumps, `uprobes`).
    pub fn file_at(&self, addr: Addr) -> Option<FileAt> {
        let state = self.lock();
        let vma = state.tree.find(addr)?;
        let file = vma.file()?;
        Some(FileAt {
            file: Arc::clone(&file.file),
            name: file.name.clone(),
            offset: file.offset + (addr - vma.start),
        })
    }

    /// Whether `file` is mapped here so that stores reach it, or may once the protection is changed.
    pub(crate) fn maps_for_writing(&self, file: &dyn Mappable) -> bool {
        let state = self.lock();
        state.tree.iter().any(|vma| {
            vma.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE)
                && vma.file().is_some_and(|f| f.is_file(file))
        })
    }

    /// Takes the pages of `file` from byte `from` on out of this space; [`crate::FileMappings::revoke`].
    pub(crate) fn revoke(&self, file: &dyn Mappable, from: u64) {
        let from = from.next_multiple_of(PAGE_SIZE);
        let mut dropped = Vec::new();
        let mut state = self.lock();
        let hits: Vec<(Addr, AddrRange, u64)> = state
            .tree
            .iter()
            .filter_map(|vma| {
                let backing = vma.file().filter(|f| f.is_file(file))?;
                let keep = from.saturating_sub(backing.offset);
                (keep < vma.len()).then(|| {
                    let range = AddrRange { start: vma.start + keep, end: vma.end };
                    (vma.start, range, backing.offset + keep)
                })
            })
            .collect();
        for (start, range, offset) in hits {
            let Some(vma) = state.tree.get_mut(start) else { continue };
            let ranges = vma.resident_ranges(range);
            let gone = ranges.iter().all(|r| {
                // A host process that is gone shows nothing to anybody.
                matches!(self.space.unmap(*r), Ok(()) | Err(SpaceError::Gone))
            });
            if gone && let Backing::File(file) = &mut vma.backing {
                // Pins are dropped after the lock.
                dropped.extend(file.resident.iter().filter(|p| p.offset + p.len > offset).cloned());
                vma.drop_resident(offset, u64::MAX);
            }
        }
        drop(state);
        drop(dropped);
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // A host process that is told to die may still run for a moment, and a hostile one may run code that it pretends
        // has trapped. What is pinned must be out of its reach before the pins go.
        let state = self.state.get_mut();
        let mut pinned: Option<AddrRange> = None;
        let mut add = |range: AddrRange| {
            let old = pinned.unwrap_or(range);
            pinned = Some(AddrRange { start: old.start.min(range.start), end: old.end.max(range.end) });
        };
        let mut kept: Vec<Kept> = Vec::new();
        for detour in &state.detours {
            add(detour.area);
            add(detour.text);
            kept.push(Arc::clone(&detour.image) as Kept);
        }
        for vma in state.tree.iter() {
            for pin in vma.file().into_iter().flat_map(|f| &f.resident).filter_map(|r| r.pin.clone()) {
                add(vma.range());
                kept.push(pin);
            }
        }
        if let Some(range) = pinned {
            self.space.bury(range, kept);
        }
    }
}

/// The file behind an address.
#[derive(Debug, Clone)]
pub struct FileAt {
    pub file: Arc<dyn Mappable>,
    pub name: Option<Arc<dyn MappedFile>>,
    /// Byte of the file.
    pub offset: u64,
}

/// Sizes of an address space, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub total: u64,
    /// The largest `total` so far.
    pub peak: u64,
    pub data: u64,
    pub exec: u64,
    pub stack: u64,
    pub locked: u64,
    pub shared: u64,
    /// Mappings.
    pub count: usize,
}

/// What `/proc/PID/maps` shows in its last column.
#[derive(Debug, Clone)]
pub enum MapName {
    None,
    Heap,
    Stack,
    Vdso,
    File(Arc<dyn MappedFile>),
    /// A name without a file, such as `/dev/zero (deleted)` or `[anon:name]`.
    Text(Vec<u8>),
}

/// One mapping, for `/proc/PID/{maps,smaps}`.
#[derive(Debug, Clone)]
pub struct MapInfo {
    pub range: AddrRange,
    pub flags: VmFlags,
    /// Byte of the file; zero for anonymous memory.
    pub offset: u64,
    /// Device and inode; zero for anonymous memory.
    pub identity: (u64, u64),
    pub name: MapName,
    pub is_anon: bool,
}

impl MapInfo {
    pub(crate) fn of(vma: &Vma, layout: &Layout) -> Self {
        let (offset, identity) = vma.file().map_or((0, (0, 0)), |f| (f.offset, f.file.identity()));
        let name = match vma.file() {
            Some(file) => match &file.name {
                Some(name) => MapName::File(Arc::clone(name)),
                None => MapName::Text(b"/dev/zero (deleted)".to_vec()),
            },
            None => {
                if let Some(name) = &vma.anon_name {
                    MapName::Text([b"[anon:", name.as_ref(), b"]"].concat())
                } else if vma.start < layout.brk && vma.end > layout.start_brk {
                    MapName::Heap
                } else if vma.start <= layout.start_stack && layout.start_stack < vma.end {
                    MapName::Stack
                } else {
                    MapName::None
                }
            }
        };
        Self { range: vma.range(), flags: vma.flags, offset, identity, name, is_anon: vma.is_anon() }
    }

    /// Shared memory that has no file of its own.
    pub fn is_shared_memory(&self) -> bool {
        !self.is_anon && matches!(self.name, MapName::Text(_))
    }

    /// The second column of `/proc/PID/maps`, such as `rw-p`.
    pub fn access(&self) -> [u8; 4] {
        let bit = |flag, yes, no| if self.flags.contains(flag) { yes } else { no };
        [
            bit(VmFlags::READ, b'r', b'-'),
            bit(VmFlags::WRITE, b'w', b'-'),
            bit(VmFlags::EXEC, b'x', b'-'),
            bit(VmFlags::MAYSHARE, b's', b'p'),
        ]
    }
}
