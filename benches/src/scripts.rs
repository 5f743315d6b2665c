//! The shell scripts of rows. Each prints the nanoseconds that its main part took.

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

pub(crate) use {iperf3, nginx, redis};

/// Looks at every file of a system.
pub const FIND_STAT: &str = timed_script!("", "find /usr -xdev -print0 | xargs -0 stat >/dev/null");

/// Reads every file of a tree.
pub const GREP: &str =
    timed_script!("", "for n in 1 2 3; do grep -r 'no such words' /usr/share >/dev/null || true; done");

pub const GIT_STATUS: &str = timed_script!(
    "mkdir repo; cd repo; git init -q .; mkdir $(seq 50); \
     for d in $(seq 50); do for f in $(seq 100); do echo $d $f >$d/$f; done; done; \
     git add .; git -c user.name=n -c user.email=e commit -qm all; git status >/dev/null",
    "git status >/dev/null"
);

/// Programs that look for and open many files as they start.
pub const PYTHON_IMPORTS: &str = timed_script!(
    "",
    "for n in $(seq 40); do python3 -c 'import asyncio, http.client, json, email.message, logging.config, unittest, xml.dom.minidom'; done"
);

/// Rows that are written one by one, each made durable; prints nanoseconds for each.
pub const SQLITE_INSERTS: &str = "exec python3 -c \"
import sqlite3, time
base = sqlite3.connect('/work/base', isolation_level=None)
base.execute('create table t (a integer primary key, b text)')
count = 2000
start = time.perf_counter_ns()
for n in range(count):
    base.execute('insert into t (b) values (?)', ('row %d' % n,))
print((time.perf_counter_ns() - start) // count)
\"";

pub const C_BUILD: &str = timed_script!(
    "for n in $(seq 24); do { echo '#include <stdio.h>'; echo '#include <stdlib.h>'; echo '#include <string.h>'; \
     for k in $(seq 40); do echo \"int f${n}_$k(int x) { char b[64]; snprintf(b, 64, \\\"%d\\\", x * $k); \
     return atoi(b) + (int)strlen(b); }\"; done; } >f$n.c; done; \
     { for n in $(seq 24); do echo \"int f${n}_1(int);\"; done; echo 'int main(void) { return 0'; \
     for n in $(seq 24); do echo \"+ 0 * f${n}_1($n)\"; done; echo '; }'; } >main.c; \
     printf 'OBJS = main.o %s\\nprog: $(OBJS)\\n\\t$(CC) -o $@ $(OBJS)\\n' \"$(seq -f 'f%g.o' -s ' ' 24)\" >Makefile",
    "make -s -j2 prog; ./prog"
);

/// A program of six crates without foreign ones.
pub const CARGO_BUILD: &str = timed_script!(
    "mkdir -p all/src; cd all; \
     printf '[package]\\nname = \"all\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\n' >Cargo.toml; \
     for n in $(seq 5); do echo \"part$n = { path = \\\"part$n\\\" }\" >>Cargo.toml; mkdir -p part$n/src; \
     printf '[package]\\nname = \"part%d\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n' $n >part$n/Cargo.toml; \
     for k in $(seq 40); do echo \"pub fn f$k(x: &str) -> String { let mut v: Vec<String> = x.split(' ').map(|w| format!(\\\"{w}-$k\\\")).collect(); \
     v.sort(); v.join(\\\",\\\") }\"; done >part$n/src/lib.rs; done; \
     { echo 'fn main() {'; for n in $(seq 5); do echo \"println!(\\\"{}\\\", part$n::f$n(\\\"b a\\\"));\"; done; echo '}'; } >src/main.rs; \
     export HOME=/work",
    "cargo build --offline -q; target/debug/all >/dev/null"
);
