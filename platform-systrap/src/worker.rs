//! Workers, and what stubs know of them.
//!
//! A stub that has posted a trap wakes the worker that suits: one that is free to run anywhere if the stub is going to spin,
//! and the one of its own CPU if it is going to sleep. That one runs as soon as the stub does not, without a wake-up of
//! another CPU, and often without any. See ADR 12.
//!
//! Each worker says in a word, which stubs can only read, what it does. The words are hints: whether a trap has been seen is
//! decided by the thread's own word, on which sleeping workers wait as well.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use platform::FREE_WORKERS;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::channel::Arena;
use crate::layout::doing;

/// Workers that can park.
const MAX_WORKERS: usize = 256;

#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Worker {
    /// One while an unpark is pending.
    pub token: AtomicU32,
    place: Place,
}

/// By which word stubs know a worker, and where it runs.
#[derive(Debug, Default, Clone, Copy)]
enum Place {
    /// By none.
    #[default]
    Unknown,
    Free(&'static AtomicU32),
    OfCpu(usize, &'static AtomicU32),
}

thread_local! {
    /// The word of the worker that this thread is.
    static OWN: Cell<Option<&'static AtomicU32>> = const { Cell::new(None) };
}

impl Worker {
    /// All that there may be, by their numbers. None of them does anything yet.
    pub fn all(arena: &Arena) -> Vec<Self> {
        for word in (0..).map_while(|index| arena.worker(index)) {
            word.store(doing::OTHER, Ordering::Relaxed);
        }
        let free = (0..FREE_WORKERS).map(|index| arena.worker(index).map(Place::Free));
        let of_cpu = |cpu| arena.worker(FREE_WORKERS + cpu).map(|word| Place::OfCpu(cpu, word));
        let allowed = sched_getaffinity(None).unwrap_or_default();
        let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let places = free.chain(cpus.map(of_cpu));
        let places = places.map(Option::unwrap_or_default).chain(std::iter::repeat(Place::Unknown));
        places.take(MAX_WORKERS).map(|place| Self { token: AtomicU32::new(0), place }).collect()
    }

    /// It does not sleep any more, though it may not run yet, and has something else to do.
    pub fn is_called(&self) {
        if let Place::Free(word) | Place::OfCpu(_, word) = self.place {
            say(word, doing::OTHER);
        }
    }

    /// To be called by the worker itself before it sleeps: it goes to its place, if it is not there.
    pub fn arrive(&self) {
        if OWN.get().is_none() {
            OWN.set(match self.place {
                Place::Unknown => None,
                Place::Free(word) => Some(word),
                Place::OfCpu(cpu, word) => {
                    let mut only = CpuSet::new();
                    only.set(cpu);
                    sched_setaffinity(None, &only).is_ok().then_some(word)
                }
            });
        }
    }
}

/// Says what this worker does: [`doing`].
pub fn be(what: u32) {
    if let Some(own) = OWN.get() {
        say(own, what);
    }
}

/// Stubs read the word's cache line: it is taken from them only for something new.
fn say(word: &AtomicU32, what: u32) {
    if word.load(Ordering::Relaxed) != what {
        word.store(what, Ordering::SeqCst);
    }
}

/// The word in which this worker says that.
pub fn own_word() -> Option<&'static AtomicU32> {
    OWN.get()
}
