//! The first stub process, from which all others are cloned.
//!
//! It is made by a clone of the Sentry's process, whose memory it then leaves: it takes the host's vDSO along, unmaps
//! everything else, and goes on in the stub image as an agent like any other. No application code ever runs in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hostsys::process;
use platform::{AddrRange, PAGE_SIZE};

use crate::channel::Arena;
use crate::layout::{self, CODE, CODE_LEN, EPOCH, EPOCH_OFFSET, KICK, ORDERS, STUB_END, VDSO};
use crate::stub::Entries;

/// The zygote, before its first report is met.
#[derive(Debug)]
pub struct Born {
    pub pid: i32,
    /// The vDSO image in every stub.
    pub vdso: Option<AddrRange>,
}

/// The host's vvar and vDSO mappings, here and in stubs.
#[derive(Debug)]
pub struct Vdso {
    parts: Vec<(AddrRange, bool)>,
}

impl Vdso {
    /// Finds them in this process' `/proc/self/maps`.
    pub fn of(maps: &str) -> Self {
        Self { parts: vdso_parts(maps) }
    }

    fn first(&self) -> u64 {
        self.parts.first().map_or(0, |(range, _)| range.start)
    }

    /// The image here.
    fn image(&self) -> Option<AddrRange> {
        self.parts.iter().find(|(_, is_vdso)| *is_vdso).map(|(part, _)| *part)
    }

    /// The image in stubs.
    fn in_stubs(&self) -> Option<AddrRange> {
        let image = self.image()?;
        AddrRange::new(VDSO + (image.start - self.first()), image.len())
    }

    /// Where stubs call its `clock_gettime`.
    pub fn clock(&self) -> Option<u64> {
        let image = self.image()?;
        let len = usize::try_from(image.len()).ok()?;
        // SAFETY: the host kernel maps the image readable for as long as the process lives, and nobody writes to it.
        let bytes = unsafe { std::slice::from_raw_parts(image.start as *const u8, len) };
        let offset = symbol(bytes, b"__vdso_clock_gettime").filter(|offset| *offset < image.len())?;
        self.in_stubs()?.start.checked_add(offset)
    }
}

/// The value of a dynamic symbol of an ELF image that is linked at zero, as the vDSO is.
fn symbol(image: &[u8], name: &[u8]) -> Option<u64> {
    const PT_DYNAMIC: u64 = 2;
    const DT_STRTAB: u64 = 5;
    const DT_SYMTAB: u64 = 6;
    let word = |at: u64, len: usize| {
        let at = usize::try_from(at).ok()?;
        let mut value = [0; 8];
        value.get_mut(..len)?.copy_from_slice(image.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(value))
    };
    let (headers, count) = (word(32, 8)?, word(56, 2)?);
    let of_kind = |index: &u64| word(headers + index * 56, 4) == Some(PT_DYNAMIC);
    let dynamic = word(headers + (0..count).find(of_kind)? * 56 + 16, 8)?;
    let entry = |tag: u64| {
        let at = (0..64).map(|index| dynamic + index * 16);
        at.take_while(|at| word(*at, 8).is_some_and(|tag| tag != 0))
            .find(|at| word(*at, 8) == Some(tag))
            .and_then(|at| word(at + 8, 8))
    };
    // The names follow the symbols, as linkers lay them out.
    let (symbols, names) = (entry(DT_SYMTAB)?, entry(DT_STRTAB)?);
    (symbols..names).step_by(24).find_map(|at| {
        let from = usize::try_from(names.checked_add(word(at, 4)?)?).ok()?;
        let end = from.checked_add(name.len())?;
        let is_it = image.get(from..end)? == name && image.get(end) == Some(&0);
        is_it.then(|| word(at + 8, 8)).flatten()
    })
}

/// Where the child first goes with its code: far from where the kernel puts anything.
const REFUGE: u64 = 0x1000_0000_0000;
const REFUGE_LEN: u64 = 0x40_0000;
const REFUGE_LIST: u64 = REFUGE + 0x8000;
const REFUGE_LIST_LEN: u64 = 0x4000;
const REFUGE_VDSO: u64 = REFUGE + 0x10_0000;

/// Descriptor numbers in the child.
const CODE_FD: u64 = 0;
const CHANNELS_FD: u64 = 1;
/// The first free number: the listener's.
const LISTENER_FD: i32 = 2;

/// One entry for the stub's boot code: an order without a child.
type Entry = [u64; layout::ORDER_SIZE / 8];

fn entry<const N: usize>(number: i64, arguments: [u64; N]) -> Entry {
    let mut entry = Entry::default();
    for (slot, value) in entry.iter_mut().zip([number as u64].into_iter().chain(arguments)) {
        *slot = value;
    }
    entry
}

/// The vvar and vDSO mappings of this process, in order of address, out of its `/proc/self/maps`.
fn vdso_parts(maps: &str) -> Vec<(AddrRange, bool)> {
    maps.lines()
        .filter_map(|line| {
            let name = line.split_whitespace().nth(5)?;
            if !name.starts_with("[vvar") && name != "[vdso]" {
                return None;
            }
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let end = u64::from_str_radix(end, 16).ok()?;
            Some((AddrRange { start, end }, name == "[vdso]"))
        })
        .collect()
}

/// Everything the child needs, made before it exists: it must not allocate.
struct Plan {
    code: i32,
    channels: i32,
    list: Vec<Entry>,
    entries: Entries,
    pid: i64,
}

/// Makes the zygote, which then gets ready by itself. The process must have one thread.
pub fn make(image: &OwnedFd, arena: &Arena, entries: Entries, group: u64, host: &Vdso) -> io::Result<Born> {
    let (parts, first) = (&host.parts, host.first());
    let mut list = Vec::new();
    let moved = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for (part, _) in parts {
        let to = REFUGE_VDSO + (part.start - first);
        list.push(entry(libc::SYS_mremap, [part.start, part.len(), part.len(), moved as u64, to]));
    }
    let fixed = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    let refuge_end = REFUGE + REFUGE_LEN;
    let code_prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    list.push(entry(libc::SYS_munmap, [0, REFUGE]));
    list.push(entry(libc::SYS_munmap, [refuge_end, STUB_END - refuge_end]));
    list.push(entry(libc::SYS_mmap, [CODE, CODE_LEN, code_prot, fixed, CODE_FD, 0]));
    for (part, _) in parts {
        let offset = part.start - first;
        let from = REFUGE_VDSO + offset;
        list.push(entry(libc::SYS_mremap, [from, part.len(), part.len(), moved as u64, VDSO + offset]));
    }
    let orders = Arena::orders_offset(group);
    let read = libc::PROT_READ as u64;
    list.push(entry(libc::SYS_mmap, [ORDERS, PAGE_SIZE, read, fixed, CHANNELS_FD, orders]));
    list.push(entry(libc::SYS_mmap, [EPOCH, PAGE_SIZE, read, fixed, CHANNELS_FD, EPOCH_OFFSET]));
    list.push(entry(-1, [entries.zygote]));
    let vdso = host.in_stubs();

    if list.len() * size_of::<Entry>() > REFUGE_LIST_LEN as usize {
        return Err(io::Error::other("the host's vDSO has too many parts"));
    }

    let mut plan =
        Plan { code: image.as_raw_fd(), channels: arena.file().as_raw_fd(), list, entries, pid: -1 };
    let intermediate = spawn(&mut plan)?;
    hostsys::retry(|| process::wait_pid(intermediate, true, true))?;
    let pid = i32::try_from(plan.pid).map_err(io::Error::other)?;
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(pid.wrapping_neg()));
    }
    Ok(Born { pid, vdso })
}

/// Clones twice. The first child shares our memory for a moment, and so has no restartable sequences registered
/// (`rseq(2)`); its own child, which has a copy of the memory, thus has none either, and may leave it.
fn spawn(plan: &mut Plan) -> io::Result<i32> {
    const STACK: usize = 256 * 1024;
    let mut stack = vec![0u8; STACK];
    let top = stack.as_mut_ptr_range().end;
    let top = top.wrapping_sub(top as usize % 16);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    // SAFETY: the child runs on the stack given here, which outlives it: with CLONE_VFORK the caller sleeps until the
    // child has exited. It shares our memory and touches only `plan`.
    let pid = unsafe { libc::clone(intermediate, top.cast(), flags, std::ptr::from_mut(plan).cast()) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

extern "C" fn intermediate(plan: *mut libc::c_void) -> i32 {
    let plan = plan.cast::<Plan>();
    // SAFETY: a clone with a stack of zero is a fork: the child has its own copy of everything. Its parent is ours.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT, 0usize, 0usize, 0usize, 0usize) };
    if pid == 0 {
        // SAFETY: the copy of the plan is this process' own.
        let plan = unsafe { &*plan };
        child(plan);
    }
    // SAFETY: the caller sleeps, and lent us the plan.
    unsafe { (*plan).pid = pid };
    0
}

/// Gives up with a status that says where.
fn give_up(step: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::syscall(libc::SYS_exit_group, step) };
    std::process::abort()
}

fn child(plan: &Plan) -> ! {
    if process::set_no_new_privs().is_err() || process::set_dumpable(true).is_err() {
        give_up(2);
    }
    let _ = process::set_name(c"casemate-stub");
    // A session of its own: signals of a terminal are for the Sentry.
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_setsid) };
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads one rlimit.
    unsafe { libc::syscall(libc::SYS_setrlimit, libc::RLIMIT_CORE, &raw const no_core) };
    if process::drop_capabilities().is_err() {
        give_up(3);
    }
    let all: u64 = !0;
    // SAFETY: the kernel reads one word of mask.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0usize, 8usize);
    }
    install_handlers(&plan.entries);
    move_descriptors(plan);

    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    map_at(REFUGE, REFUGE_LEN, libc::PROT_NONE, nothing, -1);
    let code = libc::PROT_READ | libc::PROT_EXEC;
    map_at(REFUGE, CODE_LEN, code, libc::MAP_SHARED | libc::MAP_FIXED, CODE_FD as i32);
    let list = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    map_at(REFUGE_LIST, REFUGE_LIST_LEN, libc::PROT_READ | libc::PROT_WRITE, list, -1);
    // SAFETY: `make` has checked that the list fits into the place that was just mapped for it.
    unsafe {
        std::ptr::copy_nonoverlapping(plan.list.as_ptr(), REFUGE_LIST as *mut Entry, plan.list.len());
    }
    // SAFETY: the boot code takes over for good; it needs no stack, and this process has nothing left to lose.
    unsafe {
        core::arch::asm!(
            "jmp {boot}",
            boot = in(reg) REFUGE + plan.entries.boot_offset,
            in("rdi") REFUGE_LIST,
            options(noreturn),
        );
    }
}

/// Maps inside the refuge, in the child.
fn map_at(at: u64, len: u64, prot: i32, flags: i32, fd: i32) {
    // SAFETY: the refuge holds nothing but what this function maps: its first mapping replaces none.
    let got = unsafe { libc::syscall(libc::SYS_mmap, at, len, prot, flags, fd, 0i64) };
    if got as u64 != at {
        give_up(4);
    }
}

/// Sends every signal of a trap to the stub's handler. The dispositions are inherited by all stubs.
fn install_handlers(entries: &Entries) {
    #[repr(C)]
    struct KernelSigaction {
        handler: u64,
        flags: u64,
        restorer: u64,
        mask: u64,
    }
    const SA_RESTORER: u64 = 0x0400_0000;
    let bit = |signal: i32| 1u64 << (signal - 1);
    for signal in 1..=64 {
        let trap =
            [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, KICK];
        let action = if trap.contains(&signal) {
            // Inside the handler of a system call the copies of its arguments may fault, and are mended.
            let open = if signal == libc::SIGSYS { bit(libc::SIGSEGV) | bit(libc::SIGBUS) } else { 0 };
            KernelSigaction {
                handler: entries.handler,
                flags: (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | SA_RESTORER,
                restorer: entries.restorer,
                mask: !open,
            }
        } else {
            KernelSigaction { handler: libc::SIG_DFL as u64, flags: 0, restorer: 0, mask: 0 }
        };
        // SAFETY: the kernel reads one structure of its own layout. SIGKILL and SIGSTOP are refused, which is no loss.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, 0usize, 8usize);
        }
    }
}

/// Leaves the two files of the plan, as the numbers that the boot code expects, and no other descriptor.
fn move_descriptors(plan: &Plan) {
    // SAFETY: fcntl and dup2 touch no memory; this process uses no descriptor by way of Rust any more.
    let safe = |fd: i32| unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD, 16) };
    let (code, channels) = (safe(plan.code), safe(plan.channels));
    // SAFETY: as above.
    let first = unsafe { libc::syscall(libc::SYS_dup2, code, CODE_FD) };
    // SAFETY: as above.
    let second = unsafe { libc::syscall(libc::SYS_dup2, channels, CHANNELS_FD) };
    // SAFETY: no owner of a descriptor runs in this process any more.
    let closed = unsafe { process::close_range(LISTENER_FD as u32, u32::MAX) };
    if first < 0 || second < 0 || closed.is_err() {
        give_up(5);
    }
}

/// Takes the listener of the filter that all stubs inherit out of the zygote's descriptor table as soon as it is there.
pub fn take_listener(pid: i32) -> io::Result<OwnedFd> {
    let pidfd = process::pidfd_open(pid)?;
    let mut last = io::Error::other("not tried");
    for turn in 0..20_000 {
        match process::pidfd_getfd(pidfd.as_fd(), LISTENER_FD) {
            Ok(fd) if is_listener(&fd) => return Ok(fd),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => last = error,
            Err(error) => return Err(error),
        }
        if let Ok(exit) = process::has_ended(pid) {
            return Err(io::Error::other(format!("the zygote ended while it started: {exit:?}")));
        }
        // It is nearly there, on another CPU or on this one; a sleep would outlast what it has left to do.
        if turn < 1000 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
    Err(last)
}

/// Before it has closed what it inherited, the zygote may have another file at that number.
fn is_listener(fd: &OwnedFd) -> bool {
    hostsys::seccomp::is_listener(fd.as_fd())
}

/// Calls for the zygote's first order: out of the refuge, and no descriptor left.
pub fn first_orders() -> [crate::agent::Call; 4] {
    use crate::agent::Call;
    [
        Call::new(libc::SYS_munmap, [REFUGE, REFUGE_LEN]),
        Call::new(libc::SYS_close, [CODE_FD]),
        Call::new(libc::SYS_close, [CHANNELS_FD]),
        Call::new(libc::SYS_close, [LISTENER_FD as u64]),
    ]
}
