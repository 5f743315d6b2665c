//! The limits of an IPC namespace, which `/proc/sys` shows and sets (`ipc/ipc_sysctl.c`, `ipc/mq_sysctl.c`).

use core::sync::atomic::{AtomicU64, Ordering};

use sentry_base::{Errno, Result};

/// A limit; its name under `/proc/sys` is in the comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `kernel/shmmax`: the largest segment in bytes.
    ShmMax,
    /// `kernel/shmall`: the most pages of all segments.
    ShmAll,
    /// `kernel/shmmni`: the most segments.
    ShmMni,
    /// `kernel/shm_rmid_forced`: 1 if a segment ends with its last attachment or its maker.
    ShmRmidForced,
    /// `kernel/msgmax`: the longest message in bytes.
    MsgMax,
    /// `kernel/msgmnb`: the bytes of a new queue.
    MsgMnb,
    /// `kernel/msgmni`: the most queues.
    MsgMni,
    /// `kernel/sem`, first: the most semaphores of a set.
    SemMsl,
    /// `kernel/sem`, second: the most semaphores of all sets.
    SemMns,
    /// `kernel/sem`, third: the most operations of a call.
    SemOpm,
    /// `kernel/sem`, fourth: the most sets.
    SemMni,
    /// `fs/mqueue/queues_max`
    MqQueuesMax,
    /// `fs/mqueue/msg_max`: the most messages that an ordinary user may give a queue room for.
    MqMsgMax,
    /// `fs/mqueue/msgsize_max`, in bytes.
    MqMsgsizeMax,
    /// `fs/mqueue/msg_default`
    MqMsgDefault,
    /// `fs/mqueue/msgsize_default`, in bytes.
    MqMsgsizeDefault,
}

/// An index's most (`IPCMNI`).
const MNI: u64 = 32_768;
const INT_MAX: u64 = 0x7fff_ffff;
/// `SHMMAX` and `SHMALL`.
const SHM_MOST: u64 = u64::MAX - (1 << 24);

/// The first value, the least and the most of each.
const ROWS: [(Limit, u64, u64, u64); 16] = [
    (Limit::ShmMax, SHM_MOST, 0, u64::MAX),
    (Limit::ShmAll, SHM_MOST, 0, u64::MAX),
    (Limit::ShmMni, 4096, 0, MNI),
    (Limit::ShmRmidForced, 0, 0, 1),
    (Limit::MsgMax, 8192, 0, INT_MAX),
    (Limit::MsgMnb, 16_384, 0, INT_MAX),
    (Limit::MsgMni, 32_000, 0, MNI),
    (Limit::SemMsl, 32_000, 0, INT_MAX),
    (Limit::SemMns, 1_024_000_000, 0, INT_MAX),
    (Limit::SemOpm, 500, 0, INT_MAX),
    (Limit::SemMni, 32_000, 0, MNI),
    (Limit::MqQueuesMax, 256, 0, INT_MAX),
    (Limit::MqMsgMax, 10, 1, 65_536),
    (Limit::MqMsgsizeMax, 8192, 128, 16 << 20),
    (Limit::MqMsgDefault, 10, 1, 65_536),
    (Limit::MqMsgsizeDefault, 8192, 128, 16 << 20),
];

/// The limits of a namespace.
#[derive(Debug)]
pub struct Limits([AtomicU64; 16]);

impl Default for Limits {
    fn default() -> Self {
        Self(ROWS.map(|(_, first, _, _)| AtomicU64::new(first)))
    }
}

impl Limits {
    pub fn get(&self, limit: Limit) -> u64 {
        self.0.get(limit as usize).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// As a number of things.
    pub fn count(&self, limit: Limit) -> usize {
        usize::try_from(self.get(limit)).unwrap_or(usize::MAX)
    }

    /// As the structures of `IPC_INFO` have it.
    pub fn int(&self, limit: Limit) -> i32 {
        i32::try_from(self.get(limit)).unwrap_or(i32::MAX)
    }

    /// `EINVAL` for a value that cannot be (`ERANGE` for the number of sets, as Linux says there).
    pub(crate) fn set(&self, limit: Limit, value: u64) -> Result<()> {
        let at = limit as usize;
        let (Some(place), Some((_, _, least, most))) = (self.0.get(at), ROWS.get(at)) else {
            return Err(Errno::EINVAL);
        };
        if !(*least..=*most).contains(&value) {
            return Err(if limit == Limit::SemMni { Errno::ERANGE } else { Errno::EINVAL });
        }
        place.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Whether segments end with their last attachment or their maker.
    pub(crate) fn forced(&self) -> bool {
        self.get(Limit::ShmRmidForced) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_the_limits() {
        for (at, (limit, first, least, most)) in ROWS.into_iter().enumerate() {
            assert_eq!(limit as usize, at);
            assert!((least..=most).contains(&first), "{limit:?}");
        }
    }
}
