//! Options and ioctls of TCP sockets (`do_tcp_setsockopt`, `tcp_ioctl`).

use netstack::stream::TcpState;
use sentry_base::{Errno, Result};
use sentry_vfs::Caller;
use zerocopy::IntoBytes;

use super::addr::{self, Domain, errno};
use super::info::tcp_info;
use super::options::int;
use super::tcp::{Phase, SEND_GROWN, TcpCore};

const SIOCINQ: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
const SIOCOUTQNSD: u32 = 0x894b;
const SIOCATMARK: u32 = 0x8905;

/// The segment size of a connection over the loopback, and of a socket without one.
const MSS_LOOPBACK: i32 = 65_483;
const MSS_LOOPBACK_V6: i32 = 65_463;
const MSS_NONE: i32 = 536;
/// `TCP_MAXSEG` takes these.
const MSS_RANGE: core::ops::RangeInclusive<i32> = 88..=32_767;

impl TcpCore {
    /// The error that waits to be read (`SO_ERROR`).
    fn take_error(&self) -> i32 {
        if let Some(errno) = self.state.lock().fault.take() {
            return errno.raw();
        }
        let Some(connection) = self.connection() else { return 0 };
        let fault = connection.link.stream.lock().take_fault(connection.end);
        fault.map_or(0, |fault| errno(fault).raw())
    }

    pub(super) fn get_option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        let number = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_STREAM,
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => self.domain.raw(),
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => libc::IPPROTO_TCP,
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.take_error(),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => i32::from(self.tcp_state() == TcpState::Listen),
            (libc::SOL_SOCKET, libc::SO_PEERNAME) => {
                let connection = self.connection().ok_or(Errno::ENOTCONN)?;
                return Ok(addr::to_bytes(self.domain, connection.peer));
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUF) if self.connection().is_some() => {
                let (_, send) = self.limits();
                i32::try_from(send).unwrap_or(i32::MAX)
            }
            (libc::SOL_SOCKET, libc::SO_COOKIE) => return Ok(self.attr.ino.to_ne_bytes().to_vec()),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => match self.connection() {
                Some(connection) if connection.link.flow().is_some() => {
                    let size = connection.link.flow().map_or(0, |flow| flow.condition().2);
                    i32::try_from(size).unwrap_or(i32::MAX)
                }
                Some(connection) if connection.peer.is_ipv6() => MSS_LOOPBACK_V6,
                Some(_) => MSS_LOOPBACK,
                None => match self.options.number(libc::IPPROTO_TCP, libc::TCP_MAXSEG) {
                    0 => MSS_NONE,
                    set => set,
                },
            },
            (libc::IPPROTO_TCP, libc::TCP_INFO) => {
                let totals = self.connection().map(|c| c.link.stream.lock().totals(c.end));
                let mut info = tcp_info(self.tcp_state(), totals.unwrap_or_default());
                if let Some(flow) = self.connection().and_then(|c| c.link.flow()) {
                    let (_, unacknowledged, size) = flow.condition();
                    let size = u32::try_from(size).unwrap_or(u32::MAX);
                    info.snd_mss = size;
                    info.advmss = size;
                    info.pmtu = flow.route().mtu;
                    info.unacked = u32::try_from(unacknowledged).unwrap_or(u32::MAX).div_ceil(size.max(1));
                }
                return Ok(info.as_bytes().to_vec());
            }
            (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) => {
                if self.connection().is_none() {
                    return Err(Errno::ENOTCONN);
                }
                match self.connection().and_then(|c| c.link.flow()) {
                    Some(flow) => i32::try_from(flow.route().mtu).unwrap_or(i32::MAX),
                    None if level == libc::IPPROTO_IP => 65_535,
                    None => 65_536,
                }
            }
            _ => return self.options.get(level, name),
        };
        Ok(number.to_ne_bytes().to_vec())
    }

    pub(super) fn set_option(&self, caller: &dyn Caller, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.net.bind_to_device(caller, &self.options, (level, name), value)?;
        match (level, name) {
            (
                libc::SOL_SOCKET,
                libc::SO_TYPE
                | libc::SO_DOMAIN
                | libc::SO_PROTOCOL
                | libc::SO_ERROR
                | libc::SO_ACCEPTCONN
                | libc::SO_PEERNAME
                | libc::SO_COOKIE,
            ) => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => {
                let size = int(value)?;
                if size != 0 && !MSS_RANGE.contains(&size) {
                    return Err(Errno::EINVAL);
                }
                self.options.put_number(level, name, size);
                return Ok(());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) if self.domain == Domain::V6 => {
                int(value)?;
                if self.state.lock().binding.is_some() {
                    return Err(Errno::EINVAL);
                }
            }
            (libc::IPPROTO_TCP, libc::TCP_FASTOPEN) => {
                int(value)?;
                if !matches!(self.state.lock().phase, Phase::Closed | Phase::Listening(_)) {
                    return Err(Errno::EINVAL);
                }
            }
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP) => {
                return Err(Errno::EPROTO);
            }
            _ => {}
        }
        self.options.set(caller, level, name, value)?;
        if level == libc::SOL_SOCKET {
            let sharing = self.sharing();
            let binding = self.state.lock().binding;
            if let Some(id) = binding
                && let Some(binding) = self.net.tcp.lock().get_mut(id)
            {
                binding.sharing = sharing;
                binding.local.device = self.options.device();
            }
            if let Some(connection) = self.connection() {
                let outside = connection.link.flow().is_some();
                self.configure_stream(&mut connection.link.stream.lock(), connection.end, outside);
            }
        }
        if let Some(flow) = self.connection().and_then(|c| c.link.flow()) {
            flow.configure(&self.flow_settings(flow.route()), self.user_timeout());
            flow.stirred();
        }
        Ok(())
    }

    pub(super) fn ioctl(&self, caller: &dyn Caller, command: u32, arg: u64) -> Result<i64> {
        let value = match command {
            SIOCINQ | SIOCOUTQ | SIOCOUTQNSD | SIOCATMARK => {
                if matches!(self.state.lock().phase, Phase::Listening(_)) && command != SIOCATMARK {
                    return Err(Errno::EINVAL);
                }
                match self.connection() {
                    None => 0,
                    Some(connection) => {
                        let stream = connection.link.stream.lock();
                        match command {
                            SIOCINQ => stream.readable(connection.reader()),
                            SIOCATMARK => usize::from(stream.at_mark(connection.reader())),
                            // What the peer's kernel has taken in is out of the queue, read or not.
                            _ if connection.link.flow().is_some() => {
                                let queued = stream.unread_by_peer(connection.end);
                                drop(stream);
                                let flow = connection.link.flow();
                                queued + flow.map_or(0, |flow| flow.condition().1)
                            }
                            _ => stream.unread_by_peer(connection.end).saturating_sub(SEND_GROWN),
                        }
                    }
                }
            }
            _ => return super::netdev::ioctl(&self.net, caller, command, arg),
        };
        caller.mem().copy_out(arg, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }
}
