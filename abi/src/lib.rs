//! Linux constants and structure layouts of the x86-64 system-call interface.
//!
//! Layouts are plain data with `zerocopy` derives, so that they can be read from and written to application
//! memory as bytes without `unsafe`. Flag constants come from the `libc` crate where it has them.
#![no_std]
pub mod aio;
pub mod elf;
pub mod fs;
pub mod ipc;
mod names;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod stat;
pub mod time;

pub mod net;
pub mod poll;
pub mod tty;

pub use names::{syscall_name, syscall_number};
