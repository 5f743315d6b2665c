//! Interval timers and POSIX timers of a process.

/// The timers of a process.
#[derive(Debug, Default)]
pub(crate) struct ProcessTimers {}
