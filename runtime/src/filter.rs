//! Rules for packets of the host's kernel in the network namespace of a sandbox.
//!
//! They keep that kernel away from the sandbox's packets where the addresses have to stay in the namespace, and turn
//! connections to the namespace's loopback to the sandbox.
//!
//! Docker's resolver asks name servers outside from a socket in the container's namespace, which needs an address and
//! routes there. So these stay, and rules drop whatever comes in but the answers to what was asked from the namespace. The
//! Sentry's packet socket takes frames before any rule sees them. Docker sets its own rules in the namespace by the same
//! program, so that it is there.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// In the first table everything goes that cannot be an answer of a name server, so that no connection is tracked for it;
/// in the second one what nobody has asked for.
const RULES: &str = "*raw
-I PREROUTING 1 ! -i lo -p udp --sport 53 -j ACCEPT
-I PREROUTING 2 ! -i lo -p tcp --sport 53 -j ACCEPT
-I PREROUTING 3 ! -i lo -j DROP
COMMIT
*filter
-I INPUT 1 ! -i lo -m conntrack --ctstate ESTABLISHED -j ACCEPT
-I INPUT 2 ! -i lo -j DROP
-I FORWARD 1 -j DROP
COMMIT
";

/// Where the program is looked for: a runtime's own `PATH` may leave out what is for administrators.
const PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Sets the rules in the network of the calling thread.
pub(crate) fn set_rules() -> io::Result<()> {
    restore(RULES)
}

/// Turns connections to the loopback of the calling thread's network to a port there. Each still tells which port it was
/// meant for (`SO_ORIGINAL_DST`).
pub(crate) fn turn_loopback(port: u16) -> io::Result<()> {
    restore(&format!(
        "*nat\n-A OUTPUT -o lo -d 127.0.0.0/8 -p tcp ! --dport {port} -j REDIRECT --to-ports {port}\nCOMMIT\n"
    ))
}

fn restore(rules: &str) -> io::Result<()> {
    let mut child = Command::new("iptables-restore")
        .args(["--noflush", "--wait", "5"])
        .env("PATH", PATHS)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let told = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(rules.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("iptables-restore: {}: {}", output.status, said.trim())));
    }
    told
}
