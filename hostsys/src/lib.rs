//! The wrappers of raw host system calls that the other crates use; the only ones in the workspace besides those inside
//! the platforms.
//!
//! Each wrapper is one system call (or a fixed short sequence), takes borrowed descriptors and slices, and answers with
//! [`std::io::Result`], whose `raw_os_error` is the host's errno. None keeps state. A wrapper is safe to call when no
//! argument can make the host write to, or unmap, memory that Rust believes to own; the others are `unsafe fn` and say
//! what the caller must hold.
//!
//! **Files.** One area each: [`futex`], [`memory`] (memfd, mappings, copies to and from other processes), [`process`]
//! (pidfd, wait, signals, prctl), [`seccomp`] (filters and the notification descriptor), [`sock`] (packets with
//! descriptors), [`fs`] (paths), [`mount`], [`fd`] (inherited descriptors).
#![allow(unsafe_code, reason = "raw system calls are what this crate wraps")]
// A raw call passes every argument as a machine word; each cast is to or from that word.
#![allow(clippy::cast_possible_truncation, reason = "system call arguments and results are machine words")]

pub mod allocator;
pub mod clock;
pub mod cpu;
pub mod credentials;
pub mod empty_root;
pub mod fanotify;
pub mod fd;
pub mod fs;
pub mod futex;
pub mod launch;
pub mod memory;
pub mod mount;
pub mod packet;
pub mod pidfd;
pub mod polling;
pub mod process;
pub mod random;
pub mod reserve;
pub mod sealed;
pub mod seccomp;
pub mod signals;
pub mod sock;
pub mod syscall_names;
pub mod terminal;
pub mod terminal_query;
pub mod text;

use std::io;

/// The result of a raw system call as `io::Result` (`syscall(2)`: -1 and errno).
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Repeats `call` while it is interrupted by a signal (`EINTR`, signal(7)).
pub fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            other => return other,
        }
    }
}
