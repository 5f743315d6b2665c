//! Runs a static program of the host in the kernel alone: a tmpfs root, no gofer. For development.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a developer's tool")]

use std::sync::Arc;

use fs_tmpfs::{TmpFs, TmpfsOptions};
use platform::Platform;
use platform_systrap::{Options, Systrap};
use sentry_kernel::{
    Call, Current, InitSpec, Kernel, KernelConfig, Row, Stop, SyscallTable, syscall::Arg,
};
use sentry_memory::{MemoryFile, UserWriter};
use sentry_mm::{MmapArgs, map_flags};
use sentry_syscalls::Table;
use sentry_vfs::{
    Credentials, FdTable, FileDescription, FileOps, IoCtx, IoStart, MountFlags, MountNamespace, OpenFlags,
    Owner, Pos, Vfs,
};

#[derive(Debug)]
struct Out;

impl FileOps for Out {
    fn try_write(
        &self,
        _io: &IoCtx<'_>,
        src: &mut sentry_memory::UserReader<'_>,
        _pos: Pos,
    ) -> sentry_base::Result<IoStart<usize>> {
        use std::io::Write;
        let mut buf = vec![0; src.remaining()];
        let n = src.read(&mut buf)?;
        std::io::stdout().write_all(&buf[..n]).unwrap();
        std::io::stdout().flush().unwrap();
        Ok(IoStart::Done(n))
    }
    fn try_read(&self, _: &IoCtx<'_>, _: &mut UserWriter<'_>, _: Pos) -> sentry_base::Result<IoStart<usize>> {
        Ok(IoStart::Done(0))
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn write(cx: &mut Current, [fd, addr, len, ..]: [u64; 6]) -> Call<'_> {
    let run = || {
        let file = cx.task.file(fd as i32)?;
        let segs = [sentry_memory::IoSeg { addr, len }];
        let task: &sentry_kernel::Task = &cx.task;
        let mut src = sentry_memory::UserReader::user(task, &segs);
        match file.ops().try_write(&IoCtx { caller: task, flags: OpenFlags::empty() }, &mut src, Pos::Stream)? {
            IoStart::Done(n) => Ok(n as u64),
            IoStart::WouldBlock => Err(sentry_base::Errno::EAGAIN),
        }
    };
    Call::Done(run().map_err(Stop::from))
}

fn writev(cx: &mut Current, [fd, at, count, ..]: [u64; 6]) -> Call<'_> {
    let mut total = 0;
    for i in 0..count {
        let iov: [u64; 2] = cx.read_obj(at + i * 16).unwrap();
        match write(cx, [fd, iov[0], iov[1], 0, 0, 0]) {
            Call::Done(Ok(n)) => total += n,
            _ => return Call::Done(Err(Stop::Errno(sentry_base::Errno::EIO))),
        }
    }
    Call::Done(Ok(total))
}

fn brk(cx: &mut Current, [to, ..]: [u64; 6]) -> Call<'_> {
    Call::Done(Ok(cx.mm().brk(to, &cx.mm_limits())))
}

fn mmap(cx: &mut Current, [addr, len, prot, flags, ..]: [u64; 6]) -> Call<'_> {
    let args = MmapArgs { addr, len, prot: prot as u32, flags: flags as u32 | map_flags::ANONYMOUS, file: None };
    Call::Done(cx.mm().mmap(&args, &cx.mm_limits()).map_err(Stop::from))
}

fn munmap(cx: &mut Current, [addr, len, ..]: [u64; 6]) -> Call<'_> {
    Call::Done(cx.mm().munmap(addr, len).map(|()| 0).map_err(Stop::from))
}

fn zero(_cx: &mut Current, _: [u64; 6]) -> Call<'_> {
    Call::Done(Ok(0))
}

struct Dev(Table, Vec<Row>);

impl SyscallTable for Dev {
    fn row(&self, nr: u64) -> Option<&Row> {
        self.0.row(nr).or_else(|| self.1.iter().find(|r| u64::from(r.nr) == nr))
    }
    fn name(&self, nr: u64) -> &'static str {
        self.0.name(nr)
    }
}

const ARGS: &[Arg] = &[];

fn row(nr: u32, name: &'static str, call: sentry_kernel::Handler) -> Row {
    Row { nr, name, args: ARGS, note: "", call }
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let trace = args.first().is_some_and(|a| a == "--strace");
    if trace {
        args.remove(0);
    }
    let platform: Arc<dyn Platform> = Systrap::new(Options::default()).unwrap();
    let memory = MemoryFile::create(1 << 32).unwrap();
    let tmpfs = TmpFs::new(&memory, TmpfsOptions::default());
    let vfs = Vfs::new();
    let ns = MountNamespace::new(&vfs, tmpfs, MountFlags::empty(), "tmpfs");
    let root = ns.root();
    let dev = Dev(
        Table::new(),
        vec![
            row(1, "write", write),
            row(20, "writev", writev),
            row(12, "brk", brk),
            row(9, "mmap", mmap),
            row(11, "munmap", munmap),
            row(10, "mprotect", zero),
            row(28, "madvise", zero),
        ],
    );
    let kernel = Kernel::new(KernelConfig {
        platform: Arc::clone(&platform),
        memory,
        vfs,
        machine: sentry_loader::Machine::from_auxv(&std::fs::read("/proc/self/auxv").unwrap()),
        table: Arc::new(dev),
        hostname: b"dev".to_vec(),
        domainname: b"(none)".to_vec(),
        nr_cpus: 2,
        total_memory: 4 << 30,
        max_tasks: 1000,
        trace: trace.then(|| Arc::new(|line: &str| eprintln!("{line}")) as _),
    });
    // The program is put where the host has it.
    let data = std::fs::read(&args[0]).unwrap();
    let inode = root.inode().create(b"prog", 0o755, Owner { uid: 0, gid: 0 }).unwrap();
    let caller = NoCaller;
    let ops = Arc::clone(&inode).open(OpenFlags::WRONLY, &caller).unwrap();
    let mut at = 0;
    while at < data.len() {
        let mut src = sentry_memory::UserReader::buffer(&data[at..]);
        let io = IoCtx { caller: &caller, flags: OpenFlags::WRONLY };
        match ops.try_write(&io, &mut src, Pos::At(at as u64)).unwrap() {
            IoStart::Done(n) => at += n,
            IoStart::WouldBlock => panic!(),
        }
    }
    let fds = FdTable::new();
    for _ in 0..3 {
        fds.add(FileDescription::new(Arc::new(Out), OpenFlags::RDWR, None), false, 1024).unwrap();
    }
    let workers: Vec<_> = (0..2)
        .map(|i| {
            let kernel = Arc::clone(&kernel);
            std::thread::spawn(move || kernel.executor().run_worker(i))
        })
        .collect();
    let mut argv: Vec<Vec<u8>> = args.iter().map(|a| a.clone().into_bytes()).collect();
    argv[0] = b"/prog".to_vec();
    kernel
        .create_init(InitSpec {
            argv,
            env: vec![b"PATH=/".to_vec()],
            creds: Credentials::root(),
            rlimits: vec![],
            fds,
            mount_ns: ns,
            root,
            cwd: b"/".to_vec(),
            umask: 0o22,
            terminal: None,
            oom_score_adj: 0,
            shielded: false,
            on_exit: None,
        })
        .unwrap();
    let status = kernel.wait_init_exit();
    println!("status {:?} unsupported {:?} deaths {:?}", status, kernel.unsupported_report(), kernel.host_deaths());
    kernel.executor().stop();
    for worker in workers {
        worker.join().unwrap();
    }
    platform.shutdown();
}

struct NoCaller;
impl sentry_vfs::JobControl for NoCaller {
    fn pgid(&self) -> i32 { 0 }
    fn sid(&self) -> i32 { 0 }
    fn session_of_group(&self, _: i32) -> Option<i32> { None }
    fn group_is_orphaned(&self) -> bool { true }
    fn ignores_or_blocks(&self, _: i32) -> bool { true }
    fn signal_group(&self, _: i32, _: i32) {}
    fn controlling_terminal(&self) -> Option<Arc<dyn sentry_vfs::Terminal>> { None }
    fn set_controlling_terminal(&self, _: Arc<dyn sentry_vfs::Terminal>, _: bool) -> sentry_base::Result<()> { Ok(()) }
    fn drop_controlling_terminal(&self) -> sentry_base::Result<()> { Ok(()) }
}
impl sentry_vfs::Caller for NoCaller {
    fn creds(&self) -> Arc<Credentials> { Arc::new(Credentials::root()) }
    fn mem(&self) -> &dyn sentry_memory::UserMemory { self }
    fn tid(&self) -> i32 { 0 }
    fn pid(&self) -> i32 { 0 }
    fn rlimit(&self, _: u32) -> u64 { u64::MAX }
    fn signal_self(&self, _: i32) {}
    fn as_any(&self) -> &dyn std::any::Any { self }
}
impl sentry_memory::UserMemory for NoCaller {
    fn copy_in_partial(&self, _: u64, _: &mut [u8]) -> sentry_base::Result<usize> { Err(sentry_base::Errno::EFAULT) }
    fn copy_out_partial(&self, _: u64, _: &[u8]) -> sentry_base::Result<usize> { Err(sentry_base::Errno::EFAULT) }
}
