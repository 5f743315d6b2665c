//! What may go wrong with a transport, each the meaning of one errno.

/// Why a call on a socket failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// the other end reset the connection (`ECONNRESET`)
    #[error("the other end reset the connection")]
    Reset,
    /// the connection can carry nothing more in this direction (`EPIPE`)
    #[error("the connection can carry nothing more in this direction")]
    Broken,
    /// nobody listens at that address (`ECONNREFUSED`)
    #[error("nobody listens at that address")]
    Refused,
    /// the connection was given up before it was whole (`ECONNABORTED`)
    #[error("the connection was given up before it was whole")]
    Aborted,
    /// no answer came in time (`ETIMEDOUT`)
    #[error("no answer came in time")]
    TimedOut,
    /// another socket has that address (`EADDRINUSE`)
    #[error("another socket has that address")]
    AddressInUse,
    /// the address is none of this network's own, or no port is free (`EADDRNOTAVAIL`)
    #[error("the address is none of this network's own, or no port is free")]
    AddressNotAvailable,
    /// no route leads there (`ENETUNREACH`)
    #[error("no route leads there")]
    Unreachable,
    /// nobody has that address (`EHOSTUNREACH`)
    #[error("nobody has that address")]
    NoHost,
    /// it must not be sent there (`EACCES`)
    #[error("it must not be sent there")]
    Prohibited,
}
