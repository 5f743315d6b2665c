//! Starts the process that is the network of a sandbox without a namespace of its own.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};

use control_protocol::{Address, Link, Network, Route};
use hostsys::launch::Command;
use hostsys::{sealed, sock};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::sockopt;

use crate::error::{Context, Error, Result};
use crate::sandbox::{Guarded, program};

/// Bytes that may wait in either direction, as far as the host lets us have them.
const LINK_BUFFER: usize = 4 << 20;

/// The number of the link in the sandbox.
const INDEX: u32 = 2;

/// What the sandbox is told of it.
pub(crate) fn network() -> Network {
    let default = Route {
        to: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        prefix: 0,
        gateway: Some(IpAddr::V4(net_broker::GATEWAY)),
        link: INDEX,
        metric: 0,
        source: None,
        // RTPROT_BOOT
        protocol: 3,
        scope: 0,
    };
    let own = Address { ip: IpAddr::V4(net_broker::GUEST), prefix: net_broker::PREFIX, scope: 0 };
    let link = Link {
        index: INDEX,
        name: "eth0".to_owned(),
        mtu: u32::from(net_broker::MTU),
        hardware: net_broker::GUEST_HARDWARE,
        addresses: vec![own],
        accepts_routers: false,
    };
    Network { links: vec![link], routes: vec![default], tell_askers: true, ..Network::default() }
}

fn prepare(end: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(end)?;
    fcntl_setfl(end, flags | OFlags::NONBLOCK)?;
    // Beyond the host's limit where we may.
    if sockopt::set_socket_send_buffer_size_force(end, LINK_BUFFER).is_err() {
        sockopt::set_socket_send_buffer_size(end, LINK_BUFFER)?;
    }
    Ok(())
}

/// Starts it under a policy; gives the sandbox's end of the link. Call it while this process has one thread.
pub(crate) fn start(policy: &str) -> Result<(Guarded, OwnedFd)> {
    net_broker::Policy::parse(policy).map_err(|error| Error::Usage(error.to_string()))?;
    let (mut process, link) = launch(policy, None)?;
    process.release().context(|| "start the NAT".into())?;
    Ok((process, link))
}

/// Starts one in a network namespace that ends connections to the engine's resolver there and reaches nothing else. It
/// lives as long as the sandbox holds its end of the link.
pub(crate) fn start_for_resolver(namespace: &File) -> Result<OwnedFd> {
    let (mut process, link) = launch("", Some(namespace))?;
    process.release().context(|| "start the resolver's relay".into())?;
    process.set_free();
    Ok(link)
}

fn launch(policy: &str, namespace: Option<&File>) -> Result<(Guarded, OwnedFd)> {
    let (ours, theirs) = sock::packet_pair().context(|| "socketpair".into())?;
    for end in [&ours, &theirs] {
        prepare(end).context(|| "set up a socketpair".into())?;
    }
    let program = program(false).context(|| "open our own program".into())?;
    let text = sealed::of_bytes(policy.as_bytes()).context(|| "memfd_create".into())?;
    let null =
        File::options().read(true).write(true).open("/dev/null").context(|| "open /dev/null".into())?;
    let stderr = io::stderr();
    let mut descriptors = vec![null.as_fd(), null.as_fd(), stderr.as_fd(), theirs.as_fd(), text.as_fd()];
    let mut arguments = vec![std::ffi::CString::new(net_broker::NAME).unwrap_or_default()];
    if let Some(namespace) = namespace {
        // Nobody reads what a process says that outlives its command.
        descriptors =
            vec![null.as_fd(), null.as_fd(), null.as_fd(), theirs.as_fd(), text.as_fd(), namespace.as_fd()];
        arguments.push(std::ffi::CString::new(net_broker::FOR_RESOLVER).unwrap_or_default());
    }
    let command = Command {
        program: program.as_fd(),
        arguments,
        environment: Vec::new(),
        namespaces: 0,
        descriptors: &descriptors,
        become_root: false,
        outlives: namespace.is_some(),
    };
    let process = Guarded::new(command.start().context(|| "start the NAT".into())?);
    Ok((process, ours))
}
