//! The only wrappers of raw host system calls.
//!
//! Each wrapper is safe to call: its arguments are typed, its result is checked, and it holds no state.
//!
//! **Invariant.** A descriptor that a wrapper returns is owned by its return value and has `O_CLOEXEC`.
#![allow(unsafe_code, reason = "raw host system calls live here and nowhere else")]

pub mod clock;
pub mod fd;
pub mod mount;
pub mod random;
pub mod seqpacket;
pub mod spawn;
