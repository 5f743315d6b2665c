//! The namespaces that are little more than their identity: UTS names, and the holders of what other families keep
//! apart by namespace (System V IPC, sockets).

use core::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use sentry_base::{Mutex, lock::rank};
use sentry_vfs::{UserNs, next_ns_ino};

use crate::UtsNames;

/// Values that families of system calls keep, one of each type, made when they are first asked for.
#[derive(Default)]
pub struct Extensions(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>, { rank::LEAF }>);

impl core::fmt::Debug for Extensions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Extensions")
    }
}

impl Extensions {
    /// The one value of type `T`.
    pub fn get<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let mut all = self.0.lock();
        let value = all.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        Arc::clone(value).downcast().unwrap_or_default()
    }
}

/// A namespace that holds what a family of calls keeps apart by it (IPC, network, cgroup, time).
#[derive(Debug)]
pub struct ObjectNs {
    ino: u64,
    user_ns: Arc<UserNs>,
    extensions: Extensions,
}

impl ObjectNs {
    pub(crate) fn with_ino(ino: u64, user_ns: &Arc<UserNs>) -> Arc<Self> {
        Arc::new(Self { ino, user_ns: Arc::clone(user_ns), extensions: Extensions::default() })
    }

    /// A fresh one that belongs to `user_ns`.
    pub fn new(user_ns: &Arc<UserNs>) -> Arc<Self> {
        Self::with_ino(next_ns_ino(), user_ns)
    }

    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// The user namespace whose capabilities count for what is in here.
    pub fn user_ns(&self) -> &Arc<UserNs> {
        &self.user_ns
    }

    /// This namespace's one value of type `T`.
    pub fn extension<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        self.extensions.get()
    }
}

/// A UTS namespace (`uts_namespaces(7)`).
#[derive(Debug)]
pub struct UtsNs {
    ino: u64,
    user_ns: Arc<UserNs>,
    names: Mutex<UtsNames, { rank::LEAF }>,
}

impl UtsNs {
    pub(crate) fn with_ino(ino: u64, user_ns: &Arc<UserNs>, names: UtsNames) -> Arc<Self> {
        Arc::new(Self { ino, user_ns: Arc::clone(user_ns), names: Mutex::new(names) })
    }

    /// A copy that belongs to `user_ns`.
    pub fn copy(&self, user_ns: &Arc<UserNs>) -> Arc<Self> {
        Self::with_ino(next_ns_ino(), user_ns, self.names())
    }

    pub fn ino(&self) -> u64 {
        self.ino
    }

    pub fn user_ns(&self) -> &Arc<UserNs> {
        &self.user_ns
    }

    pub fn names(&self) -> UtsNames {
        self.names.lock().clone()
    }

    pub fn set_names(&self, names: UtsNames) {
        *self.names.lock() = names;
    }
}
