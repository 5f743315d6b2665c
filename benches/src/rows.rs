//! What is timed: one row each, a number per peer and repetition.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xtask::programs::INSIDE;

use crate::peer::{Peer, Place};

/// The unit of a row's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    Nanoseconds,
    KiB,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    pub title: &'static str,
    pub unit: Unit,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// `guest bench NAME COUNT`: the guest itself times the loop and prints nanoseconds.
    Micro { name: &'static str, count: u64 },
    /// A shell script that prints the nanoseconds that its own main part took.
    Script(&'static str),
    /// From the start of the command to its end.
    StartToExit,
    /// Memory of every process while the program sleeps.
    Idle,
}

/// Prints the nanoseconds of what stands between; bash's clock, so that starting the sandbox is not counted.
macro_rules! timed_script {
    ($before:literal, $timed:literal) => {
        concat!(
            "set -e\n",
            $before,
            "\nt0=$EPOCHREALTIME\n",
            $timed,
            "\nt1=$EPOCHREALTIME\necho $(( (${t1/./} - ${t0/./}) * 1000 ))\n"
        )
    };
}

/// Every row, in the order of the table.
pub const ROWS: &[Row] = &[
    micro("getpid", "getpid", 200_000),
    micro("gettid", "gettid", 200_000),
    micro("getuid", "getuid", 200_000),
    micro("clock_gettime by syscall()", "clock", 200_000),
    micro("sched_yield", "yield", 200_000),
    micro("getppid", "getppid", 200_000),
    micro("1-byte pipe write + read", "pipe", 50_000),
    micro("pipe ping-pong of two processes", "pingpong", 10_000),
    micro("fork + exit + wait", "fork", 400),
    micro("fork + exec of true + wait", "exec", 200),
    micro("open + fstat + close", "open", 20_000),
    micro("stat", "stat", 50_000),
    script(
        "find /usr, stat of each",
        timed_script!("", "find /usr -xdev -print0 | xargs -0 stat >/dev/null"),
    ),
    script(
        "git status on 5,000 files",
        timed_script!(
            "mkdir repo; cd repo; git init -q .; mkdir $(seq 50); \
             for d in $(seq 50); do for f in $(seq 100); do echo $d $f >$d/$f; done; done; \
             git add .; git -c user.name=n -c user.email=e commit -qm all; git status >/dev/null",
            "git status >/dev/null"
        ),
    ),
    script(
        "C build of 24 files, make -j2",
        timed_script!(
            "for n in $(seq 24); do { echo '#include <stdio.h>'; echo '#include <stdlib.h>'; echo '#include <string.h>'; \
             for k in $(seq 40); do echo \"int f${n}_$k(int x) { char b[64]; snprintf(b, 64, \\\"%d\\\", x * $k); \
             return atoi(b) + (int)strlen(b); }\"; done; } >f$n.c; done; \
             { for n in $(seq 24); do echo \"int f${n}_1(int);\"; done; echo 'int main(void) { return 0'; \
             for n in $(seq 24); do echo \"+ 0 * f${n}_1($n)\"; done; echo '; }'; } >main.c; \
             printf 'OBJS = main.o %s\\nprog: $(OBJS)\\n\\t$(CC) -o $@ $(OBJS)\\n' \"$(seq -f 'f%g.o' -s ' ' 24)\" >Makefile",
            "make -s -j2 prog; ./prog"
        ),
    ),
    Row { title: "start to exit of true", unit: Unit::Nanoseconds, work: Work::StartToExit },
    Row { title: "idle memory (PSS of all processes)", unit: Unit::KiB, work: Work::Idle },
];

const fn micro(title: &'static str, name: &'static str, count: u64) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Micro { name, count } }
}

const fn script(title: &'static str, script: &'static str) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Script(script) }
}

impl Row {
    /// Whether it times one operation in a loop.
    pub fn is_call(&self) -> bool {
        matches!(self.work, Work::Micro { .. })
    }

    /// One measurement.
    pub fn measure(&self, peer: &Peer, place: &Place) -> Result<f64> {
        match self.work {
            Work::Micro { name, count } => {
                let guest = format!("{INSIDE}/guest");
                number(&peer.run(place, &[&guest, "bench", name, &count.to_string()])?)
            }
            Work::Script(script) => number(&peer.run(place, &["bash", "-c", script])?),
            Work::StartToExit => Ok(peer.start_to_exit(place, "/bin/true")?.as_nanos() as f64),
            Work::Idle => idle(peer, place),
        }
    }
}

fn number(text: &str) -> Result<f64> {
    text.trim().parse().with_context(|| format!("no number in {text:?}"))
}

/// Everything that the run has started, while its program sleeps. What is counted natively is the program and the
/// helper that holds its namespaces.
fn idle(peer: &Peer, place: &Place) -> Result<f64> {
    let run = peer.start(place, &["sleep", "3"])?;
    std::thread::sleep(Duration::from_millis(1500));
    let sum: u64 = run.processes()?.iter().filter_map(xtask::processes::Process::pss_kib).sum();
    run.end()?;
    Ok(sum as f64)
}
