//! The tree against a naive model of pages, and the rules of each call one by one.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use platform::{Addr, AddrRange, AddressSpace, PAGE_SIZE, Prot};
use proptest::prelude::*;
use sentry_base::lock::rank;
use sentry_base::{Errno, Mutex, Result};
use sentry_memory::{MemoryFile, PagedData, UserMemory};

use crate::map_flags as mf;
use crate::testing::FakeSpace;
use crate::*;

/// A file of memory, as tmpfs has them.
struct TestFile {
    state: Mutex<(PagedData, u64), { rank::FILE_DATA }>,
    mappings: FileMappings,
}

impl TestFile {
    fn new(memory: &Arc<MemoryFile>, pages: u64) -> Arc<Self> {
        let mut data = PagedData::new(memory);
        for page in 0..pages {
            data.write(page * PAGE_SIZE, &(1000 + page).to_ne_bytes()).unwrap();
        }
        let state = Mutex::new((data, pages * PAGE_SIZE));
        Arc::new(Self { state, mappings: FileMappings::new() })
    }

    fn resize(&self, size: u64) {
        let mut state = self.state.lock();
        if size < state.1 {
            state.0.truncate(size);
            self.mappings.revoke(self, size);
        }
        state.1 = size;
    }
}

impl Mappable for TestFile {
    fn pieces(&self, offset: u64, len: u64, _write: bool) -> Result<Vec<MappedPiece>> {
        let mut state = self.state.lock();
        let size = state.1;
        let pieces = state.0.pieces(offset, len, size)?;
        Ok(MappedPiece::of_data(state.0.memory_file(), &pieces))
    }
    fn identity(&self) -> (u64, u64) {
        (7, 42)
    }
    fn mappings(&self) -> Option<&FileMappings> {
        Some(&self.mappings)
    }
}

struct TestName;
impl MappedFile for TestName {
    fn path(&self) -> Option<Vec<u8>> {
        Some(b"/tmp/file".to_vec())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Fixture {
    memory: Arc<MemoryFile>,
    space: Arc<FakeSpace>,
    mm: Arc<Mm>,
    limits: MmLimits,
}

const RW: u32 = 3;
const R: u32 = 1;

impl Fixture {
    fn new() -> Self {
        let memory = MemoryFile::create(1 << 30).unwrap();
        let space = Arc::new(FakeSpace::default());
        let user = AddrRange { start: 0x1_0000, end: 0x7fff_0000_0000 };
        let config = MmConfig::default();
        let host = Arc::clone(&space) as Arc<dyn AddressSpace>;
        let mm = Mm::over(host, user, None, &memory, config);
        Self { memory, space, mm, limits: MmLimits::DEFAULT }
    }

    fn map(&self, addr: Addr, len: u64, prot: u32, flags: u32) -> Result<Addr> {
        self.mm.mmap(&MmapArgs { addr, len, prot, flags, file: None }, &self.limits)
    }

    fn anon(&self, addr: Addr, pages: u64, prot: u32) -> Addr {
        self.map(addr, pages * PAGE_SIZE, prot, mf::PRIVATE | mf::FIXED).unwrap()
    }

    fn file(&self, addr: Addr, pages: u64, prot: u32, flags: u32, file: FileMapping) -> Result<Addr> {
        let args = MmapArgs { addr, len: pages * PAGE_SIZE, prot, flags, file: Some(file) };
        self.mm.mmap(&args, &self.limits)
    }

    fn read(&self, addr: Addr) -> Result<u64> {
        read(&self.mm, addr)
    }

    fn write(&self, addr: Addr, value: u64) -> Result<()> {
        self.mm.copy_out(addr, &value.to_ne_bytes())
    }
}

fn read(mm: &Mm, addr: Addr) -> Result<u64> {
    let mut bytes = [0; 8];
    mm.copy_in(addr, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn mapping(file: &Arc<TestFile>, name: &Arc<dyn MappedFile>, offset: u64) -> FileMapping {
    FileMapping {
        file: Arc::clone(file) as Arc<dyn Mappable>,
        name: Some(Arc::clone(name)),
        offset,
        readable: true,
        writable: true,
        noexec: false,
    }
}

/// The window that the model covers, in pages.
const BASE: Addr = 0x10_0000_0000;
const WINDOW: u64 = 24;
const FILE_PAGES: u64 = 6;

fn at(page: u64) -> Addr {
    BASE + page * PAGE_SIZE
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Anon,
    Private(u64),
    Shared(u64),
}

#[derive(Debug, Clone, Copy)]
struct Page {
    prot: u32,
    kind: Kind,
    /// Private bytes, once written.
    value: Option<u64>,
}

#[derive(Debug, Default)]
struct Model {
    pages: BTreeMap<u64, Page>,
    file: BTreeMap<u64, u64>,
    size: u64,
}

impl Model {
    fn load(&self, page: u64) -> Result<u64> {
        let page = self.pages.get(&page).filter(|p| p.prot & R != 0).ok_or(Errno::EFAULT)?;
        let file = |at: u64| self.file.get(&at).copied().filter(|_| at < self.size).ok_or(Errno::EFAULT);
        match page.kind {
            Kind::Anon => Ok(page.value.unwrap_or(0)),
            Kind::Private(at) => page.value.map_or_else(|| file(at), Ok),
            Kind::Shared(at) => file(at),
        }
    }

    fn store(&mut self, at: u64, value: u64) -> Result<()> {
        let size = self.size;
        let page = self.pages.get_mut(&at).filter(|p| p.prot & 2 != 0).ok_or(Errno::EFAULT)?;
        match page.kind {
            Kind::Private(at) | Kind::Shared(at) if at >= size => return Err(Errno::EFAULT),
            Kind::Shared(at) => drop(self.file.insert(at, value)),
            Kind::Anon | Kind::Private(_) => page.value = Some(value),
        }
        Ok(())
    }

    fn clear(&mut self, start: u64, len: u64) {
        self.pages.retain(|at, _| *at < start || *at >= start + len);
    }

    /// Whether two neighbouring pages are in one mapping.
    fn joined(&self, low: u64) -> bool {
        let (Some(a), Some(b)) = (self.pages.get(&low), self.pages.get(&(low + 1))) else { return false };
        let next = match a.kind {
            Kind::Anon => Kind::Anon,
            Kind::Private(at) => Kind::Private(at + 1),
            Kind::Shared(at) => Kind::Shared(at + 1),
        };
        a.prot == b.prot && next == b.kind
    }

    fn remap(&mut self, from: u64, old: u64, to: u64, new: u64) -> Result<()> {
        if !self.pages.contains_key(&from) {
            return Err(Errno::EFAULT);
        }
        if from < to + new && to < from + old {
            return Err(Errno::EINVAL);
        }
        self.clear(to, new);
        if old > new {
            self.clear(from + new, old - new);
        }
        let len = old.min(new);
        if !self.pages.contains_key(&from) || (from..from + len - 1).any(|p| !self.joined(p)) {
            return Err(Errno::EFAULT);
        }
        let first = self.pages[&from];
        let moved: Vec<_> = (0..new)
            .map(|i| {
                let kind = match first.kind {
                    Kind::Anon => Kind::Anon,
                    Kind::Private(at) => Kind::Private(at + i),
                    Kind::Shared(at) => Kind::Shared(at + i),
                };
                let value = if i < len { self.pages[&(from + i)].value } else { None };
                (to + i, Page { prot: first.prot, kind, value })
            })
            .collect();
        self.clear(from, len);
        self.pages.extend(moved);
        Ok(())
    }

    fn resize(&mut self, size: u64) {
        self.size = size;
        self.file.retain(|at, _| *at < size);
        for at in 0..size {
            self.file.entry(at).or_insert(0);
        }
        for page in self.pages.values_mut() {
            if matches!(page.kind, Kind::Private(at) if at >= size) {
                page.value = None;
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Anon(u64, u64, u32),
    File(u64, u64, u32, u64, bool),
    Unmap(u64, u64),
    Protect(u64, u64, u32),
    Remap(u64, u64, u64, u64),
    Write(u64, u64),
    DontNeed(u64, u64),
    Resize(u64),
    Fork,
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..WINDOW - 6;
    let len = 1_u64..7;
    let prot = prop_oneof![Just(0_u32), Just(R), Just(RW), Just(RW), Just(5)];
    prop_oneof![
        3 => (page.clone(), len.clone(), prot.clone()).prop_map(|(a, l, p)| Op::Anon(a, l, p)),
        3 => (page.clone(), len.clone(), prot.clone(), 0..FILE_PAGES, any::<bool>())
            .prop_map(|(a, l, p, o, s)| Op::File(a, l, p, o, s)),
        2 => (page.clone(), len.clone()).prop_map(|(a, l)| Op::Unmap(a, l)),
        3 => (page.clone(), len.clone(), prot).prop_map(|(a, l, p)| Op::Protect(a, l, p)),
        3 => (page.clone(), len.clone(), page.clone(), len.clone())
            .prop_map(|(a, l, b, m)| Op::Remap(a, l, b, m)),
        4 => (page.clone(), 1_u64..100).prop_map(|(a, v)| Op::Write(a, v)),
        1 => (page, len).prop_map(|(a, l)| Op::DontNeed(a, l)),
        1 => (0..FILE_PAGES + 2).prop_map(Op::Resize),
        1 => Just(Op::Fork),
    ]
}

fn run(f: &Fixture, file: &Arc<TestFile>, name: &Arc<dyn MappedFile>, model: &mut Model, op: &Op) {
    let bytes = |pages: u64| pages * PAGE_SIZE;
    match *op {
        Op::Anon(page, len, prot) => {
            f.anon(at(page), len, prot);
            let new = Page { prot, kind: Kind::Anon, value: None };
            model.pages.extend((page..page + len).map(|p| (p, new)));
        }
        Op::File(page, len, prot, offset, shared) => {
            let flags = mf::FIXED | if shared { mf::SHARED } else { mf::PRIVATE };
            f.file(at(page), len, prot, flags, mapping(file, name, bytes(offset))).unwrap();
            for i in 0..len {
                let kind = if shared { Kind::Shared(offset + i) } else { Kind::Private(offset + i) };
                model.pages.insert(page + i, Page { prot, kind, value: None });
            }
        }
        Op::Unmap(page, len) => {
            f.mm.munmap(at(page), bytes(len)).unwrap();
            model.clear(page, len);
        }
        Op::Protect(page, len, prot) => {
            let result = f.mm.mprotect(at(page), bytes(len), prot, &f.limits);
            let mut expected = Ok(());
            for p in page..page + len {
                let Some(page) = model.pages.get_mut(&p) else {
                    expected = Err(Errno::ENOMEM);
                    break;
                };
                page.prot = prot;
            }
            assert_eq!(result, expected);
        }
        Op::Remap(from, old, to, new) => {
            let flags = remap_flags::MAYMOVE | remap_flags::FIXED;
            let result = f.mm.mremap(at(from), bytes(old), bytes(new), flags, at(to), &f.limits);
            assert_eq!(result, model.remap(from, old, to, new).map(|()| at(to)));
        }
        Op::Write(page, value) => assert_eq!(f.write(at(page), value), model.store(page, value)),
        Op::DontNeed(page, len) => {
            let whole = (page..page + len).all(|p| model.pages.contains_key(&p));
            let result = f.mm.madvise(at(page), bytes(len), madv::DONTNEED);
            assert_eq!(result, if whole { Ok(()) } else { Err(Errno::ENOMEM) });
            for p in page..page + len {
                if let Some(page) = model.pages.get_mut(&p) {
                    page.value = None;
                }
            }
        }
        Op::Resize(pages) => {
            file.resize(bytes(pages));
            model.resize(pages);
        }
        Op::Fork => {
            let child = f.mm.fork().unwrap();
            for page in 0..WINDOW {
                assert_eq!(read(&child, at(page)), model.load(page), "page {page} of the child");
            }
        }
    }
}

fn check(f: &Fixture, model: &Model) {
    let state = f.mm.lock();
    let vmas: Vec<_> = state.tree.iter().cloned().collect();
    let totals = state.tree.totals();
    drop(state);
    let mut resident = Vec::new();
    for pair in vmas.windows(2) {
        assert!(pair[0].end <= pair[1].start && !pair[0].can_merge(&pair[1]), "{pair:?}");
    }
    assert_eq!(vmas.iter().map(crate::vma::Vma::len).sum::<u64>(), totals.all);
    for vma in &vmas {
        for range in vma.resident_ranges(vma.range()) {
            for addr in (range.start..range.end).step_by(4096) {
                let page = f.space.page(addr).expect("a resident page is on the host");
                assert_eq!(page.prot, vma.flags.prot());
                resident.push(addr);
            }
        }
    }
    assert_eq!(f.space.page_addrs(), resident, "the host maps what the tree says");
    let mapped: Vec<_> =
        vmas.iter().flat_map(|v| (v.start..v.end).step_by(4096)).map(|a| (a - BASE) / PAGE_SIZE).collect();
    assert_eq!(mapped, model.pages.keys().copied().collect::<Vec<_>>());
    for page in 0..WINDOW {
        assert_eq!(f.read(at(page)), model.load(page), "page {page}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn behaves_as_a_table_of_pages(ops in proptest::collection::vec(op(), 1..40)) {
        let f = Fixture::new();
        let file = TestFile::new(&f.memory, FILE_PAGES);
        let name: Arc<dyn MappedFile> = Arc::new(TestName);
        let mut model = Model { size: FILE_PAGES, ..Model::default() };
        for page in 0..FILE_PAGES {
            model.file.insert(page, 1000 + page);
        }
        for op in &ops {
            run(&f, &file, &name, &mut model, op);
            check(&f, &model);
        }
        let memory = Arc::clone(&f.memory);
        drop(f);
        drop(file);
        prop_assert_eq!(memory.allocated(), 0);
    }
}

#[test]
fn anonymous_memory_costs_one_host_call_and_merges() {
    let f = Fixture::new();
    let a = f.map(0, 3 * PAGE_SIZE, RW, mf::PRIVATE).unwrap();
    assert_eq!(f.space.take_ops(), 1);
    let b = f.map(0, PAGE_SIZE, RW, mf::PRIVATE).unwrap();
    assert_eq!(b + PAGE_SIZE, a);
    assert_eq!(f.mm.maps().len(), 1);
    f.mm.mprotect(a, PAGE_SIZE, R, &f.limits).unwrap();
    assert_eq!(f.mm.maps().len(), 3);
    f.space.take_ops();
    f.mm.mprotect(a, PAGE_SIZE, R, &f.limits).unwrap();
    assert_eq!(f.space.take_ops(), 0);
    f.mm.mprotect(b, 4 * PAGE_SIZE, RW, &f.limits).unwrap();
    assert_eq!(f.mm.maps().len(), 1);
    f.mm.munmap(b, 1 << 20).unwrap();
    assert!(f.space.page_addrs().is_empty());
}

#[test]
fn a_freed_hole_is_found_again() {
    let f = Fixture::new();
    let mut all: Vec<_> =
        (0_u32..20).map(|i| f.map(0, u64::from(1 + i % 3) * PAGE_SIZE, i % 2, mf::PRIVATE)).collect();
    assert!(all.windows(2).all(|w| w[1].unwrap() < w[0].unwrap()));
    let hole = all.remove(4).unwrap();
    f.mm.munmap(hole, 2 * PAGE_SIZE).unwrap();
    // Too large for the hole: goes below everything. The next one fits again.
    let low = f.map(0, 4 * PAGE_SIZE, 0, mf::PRIVATE).unwrap();
    assert!(low < all.last().unwrap().unwrap());
    assert_eq!(f.map(0, 2 * PAGE_SIZE, RW, mf::PRIVATE), Ok(hole));
}

#[test]
fn placement_flags_and_errors_are_linux() {
    let f = Fixture::new();
    let private = mf::PRIVATE;
    let addr = at(8);
    assert_eq!(f.map(0, 0, RW, private), Err(Errno::EINVAL));
    assert_eq!(f.map(0, u64::MAX, RW, private), Err(Errno::ENOMEM));
    assert_eq!(f.map(0, PAGE_SIZE, RW, 0), Err(Errno::EINVAL));
    assert_eq!(f.map(addr + 1, PAGE_SIZE, RW, private | mf::FIXED), Err(Errno::EINVAL));
    assert_eq!(f.map(0x1000, PAGE_SIZE, RW, private | mf::FIXED), Err(Errno::EPERM));
    assert_eq!(f.map(0x7fff_ffff_f000, PAGE_SIZE, RW, private | mf::FIXED), Err(Errno::ENOMEM));
    assert_eq!(f.map(addr, PAGE_SIZE, RW, private), Ok(addr));
    assert_eq!(f.map(addr, PAGE_SIZE, RW, private | mf::FIXED_NOREPLACE), Err(Errno::EEXIST));
    assert_ne!(f.map(addr, PAGE_SIZE, RW, private), Ok(addr));
    let low = f.map(0, PAGE_SIZE, RW, private | mf::BITS32).unwrap();
    assert!(low < 1 << 31);
    assert_eq!(f.map(0, PAGE_SIZE, RW, private | mf::HUGETLB), Err(Errno::ENOMEM));
    assert_eq!(f.mm.munmap(addr + 1, PAGE_SIZE), Err(Errno::EINVAL));
    assert_eq!(f.mm.munmap(addr, 0), Err(Errno::EINVAL));

    let file = TestFile::new(&f.memory, 4);
    let name: Arc<dyn MappedFile> = Arc::new(TestName);
    let with = |change: fn(&mut FileMapping), prot, flags| {
        let mut mapping = mapping(&file, &name, 0);
        change(&mut mapping);
        f.file(0, 1, prot, flags, mapping)
    };
    assert_eq!(with(|m| m.writable = false, RW, mf::SHARED), Err(Errno::EACCES));
    assert_eq!(with(|m| m.readable = false, R, private), Err(Errno::EACCES));
    assert_eq!(with(|m| m.noexec = true, 5, private), Err(Errno::EPERM));
    assert_eq!(with(|m| m.offset = 1, R, private), Err(Errno::EINVAL));
    assert_eq!(with(|m| m.offset = u64::MAX - 4095, R, private), Err(Errno::EOVERFLOW));
    assert_eq!(with(|_| (), R, mf::SHARED_VALIDATE | mf::SYNC), Err(Errno::EOPNOTSUPP));
    let read_only = with(|m| m.writable = false, R, mf::SHARED).unwrap();
    assert_eq!(f.mm.mprotect(read_only, PAGE_SIZE, RW, &f.limits), Err(Errno::EACCES));
    assert_eq!(f.mm.find(read_only).unwrap().access(), *b"r--s");
}

#[test]
fn limits_are_obeyed() {
    let mut f = Fixture::new();
    f.limits.address_space = 10 * PAGE_SIZE;
    f.anon(at(0), 10, RW);
    assert_eq!(f.map(0, PAGE_SIZE, R, mf::PRIVATE), Err(Errno::ENOMEM));
    // Replacing costs nothing.
    f.anon(at(5), 5, R);
    f.limits = MmLimits { data: 5 * PAGE_SIZE, ..MmLimits::DEFAULT };
    assert_eq!(f.map(0, PAGE_SIZE, RW, mf::PRIVATE), Err(Errno::ENOMEM));
    assert_eq!(f.mm.mprotect(at(5), PAGE_SIZE, RW, &f.limits), Err(Errno::ENOMEM));
    f.map(0, PAGE_SIZE, R, mf::PRIVATE).unwrap();

    f.limits = MmLimits { memlock: 0, ..MmLimits::DEFAULT };
    assert_eq!(f.mm.mlock(at(0), PAGE_SIZE, false, &f.limits), Err(Errno::EPERM));
    f.limits.memlock = 2 * PAGE_SIZE;
    f.mm.mlock(at(0) + 5, 2 * PAGE_SIZE - 5, false, &f.limits).unwrap();
    f.mm.mlock(at(0), 2 * PAGE_SIZE, false, &f.limits).unwrap();
    assert_eq!(f.mm.mlock(at(1), 2 * PAGE_SIZE, false, &f.limits), Err(Errno::ENOMEM));
    assert_eq!(f.mm.madvise(at(0), PAGE_SIZE, madv::DONTNEED), Err(Errno::EINVAL));
    assert_eq!(f.mm.usage().locked, 2 * PAGE_SIZE);
    assert_eq!(f.map(0, PAGE_SIZE, RW, mf::PRIVATE | mf::LOCKED), Err(Errno::EAGAIN));
    assert_eq!(f.mm.fork().unwrap().usage().locked, 0);
    f.mm.munlockall();
    assert_eq!(f.mm.usage().locked, 0);
    assert_eq!(f.mm.munlock(at(30), PAGE_SIZE), Err(Errno::ENOMEM));
}

#[test]
fn the_heap_grows_and_shrinks() {
    let f = Fixture::new();
    assert_eq!(f.mm.brk(at(3), &f.limits), 0);
    f.mm.set_layout(|l| {
        l.start_brk = at(0);
        l.brk = at(0);
    });
    assert_eq!(f.mm.brk(0, &f.limits), at(0));
    assert_eq!(f.mm.brk(at(2) + 100, &f.limits), at(2) + 100);
    f.write(at(2), 7).unwrap();
    assert!(matches!(f.mm.find(at(0)).unwrap().name, MapName::Heap));
    f.anon(at(6), 1, RW);
    assert_eq!(f.mm.brk(at(7), &f.limits), at(2) + 100);
    assert_eq!(f.mm.brk(at(1), &f.limits), at(1));
    assert_eq!(f.read(at(2)), Err(Errno::EFAULT));
    let tight = MmLimits { data: 2 * PAGE_SIZE, ..f.limits };
    assert_eq!(f.mm.brk(at(3), &tight), at(1));
}

#[test]
fn stacks_grow_to_their_limit_and_keep_their_distance() {
    let mut f = Fixture::new();
    f.limits.stack = 1 << 20;
    let top = BASE + (64 << 20);
    let stack = f.map(top - PAGE_SIZE, PAGE_SIZE, RW, mf::PRIVATE | mf::FIXED | mf::GROWSDOWN).unwrap();
    f.write(stack - 8, 5).unwrap();
    f.write(top - (1 << 20), 5).unwrap();
    assert_eq!(f.write(top - (1 << 20) - 8, 5), Err(Errno::EFAULT));
    assert_eq!(f.mm.fault(top - (2 << 20), Prot::WRITE), FaultOutcome::Segv(SEGV_MAPERR));
    assert_eq!(f.mm.maps().len(), 1);
    f.limits.stack = 32 << 20;
    f.mm.set_stack_limit(f.limits.stack);
    // A neighbour below stops the growth 256 pages before it.
    f.anon(top - (8 << 20), 1, RW);
    let lowest = top - (8 << 20) + PAGE_SIZE + (1 << 20);
    f.write(lowest, 5).unwrap();
    assert_eq!(f.write(lowest - 8, 5), Err(Errno::EFAULT));
    // A hint inside the gap is not taken.
    assert_ne!(f.map(lowest - PAGE_SIZE, PAGE_SIZE, RW, mf::PRIVATE), Ok(lowest - PAGE_SIZE));
}

#[test]
fn faults_tell_their_kinds_apart() {
    let f = Fixture::new();
    let file = TestFile::new(&f.memory, 1);
    let name: Arc<dyn MappedFile> = Arc::new(TestName);
    f.file(at(0), 3, RW, mf::SHARED | mf::FIXED, mapping(&file, &name, 0)).unwrap();
    f.anon(at(4), 1, R);
    assert_eq!(f.mm.fault(at(4), Prot::WRITE), FaultOutcome::Segv(SEGV_ACCERR));
    assert_eq!(f.mm.fault(at(5), Prot::READ), FaultOutcome::Segv(SEGV_MAPERR));
    assert_eq!(f.mm.fault(at(1), Prot::READ), FaultOutcome::Bus);
    file.resize(2 * PAGE_SIZE);
    assert_eq!(f.mm.fault(at(1) + 7, Prot::WRITE), FaultOutcome::Resolved);
    f.write(at(1), 9).unwrap();
    assert_eq!(f.mm.fault(at(2), Prot::READ), FaultOutcome::Bus);
    file.resize(0);
    assert_eq!(f.mm.fault(at(0), Prot::READ), FaultOutcome::Bus);
    // A present page that faults again and again does not loop for ever.
    let outcomes: Vec<_> = (0..9).map(|_| f.mm.fault(at(4), Prot::READ)).collect();
    assert_eq!(outcomes[0], FaultOutcome::Resolved);
    assert_eq!(outcomes[8], FaultOutcome::Segv(SEGV_MAPERR));
}

#[test]
fn forks_share_copy_skip_and_wipe() {
    let f = Fixture::new();
    let shared = f.map(0, PAGE_SIZE, RW, mf::SHARED).unwrap();
    for page in [0, 2, 4] {
        f.anon(at(page), 1, RW);
        f.write(at(page), 1).unwrap();
    }
    f.mm.madvise(at(2), PAGE_SIZE, madv::DONTFORK).unwrap();
    f.mm.madvise(at(4), PAGE_SIZE, madv::WIPEONFORK).unwrap();
    assert_eq!(f.mm.madvise(shared, PAGE_SIZE, madv::WIPEONFORK), Err(Errno::EINVAL));
    let child = f.mm.fork().unwrap();
    f.write(at(0), 2).unwrap();
    f.write(shared, 3).unwrap();
    assert_eq!(read(&child, at(0)), Ok(1));
    assert_eq!(read(&child, at(2)), Err(Errno::EFAULT));
    assert_eq!(read(&child, at(4)), Ok(0));
    assert_eq!(read(&child, shared), Ok(3));
    let (a, b) = (f.mm.futex_key(shared, false).unwrap(), child.futex_key(shared, false).unwrap());
    assert_eq!(a, b);
    assert_ne!(f.mm.futex_key(at(0), false).unwrap(), child.futex_key(at(0), false).unwrap());
    assert_eq!(f.mm.futex_key(at(9), false), Err(Errno::EFAULT));
    // The segment outlives either space.
    let memory = Arc::clone(&f.memory);
    drop(f);
    assert_eq!(memory.allocated(), PAGE_SIZE);
    assert_eq!(child.cmpxchg_u32(shared, 3, 8), Ok(3));
    assert_eq!(child.load_u32(shared), Ok(8));
    drop(child);
    assert_eq!(memory.allocated(), 0);
}

#[test]
fn remaps_in_every_form() {
    use remap_flags::*;
    let f = Fixture::new();
    let mremap = |addr, old: u64, new: u64, flags, to| {
        f.mm.mremap(addr, old * PAGE_SIZE, new * PAGE_SIZE, flags, to, &f.limits)
    };
    f.anon(at(0), 2, RW);
    f.write(at(1), 11).unwrap();
    assert_eq!(mremap(at(0), 2, 4, 0, 0), Ok(at(0)));
    assert_eq!(f.read(at(3)), Ok(0));
    assert_eq!(mremap(at(0), 4, 2, 0, 0), Ok(at(0)));
    f.anon(at(2), 1, R);
    assert_eq!(mremap(at(0), 2, 4, 0, 0), Err(Errno::ENOMEM));
    let moved = mremap(at(0), 2, 4, MAYMOVE, 0).unwrap();
    assert_eq!((f.read(moved + PAGE_SIZE), f.read(at(1))), (Ok(11), Err(Errno::EFAULT)));
    assert_eq!(mremap(moved, 4, 4, MAYMOVE | DONTUNMAP | FIXED, at(8)), Ok(at(8)));
    assert_eq!((f.read(at(9)), f.read(moved + PAGE_SIZE)), (Ok(11), Ok(0)));
    assert_eq!(mremap(at(8), 0, 1, MAYMOVE, 0), Err(Errno::EINVAL));
    assert_eq!(mremap(at(8), 4, 4, FIXED, at(16)), Err(Errno::EINVAL));
    assert_eq!(mremap(at(8), 4, 4, MAYMOVE | FIXED, at(10)), Err(Errno::EINVAL));
    assert_eq!(mremap(at(8), 4, 0, MAYMOVE, 0), Err(Errno::EINVAL));
    assert_eq!(mremap(at(20), 1, 2, MAYMOVE, 0), Err(Errno::EFAULT));
    assert_eq!(mremap(at(8), 5, 6, MAYMOVE, 0), Err(Errno::EFAULT));
    // A second view of shared memory.
    let shared = f.map(0, PAGE_SIZE, RW, mf::SHARED).unwrap();
    f.write(shared, 4).unwrap();
    let view = mremap(shared, 0, 1, MAYMOVE, 0).unwrap();
    assert_eq!(f.read(view), Ok(4));
}

#[test]
fn advice_and_sync_check_their_arguments() {
    let f = Fixture::new();
    f.anon(at(0), 2, RW);
    f.anon(at(3), 1, RW);
    let mm = &f.mm;
    assert_eq!(mm.madvise(at(0), PAGE_SIZE, 99), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(at(0) + 1, PAGE_SIZE, madv::FREE), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(at(0), 0, madv::FREE), Ok(()));
    f.write(at(3), 1).unwrap();
    assert_eq!(mm.madvise(at(0), 4 * PAGE_SIZE, madv::DONTNEED), Err(Errno::ENOMEM));
    assert_eq!(f.read(at(3)), Ok(0));
    assert_eq!(mm.madvise(at(0), PAGE_SIZE, madv::REMOVE), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(at(0), 2 * PAGE_SIZE, madv::POPULATE_WRITE), Ok(()));
    assert_eq!(mm.msync(at(0), PAGE_SIZE, 5), Err(Errno::EINVAL));
    assert_eq!(mm.msync(at(0), PAGE_SIZE, 4), Ok(()));
    assert_eq!(mm.msync(at(0), 3 * PAGE_SIZE, 4), Err(Errno::ENOMEM));
    let core = |len| mm.mincore(AddrRange::new(at(0), len).unwrap()).map(|pages| pages.len());
    assert_eq!(core(2 * PAGE_SIZE), Ok(2));
    assert_eq!(core(3 * PAGE_SIZE), Err(Errno::ENOMEM));
    let shared = f.map(0, 2 * PAGE_SIZE, RW, mf::SHARED).unwrap();
    f.write(shared, 1).unwrap();
    assert_eq!(mm.madvise(shared, PAGE_SIZE, madv::REMOVE), Ok(()));
    assert_eq!(f.read(shared), Ok(0));
    mm.set_anon_name(at(0), PAGE_SIZE, Some(b"arena")).unwrap();
    let MapName::Text(text) = mm.find(at(0)).unwrap().name else { panic!("a name") };
    assert_eq!(text, b"[anon:arena]");
    assert_eq!(mm.maps().iter().filter(|m| m.range.start < at(3)).count(), 2);
}

#[test]
fn a_device_of_zeroes_is_anonymous_memory() {
    let f = Fixture::new();
    let zeroes = |flags| {
        let file = FileMapping {
            file: Arc::new(ZeroPages),
            name: None,
            offset: 0,
            readable: true,
            writable: true,
            noexec: false,
        };
        f.file(0, 2, RW, flags, file).unwrap()
    };
    let private = zeroes(mf::PRIVATE);
    assert!(f.mm.find(private).unwrap().is_anon);
    let shared = zeroes(mf::SHARED);
    f.write(shared, 7).unwrap();
    f.write(private, 8).unwrap();
    let child = f.mm.fork().unwrap();
    f.write(shared, 9).unwrap();
    assert_eq!((read(&child, shared), read(&child, private)), (Ok(9), Ok(8)));
}
