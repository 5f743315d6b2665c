//! `struct sockaddr_in` and `struct sockaddr_in6`, and errors of the transports as errnos.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::Error;
use sentry_base::{Errno, Result};

/// Bytes of `struct sockaddr_in`, of `struct sockaddr_in6`, and of the latter before it had a scope.
const LEN_V4: usize = 16;
const LEN_V6: usize = 28;
const LEN_V6_OLD: usize = 24;

/// `AF_INET` or `AF_INET6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    V4,
    V6,
}

impl Domain {
    pub(crate) fn raw(self) -> i32 {
        match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        }
    }

    /// The address that stands for all.
    pub(crate) fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// What `getsockname` shows before there is an address.
    pub(crate) fn nowhere(self) -> SocketAddr {
        SocketAddr::new(self.any(), 0)
    }
}

/// The errno of a transport's error.
pub(crate) fn errno(error: Error) -> Errno {
    match error {
        Error::Reset => Errno::ECONNRESET,
        Error::Broken => Errno::EPIPE,
        Error::Refused => Errno::ECONNREFUSED,
        Error::Aborted => Errno::ECONNABORTED,
        Error::TimedOut => Errno::ETIMEDOUT,
        Error::AddressInUse => Errno::EADDRINUSE,
        Error::AddressNotAvailable => Errno::EADDRNOTAVAIL,
        Error::Unreachable => Errno::ENETUNREACH,
        Error::NoHost => Errno::EHOSTUNREACH,
        Error::Prohibited => Errno::EACCES,
    }
}

/// An address mapped into IPv6 as the IPv4 address that it is.
pub(crate) fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// The family that an address says it is of; `EINVAL` for one too short to say.
pub(crate) fn family(bytes: &[u8]) -> Result<i32> {
    bytes.first_chunk().map(|b| i32::from(u16::from_ne_bytes(*b))).ok_or(Errno::EINVAL)
}

fn parse_v4(bytes: &[u8]) -> Result<SocketAddr> {
    let bytes: &[u8; LEN_V4] = bytes.first_chunk().ok_or(Errno::EINVAL)?;
    let [_, _, p0, p1, a, b, c, d, ..] = *bytes;
    Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), u16::from_be_bytes([p0, p1])))
}

fn parse_v6(bytes: &[u8]) -> Result<SocketAddr> {
    if bytes.len() < LEN_V6_OLD {
        return Err(Errno::EINVAL);
    }
    let port: [u8; 2] = bytes.get(2..4).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    let ip: [u8; 16] = bytes.get(8..24).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    Ok(SocketAddr::new(canonical(IpAddr::V6(Ipv6Addr::from(ip))), u16::from_be_bytes(port)))
}

/// Reads an address of the socket's own family; `EINVAL` for a short one, `EAFNOSUPPORT` for another family.
pub(crate) fn parse(domain: Domain, bytes: &[u8]) -> Result<SocketAddr> {
    let least = if domain == Domain::V4 { LEN_V4 } else { LEN_V6_OLD };
    if bytes.len() < least {
        return Err(Errno::EINVAL);
    }
    if family(bytes)? != domain.raw() {
        return Err(Errno::EAFNOSUPPORT);
    }
    match domain {
        Domain::V4 => parse_v4(bytes),
        Domain::V6 => parse_v6(bytes),
    }
}

/// Reads an address to bind to: an IPv4 socket takes one of no family too, if it is all zeroes (`__inet_bind`).
pub(crate) fn parse_for_bind(domain: Domain, bytes: &[u8]) -> Result<SocketAddr> {
    if domain == Domain::V4 && bytes.len() >= LEN_V4 && family(bytes)? == libc::AF_UNSPEC {
        let at = parse_v4(bytes)?;
        return if at.ip().is_unspecified() { Ok(at) } else { Err(Errno::EAFNOSUPPORT) };
    }
    parse(domain, bytes)
}

/// Reads the destination of a datagram: an IPv6 socket takes IPv4 addresses too. `None` for one of no family on an IPv6
/// socket, which stands for the connected peer.
pub(crate) fn parse_destination(domain: Domain, bytes: &[u8]) -> Result<Option<SocketAddr>> {
    match (domain, family(bytes)?) {
        (Domain::V4, libc::AF_INET | libc::AF_UNSPEC) => parse_v4(bytes).map(Some),
        (Domain::V4, _) if bytes.len() < LEN_V4 => Err(Errno::EINVAL),
        (Domain::V6, libc::AF_INET6) => parse_v6(bytes).map(Some),
        (Domain::V6, libc::AF_INET) => parse_v4(bytes).map(Some),
        (Domain::V6, libc::AF_UNSPEC) => Ok(None),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// As a socket of `domain` shows an address.
pub(crate) fn to_bytes(domain: Domain, at: SocketAddr) -> Vec<u8> {
    let family = u16::try_from(domain.raw()).unwrap_or(0).to_ne_bytes();
    let mut out = Vec::with_capacity(LEN_V6);
    out.extend_from_slice(&family);
    out.extend_from_slice(&at.port().to_be_bytes());
    match (domain, at.ip()) {
        (Domain::V4, IpAddr::V4(ip)) => {
            out.extend_from_slice(&ip.octets());
            out.resize(LEN_V4, 0);
        }
        (Domain::V4, IpAddr::V6(_)) => out.resize(LEN_V4, 0),
        (Domain::V6, ip) => {
            let ip = match ip {
                IpAddr::V4(four) => four.to_ipv6_mapped(),
                IpAddr::V6(six) => six,
            };
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&ip.octets());
            out.resize(LEN_V6, 0);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_in_and_out() {
        let at: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let four = to_bytes(Domain::V4, at);
        assert_eq!(four, [2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse(Domain::V4, &four), Ok(at));
        let mapped = to_bytes(Domain::V6, at);
        assert_eq!(mapped.len(), 28);
        assert_eq!(parse(Domain::V6, &mapped), Ok(at));
        assert_eq!(parse(Domain::V6, &four), Err(Errno::EINVAL));
        assert_eq!(parse(Domain::V4, &mapped), Err(Errno::EAFNOSUPPORT));
        assert_eq!(parse_destination(Domain::V6, &four), Ok(Some(at)));
        assert_eq!(parse(Domain::V4, &four[..8]), Err(Errno::EINVAL));
    }
}
