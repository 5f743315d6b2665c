//! Structures of native asynchronous I/O (`io_setup(2)`, `include/uapi/linux/aio_abi.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct iocb`: one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Iocb {
    /// Comes back in [`IoEvent::data`].
    pub data: u64,
    /// Written by the kernel: [`KIOCB_KEY`].
    pub key: u32,
    /// `RWF_*`
    pub rw_flags: i32,
    pub opcode: u16,
    pub reqprio: u16,
    pub fd: u32,
    pub buf: u64,
    pub nbytes: u64,
    pub offset: i64,
    pub reserved2: u64,
    /// [`FLAG_RESFD`], [`FLAG_IOPRIO`]
    pub flags: u32,
    pub resfd: u32,
}

/// Bytes from the start of [`Iocb`] to its key.
pub const KEY_OFFSET: u64 = 8;

/// `struct io_event`: one completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoEvent {
    pub data: u64,
    /// The address of the request.
    pub obj: u64,
    /// Bytes moved, or a negative errno.
    pub res: i64,
    pub res2: i64,
}

/// `IOCB_CMD_*`
pub mod cmd {
    pub const PREAD: u16 = 0;
    pub const PWRITE: u16 = 1;
    pub const FSYNC: u16 = 2;
    pub const FDSYNC: u16 = 3;
    pub const POLL: u16 = 5;
    pub const PREADV: u16 = 7;
    pub const PWRITEV: u16 = 8;
}

/// `IOCB_FLAG_RESFD`: `resfd` is an eventfd that counts the completion.
pub const FLAG_RESFD: u32 = 1;
/// `IOCB_FLAG_IOPRIO`: `reqprio` is an I/O priority.
pub const FLAG_IOPRIO: u32 = 2;
/// What the kernel writes to `key`.
pub const KIOCB_KEY: u32 = 0;
