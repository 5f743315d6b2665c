//! The Sentry's parts by themselves, without a platform, a host process or another thread.
//!
//! Purpose: says which part of a call became slower when a row of `report` did. Invariants: each group makes its own world
//! once and repeats one operation on it. Lock ranks: as in the parts. Threat: none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark stops when its world cannot be made"
)]
#![allow(clippy::indexing_slicing, reason = "its input is its own")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fs_tmpfs::{TmpFs, TmpfsOptions};
use gofer_protocol::{Fid, FileHow, Path, Place, Reply, ReplyWriter, Request, RequestWriter, WireAttr};
use netstack::flow::{Settings, TcpFlow, Tuple};
use netstack::stream::{End, LoopStream, Taken};
use netstack::{BufferPool, Chunk};
use platform::{Addr, AddrRange, PAGE_SIZE};
use sentry_base::timer::{TimerTarget, Timers};
use sentry_memory::{MemoryFile, UserReader, UserWriter};
use sentry_mm::testing::FakeSpace;
use sentry_mm::{Mm, MmConfig, MmLimits, MmapArgs, map_flags};
use sentry_vfs::testing::TestCaller;
use sentry_vfs::{
    Credentials, FileOps, FsContextView, LookupFlags, MountFlags, MountNamespace, OpenFlags, OpenHow, Opened,
    PathCx, Pos, Vfs,
};

const SEGMENT: usize = 64 * 1024;

/// A buffer through a connection of the loopback, as a writer and a reader hand it on; its bytes are copied elsewhere.
fn loopback(c: &mut Criterion) {
    let mut stream = LoopStream::new((1 << 20, 1 << 20), (1 << 20, 1 << 20));
    let mut pool = BufferPool::default();
    c.bench_function("netstack/a buffer through the loopback", |b| {
        b.iter(|| {
            let buffer = pool.get(SEGMENT).unwrap_or_else(|| BufferPool::fresh(SEGMENT));
            let _ = stream.push(End::Client, Chunk::new(buffer, SEGMENT)).unwrap();
            let Ok(Taken::Chunk { chunk, .. }) = stream.take(End::Server, false, 1) else {
                panic!("nothing came")
            };
            if let (_, Some(buffer)) = stream.give_back(End::Server, chunk, SEGMENT) {
                pool.put(buffer);
            }
        });
    });
}

/// 64 KiB between two flows, segments and acknowledgements passed by hand.
fn flows(c: &mut Criterion) {
    const BUFFER: usize = 1 << 20;
    let settings = Settings { mtu: 65_535, hops: 64, no_delay: true, keep_alive: None };
    let (here, there) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let mut now = 1_000_000;
    let mut a = TcpFlow::connect(Tuple { local: here, remote: there }, 1, BUFFER, &settings, now).unwrap();
    let mut b = TcpFlow::accept(Tuple { local: there, remote: here }, 2, BUFFER, &settings, now).unwrap();
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    let mut turn = |a: &mut TcpFlow, b: &mut TcpFlow| {
        now += 10_000;
        a.advance(now, &mut to_b);
        to_b.drain(..).for_each(|frame| b.arrive(frame.packet(), now, &mut to_a));
        b.advance(now, &mut to_a);
        to_a.drain(..).for_each(|frame| a.arrive(frame.packet(), now, &mut to_b));
    };
    (0..8).for_each(|_| turn(&mut a, &mut b));
    let data = vec![7; SEGMENT];
    let mut read = vec![0; SEGMENT];
    let mut group = c.benchmark_group("netstack");
    group.throughput(Throughput::Bytes(SEGMENT as u64));
    group.bench_function("two flows, 64 KiB", |bencher| {
        bencher.iter(|| {
            let (mut sent, mut received) = (0, 0);
            for _ in 0..10_000 {
                sent += a.send(&data[sent..]);
                turn(&mut a, &mut b);
                received += b.receive(&mut read);
                if received >= SEGMENT {
                    return received;
                }
            }
            panic!("{sent} sent, {received} received: {:?} {:?}", a.state(), b.state());
        });
    });
    group.finish();
}

/// A tree in memory with a file six names deep.
fn files(c: &mut Criterion) {
    let memory = MemoryFile::create(1 << 30).unwrap();
    let fs = TmpFs::new(&memory, TmpfsOptions { mode: 0o755, ..TmpfsOptions::default() });
    let ns = MountNamespace::new(&Vfs::new(), fs, MountFlags::empty(), "none");
    let root = ns.root();
    let view = FsContextView { root: root.clone(), cwd: root, umask: 0o022 };
    let (creds, caller) = (Credentials::root(), TestCaller::new(1));
    let cx = PathCx::new(&ns, &view, &creds, &caller);
    let mut path = String::new();
    for name in ["usr", "share", "doc", "package", "examples"] {
        path = format!("{path}/{name}");
        cx.mkdir(None, path.as_bytes(), 0o755).unwrap();
    }
    path.push_str("/file");
    let open = |flags| {
        let how = OpenHow { flags, mode: 0o644, resolve: LookupFlags::empty() };
        let Ok(Opened::File(file)) = cx.open(None, path.as_bytes(), how) else {
            panic!("{path} cannot be opened")
        };
        file
    };
    let file = open(OpenFlags::CREAT | OpenFlags::RDWR);
    let io = caller.io(OpenFlags::RDWR);
    let mut page = vec![7; 4096];
    file.ops().try_write(&io, &mut UserReader::buffer(&page), Pos::At(0)).unwrap();

    let mut group = c.benchmark_group("vfs");
    group.bench_function("walk of six names", |b| {
        b.iter(|| cx.lookup(None, black_box(path.as_bytes()), LookupFlags::FOLLOW).unwrap());
    });
    group.bench_function("open and close", |b| b.iter(|| drop(open(OpenFlags::empty()))));
    group.bench_function("read of a page", |b| {
        b.iter(|| file.ops().try_read(&io, &mut UserWriter::buffer(&mut page), Pos::At(0)).unwrap());
    });
    let (reader, writer) = fs_pipe::pipe(&caller, OpenFlags::empty());
    group.bench_function("a byte into a pipe and out", |b| {
        let mut byte = [7];
        b.iter(|| {
            writer.try_write(&io, &mut UserReader::buffer(&byte), Pos::Stream).unwrap();
            reader.try_read(&io, &mut UserWriter::buffer(&mut byte), Pos::Stream).unwrap();
        });
    });
    group.finish();
}

/// An address space of a hundred mappings over one that has no host process.
fn memory(c: &mut Criterion) {
    const USER: AddrRange = AddrRange { start: 0x1_0000, end: 0x7fff_0000_0000 };
    let memory = MemoryFile::create(1 << 30).unwrap();
    let mm = Mm::over(Arc::new(FakeSpace::default()), USER, None, &memory, MmConfig::default());
    let map = |addr: Addr, flags| {
        let args = MmapArgs { addr, len: PAGE_SIZE, prot: 3, flags: map_flags::PRIVATE | flags, file: None };
        mm.mmap(&args, &MmLimits::DEFAULT).unwrap()
    };
    for n in 0..100 {
        map(0x10_0000 + n * 2 * PAGE_SIZE, map_flags::FIXED);
    }
    let mut group = c.benchmark_group("mm");
    group.bench_function("mmap and munmap among a hundred", |b| {
        b.iter(|| mm.munmap(map(0, 0), PAGE_SIZE).unwrap());
    });
    group.bench_function("find among a hundred", |b| {
        b.iter(|| mm.find(black_box(0x10_0000 + 100 * PAGE_SIZE)).unwrap());
    });
    group.finish();
}

/// A request and its reply on the wire, both ways.
fn gofer(c: &mut Criterion) {
    let at = Place { fid: Fid(0), path: Path::new(b"usr/share/doc/package/copyright").unwrap() };
    let request = Request::OpenFile { at, how: FileHow::READ };
    let (mut wire, mut answer) = (Vec::new(), Vec::new());
    c.bench_function("gofer: an open and its reply, on the wire", |b| {
        b.iter(|| {
            RequestWriter::encode(&request, &mut wire).unwrap();
            black_box(Request::decode(&wire).unwrap());
            let mut reply = ReplyWriter::new(&mut answer);
            reply.value(Fid::NONE.0);
            reply.attr(&WireAttr::default());
            reply.finish();
            Reply::decode(&answer).unwrap().unwrap().attr().unwrap()
        });
    });
}

/// A deadline among a thousand.
fn timers(c: &mut Criterion) {
    #[derive(Debug)]
    struct Nobody;
    impl TimerTarget for Nobody {
        fn fire(self: Arc<Self>) {}
    }
    let (timers, target) = (Timers::default(), Arc::new(Nobody) as Arc<dyn TimerTarget>);
    for n in 0..1000 {
        timers.add(u64::MAX / 2 + n, Arc::clone(&target));
    }
    c.bench_function("timers: add and cancel among a thousand", |b| {
        b.iter(|| timers.cancel(timers.add(u64::MAX / 2 + 500, Arc::clone(&target))));
    });
}

criterion_group!(parts, loopback, flows, files, memory, gofer, timers);
criterion_main!(parts);
