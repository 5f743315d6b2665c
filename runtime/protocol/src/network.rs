//! What the command tells the Sentry of a network that it has taken over for it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Links and routes. The descriptors that come along are a packet socket for each link, in their order, then the
/// resolver's two, if they are there; of the host's sockets the channel to the broker, then [`Network::tables`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub links: Vec<Link>,
    pub routes: Vec<Route>,
    /// Whether a datagram socket comes along that is connected to the engine's resolver.
    pub resolver: bool,
    /// Whether a link comes along to a process that ends connections to the engine's resolver.
    #[serde(default)]
    pub resolver_stream: bool,
    /// Whether a process of ours is at the other end of the links, that is to hear which program begins a connection.
    #[serde(default)]
    pub tell_askers: bool,
    /// The sandbox' sockets are the host's: links and routes are shown, no descriptor stands for a link, and the one that
    /// comes along leads to the broker.
    #[serde(default)]
    pub host: bool,
    /// Which of the kernel's lists of the sockets there come along with it, by the numbers of
    /// [`crate::Descriptor::SocketTable`], where the descriptors have no roles.
    #[serde(default)]
    pub tables: Vec<u8>,
    /// `net.ipv4.ip_unprivileged_port_start`, of the host's network.
    #[serde(default)]
    pub port_start: Option<u16>,
    /// Whether, last of all, a listening socket comes along: what is connected to it is meant for the sandbox's loopback.
    #[serde(default)]
    pub forward: bool,
}

/// An interface, by the host's number and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Bytes of the longest IP packet.
    pub mtu: u32,
    pub hardware: [u8; 6],
    pub addresses: Vec<Address>,
    /// Whether routers of the link are believed (`net.ipv6.conf.*.accept_ra` and `autoconf`).
    #[serde(default)]
    pub accepts_routers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub to: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    /// The number of the link.
    pub link: u32,
    pub metric: u32,
    pub source: Option<IpAddr>,
    /// `RTPROT_*` and `RT_SCOPE_*`.
    pub protocol: u8,
    pub scope: u8,
}

/// Links that one network may have.
pub const MAX_LINKS: usize = 32;
