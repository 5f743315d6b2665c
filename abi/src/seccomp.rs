//! Secure computing: classic BPF instructions, actions and flags (`seccomp(2)`, `include/uapi/linux/seccomp.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct sock_filter`: one instruction of classic BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SockFilter {
    /// Class, size, mode, operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// `struct sock_fprog`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SockFprog {
    /// Instructions.
    pub len: u16,
    /// Unused.
    pub pad: [u16; 3],
    /// Where they are.
    pub filter: u64,
}

/// `struct seccomp_data`: what a filter sees of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SeccompData {
    /// The call's number.
    pub nr: i32,
    /// [`AUDIT_ARCH_X86_64`].
    pub arch: u32,
    /// The address after the `syscall` instruction.
    pub instruction_pointer: u64,
    /// The six arguments.
    pub args: [u64; 6],
}

/// `struct seccomp_notif`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SeccompNotif {
    /// Names the notification.
    pub id: u64,
    /// The thread that made the call.
    pub pid: u32,
    /// No flag is known.
    pub flags: u32,
    /// The call.
    pub data: SeccompData,
}

/// `struct seccomp_notif_resp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SeccompNotifResp {
    /// The notification's id.
    pub id: u64,
    /// The value that the call returns if `error` is zero.
    pub val: i64,
    /// A negative errno, or zero.
    pub error: i32,
    /// [`NOTIF_CONTINUE`] or zero.
    pub flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SeccompNotifAddfd {
    /// The notification's id.
    pub id: u64,
    /// [`ADDFD_SETFD`], [`ADDFD_SEND`].
    pub flags: u32,
    /// The supervisor's descriptor.
    pub srcfd: u32,
    /// The number to give it, with [`ADDFD_SETFD`].
    pub newfd: u32,
    /// `O_CLOEXEC` or zero.
    pub newfd_flags: u32,
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: make the call after all.
pub const NOTIF_CONTINUE: u32 = 1;
/// `SECCOMP_ADDFD_FLAG_SETFD`.
pub const ADDFD_SETFD: u32 = 1;
/// `SECCOMP_ADDFD_FLAG_SEND`: and answer the call with the new number.
pub const ADDFD_SEND: u32 = 2;

/// `AUDIT_ARCH_X86_64`.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// The most instructions of a filter (`BPF_MAXINSNS`).
pub const MAX_INSNS: usize = 4096;

/// Modes (`SECCOMP_MODE_*`).
pub mod mode {
    /// No restriction.
    pub const DISABLED: u32 = 0;
    /// read, write, exit and rt_sigreturn alone.
    pub const STRICT: u32 = 1;
    /// Filters decide.
    pub const FILTER: u32 = 2;
}

/// Operations of `seccomp(2)` (`SECCOMP_*`).
pub mod op {
    /// Enter strict mode.
    pub const SET_MODE_STRICT: u32 = 0;
    /// Add a filter.
    pub const SET_MODE_FILTER: u32 = 1;
    /// Is an action known?
    pub const GET_ACTION_AVAIL: u32 = 2;
    /// Sizes of the notification structures.
    pub const GET_NOTIF_SIZES: u32 = 3;
}

/// Flags of `SECCOMP_SET_MODE_FILTER`.
pub mod flag {
    /// For every thread of the process.
    pub const TSYNC: u32 = 1;
    /// Log all actions but ALLOW.
    pub const LOG: u32 = 2;
    /// Without the mitigation of speculative store bypass.
    pub const SPEC_ALLOW: u32 = 4;
    /// Return a descriptor for notifications.
    pub const NEW_LISTENER: u32 = 8;
    /// `ESRCH` instead of the id of a thread that cannot be synchronized.
    pub const TSYNC_ESRCH: u32 = 16;
    /// A call whose notification was received is interrupted by fatal signals alone.
    pub const WAIT_KILLABLE_RECV: u32 = 32;
    /// Every known flag.
    pub const ALL: u32 = 63;
}

/// What a filter returns (`SECCOMP_RET_*`): the action in the high half, data in the low half.
pub mod ret {
    /// End the process.
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    /// End the thread.
    pub const KILL_THREAD: u32 = 0;
    /// SIGSYS.
    pub const TRAP: u32 = 0x0003_0000;
    /// Fail with the data as errno.
    pub const ERRNO: u32 = 0x0005_0000;
    /// Ask the listener.
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    /// Tell the tracer.
    pub const TRACE: u32 = 0x7ff0_0000;
    /// Allow and log.
    pub const LOG: u32 = 0x7ffc_0000;
    /// Allow.
    pub const ALLOW: u32 = 0x7fff_0000;
    /// The action's bits.
    pub const ACTION: u32 = 0xffff_0000;
    /// The data's bits.
    pub const DATA: u32 = 0x0000_ffff;
}

const _: () = assert!(size_of::<SeccompData>() == 64);
const _: () = assert!(size_of::<SeccompNotif>() == 80);
const _: () = assert!(size_of::<SeccompNotifResp>() == 24);
const _: () = assert!(size_of::<SeccompNotifAddfd>() == 24);
