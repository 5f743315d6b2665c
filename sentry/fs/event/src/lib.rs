//! Event files: eventfd, timerfd, signalfd and epoll (`eventfd(2)`, `timerfd_create(2)`, `signalfd(2)`, `epoll(7)`).
//!
//! **Invariants.** An epoll item leaves its instance when the description that it watches is dropped
//! ([`sentry_vfs::CloseWatcher`]); items hold descriptions weakly, so that watching keeps nothing open. Instances
//! never form a loop: adding one to another is checked under one lock for all of them.
//!
//! **Lock ranks:** loop check 47, `EpollInterest` 48 (outer instance first), then what the files' `readiness` takes;
//! ready lists and counters are leaves.
//!
//! **Threat.** Applications choose the shape of nested instances: depth is bounded, and no walk visits an instance
//! deeper than Linux allows.

mod epoll;
mod eventfd;
mod signalfd;
mod timerfd;

pub use epoll::{Epoll, EpollOp};
pub use eventfd::EventFd;
pub use signalfd::{SignalFd, SignalSource};
pub use timerfd::{TimerClock, TimerFd, TimerFile, TimerSetting};

/// The device number of anonymous inodes.
const ANON_DEV: u64 = 14;
/// All of them share one inode, as in Linux.
const ANON_INO: u64 = 0x400;

/// What `fstat` shows for a file of an anonymous inode (`fs/anon_inodes.c`).
fn anon_attr() -> sentry_vfs::Attr {
    sentry_vfs::Attr {
        // No file type: `S_IFMT` is 0.
        mode: 0o600,
        btime: None,
        ..sentry_vfs::Attr::new(sentry_vfs::FileKind::Regular, 0o600, ANON_INO, ANON_DEV)
    }
}
