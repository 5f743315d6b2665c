//! Signals of descriptors: `SIGIO` for those with `O_ASYNC`, and `SIGURG` for urgent data (`fcntl(2)`, `F_SETOWN`;
//! `send_sigio`, `send_sigurg`, `fs/fcntl.c`).

use core::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use sentry_base::{Events, Observer};

use crate::{FileDescription, FileKind, OpenFlags, SignalSink};

/// What `SIGIO` tells of.
const TOLD: Events = Events::READABLE.union(Events::WRITABLE).union(Events::RDHUP).union(Events::PRI);

/// Tells the owner of a description of its readiness.
struct Notice {
    file: Weak<FileDescription>,
    sink: Arc<dyn SignalSink>,
}

impl Observer for Notice {
    fn notify(&self, events: Events) {
        let Some(file) = self.file.upgrade() else { return };
        let owner = file.owner().load(Ordering::Relaxed);
        let tell = |signal| match owner {
            0 => {}
            group if group < 0 => self.sink.signal_group(group.wrapping_neg(), signal),
            process => self.sink.signal_process(process, signal),
        };
        if events.contains(Events::PRI) && file.ops().kind() == FileKind::Socket {
            tell(libc::SIGURG);
        }
        if file.flags().contains(OpenFlags::ASYNC) {
            tell(match file.signal().load(Ordering::Relaxed) {
                0 => libc::SIGIO,
                signal => signal,
            });
        }
    }
}

impl FileDescription {
    /// From now on the owner hears of this description's readiness as far as its flags ask for that. Only for sockets and
    /// pipes: others tell of events under locks that a signal needs.
    pub fn tell_owner(self: &Arc<Self>, sink: Arc<dyn SignalSink>) {
        if !matches!(self.ops().kind(), FileKind::Socket | FileKind::Fifo) {
            return;
        }
        let Some(queue) = self.ops().wait_queue() else { return };
        self.notice.get_or_init(|| queue.add(TOLD, Arc::new(Notice { file: Arc::downgrade(self), sink })));
    }
}
