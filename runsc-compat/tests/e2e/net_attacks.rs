//! Attacks on and by way of the network, seen from outside. `docs/attacks.md` lists every scenario with the tests that
//! carry it out; names here begin with the scenario's number.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::attacks::resident_kib;
use crate::common::{debian, long, parts};
use crate::links::{Pair, outside, possible, python_inside, python_with, set_addresses, with_nat};

#[test]
fn t16_slow_readers_hold_little_and_others_go_on() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("t16-slow")?;
    let pair = Pair::new("s", false)?;
    let server = "
import os, socket, sys, threading
s = socket.create_server(('10.77.0.1', 7000), backlog=200); print('ready', flush=True)
block = bytes(1 << 20)
def pour(c):
    try:
        while c.recv(1) == b'p': c.sendall(block)
    except OSError: pass
def serve():
    while True:
        c, _ = s.accept()
        threading.Thread(target=pour, args=(c,), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
sys.stdin.read(); os._exit(0)
";
    let mut sandbox = python_inside(&trial, &pair, server)?.piped_stdin().start()?;
    sandbox.until_says("ready")?;
    let sentry = parts(&mut sandbox)?.sentry.pid;
    let before = resident_kib(sentry)?;
    // A hundred ask for a megabyte after the other, and read none of it; one reads what it asks for.
    let client = "
import socket, sys
slow = [socket.create_connection(('10.77.0.1', 7000)) for _ in range(100)]
for s in slow: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096); s.sendall(b'p' * 50)
quick = socket.create_connection(('10.77.0.1', 7000)); quick.settimeout(60)
for _ in range(5):
    quick.sendall(b'p'); left = 1 << 20
    while left: left -= len(quick.recv(left))
print('served', flush=True); sys.stdin.read()
";
    let mut clients = outside(&trial, &pair, &["python3", "-c", client]).piped_stdin().start()?;
    clients.until_says("served")?;
    let grown = resident_kib(sentry)?.saturating_sub(before);
    // Two buffers of half a megabyte each, and what the application has in hand.
    ensure!(grown < 250 << 10, "a hundred slow readers hold {grown} KiB");
    drop(clients.stdin.take());
    clients.wait()?.expect(0)?;
    drop(sandbox.stdin.take());
    sandbox.wait()?.expect(0)?;
    trial.finish()
}

/// What peers have sent or do not take counts against the container's limit: neither ends it.
#[test]
fn t16_peers_cannot_have_a_container_run_out_of_memory() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("t16-limit")?;
    let pair = Pair::new("l", false)?;
    let server = "
import os, resource, select, socket, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
ports = {port: socket.create_server(('10.77.0.1', port), backlog=1024) for port in (7000, 7001, 7002)}
block = bytes(1 << 16); kept = []; full = []
def serve(port, act):
    while True: act(ports[port].accept()[0])
def pour(c):
    c.setblocking(False); full.append(c)
def pouring():
    while True:
        for c in full[:]:
            try: c.send(block)
            except BlockingIOError: pass
            except OSError: full.remove(c)
        select.select([], [], [], 0.01)
def echo(c):
    def run():
        while data := c.recv(1 << 16): c.sendall(data)
    threading.Thread(target=run, daemon=True).start()
for port, act in ((7000, kept.append), (7001, echo), (7002, pour)):
    threading.Thread(target=serve, args=(port, act), daemon=True).start()
threading.Thread(target=pouring, daemon=True).start()
print('ready', flush=True); sys.stdin.read(); os._exit(0)
";
    let limit = Some(128 << 20);
    let mut sandbox = python_with(&trial, &pair, server, limit)?.piped_stdin().start()?;
    sandbox.until_says("ready")?;
    // Three hundred send what nobody reads, three hundred read nothing of what they are sent; one gets its bytes back.
    let client = "
import hashlib, os, resource, socket, threading, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def connect(port): return socket.create_connection(('10.77.0.1', port), timeout=60)
good = connect(7001); fill = []; slow = []
for _ in range(300):
    fill.append(connect(7000)); slow.append(connect(7002))
block = bytes(1 << 20); total = 0
for c in fill: c.setblocking(False)
until = time.monotonic() + 3
while time.monotonic() < until:
    for c in fill:
        try: total += c.send(block)
        except BlockingIOError: pass
    time.sleep(0.01)
def same(s):
    data = os.urandom(1 << 20)
    threading.Thread(target=s.sendall, args=(data,), daemon=True).start()
    got = b''
    while len(got) < len(data):
        part = s.recv(1 << 16)
        if not part: break
        got += part
    return got == data
print(len(fill), len(slow), total > 1 << 20, same(good), same(connect(7001)))
";
    let limit = Duration::from_mins(2);
    let clients = outside(&trial, &pair, &["python3", "-c", client]).limit(limit).run()?.expect(0)?;
    clients.expect_out("300 300 True True True\n")?;
    drop(sandbox.stdin.take());
    sandbox.wait()?.expect(0)?;
    trial.finish()
}

#[test]
fn t16_connections_on_the_loopback_need_no_file_of_the_host() -> Result<()> {
    let trial = Trial::new("t16-many")?;
    let count = if long() { 65_000 } else { 4000 };
    let program = format!(
        "
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (140_000, 140_000))
s = [socket.create_server(('127.0.0.' + str(n + 1), 7000), backlog=500) for n in range(4)]
all = []
for n in range({count}):
    c = socket.create_connection(s[n % 4].getsockname()); a, _ = s[n % 4].accept()
    all.append((c, a))
print('all', flush=True)
for c, a in all[::97]:
    c.sendall(b'ping'); assert a.recv(9) == b'ping'
sys.stdin.read()
"
    );
    let bundle = Bundle::new(debian()?, ["python3", "-c", &program]).all_capabilities();
    let mut sandbox = trial.run(&bundle)?.limit(Duration::from_mins(10)).piped_stdin().start()?;
    sandbox.until_says("all")?;
    let sentry = parts(&mut sandbox)?.sentry.pid;
    let files = std::fs::read_dir(format!("/proc/{sentry}/fd"))?.count();
    let each = resident_kib(sentry)? / count;
    ensure!(files < 500, "the Sentry has {files} files open for {count} connections");
    ensure!(each < 40, "a connection takes {each} KiB");
    drop(sandbox.stdin.take());
    sandbox.wait()?.expect(0)?;
    trial.finish()
}

#[test]
fn t17_numbers_of_connections_cannot_be_foretold() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("t17-numbers")?;
    let pair = Pair::new("q", false)?;
    // Prints port, sequence number and IP identification of every SYN.
    let watcher = "
import socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)); s.bind(('eth0', 0x0800))
print('ready', flush=True); seen = {}; all = []
while len(all) < 120:
    p = s.recv(2000)
    if p[9] != 6 or p[12:16] != bytes([10, 77, 0, 1]): continue
    sport, dport, seq = struct.unpack('!HHI', p[20:28])
    if p[33] & 2: all.append((sport, dport, seq))
first, second = all[:60], all[60:]
def near(a, b): return (b - a) % (1 << 32) < 1 << 24 or (a - b) % (1 << 32) < 1 << 24
# To different places neither follows from the last one.
for one in (first, second):
    assert sum(near(a[2], b[2]) for a, b in zip(one, one[1:])) < 5, one
    assert len({a[0] for a in one}) > 50, one
    assert sum(abs(a[0] - b[0]) < 100 for a, b in zip(one, one[1:])) < 10, one
# Another sandbox has other secrets.
assert sum(near(a[2], b[2]) for a, b in zip(first, second)) < 5
assert sum(a[0] == b[0] for a, b in zip(first, second)) < 5
print('good')
";
    let mut watcher = outside(&trial, &pair, &["python3", "-c", watcher]).start()?;
    watcher.until_says("ready")?;
    for _ in 0..2 {
        let program = "
import socket
for port in range(100, 160):
    s = socket.socket()
    try: s.connect(('10.77.0.2', port))
    except ConnectionRefusedError: pass
";
        // The one before may have taken them with it.
        set_addresses(&pair.inside, 1).ok();
        python_inside(&trial, &pair, program)?.run()?.expect(0)?;
    }
    watcher.wait()?.expect(0)?.expect_out("ready\ngood\n")?;
    trial.finish()
}

#[test]
fn t18_what_is_denied_has_no_way_round() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("t18-egress")?;
    let pair = Pair::new("e", false)?;
    let policy = trial.path().join("policy.json");
    std::fs::write(&policy, r#"{ "default": "deny", "rules": [] }"#)?;
    let policy = policy.to_string_lossy().into_owned();
    // Servers of the host, at its loopback and at an address of its network.
    let listen = "
import socket, sys
all = [socket.create_server(at) for at in (('127.0.0.1', 7009), ('10.77.0.1', 7009))]
print('ready', flush=True); sys.stdin.read()
";
    let words = ["ip", "netns", "exec", pair.inside.as_str(), "python3", "-c", listen];
    let mut host = trial.host(words).piped_stdin().start()?;
    host.until_says("ready")?;
    let program = "
import socket, struct
def attempt(family, kind, to, data=b'x', proto=0):
    try:
        s = socket.socket(family, kind, proto); s.settimeout(3)
        s.connect(to); s.send(data)
        return 'got ' + repr(s.recv(100)[:4]) if kind != socket.SOCK_STREAM else 'reached'
    except OSError as e: return 'no'
I4, I6, TCP, UDP = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
query = bytes.fromhex('123401000001000000000000046465626903636f6d0000010001')
for port in (53, 443, 853, 7001): print(attempt(I4, TCP, ('10.77.0.2', port)))
print(attempt(I4, UDP, ('10.77.0.2', 53), query))
print(attempt(I6, TCP, ('fd77::2', 443)), attempt(I6, TCP, ('::ffff:10.77.0.2', 443)))
for ip in ('169.254.169.254', '10.0.2.2', '127.0.0.1', '10.77.0.1', '0.0.0.0'): print(ip, attempt(I4, TCP, (ip, 7009)))
echo = struct.pack('!BBHHH', 8, 0, 0xf7fe, 0, 1)
print(attempt(I4, socket.SOCK_RAW, ('10.77.0.2', 0), echo, socket.IPPROTO_ICMP), attempt(I4, socket.SOCK_RAW, ('10.77.0.2', 0), b'x', 132))
";
    let flags = ["--net-policy", policy.as_str()];
    let out = with_nat(&trial, &pair, &flags, &["python3", "-c", program]).run()?.expect(0)?;
    let said = out.out();
    ensure!(!said.contains("reached") && !said.contains("got"), "something got through: {said}");
    ensure!(said.lines().count() == 12, "{said}");
    ensure!(out.err().contains("denied tcp to 10.77.0.2:443"), "no word of it: {}", out.err());
    drop(host.stdin.take());
    host.wait()?.expect(0)?;
    trial.finish()
}

#[test]
fn t35_names_of_the_host_are_not_there() -> Result<()> {
    let trial = Trial::new("t35-names")?;
    let name = format!("casemate-{}-abstract", trial.id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    let program = format!(
        "
import glob, os, socket
def attempt(kind, at):
    s = socket.socket(socket.AF_UNIX, kind)
    try: s.connect(at); return 'reached'
    except OSError as e: return e.strerror
name = '\\0{name}'
print(attempt(socket.SOCK_STREAM, name), attempt(socket.SOCK_SEQPACKET, name))
print('casemate' in open('/proc/net/unix').read())
for place in ('/run/casemate', '/run/containerd/containerd.sock', '/var/run/docker.sock', '/run/systemd/private'):
    print(os.path.exists(place))
# No descriptor but its own.
print([os.readlink(p) for p in glob.glob('/proc/self/fd/*') if os.path.exists(p) and 'socket' in os.readlink(p)])
"
    );
    let expected = "Connection refused Connection refused\nFalse\nFalse\nFalse\nFalse\nFalse\n[]\n";
    let bundle = Bundle::new(debian()?, ["python3", "-c", &program]).all_capabilities();
    // With a network of its own, and in the host's.
    trial.run(&bundle)?.run()?.expect(0)?.expect_out(expected)?;
    let mut config = bundle.config();
    if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
        all.retain(|ns| ns["type"] != "network");
    }
    let dir = trial.path().join("bundle/host");
    xtask::bundle::write_config(&dir, &config)?;
    let words: [std::path::PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    let begun = Instant::now();
    trial.casemate(words).run()?.expect(0)?.expect_out(expected)?;
    ensure!(begun.elapsed() < Duration::from_mins(2), "it hung");
    ensure!(listener.accept().is_err(), "somebody has come out of the sandbox");
    trial.finish()
}

/// A limit that is lowered holds for what peers begin from then on, and a limit that is raised or taken away for them too.
#[test]
fn t16_an_updated_limit_holds_for_connections() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("t16-update")?;
    let pair = Pair::new("u", false)?;
    let server = "
import os, socket, sys, threading, time
s = socket.create_server(('10.77.0.1', 7000), backlog=200)
kept = []
def serve():
    while True: kept.append(s.accept()[0])
threading.Thread(target=serve, daemon=True).start()
print('ready', flush=True)
for line in sys.stdin:
    if line == 'connect\\n':
        socket.create_connection(('10.77.0.2', 7001)); print('connected', flush=True)
        continue
    while True:
        total = next(row for row in open('/proc/meminfo') if 'MemTotal' in row).split()[1]
        if total == line.strip(): break
        time.sleep(0.01)
    print('total', total, flush=True)
os._exit(0)
";
    let mut sandbox = python_with(&trial, &pair, server, Some(512 << 20))?.piped_stdin().start()?;
    sandbox.until_says("ready")?;
    // As many as hold more than the share of a lower limit, then one more at each line that comes.
    let client = "
import socket, sys
def connect(wait): return socket.create_connection(('10.77.0.1', 7000), wait)
s = socket.create_server(('10.77.0.2', 7001))
held = [connect(60) for _ in range(100)]
print('held', flush=True)
for line in sys.stdin:
    try: held.append(connect(3 if line == 'refused\\n' else 60)); print('fine', line.strip(), flush=True)
    except TimeoutError: print('nothing', line.strip(), flush=True)
";
    let mut peer = outside(&trial, &pair, &["python3", "-c", client]).piped_stdin().start()?;
    peer.until_says("held")?;
    let say = |to: &mut xtask::trial::Running, line: &str, answer: &str| -> Result<()> {
        writeln!(to.stdin.as_mut().context("stdin")?, "{line}")?;
        to.until_says(answer)
    };
    let update = |limit: &str| trial.casemate(["update", "--memory", limit, trial.id()]).run()?.expect(0);
    say(&mut peer, "first", "fine first")?;
    update("128m")?;
    say(&mut peer, "refused", "nothing refused")?;
    // What the container begins itself goes on.
    say(&mut sandbox, "connect", "connected")?;
    say(&mut sandbox, "131072", "total 131072")?;
    update("512m")?;
    say(&mut peer, "again", "fine again")?;
    update("128m")?;
    trial.casemate(["pause", trial.id()]).run()?.expect(0)?;
    update("256m")?;
    trial.casemate(["resume", trial.id()]).run()?.expect(0)?;
    say(&mut sandbox, "262144", "total 262144")?;
    drop(peer.stdin.take());
    peer.wait()?.expect(0)?;
    drop(sandbox.stdin.take());
    sandbox.wait()?.expect(0)?;
    trial.finish()
}
