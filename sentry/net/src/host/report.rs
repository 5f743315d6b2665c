//! A sandbox' host sockets as rows for `/proc/net` and socket diagnosis. Those of others on the host are not shown.

use std::sync::{Arc, Weak};

use netstack::stream::TcpState;

use super::{HostSocket, SIOCINQ, SIOCOUTQ};
use crate::Inet;
use crate::inet::addr::{self, Domain};
use crate::inet::report::Row;

impl HostSocket {
    fn row(&self) -> Option<Row> {
        let at = |bytes: Vec<u8>| addr::parse(self.domain, &bytes).ok();
        let local = self.end.address(false).ok().and_then(at)?;
        let remote = self.end.address(true).ok().and_then(at);
        let state = if self.is_stream() {
            // `tcpi_state` is the first byte of `struct tcp_info`.
            *self.end.option(libc::IPPROTO_TCP, libc::TCP_INFO).ok()?.first()?
        } else if remote.is_some() {
            TcpState::Established as u8
        } else {
            TcpState::Close as u8
        };
        let shown = if self.is_stream() { state != TcpState::Close as u8 } else { local.port() != 0 };
        let queued = |query| self.end.queued(query).ok().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        shown.then(|| Row {
            local,
            remote: remote.unwrap_or(self.domain.nowhere()),
            state,
            receive_queue: queued(SIOCINQ),
            send_queue: queued(SIOCOUTQ),
            uid: self.attr.uid,
            inode: self.attr.ino,
            drops: 0,
        })
    }
}

/// The sockets of a family and a protocol, listeners first.
pub(crate) fn rows(net: &Inet, domain: Domain, protocol: i32) -> Vec<Row> {
    let all: Vec<Arc<HostSocket>> = net.host_sockets.lock().values().filter_map(Weak::upgrade).collect();
    let fits = |socket: &&Arc<HostSocket>| socket.domain == domain && socket.protocol == protocol;
    let mut rows: Vec<Row> = all.iter().filter(fits).filter_map(|socket| socket.row()).collect();
    rows.sort_by_key(|row| (row.state != TcpState::Listen as u8, row.inode));
    rows
}
