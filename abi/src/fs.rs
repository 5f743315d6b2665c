//! Structures and constants of open(2), fcntl(2), getdents(2), utime(2) and inotify(7).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct open_how` (`openat2(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenHow {
    pub flags: u64,
    pub mode: u64,
    pub resolve: u64,
}

/// `struct iovec` (`readv(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoVec {
    pub base: u64,
    pub len: u64,
}

/// `struct flock` (`fcntl(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flock {
    pub kind: i16,
    pub whence: i16,
    pub pad0: u32,
    pub start: i64,
    pub len: i64,
    pub pid: i32,
    pub pad1: u32,
}

/// `struct f_owner_ex` (`fcntl(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FOwnerEx {
    pub kind: i32,
    pub pid: i32,
}

/// `struct utimbuf` (`utime(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Utimbuf {
    pub actime: i64,
    pub modtime: i64,
}

/// Bytes before the name in `struct linux_dirent64` (`getdents64(2)`).
pub const DIRENT64_HEADER: usize = 19;
/// Bytes before the name in `struct linux_dirent` (`getdents(2)`).
pub const DIRENT_HEADER: usize = 18;

/// `struct inotify_event` without its name (`inotify(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InotifyEvent {
    pub wd: i32,
    pub mask: u32,
    pub cookie: u32,
    pub len: u32,
}

/// `struct file_handle` without its handle (`name_to_handle_at(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileHandle {
    pub bytes: u32,
    pub kind: i32,
}

/// Flags of `preadv2(2)`.
pub mod rwf {
    pub const HIPRI: i32 = 0x01;
    pub const DSYNC: i32 = 0x02;
    pub const SYNC: i32 = 0x04;
    pub const NOWAIT: i32 = 0x08;
    pub const APPEND: i32 = 0x10;
    pub const NOAPPEND: i32 = 0x20;
}

const _: () = {
    assert!(size_of::<Flock>() == 32);
    assert!(size_of::<InotifyEvent>() == 16);
};
