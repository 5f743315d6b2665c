//! Sockets: the interface that system calls see, and the `AF_UNIX` family behind it (`socket(7)`, `unix(7)`,
//! `net/unix/af_unix.c`).
//!
//! **Invariants.** No two sockets' locks are held at once: a send locks the receiver alone, a connect its two sides in
//! turn. Messages are dropped after the lock that guarded them is released, because dropping one may close files.
//! Descriptors in flight are counted, and files that close files that close files are let go one by one and not by
//! recursion.
//!
//! **Lock ranks:** a socket's state is `FileData` 50, held over user copies; names and options are leaves.
//!
//! **Threat.** Peers of a socket may be hostile to one another: what one may queue at another is bounded by the
//! sender's own buffer size.

mod socket;
mod unix;

pub use socket::{
    ControlIn, NoPaths, RecvMsg, SendMsg, SockCtx, Socket, SocketFile, SocketPaths, check_credentials,
};
pub use unix::{UnixNamespace, UnixSocket};
