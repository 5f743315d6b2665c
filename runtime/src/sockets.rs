//! Starts the broker of host sockets, for a sandbox whose network is one of the host's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use control_protocol::{Address, Descriptor, Link, MAX_LINKS, Network};
use hostsys::launch::Command;
use hostsys::{sealed, sock};
use net_broker::sockets::{Grant, NAME};

use crate::error::{Context, Error, Result};
use crate::netlink::Routing;
use crate::sandbox::{Guarded, program};

/// `lo`, which every sandbox has.
const LOOPBACK: u32 = 1;

/// `RTPROT_KERNEL`.
const BY_KERNEL: u8 = 2;

/// What the sandbox is shown of the network that this process is in.
fn seen() -> io::Result<Network> {
    let routing = Routing::open()?;
    let addresses = routing.addresses()?;
    let mut links: Vec<Link> = Vec::new();
    for interface in routing.interfaces()? {
        if !interface.is_up || interface.index == LOOPBACK {
            continue;
        }
        let own = addresses.iter().filter(|address| address.index == interface.index);
        links.push(Link {
            index: interface.index,
            name: interface.name,
            mtu: interface.mtu,
            hardware: interface.hardware,
            addresses: own.map(|a| Address { ip: a.ip, prefix: a.prefix, scope: a.scope }).collect(),
            accepts_routers: false,
        });
    }
    // Where there are very many, those that lead somewhere.
    links.sort_by_key(|link| link.addresses.is_empty());
    links.truncate(MAX_LINKS);
    links.sort_by_key(|link| link.index);
    let mut routes = routing.routes()?;
    // What an address makes by itself is not a route that somebody has set.
    routes.retain(|route| route.protocol != BY_KERNEL && links.iter().any(|link| link.index == route.link));
    let port_start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let port_start = port_start.ok().and_then(|text| text.trim().parse().ok());
    Ok(Network { links, routes, host: true, port_start, ..Network::default() })
}

/// Says what is wrong with a policy for it.
pub(crate) fn check(grant: &Grant) -> Result<()> {
    grant.check().map_err(Error::Usage)
}

/// The kernel's lists of sockets, in the order of [`Descriptor::SocketTable`].
const TABLES: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];

/// Those of the network that this process is in. One that is not there is not shown.
fn tables() -> impl Iterator<Item = (Descriptor, OwnedFd)> {
    (0..).zip(TABLES).filter_map(|(number, name)| {
        let file = File::open(format!("/proc/self/net/{name}")).ok()?;
        Some((Descriptor::SocketTable(number), file.into()))
    })
}

/// A broker that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub process: Guarded,
    /// What the sandbox sees of the network.
    pub seen: Network,
    /// The sandbox' end of the channel, and what else it gets.
    pub descriptors: Vec<(Descriptor, OwnedFd)>,
}

/// Starts it in the network namespace of this process. Call it while this process has one thread.
pub(crate) fn start(grant: &Grant) -> Result<Started> {
    check(grant)?;
    let network = seen().context(|| "read the interfaces of the host's network".into())?;
    let (ours, theirs) = sock::packet_pair().context(|| "socketpair".into())?;
    let program = program(false).context(|| "open our own program".into())?;
    let text = serde_json::to_vec(grant).map_err(|error| Error::Config(error.to_string()))?;
    let text = sealed::of_bytes(&text).context(|| "memfd_create".into())?;
    let null =
        File::options().read(true).write(true).open("/dev/null").context(|| "open /dev/null".into())?;
    let stderr = io::stderr();
    let descriptors = [null.as_fd(), null.as_fd(), stderr.as_fd(), theirs.as_fd(), text.as_fd()];
    let command = Command {
        program: program.as_fd(),
        arguments: vec![std::ffi::CString::new(NAME).unwrap_or_default()],
        environment: Vec::new(),
        namespaces: 0,
        descriptors: &descriptors,
        become_root: false,
        outlives: false,
    };
    let mut process = Guarded::new(command.start().context(|| "start the broker of sockets".into())?);
    process.release().context(|| "start the broker of sockets".into())?;
    let descriptors = [(Descriptor::Broker, ours)].into_iter().chain(tables()).collect();
    Ok(Started { process, seen: network, descriptors })
}
