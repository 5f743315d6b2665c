//! The sockets of a network as rows, for `/proc/net` and socket diagnosis.

use std::net::SocketAddr;
use std::sync::Arc;

use netstack::stream::TcpState;
use sentry_base::mono_now;

use super::Inet;
use super::addr::Domain;
use super::tcp::{Phase, TcpCore};
use super::udp::UdpCore;

/// One socket, or an address that rests after its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// A state of TCP; 7 for a datagram socket without a peer.
    pub(crate) state: u8,
    /// Bytes; for a listener the connections that wait, and how many may.
    pub(crate) receive_queue: u32,
    pub(crate) send_queue: u32,
    pub(crate) uid: u32,
    pub(crate) inode: u64,
    pub(crate) drops: u32,
}

fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl TcpCore {
    fn row(&self) -> Option<Row> {
        let state = self.state.lock();
        let mut row = Row {
            local: state.local,
            remote: self.domain.nowhere(),
            state: TcpState::Close as u8,
            receive_queue: 0,
            send_queue: 0,
            uid: self.attr.uid,
            inode: self.attr.ino,
            drops: 0,
        };
        match &state.phase {
            Phase::Closed | Phase::Failed => None,
            Phase::Listening(listening) => {
                row.state = TcpState::Listen as u8;
                row.receive_queue = short(listening.queue.len());
                row.send_queue = short(listening.limit);
                Some(row)
            }
            Phase::Connecting(to) => {
                row.state = TcpState::SynSent as u8;
                row.remote = *to;
                Some(row)
            }
            Phase::Connected { connection, .. } => {
                let connection = connection.clone();
                drop(state);
                let stream = connection.link.stream.lock();
                row.remote = connection.peer;
                row.state = stream.state(connection.end) as u8;
                row.receive_queue = short(stream.readable(connection.end));
                (stream.state(connection.end) != TcpState::Close).then_some(row)
            }
        }
    }
}

impl UdpCore {
    fn row(&self) -> Row {
        let state = self.state.lock();
        Row {
            local: state.local,
            remote: state.peer.unwrap_or(self.domain.nowhere()),
            state: if state.peer.is_some() { TcpState::Established as u8 } else { TcpState::Close as u8 },
            receive_queue: short(state.inbox.weight()),
            send_queue: 0,
            uid: self.attr.uid,
            inode: self.attr.ino,
            drops: state.inbox.dropped(),
        }
    }
}

impl Inet {
    /// The TCP sockets of a family that are not closed, then the addresses that rest.
    pub(crate) fn tcp_rows(&self, domain: Domain) -> Vec<Row> {
        if let Some(host) = self.host.get() {
            return crate::host::rows(self, host.as_ref(), domain, libc::IPPROTO_TCP);
        }
        let cores: Vec<Arc<TcpCore>> =
            self.tcp_sockets.lock().values().filter_map(std::sync::Weak::upgrade).collect();
        let mut rows: Vec<Row> =
            cores.iter().filter(|core| core.domain == domain).filter_map(|core| core.row()).collect();
        // Listeners first, as the kernel has them in a table of their own.
        rows.sort_by_key(|row| (row.state != TcpState::Listen as u8, row.inode));
        let now = mono_now();
        let table = self.tcp.lock();
        let resting = table.iter().filter(|b| b.rests_until.is_some_and(|until| until > now));
        rows.extend(resting.filter(|b| b.local.ip.is_ipv4() == (domain == Domain::V4)).filter_map(|b| {
            Some(Row {
                local: SocketAddr::new(b.local.ip, b.id.port),
                remote: b.peer?,
                state: TcpState::TimeWait as u8,
                receive_queue: 0,
                send_queue: 0,
                uid: 0,
                inode: 0,
                drops: 0,
            })
        }));
        rows
    }

    /// An option of the TCP level of the socket with this inode number.
    pub(crate) fn tcp_option_of(&self, inode: u64, name: i32) -> Option<Vec<u8>> {
        let core = self.tcp_sockets.lock().get(&inode)?.upgrade()?;
        core.get_option(libc::IPPROTO_TCP, name).ok()
    }

    /// The UDP sockets of a family that have a port.
    pub(crate) fn udp_rows(&self, domain: Domain) -> Vec<Row> {
        if let Some(host) = self.host.get() {
            return crate::host::rows(self, host.as_ref(), domain, libc::IPPROTO_UDP);
        }
        let cores: Vec<Arc<UdpCore>> = self.udp.lock().iter().filter_map(|b| b.owner.upgrade()).collect();
        let mut rows: Vec<Row> =
            cores.iter().filter(|core| core.domain == domain).map(|core| core.row()).collect();
        rows.sort_by_key(|row| row.inode);
        rows
    }

    /// Addresses in TIME_WAIT, open TCP sockets, bound UDP sockets.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let resting = self.tcp.lock().resting(mono_now());
        let tcp = self.tcp_sockets.lock().len();
        let udp = self.udp.lock().iter().count();
        (resting, tcp, udp)
    }
}
