//! The stub image: assembled code, the seccomp filters and the staging table, in one sealed file.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hostsys::memory;
use hostsys::seccomp::{Action, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, Filter, Insn, Test};

use crate::layout::{
    self, CHANNELS, CODE, CODE_LEN, atomic, doing, hand, known, resident, signal, state, ucontext, word,
};

/// Where the parts that are appended to the code stand in the image.
const AGENT_FILTER: u64 = 0x1000;
const THREAD_FILTER: u64 = 0x2000;
const STAGE_TABLE: u64 = 0x3000;
/// Address of the vDSO's `clock_gettime` in stubs, or zero.
const VDSO_CLOCK: u64 = 0x3800;
/// System calls that the staging table covers.
const STAGE_CALLS: usize = 512;

/// The call that an agent makes to report: harmless if it ever reached the host.
const SYS_NOTIFY: i64 = libc::SYS_sched_yield;

/// `__CPUNODE_SEG` of arch/x86/include/asm/segment.h: its limit says on which CPU the reader runs.
const CPU_SEGMENT: u32 = 0x7b;

/// Flags of the clone that makes an application thread.
pub const CLONE_THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PARENT_SETTID) as u64;
/// Flags of the clone that makes a process: a child of the Sentry, whose end raises no signal.
pub const CLONE_PROCESS_FLAGS: u64 = libc::CLONE_PARENT as u64;

core::arch::global_asm!(
    include_str!("stub/stub.S"),
    ORDER_SIZE = const layout::ORDER_SIZE,
    ORDER_FIRST = const layout::ORDER_FIRST,
    ORDERS = const layout::ORDERS,
    SLOT_MASK = const -(layout::SLOT as i64),
    SYS_SECCOMP = const libc::SYS_seccomp,
    SYS_NOTIFY = const SYS_NOTIFY,
    SYS_MMAP = const libc::SYS_mmap,
    SYS_FUTEX = const libc::SYS_futex,
    SYS_RT_SIGRETURN = const libc::SYS_rt_sigreturn,
    SYS_EXIT_GROUP = const libc::SYS_exit_group,
    SIGSYS = const libc::SIGSYS,
    LISTENER_FLAGS = const FLAG_NEW_LISTENER | FLAG_SPEC_ALLOW,
    FILTER_FLAGS = const FLAG_SPEC_ALLOW,
    STATE = const word::STATE,
    SLEEPERS = const word::SLEEPERS,
    SPIN = const word::SPIN,
    SAVE = const word::SAVE,
    SAVE_ADDRESS = const word::SAVE_ADDRESS,
    SIGNAL = const word::SIGNAL,
    CONTEXT = const word::CONTEXT,
    FS_BASE = const word::FS_BASE,
    GS_BASE = const word::GS_BASE,
    ATOMIC = const atomic::FIRST,
    ATOMIC_STORE = const atomic::STORE,
    ATOMIC_ADD = const atomic::ADD,
    ATOMIC_EXCHANGE = const atomic::COMPARE_EXCHANGE,
    ATOMIC_AND = const atomic::AND,
    ATOMIC_TRIES = const atomic::TRIES,
    EAGAIN = const -libc::EAGAIN,
    RUN = const state::RUN,
    POSTED = const state::POSTED,
    ASLEEP = const word::ASLEEP,
    CPU_SEGMENT = const CPU_SEGMENT,
    WORKERS = const layout::EPOCH + layout::WORKERS,
    WORKER_SHIFT = const layout::WORKER_SHIFT,
    NR_CPU_WORKERS = const layout::NR_WORKERS - platform::FREE_WORKERS as u64,
    FREE_WORKERS = const platform::FREE_WORKERS,
    WORKER_ASLEEP = const doing::ASLEEP,
    STAGE = const word::STAGE,
    RESIDENT = const word::RESIDENT,
    ANSWERS = const word::ANSWERS,
    IS_RESIDENT = const IS_RESIDENT,
    INFO_ARCH = const ucontext::INFO_ARCH - ucontext::SIZE,
    UC_INFO_ARCH = const ucontext::INFO_ARCH,
    INFO_SYSCALL = const ucontext::INFO_SYSCALL,
    UC_REGS = const ucontext::REGS,
    KICK = const layout::KICK,
    TAKES_CALLS = const word::TAKES_CALLS,
    KICKED = const word::KICKED,
    IN_CLOCK = const word::IN_CLOCK,
    CLOCK_RESULT = const word::CLOCK_RESULT,
    CLOCK = const resident::CLOCK,
    DIRECTORY = const 1 << resident::DIRECTORY,
    ACTION = const 1 << resident::ACTION,
    OF_ANY = const OF_ANY,
    UNTOUCHED = const word::UNTOUCHED,
    MAY_DEFAULT = const layout::MAY_DEFAULT as i64,
    DEFAULTED = const word::DEFAULTED,
    DEFAULT = const word::DEFAULT,
    ACTION_BYTES = const ACTION_BYTES,
    LAST_ACTION = const layout::STUB_BASE - ACTION_BYTES,
    EPOCH = const layout::EPOCH,
    KNOWN = const word::KNOWN,
    KNOWN_ENTRY = const known::ENTRY,
    KNOWN_LEN = const known::LEN,
    KNOWN_PATH = const known::PATH,
    KNOWN_MAX = const known::MAX,
    KNOWN_MIX = const known::MIX as i64,
    KNOWN_SHIFT = const known::SHIFT,
    KNOWN_SET_SHIFT = const (known::WAYS * known::ENTRY).trailing_zeros(),
    KNOWN_WAYS = const known::WAYS,
    EINVAL = const -libc::EINVAL,
    OF_FILE = const OF_FILE,
    FILE_EPOCH = const layout::EPOCH + layout::FILE_EPOCH,
    HAND = const hand::WHICH,
    HAND_EPOCH = const hand::EPOCH,
    HAND_POSITION = const hand::POSITION,
    HAND_SIZE = const hand::SIZE,
    HAND_START = const hand::START,
    HAND_END = const hand::END,
    HAND_IS_STEADY = const hand::IS_STEADY,
    HAND_CALLS = const hand::CALLS,
    HAND_READS = const hand::READS,
    HAND_READ_BYTES = const hand::READ_BYTES,
    HAND_MAY_CLOSE = const hand::MAY_CLOSE,
    HAND_CLOSED = const hand::CLOSED,
    HAND_STAT = const hand::STAT,
    HAND_STAT_LEN = const hand::STAT_LEN,
    HAND_DATA = const word::HAND_DATA,
    STUB_BASE = const layout::STUB_BASE,
    READ_MAX = const READ_MAX,
    SYS_READ = const libc::SYS_read,
    SYS_CLOSE = const libc::SYS_close,
    SYS_PREAD = const libc::SYS_pread64,
    SYS_FSTAT = const libc::SYS_fstat,
    SYS_LSEEK = const libc::SYS_lseek,
    SYS_IOCTL = const libc::SYS_ioctl,
    AT_EMPTY_PATH = const libc::AT_EMPTY_PATH,
    TCGETS = const libc::TCGETS,
    ENOTTY = const -libc::ENOTTY,
    SYS_CLOCK_GETTIME = const libc::SYS_clock_gettime,
    ENOSYS = const -libc::ENOSYS,
    YIELDS = const word::YIELDS,
    YIELDS_KEPT = const YIELDS_KEPT,
    VDSO_CLOCK = const VDSO_CLOCK,
    CALL_FRAME = const word::CALL_FRAME,
    CALL_STACK = const word::CALL_STACK,
    CHANNELS = const layout::CHANNELS,
    CHANNELS_LAST = const layout::CHANNELS + layout::SLOT * layout::GROUP_SLOTS * (layout::MAX_GROUPS_OF_SPACE as u64 - 1),
    ARCH = const hostsys::seccomp::ARCH_X86_64,
    SYS_YIELD = const libc::SYS_sched_yield,
    GIVEN_COUNT = const word::GIVEN_COUNT,
    GIVEN = const word::GIVEN,
    GIVEN_DATA = const word::GIVEN_DATA,
    UNDELIVERED = const signal::UNDELIVERED,
    STAGE_DATA = const word::STAGE_DATA,
    STAGE_MAX = const layout::STAGE_MAX,
    STAGE_CALLS = const STAGE_CALLS,
    UC_RAX = const ucontext::RAX,
    UC_RIP = const ucontext::RIP,
    AGENT_FILTER = const AGENT_FILTER,
    THREAD_FILTER = const THREAD_FILTER,
    STAGE_TABLE = const STAGE_TABLE,
);

// The symbols are places in the code, read as bytes when the image is made and used as addresses otherwise.
unsafe extern "C" {
    static casemate_stub_start: u8;
    static casemate_stub_end: u8;
    static casemate_stub_boot: u8;
    static casemate_stub_zygote: u8;
    static casemate_stub_fork_child: u8;
    static casemate_stub_thread_child: u8;
    static casemate_stub_handler: u8;
    static casemate_stub_call: u8;
    static casemate_stub_notify_end: u8;
    static casemate_stub_fork_map_end: u8;
    static casemate_stub_call_end: u8;
    static casemate_stub_exit_end: u8;
    static casemate_stub_thread_filter_end: u8;
    static casemate_stub_futex_wait_end: u8;
    static casemate_stub_futex_wake_end: u8;
    static casemate_stub_sigreturn_end: u8;
    static casemate_stub_sigreturn2_end: u8;
    static casemate_stub_yield_end: u8;
}

/// Offset of a place in the image.
fn offset(place: *const u8) -> u64 {
    place as u64 - &raw const casemate_stub_start as u64
}

/// Addresses of places in the image as the stubs map it.
#[derive(Debug, Clone, Copy)]
pub struct Entries {
    /// Offset, not address, of the zygote's boot code.
    pub boot_offset: u64,
    pub zygote: u64,
    pub fork_child: u64,
    pub thread_child: u64,
    pub handler: u64,
    pub restorer: u64,
    /// Where patched code calls.
    pub call: u64,
}

impl Entries {
    pub fn new() -> Self {
        let at = |place| CODE + offset(place);
        Self {
            boot_offset: offset(&raw const casemate_stub_boot),
            zygote: at(&raw const casemate_stub_zygote),
            fork_child: at(&raw const casemate_stub_fork_child),
            thread_child: at(&raw const casemate_stub_thread_child),
            handler: at(&raw const casemate_stub_handler),
            call: at(&raw const casemate_stub_call),
            restorer: at(&raw const casemate_stub_sigreturn_end) - 2,
        }
    }
}

fn number(call: i64) -> Test {
    Test::Number(call as u32)
}

/// What every thread of every stub may do: the agent's calls, each at its own instruction.
fn agent_filter() -> Vec<Insn> {
    let at = |place| Test::Address(CODE + offset(place));
    let call = at(&raw const casemate_stub_call_end);
    let mut filter = Filter::new(Action::Trap);
    filter = filter.rule(&[number(SYS_NOTIFY), at(&raw const casemate_stub_notify_end)], Action::Notify);
    for ordered in [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_mincore,
        libc::SYS_getrusage,
        libc::SYS_close,
        libc::SYS_membarrier,
    ] {
        filter = filter.rule(&[number(ordered), call], Action::Allow);
    }
    for flags in [CLONE_THREAD_FLAGS, CLONE_PROCESS_FLAGS] {
        filter = filter.rule(&[number(libc::SYS_clone), call, Test::Argument(0, flags)], Action::Allow);
    }
    filter = filter
        .rule(&[number(libc::SYS_mmap), at(&raw const casemate_stub_fork_map_end)], Action::Allow)
        .rule(&[number(libc::SYS_seccomp), at(&raw const casemate_stub_thread_filter_end)], Action::Allow)
        .rule(&[number(libc::SYS_exit_group), at(&raw const casemate_stub_exit_end)], Action::Allow);
    thread_rules(filter).build()
}

/// What application threads may do besides: sleep and wake on words of their own memory, and return from the handler.
fn thread_filter() -> Vec<Insn> {
    thread_rules(Filter::new(Action::Trap)).build()
}

fn thread_rules(filter: Filter) -> Filter {
    let at = |place| Test::Address(CODE + offset(place));
    filter
        .rule(
            &[
                number(libc::SYS_futex),
                at(&raw const casemate_stub_futex_wait_end),
                // In a channel: on the words of workers others rely on being the only ones.
                Test::High(0, (CHANNELS >> 32) as u32),
                Test::Low(1, libc::FUTEX_WAIT as u32),
            ],
            Action::Allow,
        )
        .rule(
            &[
                number(libc::SYS_futex),
                at(&raw const casemate_stub_futex_wake_end),
                Test::Low(1, libc::FUTEX_WAKE as u32),
            ],
            Action::Allow,
        )
        .rule(&[number(libc::SYS_rt_sigreturn), at(&raw const casemate_stub_sigreturn_end)], Action::Allow)
        .rule(&[number(libc::SYS_rt_sigreturn), at(&raw const casemate_stub_sigreturn2_end)], Action::Allow)
        .rule(&[number(libc::SYS_sched_yield), at(&raw const casemate_stub_yield_end)], Action::Allow)
}

/// Argument `index` is a path.
const fn path(index: u32) -> u32 {
    index | (1 << 3)
}
/// Argument `index` points at as many elements of `1 << shift` bytes as the next argument says.
const fn counted(index: u32, shift: u32) -> u32 {
    index | (2 << 3) | (shift << 8)
}
/// Argument `index` points at `bytes` bytes.
const fn fixed(index: u32, bytes: u32) -> u32 {
    index | (3 << 3) | (bytes << 8)
}
const fn two(first: u32, second: u32) -> u32 {
    first | (second << 16)
}

/// In the staging table: the stub answers the call, by the number of [`resident`] in the second byte.
const IS_RESIDENT: u32 = 1 << 5;

/// In the staging table: the call fails with `EINVAL` if its first piece is a directory that is known not to be a link.
const OF_DIRECTORY: u32 = 1 << 6;

/// In the staging table: the stub answers the call for the file at hand.
const OF_FILE: u32 = 2 << 6;

/// In the staging table: the call tells the action of a signal, which may be one that nobody has set.
const OF_ACTION: u32 = 3 << 6;

/// The bits of which these are made.
const OF_ANY: u32 = 3 << 6;

/// The most that one read moves (`MAX_RW_COUNT`).
const READ_MAX: u32 = 0x7fff_f000;

/// Calls of `sched_yield(2)` in patched code that return at once, between two that reach the host: a power of two less
/// one.
const YIELDS_KEPT: u32 = 63;

/// By what the stub answers a call of [`platform::ANSWERED`] where the thread's mask lets it.
const fn answer_of(call: i64) -> Option<u32> {
    Some(match call {
        libc::SYS_sched_yield => resident::YIELD,
        libc::SYS_getpid => resident::PID,
        libc::SYS_gettid => resident::TID,
        libc::SYS_getuid => resident::UID,
        libc::SYS_geteuid => resident::EUID,
        libc::SYS_getgid => resident::GID,
        libc::SYS_getegid => resident::EGID,
        libc::SYS_clock_gettime => resident::CLOCK,
        libc::SYS_readlink | libc::SYS_readlinkat => resident::DIRECTORY,
        libc::SYS_rt_sigaction => resident::ACTION,
        _ => return None,
    })
}

/// Bytes of the kernel's `struct sigaction`.
const ACTION_BYTES: u64 = 32;

/// Which arguments travel with which call. A call that is not here carries nothing.
const STAGED: &[(i64, u32)] = &[
    (libc::SYS_read, OF_FILE),
    (libc::SYS_pread64, OF_FILE),
    (libc::SYS_close, OF_FILE),
    (libc::SYS_fstat, OF_FILE),
    (libc::SYS_lseek, OF_FILE),
    (libc::SYS_ioctl, OF_FILE),
    (libc::SYS_write, counted(1, 0)),
    (libc::SYS_pwrite64, counted(1, 0)),
    (libc::SYS_writev, counted(1, 4)),
    (libc::SYS_readv, counted(1, 4)),
    (libc::SYS_sendto, counted(1, 0)),
    (libc::SYS_sendmsg, fixed(1, 56)),
    (libc::SYS_recvmsg, fixed(1, 56)),
    (libc::SYS_connect, counted(1, 0)),
    (libc::SYS_bind, counted(1, 0)),
    (libc::SYS_poll, counted(0, 3)),
    (libc::SYS_ppoll, two(counted(0, 3), fixed(2, 16))),
    (libc::SYS_epoll_ctl, fixed(3, 12)),
    (libc::SYS_nanosleep, fixed(0, 16)),
    (libc::SYS_clock_nanosleep, fixed(2, 16)),
    (libc::SYS_rt_sigaction, fixed(1, ACTION_BYTES as u32) | OF_ACTION),
    (libc::SYS_rt_sigprocmask, fixed(1, 8)),
    (libc::SYS_prlimit64, fixed(2, 16)),
    (libc::SYS_open, path(0)),
    (libc::SYS_creat, path(0)),
    (libc::SYS_stat, path(0)),
    (libc::SYS_lstat, path(0)),
    (libc::SYS_access, path(0)),
    (libc::SYS_execve, path(0)),
    (libc::SYS_truncate, path(0)),
    (libc::SYS_chdir, path(0)),
    (libc::SYS_rename, two(path(0), path(1))),
    (libc::SYS_mkdir, path(0)),
    (libc::SYS_rmdir, path(0)),
    (libc::SYS_link, two(path(0), path(1))),
    (libc::SYS_unlink, path(0)),
    (libc::SYS_symlink, two(path(0), path(1))),
    (libc::SYS_readlink, path(0) | OF_DIRECTORY),
    (libc::SYS_chmod, path(0)),
    (libc::SYS_chown, path(0)),
    (libc::SYS_lchown, path(0)),
    (libc::SYS_mknod, path(0)),
    (libc::SYS_statfs, path(0)),
    (libc::SYS_utimensat, two(path(1), fixed(2, 32))),
    (libc::SYS_getxattr, two(path(0), path(1))),
    (libc::SYS_lgetxattr, two(path(0), path(1))),
    (libc::SYS_fgetxattr, path(1)),
    (libc::SYS_openat, path(1)),
    (libc::SYS_openat2, two(path(1), fixed(2, 24))),
    (libc::SYS_mkdirat, path(1)),
    (libc::SYS_mknodat, path(1)),
    (libc::SYS_fchownat, path(1)),
    (libc::SYS_newfstatat, path(1) | OF_FILE),
    (libc::SYS_unlinkat, path(1)),
    (libc::SYS_renameat, two(path(1), path(3))),
    (libc::SYS_renameat2, two(path(1), path(3))),
    (libc::SYS_linkat, two(path(1), path(3))),
    (libc::SYS_symlinkat, two(path(0), path(2))),
    (libc::SYS_readlinkat, path(1) | OF_DIRECTORY),
    (libc::SYS_fchmodat, path(1)),
    (libc::SYS_faccessat, path(1)),
    (libc::SYS_faccessat2, path(1)),
    (libc::SYS_execveat, path(1)),
    (libc::SYS_statx, path(1)),
];

/// Puts `bytes` at `at` of the image.
fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> io::Result<()> {
    let room = at
        .checked_add(bytes.len())
        .and_then(|end| image.get_mut(at..end))
        .ok_or_else(|| io::Error::other("the stub image has no room for its parts"))?;
    room.copy_from_slice(bytes);
    Ok(())
}

/// `struct sock_fprog` and its instructions, for an image that is mapped at [`CODE`].
fn program(at: u64, filter: &[Insn]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let mut bytes = u64::from(len).to_ne_bytes().to_vec();
    bytes.extend((CODE + at + 16).to_ne_bytes());
    for insn in filter {
        bytes.extend(insn.code.to_ne_bytes());
        bytes.extend([insn.jt, insn.jf]);
        bytes.extend(insn.k.to_ne_bytes());
    }
    if bytes.len() > 0x1000 {
        return Err(io::Error::other("a stub filter is too long"));
    }
    Ok(bytes)
}

/// The image, in a file that nobody can write any more. `clock` is the address of the vDSO's `clock_gettime` in stubs.
pub fn image(clock: Option<u64>) -> io::Result<OwnedFd> {
    let start = &raw const casemate_stub_start;
    let len = usize::try_from(offset(&raw const casemate_stub_end)).map_err(io::Error::other)?;
    // SAFETY: the two symbols are the ends of one block in the read-only data of this program.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    if len > 0x1000 {
        return Err(io::Error::other("the stub code is too long"));
    }
    let mut image = vec![0u8; usize::try_from(CODE_LEN).map_err(io::Error::other)?];
    put(&mut image, 0, code)?;
    put(&mut image, AGENT_FILTER as usize, &program(AGENT_FILTER, &agent_filter())?)?;
    put(&mut image, THREAD_FILTER as usize, &program(THREAD_FILTER, &thread_filter())?)?;
    put(&mut image, VDSO_CLOCK as usize, &clock.unwrap_or(0).to_ne_bytes())?;
    let resident = platform::ANSWERED.iter().filter_map(|call| match answer_of(*call) {
        // Answered after their first argument is staged.
        None | Some(resident::DIRECTORY | resident::ACTION) => None,
        Some(index) => Some((*call, IS_RESIDENT | index << 8)),
    });
    for (call, pieces) in STAGED.iter().copied().chain(resident) {
        let call = usize::try_from(call).map_err(io::Error::other)?;
        if call >= STAGE_CALLS {
            return Err(io::Error::other("a staged system call is outside the table"));
        }
        put(&mut image, STAGE_TABLE as usize + call * 4, &pieces.to_ne_bytes())?;
    }
    let file = memory::memfd(c"casemate-stub")?;
    memory::set_len(file.as_fd(), CODE_LEN)?;
    let file = std::fs::File::from(file);
    std::os::unix::fs::FileExt::write_all_at(&file, &image, 0)?;
    let file = OwnedFd::from(file);
    memory::add_seals(
        file.as_fd(),
        libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
    )?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_assembled_with_a_filter_that_fits() {
        assert!(agent_filter().len() < 256);
        assert!(image(Some(layout::VDSO)).is_ok());
    }

    #[test]
    fn calls_of_a_file_at_hand_are_those_that_are_said() {
        let mut here: Vec<i64> =
            STAGED.iter().filter(|(_, how)| how & OF_ANY == OF_FILE).map(|(call, _)| *call).collect();
        let mut said = platform::HAND_CALLS;
        here.sort_unstable();
        said.sort_unstable();
        assert_eq!(here, said);
    }

    #[test]
    fn there_is_an_answer_for_each_call_that_may_have_one() {
        let known: Vec<u32> = platform::ANSWERED.iter().filter_map(|call| answer_of(*call)).collect();
        assert_eq!(known.len(), platform::ANSWERED.len());
        assert_eq!(known.iter().fold(0, |mask, index| mask | 1 << index), resident::ALL);
    }
}
