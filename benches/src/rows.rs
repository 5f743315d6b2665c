//! What is timed: one row each, a number per peer and repetition.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use xtask::place::TempDir;
use xtask::programs::INSIDE;

use crate::peer::{Peer, Place, Started, native};
use crate::veth::{OUTSIDE, Veth};

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
    /// The same, in the root filesystem of network servers.
    Servers(&'static str),
    /// From the start of the command to its end.
    StartToExit,
    /// `create`, `start` and `delete`, each a command of its own.
    CreateStartDelete,
    /// Memory of every process while the program sleeps.
    Idle,
    /// `iperf3` between the program and a server of the host at the other end of a pair of interfaces; the client's argument
    /// that says which way.
    Veth(&'static str),
    /// Memory while `guest hold` keeps so many connections.
    Connections(&'static str),
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

/// `redis-benchmark` with 50 clients: the call, the depth of the pipeline, the number of requests. Prints nanoseconds for
/// each request.
macro_rules! redis {
    ($call:literal, $depth:literal, $count:literal) => {
        concat!(
            "set -e; redis-server --port 7000 --save '' --appendonly no --dir /work >/dev/null & \
             for n in $(seq 100); do sleep 0.1; redis-cli -p 7000 ping >out 2>&1 && grep -q PONG out && break; done; \
             redis-benchmark -p 7000 --csv -r 1000 -t ",
            $call, " -P ", $depth, " -n ", $count,
            " >out; kill $!; awk -F '\"' '$2 ~ /^[GS]ET/ { printf \"%d\\n\", 1e9 / $4 }' out"
        )
    };
}

/// `wrk` with 16 connections against one worker of nginx: the size of the file. Prints nanoseconds for each request.
macro_rules! nginx {
    ($size:literal) => {
        concat!(
            "set -e; head -c ", $size, " /dev/zero >file; mkdir log; chmod 755 .; \
             echo 'daemon off; master_process off; pid /work/pid; error_log /work/log/error; events {} http { \
             access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path /work/log; \
             proxy_temp_path /work/log; fastcgi_temp_path /work/log; uwsgi_temp_path /work/log; scgi_temp_path /work/log; \
             server { listen 7080; root /work; } }' >conf; \
             nginx -c /work/conf 2>/dev/null & \
             for n in $(seq 100); do sleep 0.1; wrk -t 1 -c 1 -d 0 http://127.0.0.1:7080/file >out 2>&1 && break; done; \
             wrk -t 1 -c 16 -d 2 http://127.0.0.1:7080/file >out; kill $!; \
             grep -q Non-2xx out && exit 1; awk '/^Requests.sec/ { printf \"%d\\n\", 1e9 / $2 }' out"
        )
    };
}

/// `iperf3` for two seconds as a client of a server that may not be there yet: its address, and further arguments. Prints
/// nanoseconds for each MiB.
macro_rules! iperf3 {
    ($client:literal) => {
        concat!(
            "for n in $(seq 50); do sleep 0.1; iperf3 -c ", $client, " -t 2 -f k >out 2>&1 && break; done; \
             awk '/receiver/ { for (n = 2; n <= NF; n++) if ($n == \"Kbits/sec\") printf \"%d\\n\", 8388.608e9 / $(n - 1) }' out"
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
];

const fn micro(title: &'static str, name: &'static str, count: u64) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Micro { name, count } }
}

const fn script(title: &'static str, script: &'static str) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Script(script) }
}

const fn servers(title: &'static str, script: &'static str) -> Row {
    Row { title, unit: Unit::Nanoseconds, work: Work::Servers(script) }
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
            Work::Script(script) => number(&peer.run(place, &["bash", "-c", script])?),
            Work::Servers(script) => {
                let place = Place { rootfs: xtask::rootfs::servers()?, ..place.clone() };
                number(&peer.run(&place, &["bash", "-c", script])?)
            }
            Work::StartToExit | Work::CreateStartDelete => {
                Ok(peer.start_to_exit(place, "/bin/true")?.as_nanos() as f64)
            }
            Work::Idle => idle(peer, place),
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
