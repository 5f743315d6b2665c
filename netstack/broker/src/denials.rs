//! What the policy has denied, as lines for people: each once with the program that asked, repeats by their number.

use std::collections::HashMap;
use std::net::SocketAddr;

use netstack::asker::Asker;
use netstack::packet::{TCP, UDP};

use crate::policy::Protocol;

/// Denials that are told apart, and programs that are remembered until their packet comes.
const MAX_DENIALS: usize = 1000;
const MAX_ASKERS: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Denials {
    /// How often each line has been due.
    told: HashMap<String, u64>,
    full: bool,
    /// By protocol and the sandbox's port.
    askers: HashMap<(u8, u16), Asker>,
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

/// The sandbox's words, without what a terminal would take for a command.
fn plain(bytes: &[u8]) -> String {
    bytes.iter().map(|b| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '?' }).collect()
}

impl Denials {
    /// Remembers who is about to ask.
    pub fn announce(&mut self, asker: Asker) {
        if self.askers.len() >= MAX_ASKERS {
            self.askers.clear();
        }
        self.askers.insert((asker.protocol, asker.port), asker);
    }

    /// What was to be asked is allowed.
    pub fn forget(&mut self, protocol: Protocol, port: u16) {
        self.askers.remove(&(number(protocol), port));
    }

    /// The line for a denial, where one is due. `about`: what is known of the destination besides.
    pub fn line(
        &mut self,
        protocol: Protocol,
        port: u16,
        to: SocketAddr,
        about: &[String],
    ) -> Option<String> {
        let about = if about.is_empty() {
            String::new()
        } else {
            format!(" ({})", plain(about.join(", ").as_bytes()))
        };
        let by = match self.askers.get(&(number(protocol), port)) {
            Some(asker) => format!(" by {}, pid {}", plain(&asker.name), asker.pid),
            None => String::new(),
        };
        let word = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
        let line = format!("network policy: denied {word} to {to}{about}{by}");
        if let Some(times) = self.told.get_mut(&line) {
            *times += 1;
            let round = (1..12).any(|n| 10_u64.pow(n) == *times);
            return round.then(|| format!("{line}, {times} times"));
        }
        if self.told.len() >= MAX_DENIALS {
            let first = !core::mem::replace(&mut self.full, true);
            return first.then(|| "network policy: more denials are not told one by one".to_owned());
        }
        self.told.insert(line.clone(), 1);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_told_once_with_its_asker() {
        let mut denials = Denials::default();
        let to = "169.254.169.254:80".parse().unwrap();
        denials.announce(Asker { protocol: TCP, port: 4000, pid: 12, name: b"cu\x1brl".to_vec() });
        let said: Vec<String> = (0..12).filter_map(|_| denials.line(Protocol::Tcp, 4000, to, &[])).collect();
        let line = "network policy: denied tcp to 169.254.169.254:80 by cu?rl, pid 12";
        assert_eq!(said, [line.to_owned(), format!("{line}, 10 times")]);
        let other = denials.line(Protocol::Udp, 4000, to, &["a.b".into()]);
        assert_eq!(other.as_deref(), Some("network policy: denied udp to 169.254.169.254:80 (a.b)"));
        let many = (0..5000)
            .filter_map(|n| denials.line(Protocol::Tcp, 1, SocketAddr::from(([10, 0, 0, 1], n)), &[]));
        assert_eq!(many.count(), MAX_DENIALS - 2 + 1);
        for port in 0..MAX_ASKERS + 10 {
            let port = u16::try_from(port).unwrap();
            denials.announce(Asker { protocol: UDP, port, pid: 1, name: Vec::new() });
        }
        assert!(denials.askers.len() <= MAX_ASKERS);
    }
}
