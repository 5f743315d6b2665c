//! Two network namespaces with a pair of interfaces between them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use xtask::shell;

/// The address of the end outside.
pub const OUTSIDE: &str = "10.201.0.1";
const INSIDE: &str = "10.201.0.2";

/// The namespaces; dropped, they go.
#[derive(Debug)]
pub struct Veth {
    outside: String,
    inside: String,
}

impl Veth {
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("casemate-bench-{}-{serial}-{side}", std::process::id());
        let veth = Self { outside: name("out"), inside: name("in") };
        let (outside, inside) = (&veth.outside, &veth.inside);
        ip(&format!("netns add {outside}"))?;
        ip(&format!("netns add {inside}"))?;
        ip(&format!("-n {outside} link add veth0 type veth peer name eth0 netns {inside}"))?;
        for (namespace, name, address) in [(outside, "veth0", OUTSIDE), (inside, "eth0", INSIDE)] {
            ip(&format!("-n {namespace} address add {address}/24 dev {name}"))?;
            ip(&format!("-n {namespace} link set {name} up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(veth)
    }

    /// The namespace of the program that is measured, by name.
    pub fn inside(&self) -> &str {
        &self.inside
    }

    /// That of the other end.
    pub fn outside(&self) -> &str {
        &self.outside
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}

/// Where `ip netns` keeps a namespace; by way of this process, for those that see other mounts.
pub fn path(namespace: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/run/netns/{namespace}", std::process::id()))
}

fn ip(words: &str) -> Result<()> {
    shell::output(Command::new("ip").args(words.split(' '))).map(drop)
}
