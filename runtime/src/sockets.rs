//! Starts the broker of host sockets, for a sandbox whose network is one of the host's: that of this process, or one that
//! an engine has made for the container.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use control_protocol::{Address, Descriptor, Link, MAX_LINKS, Network};
use hostsys::launch::Command;
use hostsys::{sealed, sock};
use net_broker::sockets::{Grant, IN_NAMESPACE, NAME};

use crate::cgroup::Group;
use crate::error::{Context, Error, Result, show};
use crate::log::{Level, Log};
use crate::netlink::Routing;
use crate::network::{self, Taken};
use crate::network_mode::HostSockets;
use crate::sandbox::{Guarded, program};

/// `lo`, which every sandbox has.
const LOOPBACK: u32 = 1;

/// `RTPROT_KERNEL`.
const BY_KERNEL: u8 = 2;

/// What the sandbox is shown of the network that the calling thread is in.
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

/// Those of the network that the calling thread is in, by their numbers. One that is not there is not shown.
fn tables() -> Vec<(u8, OwnedFd)> {
    let open = |name| File::open(format!("/proc/thread-self/net/{name}"));
    (0..).zip(TABLES).filter_map(|(number, name)| Some((number, open(name).ok()?.into()))).collect()
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
    let (mut process, channel) = launch(grant, None, true)?;
    process.release().context(|| "start the broker of sockets".into())?;
    let tables = tables().into_iter().map(|(number, file)| (Descriptor::SocketTable(number), file));
    let descriptors = [(Descriptor::Broker, channel)].into_iter().chain(tables).collect();
    Ok(Started { process, seen: network, descriptors })
}

/// Starts one in a network namespace that was made for the container, for a sandbox that runs: it lives as long as that holds
/// the channel. `None` where the namespace is this command's own, or may not be entered.
///
/// A command that `stays` until the sandbox' end holds the process, and shows what that says.
pub(crate) fn take_over(
    namespace: &Path,
    sockets: &HostSockets,
    (group, stays): (&Group, bool),
    log: &Log,
) -> Result<Option<(Taken, Guarded)>> {
    let Some(file) = network::open(namespace, log)? else {
        // Without privileges it is no other than this one's; the host's sockets are not meant.
        log.write(Level::Debug, "there is no network namespace to make sockets in");
        return Ok(None);
    };
    let taking = || format!("use the network namespace {}", show(namespace));
    let look = || -> io::Result<_> {
        let unset = set_up(sockets)?;
        Ok((seen()?, tables(), unset))
    };
    let (mut network, tables, unset) = match network::inside(&file, look) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            network::say_refused(&error, log);
            return Ok(None);
        }
        looked => looked.context(taking)?,
    };
    log.warnings(unset);
    let (mut process, channel) = launch(&sockets.grant, Some(&file), stays)?;
    log.warnings(group.add(process.pid()));
    process.release().context(|| "start the broker of sockets".into())?;
    if !stays {
        process.set_free();
    }
    network.tables = tables.iter().map(|(number, _)| *number).collect();
    let descriptors = std::iter::once(channel).chain(tables.into_iter().map(|(_, file)| file)).collect();
    Ok(Some((Taken { network, descriptors }, process)))
}

/// Does for the calling thread's network what the runtime has to do: the loopback is up, and settings are as the
/// configuration has them. Gives sentences about those that cannot be set.
fn set_up(sockets: &HostSockets) -> io::Result<Vec<String>> {
    Routing::open()?.bring_up(LOOPBACK)?;
    let set = |(name, value): &(String, String)| {
        let error = fs::write(format!("/proc/sys/{name}"), value).err()?;
        Some(format!("linux.sysctl: {name} is not set in the container's network: {error}"))
    };
    Ok(sockets.settings.iter().filter_map(set).collect())
}

/// Makes the process, which waits to be let go, and our end of its channel.
fn launch(grant: &Grant, namespace: Option<&File>, stays: bool) -> Result<(Guarded, OwnedFd)> {
    let (ours, theirs) = sock::packet_pair().context(|| "socketpair".into())?;
    let program = program(false).context(|| "open our own program".into())?;
    let text = serde_json::to_vec(grant).map_err(|error| Error::Config(error.to_string()))?;
    let text = sealed::of_bytes(&text).context(|| "memfd_create".into())?;
    let null =
        File::options().read(true).write(true).open("/dev/null").context(|| "open /dev/null".into())?;
    let stderr = io::stderr();
    // Nobody reads what a process says that outlives its command.
    let stderr = if stays { stderr.as_fd() } else { null.as_fd() };
    let mut descriptors = vec![null.as_fd(), null.as_fd(), stderr, theirs.as_fd(), text.as_fd()];
    let mut arguments = vec![NAME];
    if let Some(namespace) = namespace {
        descriptors.push(namespace.as_fd());
        arguments.push(IN_NAMESPACE);
    }
    let command = Command {
        program: program.as_fd(),
        arguments: arguments.into_iter().map(|word| CString::new(word).unwrap_or_default()).collect(),
        environment: Vec::new(),
        namespaces: 0,
        descriptors: &descriptors,
        become_root: false,
        outlives: !stays,
    };
    Ok((Guarded::new(command.start().context(|| "start the broker of sockets".into())?), ours))
}
