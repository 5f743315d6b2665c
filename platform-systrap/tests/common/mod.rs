//! What the platform's tests share: a runner that gives each case a process of its own, and a tiny worker loop.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::exit,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unsafe_code, reason = "reads the addresses of the code that is copied into guests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Poller, Poll, Wake, Waker};

use platform::{
    AddrRange, AddressSpace, Context, FaultMode, FpuState, MapSource, Platform, Prot, Regs, Sharing,
    SpaceError, TrapEvent,
};
use platform_systrap::{Options, Systrap};

/// One case: a name and what to do.
pub type Case = (&'static str, fn(&Arc<Systrap>));

/// Runs every case in a process of its own, which makes its platform first. Arguments filter by name.
pub fn run(cases: &[Case]) {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    if let Ok(name) = std::env::var("CASEMATE_CASE") {
        let (_, case) = cases.iter().find(|(case, _)| *case == name).expect("a case of this name");
        let platform =
            Systrap::new(Options { patch: true, ..Options::default() }).expect("the platform starts");
        case(&platform);
        platform.shutdown();
        return;
    }
    let mut failed = Vec::new();
    for (name, _) in cases {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let program = std::env::current_exe().expect("this program's path");
        let started = std::time::Instant::now();
        let mut child =
            std::process::Command::new(program).env("CASEMATE_CASE", name).spawn().expect("starting a case");
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for a case") {
                break Some(status);
            }
            if started.elapsed().as_secs() > 60 {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        let ok = status.is_some_and(|status| status.success());
        println!("{name} ... {} ({:?})", if ok { "ok" } else { "FAILED" }, started.elapsed());
        if !ok {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
        std::process::exit(1);
    }
}

/// The waker of a guest: tells the worker that serves it.
pub struct Flag {
    set: AtomicBool,
    platform: Arc<Systrap>,
    worker: usize,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.set.store(true, Ordering::Release);
        self.platform.unpark(self.worker);
    }
}

/// A guest process with one thread, and the worker that serves it.
pub struct Guest {
    pub platform: Arc<Systrap>,
    pub space: Arc<dyn AddressSpace>,
    pub context: Box<dyn Context>,
    pub regs: Regs,
    pub flag: Arc<Flag>,
    pub worker: usize,
    pub spin: bool,
}

/// Where guests have their code, stack and data.
pub const CODE: u64 = 0x40_0000;
pub const STACK: u64 = 0x7000_0000;
pub const DATA: u64 = 0x5000_0000;
pub const PAGE: u64 = 4096;

pub fn range(start: u64, len: u64) -> AddrRange {
    AddrRange::new(start, len).expect("a range")
}

impl Guest {
    /// A space with `code` at [`CODE`], a stack of 64 KiB below [`STACK`] and 64 KiB of data at [`DATA`].
    pub fn new(platform: &Arc<Systrap>, code: &[u8]) -> Self {
        let space = platform.new_space().expect("a space");
        let all = Prot::READ | Prot::WRITE;
        space.map(range(CODE, 0x1_0000), MapSource::Zero, all, Sharing::Private).expect("mapping code");
        space.map(range(STACK - 0x1_0000, 0x1_0000), MapSource::Zero, all, Sharing::Private).expect("stack");
        space.map(range(DATA, 0x1_0000), MapSource::Zero, all, Sharing::Private).expect("data");
        assert_eq!(space.copy_out(CODE, code, FaultMode::Normal), Ok(code.len()));
        space.protect(range(CODE, 0x1_0000), Prot::READ | Prot::EXEC).expect("protecting code");
        Self::on(platform, space)
    }

    /// A thread in a space that has code.
    pub fn on(platform: &Arc<Systrap>, space: Arc<dyn AddressSpace>) -> Self {
        let context = platform.new_context(&space).expect("a context");
        let regs = Regs { rip: CODE, rsp: STACK - 64, ..Regs::default() };
        let flag = Arc::new(Flag { set: AtomicBool::new(false), platform: Arc::clone(platform), worker: 0 });
        Self { platform: Arc::clone(platform), space, context, regs, flag, worker: 0, spin: true }
    }

    /// Has another worker serve the guest.
    pub fn served_by(mut self, worker: usize) -> Self {
        self.worker = worker;
        self.flag =
            Arc::new(Flag { set: AtomicBool::new(false), platform: Arc::clone(&self.platform), worker });
        self
    }

    /// Runs to the next trap.
    pub fn run(&mut self) -> TrapEvent {
        self.serve(|context, regs, cx| context.poll_switch(cx, regs))
    }

    /// The extended state, once it is settled.
    pub fn fpu(&mut self) -> Result<FpuState, SpaceError> {
        self.serve(|context, _, cx| context.poll_settle(cx))?;
        self.context.fpu()
    }

    /// Works until `poll` is ready.
    fn serve<T>(
        &mut self,
        mut poll: impl FnMut(&mut dyn Context, &mut Regs, &mut Poller<'_>) -> Poll<T>,
    ) -> T {
        let flag = Arc::clone(&self.flag);
        let waker = Waker::from(Arc::clone(&flag));
        let mut cx = Poller::from_waker(&waker);
        loop {
            match poll(&mut *self.context, &mut self.regs, &mut cx) {
                Poll::Ready(value) => return value,
                Poll::Pending => {
                    while !flag.set.swap(false, Ordering::AcqRel) {
                        if self.platform.poll_traps() == 0 {
                            self.platform.park(self.worker, None, self.spin);
                        }
                    }
                }
            }
        }
    }

    /// Runs to a system call, answers it with `result`, and returns its number.
    pub fn syscall(&mut self) -> u64 {
        assert_eq!(self.run(), TrapEvent::Syscall, "{:x?}", self.regs);
        self.regs.orig_rax
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(self.space.copy_in(at, &mut bytes, FaultMode::Normal), Ok(N));
        bytes
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(self.space.copy_out(at, bytes, FaultMode::Normal), Ok(bytes.len()));
    }
}

/// The stub processes: children of this one, by `/proc`.
pub fn stubs() -> Vec<i32> {
    let mut all = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").expect("tasks") {
        let path = task.expect("a task").path().join("children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        all.extend(children.split_whitespace().map(|pid| pid.parse::<i32>().expect("a pid")));
    }
    all
}

/// The stub whose memory has `mark` at [`DATA`].
pub fn stub_of(guest: &Guest, mark: u64) -> i32 {
    guest.space.copy_out(DATA, &mark.to_ne_bytes(), FaultMode::Normal).expect("marking");
    let marked = |pid: &i32| {
        let mut seen = [0; 8];
        hostsys::memory::read_process(*pid, DATA, &mut seen).is_ok() && u64::from_ne_bytes(seen) == mark
    };
    stubs().into_iter().find(marked).expect("the stub of a guest")
}

/// The cases of [`run`], by their functions.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn(&Arc<Systrap>))),*] };
}

/// Defines a piece of guest code; the result is a function that gives its bytes.
#[macro_export]
macro_rules! guest_code {
    ($name:ident, $text:literal $(, $key:ident = $value:expr)*) => {
        core::arch::global_asm!(
            ".section .rodata.guest, \"a\"",
            ".balign 16",
            concat!("guest_", stringify!($name), "_start:"),
            $text,
            concat!("guest_", stringify!($name), "_end:"),
            ".text",
            $($key = const $value,)*
        );
        fn $name() -> &'static [u8] {
            let start: *const u8;
            let end: *const u8;
            // SAFETY: only takes the addresses of two symbols.
            unsafe {
                core::arch::asm!(
                    concat!("lea {0}, [rip + guest_", stringify!($name), "_start]"),
                    concat!("lea {1}, [rip + guest_", stringify!($name), "_end]"),
                    out(reg) start,
                    out(reg) end,
                    options(nomem, nostack, preserves_flags),
                );
            }
            // SAFETY: the symbols are the ends of one block in the read-only data of this program.
            unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
        }
    };
}

/// A thread that kicks a guest for as long as this lives.
pub struct Kicking {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Kicking {
    pub fn of(guest: &Guest) -> Self {
        let (kicker, done) = (guest.context.kicker(), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                kicker.kick();
                count += 1;
                std::thread::yield_now();
            }
            count
        });
        Self { done, thread: Some(thread) }
    }

    /// Ends it, and gives the number of kicks.
    pub fn end(mut self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().expect("the kicking thread"))
    }
}

impl Drop for Kicking {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
