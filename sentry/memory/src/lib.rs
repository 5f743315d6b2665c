//! Memory that the Sentry owns or copies: the memory file behind shared pages, and cursors over user memory.
//!
//! **Invariants.** User memory is read and written only through [`UserMemory`], whose copies are checked by the
//! host; a pointer of the application is never dereferenced here. A range of the memory file is handed out again
//! only when nothing maps it any more ([`Chunk`]), and then reads as zeroes.
//!
//! **Lock ranks:** `MemoryFile` 130.
//!
//! **Threat.** Pages of the memory file are mapped by applications, which may change them at any moment: bytes
//! are copied out once and then looked at.
#![allow(unsafe_code, reason = "the memory file is mapped into the Sentry and copied by raw pointers")]

mod alloc;
mod data;
mod file;
mod room;
mod user;

pub use data::{DataPiece, PagedData};
pub use file::{Chunk, MemoryFile};
pub use room::room;
pub use user::{IoSeg, UserMemory, UserReader, UserWriter, copy_in_cstr};
