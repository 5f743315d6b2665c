//! The broker of host sockets: a process that stands in the container's network namespace, makes sockets there on the
//! Sentry's request and donates their descriptors.
//!
//! The Sentry has no call that makes, binds or connects a socket. It sends and receives by what it was given; everything
//! else that has to do with addresses, and every option that is set, is a request to this process, with the descriptor.
//! So nothing is kept here of a socket, and nothing is left behind by one.
//!
//! A connected stream socket leads to where it was connected and nowhere else. A datagram socket leads anywhere: under a
//! policy the Sentry gets a [relay](relay) in its place.
//!
//! **Threat.** Requests are the sandbox's, and hostile; so are the descriptors that come along: nothing is done with one
//! that is no socket of the Internet families.

mod confine;
mod options;
mod relay;

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::process::ExitCode;

use hostsys::{fd, retry, sock};
use netstack::broker::{MAX_DATA, MAX_MESSAGE, Op, Reply, Request};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, Protocol as SocketProtocol, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::policy::{Names, Policy, Protocol};
use relay::Relays;

/// The name under which the binary runs the broker.
pub const NAME: &str = "casemate-sockets";

/// The argument by which it is started outside the namespace that it is to serve.
pub const IN_NAMESPACE: &str = "namespace";

/// Descriptors that the process is started with: its end of the channel, its [`Grant`] as JSON, and, with [`IN_NAMESPACE`],
/// the network namespace.
const CHANNEL_FD: RawFd = 3;
const GRANT_FD: RawFd = 4;
const NAMESPACE_FD: RawFd = 5;

/// Denials that are logged one by one.
const MAX_DENIALS: u64 = 1000;

/// `SIOCINQ`, `SIOCOUTQ`, `SIOCOUTQNSD`, `SIOCATMARK`.
const QUEUE_QUERIES: [u32; 4] = [0x541b, 0x5411, 0x894b, 0x8905];

/// What a sandbox may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// JSON; everything may be reached where there is none.
    pub policy: Option<String>,
    /// The bits of capabilities that its programs can have.
    pub capabilities: u64,
}

/// `CAP_NET_BIND_SERVICE`, `CAP_NET_RAW`.
const BIND_SERVICE: u32 = 10;
const RAW: u32 = 13;

impl Grant {
    fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 != 0
    }

    fn policy(&self) -> Result<Option<Policy>, String> {
        let Some(text) = &self.policy else { return Ok(None) };
        let policy = Policy::parse(text).map_err(|error| error.to_string())?;
        match policy.first_domain() {
            Some(name) => Err(format!(
                "network policy: {name:?} is a domain, and with the host's sockets names are not seen: use addresses"
            )),
            None => Ok(Some(policy)),
        }
    }

    /// Says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        self.policy().map(drop)
    }
}

/// Runs the broker until the sandbox is gone.
pub fn main() -> ExitCode {
    let run = || -> Result<(), String> {
        let inherited =
            |number| fd::take_inherited(number).map_err(|error| format!("descriptor {number}: {error}"));
        let channel = inherited(CHANNEL_FD)?;
        let mut text = String::new();
        File::from(inherited(GRANT_FD)?).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let grant: Grant = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let policy = grant.policy()?;
        if std::env::args().nth(1).is_some_and(|word| word == IN_NAMESPACE) {
            let namespace = inherited(NAMESPACE_FD)?;
            hostsys::packet::enter_network(namespace.as_fd())
                .map_err(|error| format!("enter the network namespace: {error}"))?;
        }
        let relays = Relays::new().map_err(|error| error.to_string())?;
        confine::enter(&grant)?;
        let gate = Gate { policy, denials: 0 };
        let mut broker = Broker { channel, raw: grant.has(RAW), gate, relays };
        broker.serve().map_err(|error| error.to_string())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The policy, and what it has refused.
#[derive(Debug)]
struct Gate {
    policy: Option<Policy>,
    denials: u64,
}

impl Gate {
    /// Whether a socket may send to, or connect to, an address: the errno of a refusal.
    fn check(&mut self, protocol: Protocol, address: &[u8]) -> Result<(), i32> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let Some(to) = destination(address)? else { return Ok(()) };
        if policy.allows(protocol, to, &Names::default()) {
            return Ok(());
        }
        self.denials += 1;
        if self.denials <= MAX_DENIALS {
            let protocol = if protocol == Protocol::Tcp { "TCP" } else { "UDP" };
            eprintln!("network policy: denied {protocol} to {to}");
        }
        Err(libc::EHOSTUNREACH)
    }
}

/// Where the kernel would send to. `None` for an address of no family, which ends a connection. An IPv4 address in IPv6 is
/// that IPv4 address, and the one that stands for all is the host itself.
fn destination(address: &[u8]) -> Result<Option<SocketAddr>, i32> {
    let half = |at: usize| address.get(at..).and_then(<[u8]>::first_chunk::<2>).copied();
    let family = half(0).map(u16::from_ne_bytes).ok_or(libc::EINVAL)?;
    let port = half(2).map_or(0, u16::from_be_bytes);
    let ip = match i32::from(family) {
        libc::AF_UNSPEC => return Ok(None),
        libc::AF_INET if address.len() >= 16 => {
            address.get(4..).and_then(<[u8]>::first_chunk::<4>).map(|bytes| IpAddr::from(*bytes))
        }
        libc::AF_INET6 if address.len() >= 24 => {
            address.get(8..).and_then(<[u8]>::first_chunk::<16>).map(|bytes| IpAddr::from(*bytes))
        }
        libc::AF_INET | libc::AF_INET6 => None,
        _ => return Err(libc::EAFNOSUPPORT),
    };
    let ip = match ip.ok_or(libc::EINVAL)?.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(Some(SocketAddr::new(ip, port)))
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// An option of a socket that is an int.
fn int_option(socket: BorrowedFd<'_>, name: i32) -> Result<i32, i32> {
    let value = sock::option(socket, libc::SOL_SOCKET, name, 4).map_err(|error| errno(&error))?;
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(libc::EINVAL)
}

/// What an answer brings.
#[derive(Debug, Default)]
struct Answer {
    value: i32,
    data: Vec<u8>,
    fd: Option<OwnedFd>,
}

#[derive(Debug)]
struct Broker {
    channel: OwnedFd,
    /// Whether raw sockets of ICMP are made.
    raw: bool,
    gate: Gate,
    relays: Relays,
}

/// What the broker's epoll calls the channel.
const CHANNEL: u64 = 0;

impl Broker {
    fn serve(&mut self) -> io::Result<()> {
        let poll = self.relays.poll();
        epoll::add(poll, &self.channel, EventData::new_u64(CHANNEL), EventFlags::IN)?;
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            events.clear();
            match epoll::wait(self.relays.poll(), rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let token = event.data.u64();
                if token != CHANNEL {
                    self.relays.turn(token, &mut self.gate);
                } else if !self.turn()? {
                    return Ok(());
                }
            }
        }
    }

    /// Serves one request; false where the sandbox is gone.
    fn turn(&mut self) -> io::Result<bool> {
        let mut buffer = [0; MAX_MESSAGE];
        let got = match retry(|| sock::receive(self.channel.as_fd(), &mut buffer, 0)) {
            Ok(got) if got.len > 0 => got,
            // It may have ended with an answer unread.
            Ok(_) => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(false),
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..got.len).unwrap_or_default();
        let answer = match (Request::parse(bytes), got.fds.as_slice()) {
            (Some(request), []) if request.op == Op::Socket => self.socket(request.arguments),
            (Some(request), [socket]) => self.about(&request, socket.as_fd()),
            _ => Err(libc::EINVAL),
        };
        let (errno, answer) = match answer {
            Ok(answer) => (0, answer),
            Err(errno) => (errno, Answer::default()),
        };
        let reply = Reply { errno, value: answer.value, data: &answer.data }.to_bytes();
        let fds: Vec<_> = answer.fd.iter().map(AsFd::as_fd).collect();
        match retry(|| sock::send(self.channel.as_fd(), &reply, &fds, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn socket(&mut self, [domain, kind, protocol]: [i32; 3]) -> Result<Answer, i32> {
        let (v4, v6) = (domain == libc::AF_INET, domain == libc::AF_INET6);
        let echo = (v4 && protocol == libc::IPPROTO_ICMP) || (v6 && protocol == libc::IPPROTO_ICMPV6);
        let open = self.gate.policy.is_none();
        match (kind, protocol) {
            _ if !v4 && !v6 => return Err(libc::EAFNOSUPPORT),
            (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) | (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => {}
            // No policy speaks of them.
            (libc::SOCK_DGRAM, _) if echo => {
                if !open {
                    return Err(libc::EACCES);
                }
            }
            (libc::SOCK_RAW, _) if echo => {
                if !self.raw || !open {
                    return Err(libc::EPERM);
                }
            }
            _ => return Err(libc::EPROTONOSUPPORT),
        }
        let number = |value: i32| u32::try_from(value).map_err(|_| libc::EINVAL);
        let family = u16::try_from(domain).map_err(|_| libc::EAFNOSUPPORT)?;
        let protocol = std::num::NonZeroU32::new(number(protocol)?).map(SocketProtocol::from_raw);
        let socket = rustix::net::socket_with(
            AddressFamily::from_raw(family),
            SocketType::from_raw(number(kind)?),
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(rustix::io::Errno::raw_os_error)?;
        if open || kind == libc::SOCK_STREAM {
            return Ok(Answer { fd: Some(socket), ..Answer::default() });
        }
        let link = self.relays.add(socket).map_err(|error| errno(&error))?;
        Ok(Answer { value: 1, fd: Some(link), ..Answer::default() })
    }

    /// Does what is asked of a socket that came along.
    fn about(&mut self, request: &Request<'_>, given: BorrowedFd<'_>) -> Result<Answer, i32> {
        let socket = match int_option(given, libc::SO_DOMAIN)? {
            libc::AF_INET | libc::AF_INET6 => given,
            // The sandbox' end of a relay stands for the relay's socket.
            libc::AF_UNIX => self.relays.socket_of(given).ok_or(libc::EINVAL)?,
            _ => return Err(libc::EINVAL),
        };
        let kernel = |error: io::Error| errno(&error);
        let [a, b, c] = request.arguments;
        let done = |()| Answer::default();
        match request.op {
            Op::Socket => Err(libc::EINVAL),
            Op::Connect => {
                let stream = int_option(socket, libc::SO_TYPE)? == libc::SOCK_STREAM;
                let protocol = if stream { Protocol::Tcp } else { Protocol::Udp };
                self.gate.check(protocol, request.data)?;
                sock::connect(socket, request.data).map(done).map_err(kernel)
            }
            Op::Bind => sock::bind(socket, request.data).map(done).map_err(kernel),
            Op::Listen => rustix::net::listen(socket, a).map(done).map_err(rustix::io::Errno::raw_os_error),
            Op::SetOption if options::may_set(a, b) => {
                sock::set_option(socket, a, b, request.data).map(done).map_err(kernel)
            }
            Op::GetOption if options::may_get(a, b) => {
                let most = usize::try_from(c).unwrap_or(0).min(MAX_DATA);
                let data = sock::option(socket, a, b, most).map_err(kernel)?;
                Ok(Answer { data, ..Answer::default() })
            }
            Op::SetOption | Op::GetOption => Err(libc::ENOPROTOOPT),
            Op::LocalAddress | Op::PeerAddress => {
                let data = sock::address(socket, request.op == Op::PeerAddress).map_err(kernel)?;
                Ok(Answer { data, ..Answer::default() })
            }
            Op::Queued => {
                let query = u32::try_from(a).ok().filter(|query| QUEUE_QUERIES.contains(query));
                let value = sock::queued(socket, query.ok_or(libc::ENOTTY)?).map_err(kernel)?;
                Ok(Answer { value, ..Answer::default() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(ip: [u8; 4]) -> Vec<u8> {
        [&2_u16.to_ne_bytes()[..], &80_u16.to_be_bytes(), &ip, &[0; 8]].concat()
    }

    fn v6(ip: &str) -> Vec<u8> {
        let ip: Ipv6Addr = ip.parse().unwrap();
        [&10_u16.to_ne_bytes()[..], &80_u16.to_be_bytes(), &[0; 4], &ip.octets(), &[0; 4]].concat()
    }

    #[test]
    fn a_policy_sees_through_other_forms_of_an_address() {
        let policy =
            r#"{ "default": "allow", "rules": [{ "action": "deny", "to": ["metadata", "private"] }] }"#;
        let mut gate = Gate { policy: Policy::parse(policy).ok(), denials: 0 };
        let mut is_denied = |address: &[u8]| gate.check(Protocol::Tcp, address) == Err(libc::EHOSTUNREACH);
        for address in [
            v4([169, 254, 169, 254]),
            v4([0; 4]),
            v4([127, 9, 9, 9]),
            v6("::"),
            v6("::1"),
            v6("::ffff:169.254.169.254"),
            v6("::ffff:0.0.0.0"),
            v6("fd00:ec2::254"),
        ] {
            assert!(is_denied(&address), "{address:?}");
        }
        assert!(!is_denied(&v4([9, 9, 9, 9])) && !is_denied(&v6("2620:fe::fe")));
    }

    #[test]
    fn short_and_foreign_addresses_are_refused() {
        assert_eq!(destination(&[]), Err(libc::EINVAL));
        assert_eq!(destination(&v4([1; 4])[..15]), Err(libc::EINVAL));
        assert_eq!(destination(&v6("::1")[..23]), Err(libc::EINVAL));
        assert_eq!(destination(&[1, 0, b'/', b'x']), Err(libc::EAFNOSUPPORT));
        assert_eq!(destination(&[0; 16]), Ok(None));
    }

    #[test]
    fn a_policy_of_names_is_refused() {
        let policy = r#"{ "default": "deny", "rules": [{ "action": "allow", "to": ["example.org"] }] }"#;
        let grant = Grant { policy: Some(policy.into()), capabilities: 0 };
        assert!(grant.check().unwrap_err().contains("example.org"));
    }
}
