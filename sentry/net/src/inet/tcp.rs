//! TCP sockets: what one is, and the interface that system calls see.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use netstack::Ready;
use netstack::flow::{KeepAlive, Settings};
use netstack::iface::Route;
use netstack::ports::{BindingId, Local, Sharing};
use netstack::stream::{Change, End, LoopStream, TcpState};
use sentry_base::{Errno, Events, Mutex, Result, WaitQueue, lock::rank, mono_now};
use sentry_vfs::{Attr, Caller, IoStart};

use super::addr::{self, Domain};
use super::flow::{Flow, QUEUE_IN, QUEUE_OUT};
use super::options::{Options, Transport};
use super::{Inet, events};
use crate::{RecvMsg, SendMsg, SockCtx, Socket};

/// `net.ipv4.tcp_wmem` and `tcp_rmem`: sizes of a new socket's buffers, in bytes, and what a sender on the loopback grows to.
const SEND_DEFAULT: usize = 16_384;
const RECEIVE_DEFAULT: usize = 131_072;
pub(super) const SEND_GROWN: usize = 2_626_560;

/// A whole connection, shared by its two ends.
#[derive(Debug)]
pub(super) struct Link {
    net: Arc<Inet>,
    pub(super) stream: Mutex<LoopStream, { rank::FILE_DATA }>,
    client: Side,
    server: Side,
}

/// What is behind an end of a link, to be told when the other end acts.
#[derive(Debug)]
pub(super) enum Side {
    Socket {
        queue: Arc<WaitQueue>,
        binding: BindingId,
    },
    /// The outside.
    Wire(Weak<Flow>),
}

impl Side {
    pub(super) fn binding(&self) -> Option<BindingId> {
        match self {
            Self::Socket { binding, .. } => Some(*binding),
            Self::Wire(_) => None,
        }
    }

    fn flow(&self) -> Option<Arc<Flow>> {
        match self {
            Self::Socket { .. } => None,
            Self::Wire(flow) => flow.upgrade(),
        }
    }

    fn tell(&self, what: Ready) {
        if let Self::Socket { queue, .. } = self
            && !what.is_empty()
        {
            queue.notify(events(what));
        }
    }
}

impl Link {
    pub(super) fn new(net: &Arc<Inet>, stream: LoopStream, client: Side, server: Side) -> Arc<Self> {
        net.stats.tcp_established.add(2);
        Arc::new(Self { net: Arc::clone(net), stream: Mutex::new(stream), client, server })
    }

    pub(super) fn side(&self, end: End) -> &Side {
        match end {
            End::Client => &self.client,
            End::Server => &self.server,
        }
    }

    /// Tells both ends what a call on the stream has changed. Call it without the stream's lock.
    pub(super) fn apply(&self, change: Change) {
        self.apply_to_sockets(change);
        for (side, what) in [(&self.client, change.client), (&self.server, change.server)] {
            if !what.is_empty()
                && let Some(flow) = side.flow()
            {
                flow.stirred();
            }
        }
    }

    /// The same without a word to the outside, which has done it.
    pub(super) fn apply_to_sockets(&self, change: Change) {
        if change.freed > 0 {
            self.net.memory.unqueue(change.freed);
        }
        if let Some(id) = change.time_wait.and_then(|end| self.side(end).binding()) {
            self.net.tcp.lock().rest(id, mono_now());
        }
        self.client.tell(change.client);
        self.server.tell(change.server);
    }

    /// The flow behind this connection, where its other end is outside.
    pub(super) fn flow(&self) -> Option<Arc<Flow>> {
        self.client.flow().or_else(|| self.server.flow())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.net.stats.tcp_established.sub(2);
        self.net.memory.unqueue(self.stream.get_mut().unread());
    }
}

/// A listener's queues.
#[derive(Debug)]
pub(super) struct Listening {
    /// Connections that wait beyond one (`sk_max_ack_backlog`).
    pub(super) limit: usize,
    pub(super) queue: VecDeque<Arc<TcpSocket>>,
    /// Who found the queue full and tries again when there is room.
    pub(super) waiting: VecDeque<Weak<TcpCore>>,
}

/// One end of a link, as its socket holds it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    pub(super) end: End,
    pub(super) peer: SocketAddr,
}

impl Connection {
    /// Whether the socket has connected to itself: it has both ends then, and reads at the other one.
    pub(super) fn is_own(&self) -> bool {
        match (self.link.side(End::Client), self.link.side(End::Server)) {
            (Side::Socket { queue: a, .. }, Side::Socket { queue: b, .. }) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The end to read from.
    pub(super) fn reader(&self) -> End {
        if self.is_own() { self.end.other() } else { self.end }
    }
}

#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Closed,
    Listening(Listening),
    /// Waits for room at a listener (`TCP_SYN_SENT`).
    Connecting(SocketAddr),
    /// A connect that did not wait has failed; the next one says so.
    Failed,
    Connected {
        connection: Connection,
        /// The caller knows: its connect has returned success.
        told: bool,
    },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) binding: Option<BindingId>,
    pub(super) local: SocketAddr,
    /// Bound by `bind`: port and address stay when a connection ends.
    pub(super) bound_port: bool,
    pub(super) bound_ip: bool,
    pub(super) fault: Option<Errno>,
    pub(super) shut_read: bool,
    pub(super) shut_write: bool,
    /// The flow that is being opened.
    pub(super) opening: Weak<Flow>,
}

/// What a socket is, apart from who holds it.
#[derive(Debug)]
pub(crate) struct TcpCore {
    pub(super) me: Weak<TcpCore>,
    pub(super) net: Arc<Inet>,
    pub(super) domain: Domain,
    pub(super) attr: Attr,
    pub(super) state: Mutex<State, { rank::FILE_DATA }>,
    /// Held by the one who reads, over copies to the application; the stream's own lock is not.
    pub(super) reader: Mutex<(), { rank::FILE_DATA }>,
    pub(super) writer: Mutex<(), { rank::FILE_DATA }>,
    pub(super) queue: Arc<WaitQueue>,
    pub(super) options: Options,
}

impl TcpCore {
    pub(super) fn make(
        net: &Arc<Inet>,
        domain: Domain,
        attr: Attr,
        options: Options,
        state: State,
    ) -> Arc<Self> {
        let core = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            net: Arc::clone(net),
            domain,
            attr,
            state: Mutex::new(state),
            reader: Mutex::new(()),
            writer: Mutex::new(()),
            queue: Arc::new(WaitQueue::new()),
            options,
        });
        net.tcp_sockets.lock().insert(attr.ino, Arc::downgrade(&core));
        core
    }

    /// How this socket shares its port.
    pub(super) fn sharing(&self) -> Sharing {
        Sharing {
            address: self.options.flag(libc::SOL_SOCKET, libc::SO_REUSEADDR),
            port: self.options.flag(libc::SOL_SOCKET, libc::SO_REUSEPORT),
            uid: self.attr.uid,
        }
    }

    pub(super) fn local(&self, ip: std::net::IpAddr) -> Local {
        Local { ip, v6_only: self.v6_only(), device: self.options.device() }
    }

    pub(super) fn v6_only(&self) -> bool {
        self.domain == Domain::V6 && self.options.flag(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
    }

    /// The connection, if there is one.
    pub(super) fn connection(&self) -> Option<Connection> {
        match &self.state.lock().phase {
            Phase::Connected { connection, .. } => Some(connection.clone()),
            _ => None,
        }
    }

    /// The state as `/proc/net/tcp` and `TCP_INFO` show it.
    pub(super) fn tcp_state(&self) -> TcpState {
        let connection = match &self.state.lock().phase {
            Phase::Closed | Phase::Failed => return TcpState::Close,
            Phase::Listening(_) => return TcpState::Listen,
            Phase::Connecting(_) => return TcpState::SynSent,
            Phase::Connected { connection, .. } => connection.clone(),
        };
        let state = connection.link.stream.lock().state(connection.end);
        match connection.link.flow() {
            // The stream passes over what only packets can be in.
            Some(flow) if state != TcpState::Close => flow.condition().0,
            _ => state,
        }
    }

    /// What a receiver takes in, and what a sender may have queued besides, in bytes.
    pub(super) fn limits(&self) -> (usize, usize) {
        let send = self.options.send_buffer();
        (self.options.receive_buffer(), if send == SEND_DEFAULT { SEND_GROWN } else { send })
    }

    /// The same for a connection with the outside, where what is on its way is queued elsewhere.
    pub(super) fn limits_outside(&self) -> (usize, usize) {
        let (receive, send) = (self.options.receive_buffer(), self.options.send_buffer());
        let grown = |size, default, most| if size == default { most } else { size };
        (grown(receive, RECEIVE_DEFAULT, QUEUE_IN), grown(send, SEND_DEFAULT, QUEUE_OUT))
    }

    /// What a flow needs to know of the options.
    pub(super) fn flow_settings(&self, route: &Route) -> Settings {
        let set = |level, name, or| self.options.set_or(level, name, or);
        let hops = if route.source.is_ipv4() {
            set(libc::IPPROTO_IP, libc::IP_TTL, 64)
        } else {
            set(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 64)
        };
        let keep_alive = self.options.flag(libc::SOL_SOCKET, libc::SO_KEEPALIVE);
        let tcp = |name| u64::try_from(self.options.number(libc::IPPROTO_TCP, name)).unwrap_or(1).max(1);
        let asked = usize::try_from(set(libc::IPPROTO_TCP, libc::TCP_MAXSEG, 0)).unwrap_or(0);
        let mtu = route.mtu as usize;
        Settings {
            mtu: if asked > 0 { mtu.min(asked + if route.source.is_ipv4() { 40 } else { 60 }) } else { mtu },
            hops: u8::try_from(hops).ok().filter(|hops| *hops > 0).unwrap_or(64),
            no_delay: self.options.flag(libc::IPPROTO_TCP, libc::TCP_NODELAY),
            keep_alive: keep_alive.then(|| KeepAlive {
                idle: tcp(libc::TCP_KEEPIDLE) * 1_000_000_000,
                interval: tcp(libc::TCP_KEEPINTVL) * 1_000_000_000,
                count: u32::try_from(tcp(libc::TCP_KEEPCNT)).unwrap_or(9),
            }),
        }
    }

    /// Hands the options that a stream needs to it.
    pub(super) fn configure_stream(&self, stream: &mut LoopStream, end: End, outside: bool) {
        let (receive, send) = if outside { self.limits_outside() } else { self.limits() };
        stream.set_limits(end, receive, send);
        stream.set_urgent_inline(end, self.options.flag(libc::SOL_SOCKET, libc::SO_OOBINLINE));
        let low = self.options.number(libc::SOL_SOCKET, libc::SO_RCVLOWAT);
        stream.set_low_water(end, usize::try_from(low).unwrap_or(1));
    }

    /// `tcp_poll`.
    pub(super) fn readiness(&self) -> Events {
        let state = self.state.lock();
        let fault = if state.fault.is_some() { Events::ERR } else { Events::empty() };
        let connection = match &state.phase {
            Phase::Closed | Phase::Failed => {
                let over = state.shut_read || matches!(state.phase, Phase::Failed);
                let read = if over { Events::READABLE | Events::RDHUP } else { Events::empty() };
                return fault | read | Events::HUP | Events::WRITABLE;
            }
            Phase::Listening(listening) if listening.queue.is_empty() => return fault,
            Phase::Listening(_) => return fault | Events::READABLE,
            Phase::Connecting(_) => return fault,
            Phase::Connected { connection, .. } => connection.clone(),
        };
        drop(state);
        let reader = connection.reader();
        let mut stream = connection.link.stream.lock();
        let cap = self.net.memory.stream_cap();
        let mut ready = stream.readiness(reader, cap);
        if reader != connection.end {
            ready =
                ready.difference(Ready::OUT) | stream.readiness(connection.end, cap).intersection(Ready::OUT);
        }
        fault | events(ready)
    }
}

/// A socket's handle: dropping it closes.
#[derive(Debug)]
pub(crate) struct TcpSocket(pub(super) Arc<TcpCore>);

impl TcpSocket {
    pub(super) fn new(caller: &dyn Caller, net: &Arc<Inet>, domain: Domain) -> Arc<Self> {
        let creds = caller.creds();
        let state = State {
            phase: Phase::Closed,
            binding: None,
            local: domain.nowhere(),
            bound_port: false,
            bound_ip: false,
            fault: None,
            shut_read: false,
            shut_write: false,
            opening: Weak::new(),
        };
        let options = Options::new(Transport::Tcp, domain, SEND_DEFAULT, RECEIVE_DEFAULT);
        let attr = crate::socket::new_attr(creds.fsuid, creds.fsgid);
        Arc::new(Self(TcpCore::make(net, domain, attr, options, state)))
    }
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Socket for TcpSocket {
    fn domain(&self) -> i32 {
        self.0.domain.raw()
    }

    fn kind(&self) -> i32 {
        libc::SOCK_STREAM
    }

    fn bind(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<()> {
        self.0.bind(cx, address)
    }

    fn listen(&self, _cx: &SockCtx<'_>, backlog: i32) -> Result<()> {
        self.0.listen(backlog)
    }

    fn try_connect(&self, cx: &SockCtx<'_>, address: &[u8]) -> Result<IoStart<()>> {
        self.0.try_connect(cx, address)
    }

    fn try_accept(&self, _cx: &SockCtx<'_>) -> Result<IoStart<Arc<dyn Socket>>> {
        self.0.try_accept()
    }

    fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.try_send(cx, msg)
    }

    fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        self.0.try_recv(cx, msg)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        self.0.shutdown(how)
    }

    fn lingers(&self) -> Option<sentry_base::Nanos> {
        self.0.lingers()
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        Ok(addr::to_bytes(self.0.domain, self.0.state.lock().local))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let connection = self.0.connection().ok_or(Errno::ENOTCONN)?;
        if connection.link.stream.lock().state(connection.end) == TcpState::Close {
            return Err(Errno::ENOTCONN);
        }
        Ok(addr::to_bytes(self.0.domain, connection.peer))
    }

    fn accepted_peer(&self) -> Result<Vec<u8>> {
        let connection = self.0.connection().ok_or(Errno::ENOTCONN)?;
        Ok(addr::to_bytes(self.0.domain, connection.peer))
    }

    crate::socket::served_by_shared_part!();
}
