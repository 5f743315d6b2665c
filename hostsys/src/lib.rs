//! The only wrappers of raw host system calls.
//!
//! Each wrapper is safe to call: its arguments are typed, its result is checked, and it holds no state.
//!
//! **Invariant.** A descriptor that a wrapper returns is owned by its return value and has `O_CLOEXEC`.
#![allow(unsafe_code, reason = "raw host system calls live here and nowhere else")]

pub mod clock;
pub mod credentials;
pub mod empty_root;
pub mod fdpass;
pub mod pidfd;
pub mod polling;
pub mod random;
pub mod sealed;
pub mod signals;
pub mod launch;
pub mod syscall_names;
pub mod terminal;
