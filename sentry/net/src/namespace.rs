//! A network namespace: everything that sockets of one network share (`network_namespaces(7)`).

use std::sync::Arc;

use sentry_vfs::UserNs;

use crate::{Inet, UnixNamespace};

/// The names of `AF_UNIX` and the Internet protocols of one network.
#[derive(Debug)]
pub struct NetworkNamespace {
    unix: Arc<UnixNamespace>,
    inet: Arc<Inet>,
}

impl Default for NetworkNamespace {
    fn default() -> Self {
        let inet = Arc::default();
        Self { unix: UnixNamespace::beside(&inet), inet }
    }
}

impl NetworkNamespace {
    /// Notes once to which user namespace this network belongs; in one that is `fresh` the loopback is down.
    pub fn belong_to(&self, owner: &Arc<UserNs>, fresh: bool) {
        self.inet.belong_to(owner, fresh);
    }

    pub fn unix(&self) -> &Arc<UnixNamespace> {
        &self.unix
    }

    pub fn inet(&self) -> &Arc<Inet> {
        &self.inet
    }
}
