//! What tasks have used, beside CPU time: bytes moved (`/proc/PID/io`, `include/linux/task_io_accounting.h`) and the
//! sandbox's load (`/proc/loadavg`, `kernel/sched/loadavg.c`).

use core::sync::atomic::{AtomicU64, Ordering};

use sentry_base::lock::rank;
use sentry_base::{Mutex, Nanos, mono_now};

/// Bytes and calls of one task, or of the threads and waited-for children that a process has had.
#[derive(Debug, Default)]
pub struct IoCounters {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// [`IoCounters`] at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoUse {
    /// `rchar`, `wchar`
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// `syscr`, `syscw`
    pub reads: u64,
    pub writes: u64,
}

impl IoUse {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_add(other.read_bytes),
            written_bytes: self.written_bytes.saturating_add(other.written_bytes),
            reads: self.reads.saturating_add(other.reads),
            writes: self.writes.saturating_add(other.writes),
        }
    }
}

impl IoCounters {
    pub fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads that were answered elsewhere.
    pub fn count_reads(&self, nr: u64) {
        self.reads.fetch_add(nr, Ordering::Relaxed);
    }

    pub fn count_write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    pub fn add_read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn add_written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn now(&self) -> IoUse {
        IoUse {
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn add(&self, used: IoUse) {
        self.add_read(used.read_bytes);
        self.add_written(used.written_bytes);
        self.reads.fetch_add(used.reads, Ordering::Relaxed);
        self.writes.fetch_add(used.writes, Ordering::Relaxed);
    }
}

/// The periods of a load average, in seconds.
const PERIODS: [f64; 3] = [60.0, 300.0, 900.0];

#[derive(Debug)]
struct Sample {
    at: Nanos,
    cpu: u64,
    averages: [f64; 3],
}

/// Averages of the tasks that want a CPU. Found when somebody asks, from the CPU time that has passed since the last
/// question: a task's CPU time runs whenever it wants one, so that no timer has to look at the queue.
#[derive(Debug)]
pub(crate) struct Load(Mutex<Sample, { rank::LEAF }>);

impl Load {
    pub fn new(now: Nanos) -> Self {
        Self(Mutex::new(Sample { at: now, cpu: 0, averages: [0.0; 3] }))
    }

    /// The averages, where `cpu` is the CPU time of all tasks so far in nanoseconds.
    pub fn averages(&self, cpu: u64) -> [f64; 3] {
        let mut sample = self.0.lock();
        step(&mut sample, mono_now(), cpu);
        sample.averages
    }
}

#[allow(clippy::cast_precision_loss, reason = "a load is good to two digits")]
fn step(sample: &mut Sample, now: Nanos, cpu: u64) {
    let passed = now.saturating_sub(sample.at) as f64 / 1e9;
    // Two questions in quick succession would measure the first.
    if passed < 0.1 {
        return;
    }
    let wanted = cpu.saturating_sub(sample.cpu) as f64 / 1e9 / passed;
    for (average, period) in sample.averages.iter_mut().zip(PERIODS) {
        let kept = (-passed / period).exp();
        *average = *average * kept + wanted * (1.0 - kept);
    }
    sample.at = now;
    sample.cpu = sample.cpu.max(cpu);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn a_load_follows_what_was_wanted() {
        let mut sample = Sample { at: 0, cpu: 0, averages: [0.0; 3] };
        step(&mut sample, MINUTE, 2 * MINUTE);
        let [one, five, fifteen] = sample.averages;
        assert!((one - 2.0 * (1.0 - (-1.0_f64).exp())).abs() < 1e-9);
        assert!(one > five && five > fifteen && fifteen > 0.0);
        step(&mut sample, 11 * MINUTE, 2 * MINUTE);
        assert!(sample.averages.iter().all(|average| *average < 1.0));
        let before = sample.averages;
        step(&mut sample, 11 * MINUTE + 1, 2 * MINUTE);
        assert!(before.iter().zip(sample.averages).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}
