//! Messages in a socket's queue, and what they hold: descriptors in flight and a part of the sender's buffer.

use core::cell::RefCell;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use abi::net::Ucred;
use sentry_base::Result;
use sentry_base::unnest::{Waiting, drop_in_turn};
use sentry_vfs::FileDescription;

use super::addr::{Address, UnixNamespace};
use super::{Core, Events};

/// What a message weighs beside its data, in the sender's buffer.
pub(super) const OVERHEAD: usize = 256;

/// Descriptors that travel with a message.
#[derive(Debug, Default)]
pub(super) struct Rights {
    files: Vec<Arc<FileDescription>>,
    ns: Option<Arc<UnixNamespace>>,
}

impl Rights {
    /// `ETOOMANYREFS` where too many are in flight already.
    pub(super) fn new(files: Vec<Arc<FileDescription>>, ns: &Arc<UnixNamespace>) -> Result<Self> {
        if files.is_empty() {
            return Ok(Self::default());
        }
        if let Err(errno) = ns.take_off(files.len()) {
            drop_files(files);
            return Err(errno);
        }
        ns.note_flight(&files);
        Ok(Self { files, ns: Some(Arc::clone(ns)) })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The ids of the descriptions.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.iter().map(|file| file.id())
    }

    pub(super) fn peek(&self) -> Vec<Arc<FileDescription>> {
        self.files.clone()
    }

    /// They have arrived.
    pub(super) fn take(&mut self) -> Vec<Arc<FileDescription>> {
        let files = core::mem::take(&mut self.files);
        if let Some(ns) = self.ns.take() {
            ns.note_landing(&files);
            ns.land(files.len());
        }
        files
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        drop_files(self.take());
    }
}

thread_local! {
    /// Files that wait to be let go by the call further up this thread's stack.
    static WAITING: Waiting<Arc<FileDescription>> = const { RefCell::new(None) };
}

/// Lets files go. Closing a socket drops its queue, whose files may be sockets with queues of their own.
fn drop_files(files: Vec<Arc<FileDescription>>) {
    drop_in_turn(&WAITING, files);
}

/// A part of a sender's buffer.
#[derive(Debug)]
pub(super) struct Charge {
    sender: Arc<Core>,
    bytes: usize,
}

impl Charge {
    pub(super) fn new(sender: &Arc<Core>, bytes: usize) -> Self {
        sender.sent.fetch_add(bytes, Ordering::Relaxed);
        Self { sender: Arc::clone(sender), bytes }
    }

    pub(super) fn grow(&mut self, bytes: usize) {
        self.sender.sent.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.sender.sent.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.sender.has_write_space() {
            self.sender.queue.notify(Events::WRITABLE | Events::WRBAND);
        }
    }
}

/// A datagram, or a piece of a stream. Drop it without locks held.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) data: Vec<u8>,
    /// Bytes that have been read already.
    pub(super) read: usize,
    pub(super) from: Address,
    pub(super) creds: Ucred,
    pub(super) rights: Rights,
    pub(super) charge: Charge,
    pub(super) mark: Mark,
}

/// Whether a message is the urgent byte of a stream (`MSG_OOB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mark {
    #[default]
    None,
    Urgent,
    /// It has been taken; its place stays.
    Taken,
}

impl Message {
    pub(super) fn rest(&self) -> &[u8] {
        self.data.get(self.read..).unwrap_or_default()
    }
}
