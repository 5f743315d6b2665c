//! What a sandbox may reach: rules by address, domain, port and protocol; the first that fits decides.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::iface::InterfaceAddress;
use serde::Deserialize;

/// Addresses whose names are remembered, and names of one of them.
const MAX_ADDRESSES: usize = 16_384;
const MAX_NAMES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("network policy: {0}")]
    Json(#[from] serde_json::Error),
    /// a destination is none of an address, a network, a domain and a known word
    #[error("network policy: {0:?} is no address, network, domain or known word")]
    Destination(String),
    /// a port is neither a number nor a range
    #[error("network policy: {0:?} is neither a port nor a range of ports")]
    Port(String),
    /// a domain is denied
    #[error(
        "network policy: {0:?} cannot be denied: a program may use the address by another name, or by none; deny its \
         network, or deny by default and allow what is needed"
    )]
    DeniedDomain(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    action: Action,
    /// All, if there is none.
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    ports: Vec<serde_json::Value>,
    protocol: Option<Protocol>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePolicy {
    default: Action,
    #[serde(default)]
    rules: Vec<FileRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Destination {
    Networks(Vec<InterfaceAddress>),
    /// A domain in lower case; with `under`, those below it.
    Domain {
        name: String,
        under: bool,
    },
}

#[derive(Debug, Clone)]
struct Rule {
    action: Action,
    to: Vec<Destination>,
    ports: Vec<(u16, u16)>,
    protocol: Option<Protocol>,
}

/// The rules.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    default: Action,
}

/// Everything but the services by which clouds give machines their secrets.
impl Default for Policy {
    fn default() -> Self {
        let metadata = word("metadata").map(Destination::Networks);
        let rule = Rule {
            action: Action::Deny,
            to: metadata.into_iter().collect(),
            ports: Vec::new(),
            protocol: None,
        };
        Self { rules: vec![rule], default: Action::Allow }
    }
}

fn network(text: &str) -> Option<InterfaceAddress> {
    let (ip, prefix) = match text.split_once('/') {
        Some((ip, prefix)) => (ip.parse().ok()?, Some(prefix.parse::<u8>().ok()?)),
        None => (text.parse().ok()?, None),
    };
    let most = match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let prefix = prefix.unwrap_or(most);
    (prefix <= most).then_some(InterfaceAddress { ip, prefix, scope: 0 })
}

/// Networks that have a word of their own.
fn word(text: &str) -> Option<Vec<InterfaceAddress>> {
    let list: &[&str] = match text {
        "any" => &["0.0.0.0/0", "::/0"],
        "metadata" => &["169.254.0.0/16", "168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254", "fe80::a9fe:a9fe"],
        "private" => &[
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "169.254.0.0/16",
            "127.0.0.0/8",
            "fc00::/7",
            "fe80::/10",
            "::1",
        ],
        _ => return None,
    };
    Some(list.iter().filter_map(|text| network(text)).collect())
}

fn domain(text: &str) -> Option<Destination> {
    let (name, under) = match text.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    let whole = !name.is_empty() && name.len() < 254 && name.contains('.') && name.bytes().all(fine);
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    whole.then_some(Destination::Domain { name, under })
}

fn destination(text: &str) -> Result<Destination, PolicyError> {
    word(text)
        .map(Destination::Networks)
        .or_else(|| network(text).map(|net| Destination::Networks(vec![net])))
        .or_else(|| domain(text))
        .ok_or_else(|| PolicyError::Destination(text.to_owned()))
}

fn ports(value: &serde_json::Value) -> Result<(u16, u16), PolicyError> {
    let wrong = || PolicyError::Port(value.to_string());
    if let Some(port) = value.as_u64() {
        let port = u16::try_from(port).map_err(|_| wrong())?;
        return Ok((port, port));
    }
    let (low, high) = value.as_str().and_then(|text| text.split_once('-')).ok_or_else(wrong)?;
    let (low, high) = (low.trim().parse().map_err(|_| wrong())?, high.trim().parse().map_err(|_| wrong())?);
    if low <= high { Ok((low, high)) } else { Err(wrong()) }
}

impl Policy {
    /// Reads a policy; an empty text is the default one.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: FilePolicy = serde_json::from_str(text)?;
        let mut rules = Vec::new();
        for rule in file.rules {
            let to: Vec<_> = rule.to.iter().map(|text| destination(text)).collect::<Result<_, _>>()?;
            if rule.action == Action::Deny
                && let Some(Destination::Domain { name, .. }) =
                    to.iter().find(|to| matches!(to, Destination::Domain { .. }))
            {
                return Err(PolicyError::DeniedDomain(name.clone()));
            }
            rules.push(Rule {
                action: rule.action,
                to,
                ports: rule.ports.iter().map(ports).collect::<Result<_, _>>()?,
                protocol: rule.protocol,
            });
        }
        Ok(Self { rules, default: file.default })
    }

    /// The first domain that a rule names, if any does.
    pub fn first_domain(&self) -> Option<&str> {
        self.rules.iter().flat_map(|rule| &rule.to).find_map(|to| match to {
            Destination::Domain { name, .. } => Some(name.as_str()),
            Destination::Networks(_) => None,
        })
    }

    /// Whether `to` may be reached, as far as its names are known.
    pub fn allows(&self, protocol: Protocol, to: SocketAddr, names: &Names) -> bool {
        let rule = self.rules.iter().find(|rule| rule.fits(protocol, to, names));
        rule.map_or(self.default, |rule| rule.action) == Action::Allow
    }
}

impl Rule {
    fn fits(&self, protocol: Protocol, to: SocketAddr, names: &Names) -> bool {
        let port = self.ports.is_empty() || self.ports.iter().any(|(a, b)| (*a..=*b).contains(&to.port()));
        let there = self.to.is_empty()
            || self.to.iter().any(|destination| match destination {
                Destination::Networks(list) => list.iter().any(|net| net.covers(to.ip())),
                Destination::Domain { name, under } => {
                    names.of(to.ip()).iter().any(|known| is_of(known, name, *under))
                }
            });
        self.protocol.is_none_or(|wanted| wanted == protocol) && port && there
    }
}

/// Whether `known` is the domain, or `under` it.
fn is_of(known: &str, name: &str, under: bool) -> bool {
    if under { known.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')) } else { known == name }
}

/// The names under which addresses were asked for.
#[derive(Debug, Default)]
pub struct Names {
    of: HashMap<IpAddr, Vec<String>>,
}

impl Names {
    /// Notes that a resolver has given `ip` for `name`.
    pub fn learn(&mut self, name: &str, ip: IpAddr) {
        if self.of.len() >= MAX_ADDRESSES && !self.of.contains_key(&ip) {
            return;
        }
        let list = self.of.entry(ip).or_default();
        if !list.iter().any(|known| known == name) {
            if list.len() >= MAX_NAMES {
                list.remove(0);
            }
            list.push(name.to_owned());
        }
    }

    pub fn of(&self, ip: IpAddr) -> &[String] {
        self.of.get(&ip).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Addresses that a sandbox never reaches: this host's loopback, groups, everybody.
pub fn is_out_of_bounds(ip: IpAddr) -> bool {
    ip.is_loopback()
        || ip.is_multicast()
        || ip.is_unspecified()
        || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
        || matches!(ip, IpAddr::V6(six) if six.to_ipv4_mapped().is_some() || six == Ipv6Addr::UNSPECIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(policy: &Policy, to: &str, names: &Names) -> bool {
        policy.allows(Protocol::Tcp, to.parse().unwrap(), names)
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let text = r#"{ "default": "deny", "rules": [
            { "action": "deny", "to": ["metadata"] },
            { "action": "allow", "to": ["*.example.org", "example.com"], "ports": [443, "8000-8010"] },
            { "action": "allow", "to": ["10.1.0.0/16"], "protocol": "udp" } ] }"#;
        let policy = Policy::parse(text).unwrap();
        let mut names = Names::default();
        let at = |s: &str| s.parse::<IpAddr>().unwrap();
        names.learn("www.example.org", at("1.2.3.4"));
        names.learn("notexample.com", at("1.2.3.5"));
        names.learn("example.com", at("1.2.3.6"));
        assert!(tcp(&policy, "1.2.3.4:443", &names) && tcp(&policy, "1.2.3.6:8005", &names));
        for no in ["1.2.3.4:80", "1.2.3.5:443", "169.254.169.254:443", "9.9.9.9:443", "10.1.2.3:443"] {
            assert!(!tcp(&policy, no, &names), "{no}");
        }
        assert!(policy.allows(Protocol::Udp, "10.1.2.3:9".parse().unwrap(), &names));
        // A name that leads to the metadata service opens nothing.
        names.learn("www.example.org", at("169.254.169.254"));
        assert!(!tcp(&policy, "169.254.169.254:443", &names));
    }

    #[test]
    fn without_a_policy_all_but_metadata_is_reached() {
        let policy = Policy::parse("").unwrap();
        let names = Names::default();
        assert!(tcp(&policy, "9.9.9.9:443", &names) && !tcp(&policy, "169.254.169.254:80", &names));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, said) in [
            (r#"{ "default": "deny", "rules": [{ "action": "allow", "to": ["nonsense"] }] }"#, "nonsense"),
            (r#"{ "default": "deny", "rules": [{ "action": "allow", "ports": ["9-1"] }] }"#, "9-1"),
            (r#"{ "default": "deny", "rule": [] }"#, "rule"),
            (r#"{ "default": "allow", "rules": [{ "action": "deny", "to": ["*.evil.example"] }] }"#, "evil.example"),
        ] {
            assert!(Policy::parse(text).unwrap_err().to_string().contains(said));
        }
    }
}
