//! What is timed: one row each, a number per peer and repetition.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use xtask::place::TempDir;
use xtask::programs::INSIDE;

use crate::peer::{Peer, Place, Started, native};
use crate::scripts::{
    C_BUILD, CARGO_BUILD, FIND_STAT, GIT_STATUS, GREP, PYTHON_IMPORTS, SQLITE_INSERTS, iperf3, nginx, redis,
};
use crate::veth::{OUTSIDE, Veth};

/// The unit of a row's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    Nanoseconds,
    KiB,
    PerSecond,
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
    /// A shell script that prints the nanoseconds that its own main part took, and the root filesystem that it needs.
    Script(&'static str, fn() -> Result<PathBuf>),
    /// What all processors do while a script runs, from its start to its end.
    ProcessorTime(&'static str),
    /// From the start of the command to its end.
    StartToExit,
    /// `create`, `start` and `delete`, each a command of its own.
    CreateStartDelete,
    /// Memory of every process while the program sleeps.
    Idle,
    /// How often a second a thread of any process is woken meanwhile.
    Wakes,
    /// The same as [`Work::Idle`] for [`MANY`] at once.
    ManyIdle,
    /// The time in which [`MANY`] are started, for each.
    ManyStarts,
    /// `iperf3` between the program and a server of the host at the other end of a pair of interfaces; the client's argument
    /// that says which way.
    Veth(&'static str),
    /// Memory while `guest hold` keeps so many connections.
    Connections(&'static str),
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
    micro("1-byte pipe write + read, every processor busy", "pipe-busy", 20_000),
    micro("pipe ping-pong of two processes", "pingpong", 10_000),
    micro("fork + exit + wait", "fork", 400),
    micro("fork + exec of true + wait", "exec", 200),
    micro("first touch of anonymous memory, a page", "touch", 50_000),
    micro("copy on write after fork, a page", "cow", 50_000),
    micro("arithmetic", "cpu", 100_000_000),
    micro("open + fstat + close", "open", 20_000),
    micro("stat", "stat", 50_000),
    script("find /usr, stat of each", FIND_STAT),
    script("grep -r over /usr/share", GREP),
    script("git status on 5,000 files", GIT_STATUS),
    script("python, 40 starts that import", PYTHON_IMPORTS),
    script("sqlite, an insert with its commit", SQLITE_INSERTS),
    script("C build of 24 files, make -j2", C_BUILD),
    Row {
        title: "C build of 24 files, processor time",
        unit: Unit::Nanoseconds,
        work: Work::ProcessorTime(C_BUILD),
    },
    Row {
        title: "cargo build of 6 crates",
        unit: Unit::Nanoseconds,
        work: Work::Script(CARGO_BUILD, xtask::rootfs::jobs),
    },
    micro("net: TCP ping-pong of two processes", "tcp", 10_000),
    micro("net: TCP connect + ping + close", "tcp-connect", 1_000),
    servers("net: redis GET, a request", redis!("get", "1", "30000")),
    servers("net: redis SET, a request", redis!("set", "1", "30000")),
    servers("net: redis GET, a request of 16 in a pipeline", redis!("get", "16", "200000")),
    servers("net: redis SET, a request of 16 in a pipeline", redis!("set", "16", "200000")),
    servers("net: nginx, a request of 1 KiB", nginx!("1024")),
    servers("net: nginx, a request of 1 MiB", nginx!("1048576")),
    servers("net: iperf3, a MiB", concat!("set -e; iperf3 -s -1 >/dev/null & ", iperf3!("127.0.0.1"))),
    Row { title: "net: iperf3 over veth out, a MiB", unit: Unit::Nanoseconds, work: Work::Veth("") },
    Row { title: "net: iperf3 over veth in, a MiB", unit: Unit::Nanoseconds, work: Work::Veth("-R") },
    Row {
        title: "net: 10,000 idle connections (PSS and slab)",
        unit: Unit::KiB,
        work: Work::Connections("10000"),
    },
    Row { title: "start to exit of true", unit: Unit::Nanoseconds, work: Work::StartToExit },
    Row { title: "create, start and delete of true", unit: Unit::Nanoseconds, work: Work::CreateStartDelete },
    Row { title: "idle memory (PSS of all processes)", unit: Unit::KiB, work: Work::Idle },
    Row { title: "idle wake-ups (all processes)", unit: Unit::PerSecond, work: Work::Wakes },
    Row { title: "idle memory of 100 at once", unit: Unit::KiB, work: Work::ManyIdle },
    Row { title: "start of one of 100, two at a time", unit: Unit::Nanoseconds, work: Work::ManyStarts },
];

/// How many sandboxes rows have that ask for many.
const MANY: usize = 100;

const fn micro(title: &'static str, name: &'static str, count: u64) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Micro { name, count } }
}

const fn script(title: &'static str, script: &'static str) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Script(script, xtask::rootfs::debian) }
}

const fn servers(title: &'static str, script: &'static str) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Script(script, xtask::rootfs::servers) }
}

impl Row {
    /// Whether it times one operation in a loop.
    pub fn is_call(&self) -> bool {
        matches!(self.work, Work::Micro { .. })
    }

    /// One measurement; `None` if the peer has nothing of the kind.
    pub fn measure(&self, peer: &Peer, place: &Place) -> Result<Option<f64>> {
        if matches!(self.work, Work::CreateStartDelete) {
            let taken = peer.create_start_delete(place, "/bin/true")?;
            return Ok(taken.map(|taken| taken.as_nanos() as f64));
        }
        self.number(peer, place).map(Some)
    }

    fn number(&self, peer: &Peer, place: &Place) -> Result<f64> {
        match self.work {
            Work::Micro { name, count } => {
                let guest = format!("{INSIDE}/guest");
                number(&peer.run(place, &[&guest, "bench", name, &count.to_string()])?)
            }
            Work::Script(script, root) => {
                let place = Place { rootfs: root()?, ..place.clone() };
                number(&peer.run(&place, &["bash", "-c", script])?)
            }
            Work::ProcessorTime(script) => {
                let before = processor_time()?;
                peer.run(place, &["bash", "-c", script])?;
                Ok(processor_time()? - before)
            }
            Work::StartToExit | Work::CreateStartDelete => {
                Ok(peer.start_to_exit(place, "/bin/true")?.as_nanos() as f64)
            }
            Work::Idle => idle(peer, place),
            Work::Wakes => wakes(peer, place),
            Work::ManyIdle => Ok(many(peer, place)?.1),
            Work::ManyStarts => Ok(many(peer, place)?.0.as_nanos() as f64 / MANY as f64),
            Work::Veth(way) => iperf3_over_veth(peer, place, way),
            Work::Connections(count) => connections(peer, place, count),
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
    let sum = pss_kib(&run)?;
    run.end()?;
    Ok(sum)
}

/// The wake-ups of two seconds, once the start's own work has had some.
fn wakes(peer: &Peer, place: &Place) -> Result<f64> {
    const WATCHED: Duration = Duration::from_secs(2);
    let run = peer.start(place, &["sleep", "5"])?;
    std::thread::sleep(Duration::from_millis(2500));
    let all = run.processes()?;
    let count = || all.iter().map(xtask::processes::Process::wakes).sum::<u64>();
    let before = count();
    std::thread::sleep(WATCHED);
    let counted = count().saturating_sub(before);
    run.end()?;
    Ok(counted as f64 / WATCHED.as_secs_f64())
}

/// Starts [`MANY`], two at a time, that say a word and then wait for the end of their input: the time of all starts, and
/// the memory of all processes then.
fn many(peer: &Peer, place: &Place) -> Result<(Duration, f64)> {
    let one = || {
        let mut run = peer.start_waiting(place, &["sh", "-c", "echo ready; read word || true"])?;
        if run.line()? == "ready" {
            return Ok(run);
        }
        bail!("nothing said: {:?}", run.end());
    };
    let some = |count: usize| (0..count).map(|_| one()).collect::<Result<Vec<_>>>();
    let start = Instant::now();
    let halves = std::thread::scope(|scope| {
        let other = scope.spawn(|| some(MANY / 2));
        [some(MANY - MANY / 2), other.join().unwrap_or_else(|_| bail!("a thread that starts them ended"))]
    });
    let taken = start.elapsed();
    let mut runs = Vec::new();
    for half in halves {
        runs.extend(half?);
    }
    let mut kib = 0.0;
    for run in &runs {
        kib += pss_kib(run)?;
    }
    for run in runs {
        run.end()?;
    }
    Ok((taken, kib))
}

/// What all processors have done since the host's start, in nanoseconds: `cpu` of proc_stat(5) without `idle` and `iowait`.
fn processor_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("an empty /proc/stat")?;
    let fields = line.split_whitespace().skip(1).take(8).map(number).collect::<Result<Vec<_>>>()?;
    let ticks: f64 =
        fields.iter().enumerate().filter(|(n, _)| !(3..=4).contains(n)).map(|(_, ticks)| ticks).sum();
    Ok(ticks * 1e9 / rustix::param::clock_ticks_per_second() as f64)
}

fn pss_kib(run: &Started) -> Result<f64> {
    Ok(run.processes()?.iter().filter_map(xtask::processes::Process::pss_kib).sum::<u64>() as f64)
}

/// What the processes have, and by how much the host kernel's own memory has grown: there are the sockets of those that use it.
fn connections(peer: &Peer, place: &Place, count: &str) -> Result<f64> {
    let before = slab_kib()?;
    let guest = format!("{INSIDE}/guest");
    let mut run = peer.start(place, &[&guest, "hold", count])?;
    let said = run.line()?;
    let kib = pss_kib(&run)? + (slab_kib()? - before).max(0.0);
    run.end()?;
    if said != count {
        bail!("the program said {said:?}");
    }
    Ok(kib)
}

/// `Slab` of proc_meminfo(5).
fn slab_kib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Slab:")).context("no Slab in /proc/meminfo")?;
    number(line.trim_end_matches("kB"))
}

fn iperf3_over_veth(peer: &Peer, place: &Place, way: &str) -> Result<f64> {
    let veth = Veth::new()?;
    let place = Place { rootfs: xtask::rootfs::servers()?, ..place.clone() };
    let outside = Place { network: Some(veth.outside().to_owned()), ..place.clone() };
    let scratch = TempDir::new("bench-veth")?;
    let mut server = native(&outside, scratch.path(), &["iperf3", "-s"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start iperf3")?;
    let inside = Place { network: Some(veth.inside().to_owned()), ..place };
    let said = peer.run(&inside, &["bash", "-c", iperf3!("$0 $1"), OUTSIDE, way]);
    server.kill()?;
    server.wait()?;
    number(&said?)
}
