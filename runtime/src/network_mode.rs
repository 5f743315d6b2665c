//! Who makes the sockets of a container that has a network namespace of its own: the Sentry, with a network of the sandbox',
//! or the host's kernel, in that namespace (`--network`).

use std::collections::HashMap;

use net_broker::sockets::Grant;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::lifecycle::{is_hosts, network_of};
use crate::log::{Level, Log};
use crate::plan::Plan;
use crate::state::State;

/// What a configuration says. It can only take the host's sockets away.
const ANNOTATION: &str = "casemate/network";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkMode {
    #[default]
    Sandbox,
    Host,
}

impl NetworkMode {
    fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Host => "host",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Sandbox, Self::Host].into_iter().find(|mode| mode.name() == name)
    }

    /// As annotations have it, which can only tighten it.
    fn tightened(self, annotations: Option<&HashMap<String, String>>) -> Result<Self> {
        let Some(said) = annotations.and_then(|all| all.get(ANNOTATION)) else { return Ok(self) };
        let wrong = |problem: &str| Error::Config(format!("annotation {ANNOTATION}: {said:?} {problem}"));
        let asked = Self::parse(said).ok_or_else(|| wrong("is neither \"sandbox\" nor \"host\""))?;
        if asked == Self::Host && self == Self::Sandbox {
            return Err(wrong("is not for an annotation to ask for: the runtime's --network is \"sandbox\""));
        }
        Ok(asked)
    }
}

/// What a container's sockets are made with, where they are the host's in a namespace of the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSockets {
    pub(crate) grant: Grant,
    /// Settings of the namespace: names below `net`, and their values.
    pub(crate) settings: Vec<(String, String)>,
}

/// Decides whose sockets a container gets, by the mode that the command was given and by what its configuration says. For
/// one on the host's network they are part of the plan; for one with a namespace of its own they are given when that has
/// been set up.
pub(crate) fn decide(
    plan: &mut Plan,
    config: &Config,
    (mode, policy): (NetworkMode, Option<String>),
    pod: Option<&State>,
    log: &Log,
) -> Result<Option<HostSockets>> {
    let mode = mode.tightened(config.spec.annotations().as_ref())?;
    let is_hosts = is_hosts(&network_of(config));
    if let Some(pod) = pod {
        return if is_hosts { Ok(None) } else { agree(mode, pod).map(|()| None) };
    }
    if mode == NetworkMode::Sandbox && !is_hosts {
        return Ok(None);
    }
    let options = &plan.boot.options;
    if options.ingress_bandwidth != 0 || options.egress_bandwidth != 0 {
        log.write(Level::Warning, "limits of bandwidth are not applied to sockets of the host's");
    }
    if is_hosts {
        plan.use_host_sockets(policy)?;
        return Ok(None);
    }
    let all = plan.boot.sysctls.iter();
    // With slashes the dots of a name are no separators.
    let name = |key: &str| {
        if key.contains('/') { key.to_owned() } else { key.replace('.', "/") }
    };
    let settings = all.map(|(key, value)| (name(key), value.clone()));
    let settings = settings.filter(|(key, _)| key.starts_with("net/")).collect();
    Ok(Some(HostSockets { grant: plan.host_sockets(policy)?, settings }))
}

/// A sandbox has one network: a container that goes into it has that, or none.
fn agree(mode: NetworkMode, pod: &State) -> Result<()> {
    let its = if pod.host_sockets.is_some() { NetworkMode::Host } else { NetworkMode::Sandbox };
    if mode == its {
        return Ok(());
    }
    let message = format!(
        "the container's network is to be {:?}, and that of the sandbox {} which it goes into is {:?}: the containers of a \
         sandbox have one network",
        mode.name(),
        pod.id,
        its.name()
    );
    Err(Error::Sandbox { code: 1, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_only_tighten() {
        let said = |mode: NetworkMode, value: &str| {
            mode.tightened(Some(&HashMap::from([(ANNOTATION.to_owned(), value.to_owned())])))
        };
        assert_eq!(NetworkMode::Host.tightened(None).unwrap(), NetworkMode::Host);
        assert_eq!(said(NetworkMode::Host, "sandbox").unwrap(), NetworkMode::Sandbox);
        assert_eq!(said(NetworkMode::Host, "host").unwrap(), NetworkMode::Host);
        assert_eq!(said(NetworkMode::Sandbox, "sandbox").unwrap(), NetworkMode::Sandbox);
        assert!(said(NetworkMode::Sandbox, "host").unwrap_err().to_string().contains("annotation"));
        assert!(said(NetworkMode::Host, "none").unwrap_err().to_string().contains("none"));
    }
}
