//! Moments of a start, for `--timing`: a line each, by the time since the command began.

use hostsys::futex::monotonic_ns;
use serde::{Deserialize, Serialize};

/// A clock that begins with a command. Every process of its sandbox reads the same one (`CLOCK_MONOTONIC`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopwatch {
    began_ns: u64,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { began_ns: monotonic_ns() }
    }

    /// The line of a moment, `at_ns` of the monotonic clock: `timing:    3.214 ms  sandbox: filter closed`.
    pub fn line(self, at_ns: u64, who: &str, what: &str) -> String {
        let since = at_ns.saturating_sub(self.began_ns) / 1000;
        format!("timing: {:>5}.{:03} ms  {who}: {what}", since / 1000, since % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_milliseconds_since_the_start() {
        let watch = Stopwatch { began_ns: 1_000_000 };
        assert_eq!(
            watch.line(4_214_567, "sandbox", "filter closed"),
            "timing:     3.214 ms  sandbox: filter closed"
        );
        assert_eq!(watch.line(0, "command", "begun"), "timing:     0.000 ms  command: begun");
    }
}
