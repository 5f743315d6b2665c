//! The ground the user-space kernel stands on: error numbers, ranked locks, wait queues, the executor, clocks.
//!
//! **Invariants.** A wait ends with a returned value, never by a dropped future ([`wait`]). Observers are
//! collected under the wait queue's lock and notified after it is released. Locks are taken in the order of their
//! ranks, which debug builds check ([`lock`]).
//!
//! **Lock ranks** in this crate: `WaitQueue` 150, `RunQueue`/`Timers` 160; the table of all ranks is
//! [`lock::rank`].

pub mod clock;
pub mod errno;
pub mod executor;
pub mod hash;
pub mod lock;
pub mod rand;
pub mod relay;
pub mod timer;
pub mod unnest;
pub mod wait;

pub use hostsys::cpu;

pub use clock::{Nanos, boot_now, mono_at_real, mono_now, real_now};
pub use errno::{Errno, Result};
pub use executor::{Executor, Reactor};
pub use hash::{KeyedMap, KeyedSet, KeyedState};
pub use lock::{Mutex, MutexGuard, RwLock};
pub use relay::Relay;
pub use timer::{TimerId, TimerTarget, Timers};
pub use wait::{Events, Observer, Sleeper, WaitClass, WaitEnd, WaitId, WaitQueue, WatchedQueue};
