//! Host sockets, where the sandbox' network is the host's: descriptors that the broker has made and donated.
//!
//! Each request to the broker is one packet and its answer, made on the worker: the broker makes no call that waits. Transfers
//! go by the descriptor itself.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use fs_host::Watcher;
use hostsys::{retry, sock};
use netstack::broker::{Datagram, MAX_DATAGRAM, MAX_MESSAGE, Op, Reply, Request, error_of};
use sentry_base::lock::rank;
use sentry_base::wait::Observer;
use sentry_base::{Errno, Events, Mutex, Result};
use sentry_net::{ControlMessage, HostEnd, HostMessage, HostNet};

/// The longest value of an option that is asked for, in bytes.
const OPTION_MAX: i32 = 512;

/// Bytes before the data of a control message, and what it is aligned to.
const CONTROL_HEAD: usize = 16;
const CONTROL_ALIGN: usize = 8;

const SIOCINQ: u32 = 0x541b;

/// The connection to the broker.
#[derive(Debug)]
struct Broker {
    channel: Mutex<OwnedFd, { rank::LEAF }>,
}

/// What the broker has answered.
#[derive(Debug)]
struct Answer {
    value: i32,
    data: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Broker {
    fn ask(&self, request: &Request<'_>, about: Option<&OwnedFd>) -> Result<Answer> {
        let mut buffer = [0; MAX_MESSAGE];
        let message = request.to_bytes();
        let about = about.map(AsFd::as_fd);
        // A broker that is gone took the network along.
        let gone = |_| Errno::ENETDOWN;
        let got = {
            let channel = self.channel.lock();
            retry(|| sock::send(channel.as_fd(), &message, about.as_slice(), 0)).map_err(gone)?;
            retry(|| sock::receive(channel.as_fd(), &mut buffer, 0)).map_err(gone)?
        };
        let reply = Reply::parse(buffer.get(..got.len).unwrap_or_default()).ok_or(Errno::ENETDOWN)?;
        match reply.errno {
            0 => Ok(Answer { value: reply.value, data: reply.data.to_vec(), fd: got.fds.into_iter().next() }),
            errno => Err(Errno::from_raw(errno)),
        }
    }
}

/// Makes sockets in the host's network.
#[derive(Debug)]
pub struct HostSockets {
    broker: Arc<Broker>,
    watcher: Arc<Watcher>,
}

impl HostSockets {
    pub fn new(channel: OwnedFd, watcher: Arc<Watcher>) -> Arc<Self> {
        Arc::new(Self { broker: Arc::new(Broker { channel: Mutex::new(channel) }), watcher })
    }
}

impl HostNet for HostSockets {
    fn socket(&self, how: [i32; 3], observer: Weak<dyn Observer>) -> Result<Box<dyn HostEnd>> {
        let request = Request { op: Op::Socket, arguments: how, data: &[] };
        let answer = self.broker.ask(&request, None)?;
        let fd = answer.fd.ok_or(Errno::ENETDOWN)?;
        End::make(&self.broker, &self.watcher, fd, answer.value != 0, observer)
    }
}

/// A host socket, or the end of a relay to one.
#[derive(Debug)]
struct End {
    fd: OwnedFd,
    /// Datagrams go through the broker, each with its address.
    relayed: bool,
    token: u64,
    broker: Arc<Broker>,
    watcher: Arc<Watcher>,
}

impl End {
    fn make(
        broker: &Arc<Broker>,
        watcher: &Arc<Watcher>,
        fd: OwnedFd,
        relayed: bool,
        observer: Weak<dyn Observer>,
    ) -> Result<Box<dyn HostEnd>> {
        let token = watcher.enter(fd.as_fd(), observer)?;
        Ok(Box::new(Self { fd, relayed, token, broker: Arc::clone(broker), watcher: Arc::clone(watcher) }))
    }

    fn ask(&self, op: Op, arguments: [i32; 3], data: &[u8]) -> Result<Answer> {
        self.broker.ask(&Request { op, arguments, data }, Some(&self.fd))
    }

    fn receive_relayed(&self, data: &mut [u8], flags: i32) -> Result<HostMessage> {
        if flags & libc::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let mut packet = vec![0; MAX_DATAGRAM];
        let flags = (flags & libc::MSG_PEEK) | libc::MSG_DONTWAIT;
        let got = retry(|| sock::receive_from(self.fd.as_fd(), &mut packet, flags)).map_err(host)?;
        let packet = packet.get(..got.len).unwrap_or_default();
        if let Some(errno) = error_of(packet) {
            return Err(Errno::from_raw(errno));
        }
        if packet.is_empty() {
            return Err(Errno::ENETDOWN);
        }
        let datagram = Datagram::parse(packet).ok_or(Errno::EIO)?;
        let fits = datagram.data.len().min(data.len());
        if let (Some(to), Some(from)) = (data.get_mut(..fits), datagram.data.get(..fits)) {
            to.copy_from_slice(from);
        }
        let len = datagram.data.len();
        Ok(HostMessage {
            len,
            from: datagram.address.to_vec(),
            control: Vec::new(),
            flags: if len > fits { libc::MSG_TRUNC } else { 0 },
        })
    }
}

fn host(error: std::io::Error) -> Errno {
    Errno::from_io(&error)
}

/// Control messages that a datagram may go out with.
const SENT: &[(i32, i32)] = &[
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_UDP, libc::UDP_SEGMENT),
];

/// `struct cmsghdr` and data of each message.
fn control_bytes(messages: &[ControlMessage]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for message in messages {
        if !SENT.contains(&(message.level, message.kind)) {
            return Err(Errno::EINVAL);
        }
        out.extend_from_slice(&(CONTROL_HEAD + message.data.len()).to_ne_bytes());
        out.extend_from_slice(&message.level.to_ne_bytes());
        out.extend_from_slice(&message.kind.to_ne_bytes());
        out.extend_from_slice(&message.data);
        out.resize(out.len().next_multiple_of(CONTROL_ALIGN), 0);
    }
    Ok(out)
}

fn control_messages(mut bytes: &[u8]) -> Vec<ControlMessage> {
    let mut out = Vec::new();
    loop {
        let int = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(|b| i32::from_ne_bytes(*b));
        let len = bytes.first_chunk().map(|b| usize::from_ne_bytes(*b));
        let (Some(len), Some(level), Some(kind)) = (len, int(8), int(12)) else { return out };
        let Some(data) = bytes.get(CONTROL_HEAD..len) else { return out };
        out.push(ControlMessage { level, kind, data: data.to_vec() });
        bytes = bytes.get(len.next_multiple_of(CONTROL_ALIGN)..).unwrap_or_default();
    }
}

impl HostEnd for End {
    fn bind(&self, address: &[u8]) -> Result<()> {
        self.ask(Op::Bind, [0; 3], address).map(drop)
    }

    fn connect(&self, address: &[u8]) -> Result<()> {
        self.ask(Op::Connect, [0; 3], address).map(drop)
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        if self.relayed {
            return Err(Errno::EOPNOTSUPP);
        }
        self.ask(Op::Listen, [backlog, 0, 0], &[]).map(drop)
    }

    fn accept(&self, observer: Weak<dyn Observer>) -> Result<(Box<dyn HostEnd>, Vec<u8>)> {
        if self.relayed {
            return Err(Errno::EOPNOTSUPP);
        }
        let (fd, peer) = retry(|| sock::accept(self.fd.as_fd())).map_err(host)?;
        Ok((Self::make(&self.broker, &self.watcher, fd, false, observer)?, peer))
    }

    fn send(&self, data: &[u8], to: &[u8], control: &[ControlMessage], flags: i32) -> Result<usize> {
        let flags = flags | libc::MSG_DONTWAIT;
        if self.relayed {
            if to.is_empty() {
                // Only the socket itself knows whether it is connected.
                self.address(true).map_err(|_| Errno::EDESTADDRREQ)?;
            }
            let packet = Datagram { address: to, data }.to_bytes();
            retry(|| sock::send(self.fd.as_fd(), &packet, &[], libc::MSG_DONTWAIT)).map_err(host)?;
            return Ok(data.len());
        }
        let control = control_bytes(control)?;
        retry(|| sock::send_to(self.fd.as_fd(), data, to, &control, flags)).map_err(host)
    }

    fn receive(&self, data: &mut [u8], flags: i32) -> Result<HostMessage> {
        if self.relayed {
            return self.receive_relayed(data, flags);
        }
        let flags = flags | libc::MSG_DONTWAIT;
        let got = retry(|| sock::receive_from(self.fd.as_fd(), data, flags)).map_err(host)?;
        Ok(HostMessage {
            len: got.len,
            from: got.from,
            control: control_messages(&got.control),
            flags: got.flags,
        })
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let how = match how {
            libc::SHUT_RD => rustix::net::Shutdown::Read,
            libc::SHUT_WR => rustix::net::Shutdown::Write,
            libc::SHUT_RDWR => rustix::net::Shutdown::Both,
            _ => return Err(Errno::EINVAL),
        };
        if self.relayed {
            // A datagram socket that is not connected has nothing to shut.
            self.address(true)?;
        }
        rustix::net::shutdown(&self.fd, how).map_err(|error| Errno::from_raw(error.raw_os_error()))
    }

    fn address(&self, peer: bool) -> Result<Vec<u8>> {
        let op = if peer { Op::PeerAddress } else { Op::LocalAddress };
        Ok(self.ask(op, [0; 3], &[])?.data)
    }

    fn option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        Ok(self.ask(Op::GetOption, [level, name, OPTION_MAX], &[])?.data)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.ask(Op::SetOption, [level, name, 0], value).map(drop)
    }

    fn queued(&self, query: u32) -> Result<i32> {
        if query == SIOCINQ && !self.relayed {
            return sock::queued(self.fd.as_fd(), query).map_err(host);
        }
        let query = i32::try_from(query).map_err(|_| Errno::ENOTTY)?;
        Ok(self.ask(Op::Queued, [query, 0, 0], &[])?.value)
    }

    fn poll(&self, events: Events) -> Events {
        fs_host::ready_now(self.fd.as_fd(), events).unwrap_or(Events::ERR)
    }

    fn arm(&self, events: Events) {
        self.watcher.arm(self.fd.as_fd(), self.token, events);
    }

    fn follow(&self) {
        self.watcher.follow(self.fd.as_fd(), self.token);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.watcher.leave(self.fd.as_fd(), self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_go_there_and_back() {
        let message = |level, kind, data: &[u8]| ControlMessage { level, kind, data: data.to_vec() };
        let both = [
            message(libc::IPPROTO_IP, libc::IP_TOS, &[4]),
            message(libc::IPPROTO_IP, libc::IP_TTL, &7_i32.to_ne_bytes()),
        ];
        assert_eq!(control_messages(&control_bytes(&both).unwrap()), both);
        let rights = [message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &[0; 4])];
        assert_eq!(control_bytes(&rights), Err(Errno::EINVAL));
        assert_eq!(control_messages(&[1; 40]), []);
    }
}
