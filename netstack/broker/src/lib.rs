//! User-mode NAT: a process that speaks TCP and UDP to a sandbox over a link of frames, and makes host sockets for it,
//! under a policy.
//!
//! It is for sandboxes without a network namespace of their own. The link is a packet socket pair; the Sentry serves its
//! end like any other link. A connection of the sandbox ends here, in a flow of [`netstack`], and goes on as a host socket:
//! so a sandbox that was taken over still gets nothing but what the policy allows, and no port of the host is open to it.
//!
//! **Files.** [`policy`] says what may be reached, [`dns`] reads the answers that tie names to addresses, [`nat`] is the
//! loop, [`tcp`] and [`udp`] are its connections. [`sockets`] is another process, for sandboxes that are given sockets of a
//! namespace of the host's.
//!
//! **Invariants.** Nothing comes in but answers. Memory is bounded by the number of connections, which is capped.
//!
//! **Lock ranks.** None: there is one thread.
//!
//! **Threat.** Every frame is the sandbox's, and hostile; so is every DNS message. Both are parsed by bounded code without
//! `unsafe`. The process keeps no capability and no file.

mod denials;
pub mod dns;
mod nat;
pub mod policy;
pub mod sockets;
mod tcp;
mod udp;

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, RawFd};
use std::process::ExitCode;

pub use policy::{Policy, PolicyError};

/// The name under which the binary runs the NAT.
pub const NAME: &str = "casemate-nat";

/// The sandbox's address, its network and its gateway.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const PREFIX: u8 = 24;
/// Their hardware addresses.
pub const GUEST_HARDWARE: [u8; 6] = [0x52, 0x55, 10, 0, 2, 15];
const GATEWAY_HARDWARE: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
/// Bytes of the longest IP packet on the link.
pub const MTU: u16 = 32_768;

/// The argument by which it is started for an engine's resolver alone, and where that is.
pub const FOR_RESOLVER: &str = "resolver";
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

/// Descriptors that the process is started with: its end of the link, its policy as JSON, and, for a resolver, the network
/// namespace that it is in.
const LINK_FD: RawFd = 3;
const POLICY_FD: RawFd = 4;
const NAMESPACE_FD: RawFd = 5;

/// Runs the NAT until the sandbox is gone.
pub fn main() -> ExitCode {
    let run = || -> Result<(), String> {
        let inherited =
            |fd| hostsys::fd::take_inherited(fd).map_err(|error| format!("descriptor {fd}: {error}"));
        let link = inherited(LINK_FD)?;
        let mut text = String::new();
        File::from(inherited(POLICY_FD)?).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let policy = Policy::parse(&text).map_err(|error| error.to_string())?;
        let for_resolver = std::env::args().nth(1).is_some_and(|word| word == FOR_RESOLVER);
        if for_resolver {
            let namespace = inherited(NAMESPACE_FD)?;
            hostsys::packet::enter_network(namespace.as_fd())
                .map_err(|error| format!("enter the network namespace: {error}"))?;
            hostsys::process::drop_capabilities().map_err(|error| format!("drop capabilities: {error}"))?;
        }
        let only = for_resolver.then(|| RESOLVER.into());
        let resolvers = if for_resolver { Vec::new() } else { resolvers() };
        let _ = std::env::set_current_dir("/");
        let _ = hostsys::process::set_no_new_privs();
        nat::Nat::new(link, policy, resolvers, only).serve().map_err(|error| error.to_string())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The host's own name servers, which the sandbox may ask whatever else it may reach.
fn resolvers() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let words = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    words.filter_map(|word| word.trim().parse().ok()).take(8).collect()
}
