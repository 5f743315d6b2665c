//! Route messages: what the host's kernel says of the network that the calling thread is in (`rtnetlink(7)`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use hostsys::{packet, retry, sock};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const IFLA_IFALIAS: u16 = 20;
const HEADER: usize = 16;

/// `ARPHRD_ETHER`, `IFF_UP`, `RT_TABLE_MAIN`, `RTN_UNICAST`, `RTM_F_CLONED`.
const ETHERNET: u16 = 1;
const UP: u32 = 1;
const TABLE_MAIN: u8 = 254;
const UNICAST: u8 = 1;
const CLONED: u32 = 0x200;

/// Messages of one dump: a network of a container is not larger.
const MAX_MESSAGES: usize = 10_000;

/// A connection to the kernel's routing.
#[derive(Debug)]
pub(crate) struct Routing {
    socket: OwnedFd,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub hardware: [u8; 6],
    pub is_ethernet: bool,
    pub is_up: bool,
    /// The name that somebody has given it besides (`ip link set alias`).
    pub alias: Option<String>,
}

/// An address and its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub index: u32,
    pub ip: IpAddr,
    pub prefix: u8,
    pub scope: u8,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}

/// The attributes behind `skip` bytes.
fn attributes(body: &[u8], skip: usize) -> Vec<(u16, &[u8])> {
    let mut rest = body.get(skip..).unwrap_or_default();
    let mut all = Vec::new();
    while let (Some(len), Some(kind)) = (short(rest, 0), short(rest, 2)) {
        let len = usize::from(len);
        let Some(data) = rest.get(4..len) else { break };
        all.push((kind & 0x3fff, data));
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn find<'a>(attributes: &[(u16, &'a [u8])], kind: u16) -> Option<&'a [u8]> {
    attributes.iter().find(|(k, _)| *k == kind).map(|(_, data)| *data)
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&u32::try_from(HEADER + body.len()).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(body);
    out
}

impl Routing {
    /// Of the calling thread's network.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: packet::route_socket()? })
    }

    /// Sends a request and gives the bodies of the answers of type `wanted`.
    fn ask(&self, kind: u16, flags: u16, body: &[u8], wanted: u16) -> io::Result<Vec<Vec<u8>>> {
        sock::send(self.socket.as_fd(), &message(kind, flags, body), &[], 0)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let got = retry(|| sock::receive(self.socket.as_fd(), &mut buffer, 0))?.len;
            let mut rest = buffer.get(..got).unwrap_or_default();
            while let (Some(len), Some(kind)) = (word(rest, 0), short(rest, 4)) {
                let len = len as usize;
                let Some(body) = rest.get(HEADER..len) else { break };
                match kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let errno = word(body, 0).unwrap_or(0).cast_signed();
                        return if errno == 0 {
                            Ok(answers)
                        } else {
                            Err(io::Error::from_raw_os_error(errno.saturating_neg()))
                        };
                    }
                    kind if kind == wanted && answers.len() < MAX_MESSAGES => answers.push(body.to_vec()),
                    _ => {}
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    pub fn interfaces(&self) -> io::Result<Vec<Interface>> {
        let dump = self.ask(RTM_GETLINK, DUMP, &[0; 16], RTM_NEWLINK)?;
        Ok(dump.iter().filter_map(|body| interface(body)).collect())
    }

    pub fn addresses(&self) -> io::Result<Vec<Address>> {
        let dump = self.ask(RTM_GETADDR, DUMP, &[0; 8], RTM_NEWADDR)?;
        Ok(dump.iter().filter_map(|body| address(body)).collect())
    }

    /// The routes of the main table that somebody has set.
    pub fn routes(&self) -> io::Result<Vec<control_protocol::Route>> {
        let dump = self.ask(RTM_GETROUTE, DUMP, &[0; 12], RTM_NEWROUTE)?;
        Ok(dump.iter().filter_map(|body| route(body)).collect())
    }

    pub fn set_alias(&self, index: u32, alias: &str) -> io::Result<()> {
        let mut body = vec![0; 16];
        if let Some(field) = body.get_mut(4..8) {
            field.copy_from_slice(&index.to_ne_bytes());
        }
        body.extend_from_slice(&u16::try_from(alias.len() + 4).unwrap_or(0).to_ne_bytes());
        body.extend_from_slice(&IFLA_IFALIAS.to_ne_bytes());
        body.extend_from_slice(alias.as_bytes());
        self.ask(RTM_SETLINK, ACK, &body, 0).map(drop)
    }

    /// Sets an interface up; one that is stays so.
    pub fn bring_up(&self, index: u32) -> io::Result<()> {
        // struct ifinfomsg: family, type, index, flags, and which of them change.
        let mut body = vec![0; 4];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&UP.to_ne_bytes());
        body.extend_from_slice(&UP.to_ne_bytes());
        self.ask(RTM_SETLINK, ACK, &body, 0).map(drop)
    }

    pub fn remove(&self, address: &Address) -> io::Result<()> {
        let octets = match address.ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let family = if address.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut body = vec![u8::try_from(family).unwrap_or(0), address.prefix, 0, address.scope];
        body.extend_from_slice(&address.index.to_ne_bytes());
        // IFA_LOCAL
        body.extend_from_slice(&u16::try_from(octets.len() + 4).unwrap_or(0).to_ne_bytes());
        body.extend_from_slice(&2_u16.to_ne_bytes());
        body.extend_from_slice(&octets);
        self.ask(RTM_DELADDR, ACK, &body, 0).map(drop)
    }
}

fn interface(body: &[u8]) -> Option<Interface> {
    let all = attributes(body, 16);
    let text = |kind| {
        let bytes = find(&all, kind)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    Some(Interface {
        index: word(body, 4)?,
        name: text(3)?,
        alias: text(IFLA_IFALIAS),
        mtu: find(&all, 4).and_then(|data| word(data, 0)).unwrap_or(1500),
        hardware: find(&all, 1).and_then(<[u8]>::first_chunk).copied().unwrap_or_default(),
        is_ethernet: short(body, 2)? == ETHERNET,
        is_up: word(body, 8)? & UP != 0,
    })
}

fn address(body: &[u8]) -> Option<Address> {
    let all = attributes(body, 8);
    // IFA_LOCAL, else IFA_ADDRESS.
    let ip = find(&all, 2).or_else(|| find(&all, 1)).and_then(ip)?;
    Some(Address { index: word(body, 4)?, ip, prefix: *body.get(1)?, scope: *body.get(3)? })
}

fn route(body: &[u8]) -> Option<control_protocol::Route> {
    let &[family, prefix, _, _, table, protocol, scope, kind, ..] = body else { return None };
    if table != TABLE_MAIN || kind != UNICAST || word(body, 8)? & CLONED != 0 {
        return None;
    }
    let all = attributes(body, 12);
    let of = |kind| find(&all, kind).and_then(ip);
    let zero =
        if i32::from(family) == libc::AF_INET { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) };
    let link = find(&all, 4).and_then(|data| word(data, 0))?;
    let metric = find(&all, 6).and_then(|data| word(data, 0)).unwrap_or(0);
    Some(control_protocol::Route {
        to: of(1).unwrap_or(zero),
        prefix,
        gateway: of(5),
        link,
        metric,
        source: of(7),
        protocol,
        scope,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_read() {
        let mut body = vec![2, 0, 0, 0, TABLE_MAIN, 3, 0, UNICAST, 0, 0, 0, 0];
        for (kind, data) in [(5_u16, [172, 17, 0, 1]), (4, 7_u32.to_ne_bytes())] {
            body.extend_from_slice(&8_u16.to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(&data);
        }
        let got = route(&body).unwrap();
        assert_eq!((got.link, got.prefix), (7, 0));
        assert_eq!((got.to, got.gateway), ("0.0.0.0".parse().unwrap(), "172.17.0.1".parse().ok()));
        assert_eq!(route(&body[..7]), None);
    }

    #[test]
    fn the_kernel_tells_of_the_loopback() {
        let routing = Routing::open().unwrap();
        let all = routing.interfaces().unwrap();
        assert!(all.iter().any(|i| i.name == "lo" && !i.is_ethernet), "{all:?}");
    }
}
