//! Interruptions that no signal has caused, for tests of the calls that wait.
//!
//! With a seed, one interruptible wait of a call ends as if a signal had come: the first, the second or the third one,
//! as the seed, the task and the number of the call say. No signal is found then, so that a call which Linux restarts
//! must show nothing of it: no time lost of a timeout, nothing moved twice, nothing left in a queue. The restarted call
//! itself is spared, so that the program goes on.

/// Which wait of which call is interrupted. Owned by one task.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    seed: u64,
    calls: u64,
    waits: u64,
    struck: bool,
    spared: bool,
}

/// One of the first waits of a call is chosen: most calls have no more.
const WAITS: u64 = 3;

impl Injection {
    /// `seed` is 0 for no injection at all.
    pub fn new(seed: u64, tid: i32) -> Self {
        let seed = if seed == 0 { 0 } else { mix(seed ^ u64::from(tid.unsigned_abs())) | 1 };
        Self { seed, ..Self::default() }
    }

    /// A system call begins.
    pub fn call(&mut self) {
        self.calls = self.calls.wrapping_add(1);
        self.waits = 0;
        self.spared = core::mem::take(&mut self.struck);
    }

    /// Whether the wait that begins is to be interrupted.
    pub fn strikes(&mut self) -> bool {
        if self.seed == 0 || self.spared || self.struck {
            return false;
        }
        self.waits = self.waits.saturating_add(1);
        self.struck = self.waits == mix(self.seed ^ self.calls) % WAITS + 1;
        self.struck
    }
}

/// The finaliser of splitmix64: each bit of the input changes half of the output's.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::Injection;

    #[test]
    fn one_wait_of_a_call_is_struck_and_its_restart_is_spared() {
        let mut injection = Injection::new(7, 1);
        let mut places = [0; 4];
        for _ in 0..100 {
            injection.call();
            let struck: Vec<usize> = (1..=5).filter(|_| injection.strikes()).collect();
            assert_eq!(struck.len(), 1);
            injection.call();
            assert!((0..5).all(|_| !injection.strikes()), "the restarted call is interrupted again");
            injection.call();
            let first = (1..=3).find(|_| injection.strikes()).expect("one of three waits");
            places[first] += 1;
            injection.call();
        }
        assert!(places[1..].iter().all(|n| *n > 10), "{places:?}");
        let mut off = Injection::new(0, 1);
        off.call();
        assert!((0..5).all(|_| !off.strikes()));
    }
}
