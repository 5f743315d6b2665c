//! Sockets: the interface that system calls see, and the families behind it: `AF_UNIX` (`unix(7)`), `AF_INET` and
//! `AF_INET6` (`ip(7)`), `AF_NETLINK` (`netlink(7)`) and `AF_PACKET` (`packet(7)`) over the network stack.
//! No socket here has a host socket behind it: what goes out are packets, through links that the runtime has opened. The
//! exception is a network that is the host's: its sockets are the host's, made by a broker ([`HostNet`]).
//!
//! **Invariants.** No two `AF_UNIX` sockets' locks are held at once: a send locks the receiver alone, a connect its two
//! sides in turn. Of TCP sockets a connect holds the listener's and then the new socket's; a transfer holds the reader's
//! or writer's turn and then the stream's, the latter not over a copy. Messages are dropped after the lock that guarded them is released, because dropping one may close files.
//! Descriptors in flight are counted, and files that close files that close files are let go one by one and not by
//! recursion.
//!
//! **Lock ranks:** a socket's state, its readers' and writers' turns and a TCP stream are `FileData` 50; names, ports,
//! interfaces and options are leaves.
//!
//! **Threat.** Peers of a socket may be hostile to one another: what one may queue at another is bounded by the
//! sender's own buffer size.

mod host;
mod inet;
mod namespace;
mod netlink;
mod packet;
pub mod proc;
mod socket;
mod unix;

pub use host::{HostEnd, HostMessage, HostNet};
pub use inet::{Domain, Inet, LinkHost, LinkSetup, Links, RESOLVER_LINK};
pub use namespace::NetworkNamespace;
pub use netlink::NetlinkSocket;
pub use packet::PacketSocket;
pub use socket::{
    ControlIn, ControlMessage, NoPaths, RecvMsg, SendMsg, SockCtx, Socket, SocketFile, SocketPaths,
    check_credentials,
};
pub use unix::{UnixNamespace, UnixSocket};
