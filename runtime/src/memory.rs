//! Holds a container of a pod to a limit of memory of its own.
//!
//! The memory of all containers of a pod is the sandbox', and its control group is limited for all of them. In a container's
//! own group there are its monitor and its gofer alone. So the monitor looks how much memory the container's programs have,
//! by the Sentry's account, and when that is more than the limit of its own group, it has the kernel run out of memory in that
//! group: the monitor is killed there, with which the container ends. Engines see the event in the group where they look for
//! it, and the end of a process by `SIGKILL`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::cgroup::Group;

/// How often is looked.
const TURN: Duration = Duration::from_millis(200);

/// The same where there is no limit: it may be set later.
const LONG_TURN: Duration = Duration::from_secs(2);

/// What is touched at the end, in bytes.
const TOUCHED: usize = 32 << 20;

/// Left free of it, so that there is something to charge.
const SPARE: u64 = 64 << 10;

/// Larger than any machine: version 1 has no word for "none".
const NO_LIMIT: u64 = 1 << 60;

/// The files that are looked at, opened by a process that is about to leave the mounts where they are.
#[derive(Debug)]
pub(crate) struct Guard {
    limit: File,
    usage: File,
    /// What the sandbox uses in all.
    around: Option<File>,
    /// Says whether the kernel kills in the group, in version 1.
    control: Option<File>,
    /// Of this process: how readily it is killed.
    score: Option<File>,
}

impl Guard {
    /// `own` is the container's group, `around` that of its sandbox. `None` where memory cannot be limited.
    pub fn new(own: &Group, around: &Group) -> Option<Self> {
        const USAGE: [&str; 2] = ["memory.current", "memory.usage_in_bytes"];
        let guard = Self {
            limit: own.open("memory", ["memory.max", "memory.limit_in_bytes"], true)?,
            usage: own.open("memory", USAGE, false)?,
            around: around.open("memory", USAGE, false),
            control: own.open("memory", ["memory.events", "memory.oom_control"], false),
            score: File::options().write(true).open("/proc/self/oom_score_adj").ok(),
        };
        Some(guard)
    }

    fn limit(&self) -> Option<u64> {
        number(&self.limit).filter(|limit| *limit < NO_LIMIT)
    }

    /// How long it has time until the next look.
    pub fn turn(&self) -> Duration {
        if self.limit().is_some() { TURN } else { LONG_TURN }
    }

    /// The limit, if there is one and the sandbox as a whole has passed it already.
    pub fn near(&self) -> Option<u64> {
        let limit = self.limit()?;
        // The container is a part of the sandbox. What two of its processes share is counted twice, but not there.
        let all = self.around.as_ref().and_then(number);
        all.is_none_or(|all| all > limit).then_some(limit)
    }

    /// Has the kernel run out of memory in the container's group. It may return if the kernel sees that differently.
    pub fn run_out(&mut self) {
        if self.control.as_ref().is_some_and(|control| text(control).contains("oom_kill_disable 1")) {
            return;
        }
        if let Some(score) = &mut self.score {
            let _ = score.write_all(b"1000");
        }
        let Some(used) = number(&self.usage) else { return };
        if self.limit.write_all((used + SPARE).to_string().as_bytes()).is_ok() {
            let mut block = vec![0_u8; TOUCHED];
            for page in block.chunks_mut(4096) {
                page.fill(1);
                std::hint::black_box(&page);
            }
        }
    }
}

fn text(file: &File) -> String {
    let mut text = [0; 256];
    let len = file.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(text.get(..len).unwrap_or_default()).into_owned()
}

/// The number in a file of a group; `max` is none.
fn number(file: &File) -> Option<u64> {
    text(file).trim().parse().ok()
}
