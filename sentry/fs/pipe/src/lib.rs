//! Pipes and FIFOs (`pipe(7)`, `fifo(7)`, `fs/pipe.c`).
//!
//! **Invariants.** A pipe counts its page slots as Linux does, so that what fits, what is atomic and when a writer may go
//! on are the same; the bytes themselves lie in one ring, so that a transfer is one copy. A write of at most
//! `PIPE_BUF` bytes lands whole or not at all. Readers and writers are counted by their [`PipeEnd`]s.
//!
//! **Lock ranks:** a pipe's state is `FileData` 50, held over user copies; waiters are told after it is released.
//!
//! **Threat.** Sizes and counts come from applications: capacity is bounded by `/proc/sys/fs/pipe-max-size`.

mod fifo;
mod pipe;
mod ring;

pub use fifo::Fifos;
pub use pipe::{DEFAULT_SLOTS, FifoOpen, FifoWait, MAX_SIZE, PAGE, Pipe, PipeEnd, open_fifo, pipe};
