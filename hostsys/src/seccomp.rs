//! Seccomp: a small assembler for filters, and the notification descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// One instruction of classic BPF: `struct sock_filter` of `<linux/filter.h>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// What a filter answers (`SECCOMP_RET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    KillProcess,
    Trap,
    Errno(u16),
    Notify,
    Allow,
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Self::Allow => libc::SECCOMP_RET_ALLOW,
        }
    }
}

/// A condition on a call. All values are compared in full 64 bits, except the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The call's number.
    Number(u32),
    /// The address after the `syscall` instruction.
    Address(u64),
    /// Argument `index` (0 to 5) has this value.
    Argument(u8, u64),
    /// The low half of argument `index` has this value (an `int` argument).
    Low(u8, u32),
    /// The high half of argument `index` has this value (an address, by its four gigabytes).
    High(u8, u32),
}

/// `AUDIT_ARCH_X86_64`.
pub const ARCH_X86_64: u32 = 0xC000_003E;

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn load(offset: u32) -> Insn {
    Insn { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn answer(action: Action) -> Insn {
    Insn { code: RETURN, jt: 0, jf: 0, k: action.value() }
}

/// A filter: rules in order, the first whose tests all hold answers, `otherwise` if none does.
///
/// Calls of another architecture (`int 0x80`) always get `otherwise`.
#[derive(Debug, Clone)]
pub struct Filter {
    insns: Vec<Insn>,
    otherwise: Action,
}

impl Filter {
    pub fn new(otherwise: Action) -> Self {
        let insns = vec![load(4), Insn { code: JUMP_EQUAL, jt: 1, jf: 0, k: ARCH_X86_64 }, answer(otherwise)];
        Self { insns, otherwise }
    }

    /// Adds a rule of at most 16 tests.
    #[must_use]
    pub fn rule(mut self, tests: &[Test], action: Action) -> Self {
        let mut checks: Vec<(u32, u32)> = Vec::new();
        for test in tests {
            match *test {
                Test::Number(number) => checks.push((0, number)),
                Test::Address(address) => {
                    checks.push((8, address as u32));
                    checks.push((12, (address >> 32) as u32));
                }
                Test::Argument(index, value) => {
                    let at = 16 + 8 * u32::from(index);
                    checks.push((at, value as u32));
                    checks.push((at + 4, (value >> 32) as u32));
                }
                Test::Low(index, value) => checks.push((16 + 8 * u32::from(index), value)),
                Test::High(index, value) => checks.push((20 + 8 * u32::from(index), value)),
            }
        }
        let nr_checks = checks.len();
        for (index, (offset, value)) in checks.into_iter().enumerate() {
            // A test that fails jumps over the rest of this rule: two instructions a test, and the answer.
            let skip = (nr_checks - index - 1) * 2 + 1;
            self.insns.push(load(offset));
            self.insns.push(Insn {
                code: JUMP_EQUAL,
                jt: 0,
                jf: u8::try_from(skip).unwrap_or(u8::MAX),
                k: value,
            });
        }
        self.insns.push(answer(action));
        self
    }

    /// The finished program.
    pub fn build(mut self) -> Vec<Insn> {
        self.insns.push(answer(self.otherwise));
        self.insns
    }
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const FLAG_NEW_LISTENER: u64 = 8;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
pub const FLAG_SPEC_ALLOW: u64 = 4;

/// A call that waits for an answer: `struct seccomp_notif`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notification {
    pub id: u64,
    /// The calling thread, in the reader's pid namespace.
    pub tid: u32,
    pub flags: u32,
    pub number: i32,
    pub arch: u32,
    pub address: u64,
    pub arguments: [u64; 6],
}

const NOTIF_RECV: u64 = 0xC050_2100;
const NOTIF_SEND: u64 = 0xC018_2101;
const NOTIF_ADDFD: u64 = 0x4018_2103;
const NOTIF_SET_FLAGS: u64 = 0x4008_2104;

/// Waits for a call that the filter behind `listener` has caught (`seccomp_unotify(2)`). `ENOENT` when the caller died
/// meanwhile, or when nobody is left who could call.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    let mut notification = Notification::default();
    // SAFETY: the kernel writes the one structure that is passed, which has the layout and size it expects.
    check(unsafe {
        libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), NOTIF_RECV, &raw mut notification)
    })?;
    Ok(notification)
}

/// Answers call `id` with `value`. `ENOENT` when the caller is gone.
pub fn respond(listener: BorrowedFd<'_>, id: u64, value: i64) -> io::Result<()> {
    #[repr(C)]
    struct Response {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    let response = Response { id, value, error: 0, flags: 0 };
    // SAFETY: the kernel reads the one structure that is passed.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), NOTIF_SEND, &raw const response) })?;
    Ok(())
}

/// Puts a copy of `file` into the caller's descriptor table as number `as_fd`. With `answer` the call returns that
/// number at once.
pub fn add_fd(
    listener: BorrowedFd<'_>,
    id: u64,
    file: BorrowedFd<'_>,
    as_fd: u32,
    answer: bool,
) -> io::Result<()> {
    #[repr(C)]
    struct AddFd {
        id: u64,
        flags: u32,
        srcfd: u32,
        newfd: u32,
        newfd_flags: u32,
    }
    const SETFD: u32 = 1;
    const SEND: u32 = 2;
    let request = AddFd {
        id,
        flags: if answer { SETFD | SEND } else { SETFD },
        srcfd: file.as_raw_fd() as u32,
        newfd: as_fd,
        newfd_flags: 0,
    };
    // SAFETY: the kernel reads the one structure that is passed.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), NOTIF_ADDFD, &raw const request) })?;
    Ok(())
}

/// Whether a descriptor is a notification descriptor: it knows the question whether a call is still waiting.
pub fn is_listener(fd: BorrowedFd<'_>) -> bool {
    const NOTIF_ID_VALID: u64 = 0x4008_2102;
    let no_call = u64::MAX;
    // SAFETY: the kernel reads one word.
    let asked =
        check(unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), NOTIF_ID_VALID, &raw const no_call) });
    matches!(asked, Err(error) if error.raw_os_error() == Some(libc::ENOENT))
}

/// Wakes the other side on the waker's own CPU (`SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`, Linux 6.6 or newer).
pub fn set_sync_wake(listener: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), NOTIF_SET_FLAGS, 1u64) })?;
    Ok(())
}
