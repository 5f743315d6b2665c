//! Resource limits (`getrlimit(2)`).

use abi::process::{RLIM_INFINITY, RLIM_NLIMITS, Rlimit, rlimit};

/// The soft and hard limits of a process, by resource number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([Rlimit; RLIM_NLIMITS]);

impl Default for Limits {
    /// The limits that Linux starts `init` with (`INIT_RLIMITS`).
    fn default() -> Self {
        let mut limits = Self([Rlimit { cur: RLIM_INFINITY, max: RLIM_INFINITY }; RLIM_NLIMITS]);
        limits.set(rlimit::STACK, Rlimit { cur: 8 << 20, max: RLIM_INFINITY });
        limits.set(rlimit::CORE, Rlimit { cur: 0, max: RLIM_INFINITY });
        limits.set(rlimit::NOFILE, Rlimit { cur: 1024, max: 1 << 20 });
        limits.set(rlimit::NPROC, Rlimit { cur: 31_000, max: 31_000 });
        limits.set(rlimit::MEMLOCK, Rlimit { cur: 8 << 20, max: 8 << 20 });
        limits.set(rlimit::SIGPENDING, Rlimit { cur: 31_000, max: 31_000 });
        limits.set(rlimit::MSGQUEUE, Rlimit { cur: 819_200, max: 819_200 });
        limits.set(rlimit::NICE, Rlimit { cur: 0, max: 0 });
        limits.set(rlimit::RTPRIO, Rlimit { cur: 0, max: 0 });
        limits
    }
}

impl Limits {
    /// Both limits of a resource; `None` for a number that is not one.
    pub fn get(&self, resource: u32) -> Option<Rlimit> {
        self.0.get(usize::try_from(resource).ok()?).copied()
    }

    /// The soft limit; without limit for a number that is no resource.
    pub fn soft(&self, resource: u32) -> u64 {
        self.get(resource).map_or(RLIM_INFINITY, |l| l.cur)
    }

    /// Sets both limits; a number that is no resource is ignored.
    pub fn set(&mut self, resource: u32, limit: Rlimit) {
        if let Some(slot) = usize::try_from(resource).ok().and_then(|r| self.0.get_mut(r)) {
            *slot = limit;
        }
    }
}
