//! `SIGURG`: the owner of a socket (`F_SETOWN`) hears of urgent data (`send_sigurg`, `fs/fcntl.c`).

use core::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use sentry_base::{Events, Observer};

use crate::{FileDescription, FileKind, SignalSink};

/// Tells the owner of a description of urgent data.
struct Notice {
    file: Weak<FileDescription>,
    sink: Arc<dyn SignalSink>,
}

impl Observer for Notice {
    fn notify(&self, events: Events) {
        let Some(file) = self.file.upgrade() else { return };
        if !events.contains(Events::PRI) {
            return;
        }
        match file.owner().load(Ordering::Relaxed) {
            0 => {}
            group if group < 0 => self.sink.signal_group(group.wrapping_neg(), libc::SIGURG),
            process => self.sink.signal_process(process, libc::SIGURG),
        }
    }
}

impl FileDescription {
    /// From now on the owner hears of urgent data. Only for sockets: others tell of events under locks that a signal needs.
    pub fn tell_owner(self: &Arc<Self>, sink: Arc<dyn SignalSink>) {
        if self.ops().kind() != FileKind::Socket {
            return;
        }
        let Some(queue) = self.ops().wait_queue() else { return };
        self.notice
            .get_or_init(|| queue.add(Events::PRI, Arc::new(Notice { file: Arc::downgrade(self), sink })));
    }
}
