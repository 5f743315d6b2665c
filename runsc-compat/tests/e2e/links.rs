//! A sandbox on a link of its own: two network namespaces, a veth pair between them, the sandbox in the one and the host's
//! kernel in the other, which is the reference for what packets mean.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::programs::INSIDE;
use xtask::trial::{Invocation, Trial};

use crate::common::{busybox, long};

/// Namespaces that are joined by a link: the sandbox's, the other end's, and, for a bad link, one in the middle. They are
/// removed when this is dropped.
pub(crate) struct Pair {
    pub(crate) inside: String,
    pub(crate) outside: String,
    middle: Option<String>,
}

pub(crate) fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Pair {
    /// `name` shows in the names of the namespaces, and may be another pair's, too.
    pub(crate) fn new(name: &str, in_the_middle: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cm{}{name}{serial}", std::process::id());
        let middle = in_the_middle.then(|| format!("{name}m"));
        let pair = Self { inside: format!("{name}i"), outside: format!("{name}o"), middle };
        let (inside, outside) = (&pair.inside, &pair.outside);
        ip(&format!("netns add {inside}"))?;
        ip(&format!("netns add {outside}"))?;
        match &pair.middle {
            None => ip(&format!("-n {inside} link add eth0 type veth peer name eth0 netns {outside}"))?,
            Some(middle) => {
                ip(&format!("netns add {middle}"))?;
                for (ns, end) in [(inside, "left"), (outside, "right")] {
                    ip(&format!("-n {ns} link add eth0 type veth peer name {end} netns {middle}"))?;
                    ip(&format!("-n {middle} link set {end} up"))?;
                }
            }
        }
        for (ns, host) in [(inside, 1), (outside, 2)] {
            ip(&format!("-n {ns} link set lo up"))?;
            ip(&format!("-n {ns} link set eth0 up"))?;
            set_addresses(ns, host)?;
        }
        // A network behind the other one, for routes.
        ip(&format!("-n {outside} addr add 10.78.0.1/32 dev lo"))?;
        ip(&format!("-n {inside} route add default via 10.77.0.2"))?;
        Ok(pair)
    }

    /// The namespace of a bad link.
    pub(crate) fn middle(&self) -> Option<&str> {
        self.middle.as_deref()
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.inside)
    }
}

pub(crate) fn set_addresses(ns: &str, host: u8) -> Result<()> {
    ip(&format!("-n {ns} addr add 10.77.0.{host}/24 dev eth0"))?;
    ip(&format!("-n {ns} addr add fd77::{host}/64 dev eth0 nodad"))
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.inside, &self.outside].into_iter().chain(&self.middle) {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Whether the tests can run here.
pub(crate) fn possible() -> bool {
    let found =
        Command::new("ip").arg("-V").output().is_ok() && Command::new("tc").arg("-V").output().is_ok();
    let may = rustix::process::geteuid().is_root();
    if !found || !may {
        eprintln!("skipped: this needs root and the program ip");
    }
    found && may
}

/// The sandbox in the namespace of `pair`.
pub(crate) fn inside<'t>(trial: &'t Trial, pair: &Pair, words: &[&str]) -> Result<Invocation<'t>> {
    let bundle = Bundle::new(busybox()?, words.iter().copied()).bind(&trial.programs().inside, INSIDE, "ro");
    let mut config = bundle.config();
    config["linux"]["namespaces"][1] = json!({ "type": "network", "path": pair.path() });
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    Ok(trial.casemate(words))
}

/// A Python program in the namespace of `pair`.
pub(crate) fn python_inside<'t>(trial: &'t Trial, pair: &Pair, program: &str) -> Result<Invocation<'t>> {
    python_with(trial, pair, program, None)
}

/// The same with at most `limit` bytes of memory.
pub(crate) fn python_with<'t>(
    trial: &'t Trial,
    pair: &Pair,
    program: &str,
    limit: Option<u64>,
) -> Result<Invocation<'t>> {
    let bundle = Bundle::new(crate::common::debian()?, ["python3", "-c", program]).all_capabilities();
    let mut config = bundle.config();
    config["linux"]["namespaces"][1] = json!({ "type": "network", "path": pair.path() });
    if let Some(limit) = limit {
        config["linux"]["resources"] = json!({ "memory": { "limit": limit, "swap": limit } });
        config["linux"]["cgroupsPath"] = json!(format!("/{}", trial.id()));
    }
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    Ok(trial.casemate(words))
}

pub(crate) fn outside<'t>(trial: &'t Trial, pair: &Pair, words: &[&str]) -> Invocation<'t> {
    let front = ["ip", "netns", "exec", pair.outside.as_str()];
    trial.host(front.iter().chain(words).copied())
}

fn own(trial: &Trial) -> String {
    trial.programs().inside.join("syscall-tests").to_string_lossy().into_owned()
}

#[test]
fn a_network_is_taken_over() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-take")?;
    let pair = Pair::new("t", false)?;
    let script = "ip addr show eth0 | grep -c -e 'UP' -e 10.77.0.1/24 -e fd77::1/64
ip route | sort
ping -c 2 -i 0.2 10.77.0.2 | grep -o '2 packets received'
ping -c 1 fd77::2 | grep -o '1 packets received'
ping -c 1 -s 5000 10.78.0.1 | grep -o '1 packets received'
ping -c 1 -W 1 10.77.0.1 | grep -o '1 packets received'
nc -w 5 10.77.0.2 9 </dev/null 2>&1 | grep -o 'refused'
nc -w 8 10.77.0.99 9 </dev/null 2>&1 | grep -o 'No route to host'
arp -n | grep -c 10.77.0.2
grep -c eth0 /proc/net/dev /proc/net/route";
    let expected = "3\n10.77.0.0/24 dev eth0 scope link  src 10.77.0.1 \ndefault via 10.77.0.2 dev eth0 \n\
        2 packets received\n1 packets received\n1 packets received\n1 packets received\nrefused\n\
        No route to host\n1\n/proc/net/dev:1\n/proc/net/route:2\n";
    inside(&trial, &pair, &["sh", "-c", script])?.run()?.expect(0)?.expect_out(expected)?;
    trial.finish()
}

#[test]
fn the_host_pings_the_sandbox_and_is_refused_by_it() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-ping")?;
    let pair = Pair::new("p", false)?;
    // It ends with its input.
    let mut sandbox = inside(&trial, &pair, &["sh", "-c", "echo up; cat"])?.piped_stdin().start()?;
    sandbox.until_says("up")?;
    let program = "
import socket, struct
def total(b):
    n = sum(struct.unpack('!%dH' % (len(b) // 2), b))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
for to, family, proto, ask, answer in [('10.77.0.1', socket.AF_INET, 1, 8, 0), ('fd77::1', socket.AF_INET6, 58, 128, 129)]:
    p = socket.socket(family, socket.SOCK_RAW, proto)
    p.settimeout(10)
    data = bytes(range(250)) * 12
    message = struct.pack('!BBHHH', ask, 0, 0, 77, 1) + data
    p.sendto(message[:2] + struct.pack('!H', total(message)) + message[4:], (to, 0))
    while True:
        got = p.recv(9000)[20 if proto == 1 else 0:]
        if got[0] == answer: break
    assert got[4:] == message[4:], got[:40]
s = socket.socket()
try: s.connect(('10.77.0.1', 81))
except ConnectionRefusedError: print('refused')
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(5); u.connect(('10.77.0.1', 82)); u.send(b'x')
try: u.recv(1)
except ConnectionRefusedError: print('refused')
";
    outside(&trial, &pair, &["python3", "-c", program]).run()?.expect(0)?.expect_out("refused\nrefused\n")?;
    sandbox.wait()?.expect(0)?;
    trial.finish()
}

/// Many connections with known contents, the server on one side of the link and the client on the other.
fn traffic(name: &str, how: Option<&str>, count: u32, at: &str) -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new(&format!("link-{name}"))?;
    let pair = Pair::new(name, how.is_some())?;
    let own = own(&trial);
    let mut relay = None;
    if let (Some(how), Some(middle)) = (how, &pair.middle) {
        let words = ["ip", "netns", "exec", middle, &own, "traffic", "relay", "left", "right"];
        let mut running = trial.host(words.into_iter().chain(how.split(' '))).limit(TWICE_LIMIT).start()?;
        running.until_says("ready")?;
        relay = Some(running);
    }
    let limit = Duration::from_secs(60 + u64::from(count) / 4);
    let program = format!("{INSIDE}/syscall-tests");
    let (ours, theirs) = if at == "4" { ("10.77.0.1", "10.77.0.2") } else { ("[fd77::1]", "[fd77::2]") };
    let count = count.to_string();
    let said = format!("{count} connections, 0 failures, the server saw {count}\n");

    let here = format!("{ours}:7000");
    let mut server = inside(&trial, &pair, &[&program, "traffic", "serve", &here])?.limit(limit).start()?;
    server.until_says("ready")?;
    let client = outside(&trial, &pair, &[&own, "traffic", "connect", &here, &count, "16"]).limit(limit);
    client.run()?.expect(0)?.expect_out(&said)?;
    server.wait()?.expect(0)?.expect_out(&format!("ready\nserved {count} of {count}\n"))?;

    // The sandbox has taken the addresses with it: the next one gets them anew.
    set_addresses(&pair.inside, 1)?;
    let there = format!("{theirs}:7000");
    let mut server = outside(&trial, &pair, &[&own, "traffic", "serve", &there]).limit(limit).start()?;
    server.until_says("ready")?;
    let client = inside(&trial, &pair, &[&program, "traffic", "connect", &there, &count, "16"])?.limit(limit);
    client.run()?.expect(0)?.expect_out(&said)?;
    server.wait()?.expect(0)?;
    if let Some(mut relay) = relay {
        relay.signal(rustix::process::Signal::KILL)?;
        relay.wait()?;
    }
    trial.finish()
}

/// How long a link is bad.
const TWICE_LIMIT: Duration = Duration::from_hours(1);

/// Of a thousand frames ten are lost, ten come twice, and fifty overtake others that take three milliseconds.
pub(crate) const BAD: &str = "10 10 50 3";

#[test]
fn connections_over_a_good_link() -> Result<()> {
    traffic("good", None, if long() { 5000 } else { 300 }, "4")
}

#[test]
fn connections_over_a_bad_link() -> Result<()> {
    traffic("bad", Some(BAD), if long() { 2500 } else { 60 }, "4")
}

#[test]
fn connections_over_a_bad_link_v6() -> Result<()> {
    traffic("six", Some(BAD), if long() { 2500 } else { 40 }, "6")
}

#[test]
fn the_last_words_of_a_sandbox_arrive() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-last")?;
    let pair = Pair::new("l", true)?;
    let own = own(&trial);
    let middle = pair.middle.as_deref().unwrap_or_default();
    // A round trip takes longer than the end of a sandbox.
    let words = ["ip", "netns", "exec", middle, &own, "traffic", "relay", "left", "right"];
    let mut relay = trial.host(words.into_iter().chain("0 0 0 40".split(' '))).start()?;
    relay.until_says("ready")?;
    let reader = "
import socket
s = socket.create_server(('10.77.0.2', 7000)); print('ready', flush=True)
for _ in range(3):
    c, _ = s.accept(); c.settimeout(60); n = 0
    while part := c.recv(65536): n += len(part)
    print(n)
";
    let mut server = outside(&trial, &pair, &["python3", "-c", reader]).start()?;
    server.until_says("ready")?;
    for _ in 0..3 {
        // What it writes fits into its buffers, and it ends at once.
        let program = r"
import os, socket
s = socket.create_connection(('10.77.0.2', 7000)); s.sendall(bytes(200_000)); os._exit(3)
";
        set_addresses(&pair.inside, 1).ok();
        python_inside(&trial, &pair, program)?.run()?.expect(3)?;
    }
    server.wait()?.expect(0)?.expect_out(&format!("ready\n{}", "200000\n".repeat(3)))?;
    relay.signal(rustix::process::Signal::KILL)?;
    relay.wait()?;
    trial.finish()
}

#[test]
fn a_silent_peer_is_given_up() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-silent")?;
    let pair = Pair::new("k", false)?;
    let reader = "
import socket, sys
s = socket.create_server(('10.77.0.2', 7000)); print('ready', flush=True)
all = [s.accept()[0] for _ in range(2)]
print('cut', flush=True); sys.stdin.read()
";
    let mut server = outside(&trial, &pair, &["python3", "-c", reader]).piped_stdin().start()?;
    server.until_says("ready")?;
    let program = "
import errno, select, socket, sys
a, b = (socket.create_connection(('10.77.0.2', 7000)) for _ in range(2))
for name, value in [(socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)]:
    a.setsockopt(socket.IPPROTO_TCP, name, value)
a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
b.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500)
print('up', flush=True); sys.stdin.readline()
b.send(b'x')
for s in (a, b):
    s.settimeout(60)
    try: print(s.recv(1))
    except OSError as e: print(errno.errorcode[e.errno])
";
    let mut client = python_inside(&trial, &pair, program)?.piped_stdin().start()?;
    client.until_says("up")?;
    server.until_says("cut")?;
    ip(&format!("-n {} link set eth0 down", pair.outside))?;
    drop(client.stdin.take().map(|mut pipe| std::io::Write::write_all(&mut pipe, b"\n")));
    client.wait()?.expect(0)?.expect_out("up\nETIMEDOUT\nETIMEDOUT\n")?;
    drop(server.stdin.take());
    server.wait()?.expect(0)?;
    trial.finish()
}

/// `casemate do` with a network of its own making, on the host that the inner namespace stands for.
pub(crate) fn with_nat<'t>(trial: &'t Trial, pair: &Pair, flags: &[&str], words: &[&str]) -> Invocation<'t> {
    let casemate = trial.programs().casemate.to_string_lossy().into_owned();
    let front = ["ip", "netns", "exec", pair.inside.as_str(), &casemate, "do"];
    trial.host(front.iter().chain(flags).chain(&["--"]).chain(words).copied())
}

#[test]
fn a_command_reaches_the_network_by_way_of_the_host() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("nat-traffic")?;
    let pair = Pair::new("n", false)?;
    let own = own(&trial);
    let limit = Duration::from_secs(90);
    let count = if long() { "2000" } else { "100" };
    let server = &[own.as_str(), "traffic", "serve", "10.77.0.2:7000"];
    let mut server = outside(&trial, &pair, server).limit(limit).start()?;
    server.until_says("ready")?;
    let client = [own.as_str(), "traffic", "connect", "10.77.0.2:7000", count, "8"];
    let client = with_nat(&trial, &pair, &["--net"], &client).limit(limit).run()?;
    client.expect(0)?.expect_out(&format!("{count} connections, 0 failures, the server saw {count}\n"))?;
    server.wait()?.expect(0)?;
    trial.finish()
}

#[test]
fn a_command_reaches_what_its_policy_allows() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("nat-policy")?;
    let pair = Pair::new("d", false)?;
    let policy = trial.path().join("policy.json");
    let text = r#"{ "default": "deny", "rules": [
        { "action": "allow", "to": ["10.77.0.2"], "ports": [7001], "protocol": "tcp" } ] }"#;
    std::fs::write(&policy, text)?;
    let policy = policy.to_string_lossy().into_owned();
    let program = r"
import errno, socket
def attempt(kind, to):
    s = socket.socket(socket.AF_INET, kind); s.settimeout(5)
    try:
        s.connect(to)
        if kind == socket.SOCK_DGRAM: s.send(b'x'); s.recv(1)
        return 'reached'
    except OSError as e: return errno.errorcode.get(e.errno, str(e))
open('/proc/self/comm', 'w').write('Thirsty')
print(attempt(socket.SOCK_STREAM, ('10.77.0.2', 7001)))
print(attempt(socket.SOCK_STREAM, ('10.77.0.2', 7002)))
print(attempt(socket.SOCK_STREAM, ('169.254.169.254', 80)))
print(attempt(socket.SOCK_DGRAM, ('10.77.0.2', 7001)))
print(attempt(socket.SOCK_STREAM, ('10.0.2.2', 22)))
query = bytes.fromhex('000701000001000000000000') + b'\x03www\x07example\x03org\0\0\1\0\1'
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(query, ('10.77.0.2', 53))
for _ in range(10): attempt(socket.SOCK_STREAM, ('10.77.0.2', 7003))
";
    let flags = ["--net-policy", policy.as_str()];
    let out = with_nat(&trial, &pair, &flags, &["python3", "-c", program]).run()?.expect(0)?;
    // Nobody listens at the port that is allowed: the refusal is the host's own.
    let denied = "EHOSTUNREACH\n".repeat(4);
    let said = out.err();
    for denial in [
        "denied tcp to 10.77.0.2:7002 by Thirsty, pid 1\n",
        "denied udp to 10.77.0.2:7001 by Thirsty, pid 1\n",
        "denied tcp to 169.254.169.254:80 by Thirsty, pid 1\n",
        "denied tcp to 10.0.2.2:22 by Thirsty, pid 1\n",
        "denied udp to 10.77.0.2:53 (a query for www.example.org) by Thirsty, pid 1\n",
    ] {
        ensure!(said.matches(denial).count() == 1, "not once {denial:?} in {said:?}");
    }
    ensure!(said.contains("10.77.0.2:7003 by Thirsty, pid 1, 10 times\n"), "no count in {said:?}");
    out.expect_out(&format!("ECONNREFUSED\n{denied}"))?;
    trial.finish()
}

#[test]
fn floods_leave_other_connections_alone() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-flood")?;
    let pair = Pair::new("f", false)?;
    let program = format!("{INSIDE}/syscall-tests");
    let limit = Duration::from_mins(1);
    let mut server =
        inside(&trial, &pair, &[&program, "traffic", "serve", "10.77.0.1:7000"])?.limit(limit).start()?;
    server.until_says("ready")?;
    // Frames as nobody sends them: beginnings without an end, fragments that overlap, segments that lie.
    let attack = r"
import os, random, socket, struct, subprocess, time
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('10.77.0.1', 9))
time.sleep(0.5)
line = subprocess.run(['ip', 'neigh', 'show', '10.77.0.1'], capture_output=True, text=True).stdout
mac = bytes.fromhex(line.split('lladdr ')[1].split()[0].replace(':', ''))
own = bytes([2, 0, 0, 0, 0, 1])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0x0800))
r = random.Random(5)
def total(b):
    if len(b) % 2: b += b'\0'
    n = sum(struct.unpack('!%dH' % (len(b) // 2), b))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
def ip(payload, proto, src, ident=1, frag=0):
    h = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(payload), ident, frag, 64, proto, 0, src, bytes([10, 77, 0, 1]))
    return h[:10] + struct.pack('!H', total(h)) + h[12:] + payload
def tcp(src, sport, flags, seq, options=b''):
    h = struct.pack('!HHIIBBHHH', sport, 7000, seq, r.getrandbits(32), (20 + len(options)) // 4 << 4, flags, 1000, 0, 0)
    pseudo = src + bytes([10, 77, 0, 1]) + struct.pack('!BBH', 0, 6, 20 + len(options))
    return h[:16] + struct.pack('!H', total(pseudo + h + options)) + h[18:] + options
def send(packet, kind=b'\x08\0'):
    s.send(mac + own + kind + packet)
for n in range(6000):
    src = bytes([10, 77, 0, r.randrange(3, 250)])
    send(ip(tcp(src, r.randrange(1, 65535), 2, r.getrandbits(32), b'\2\4\0\1'), 6, src))
for n in range(3000):
    src = bytes([10, 77, 0, 2])
    send(ip(tcp(src, r.randrange(1, 65535), r.choice([1, 4, 16, 17, 18, 63]), r.getrandbits(32)), 6, src))
for n in range(3000):
    src = bytes([10, 77, 0, 2])
    send(ip(os.urandom(r.choice([8, 16, 24, 1400])), r.choice([1, 6, 17]), src, n % 500, 0x2000 | r.randrange(0, 40)))
for n in range(3000):
    send(os.urandom(r.randrange(1, 200)), r.choice([b'\x08\0', b'\x08\6', b'\x86\xdd']))
print('done')
";
    outside(&trial, &pair, &["python3", "-c", attack]).limit(limit).run()?.expect(0)?.expect_out("done\n")?;
    let client =
        [own(&trial), "traffic".into(), "connect".into(), "10.77.0.1:7000".into(), "40".into(), "8".into()];
    let client: Vec<&str> = client.iter().map(String::as_str).collect();
    let out = outside(&trial, &pair, &client).limit(limit).run()?.expect(0)?;
    out.expect_out("40 connections, 0 failures, the server saw 40\n")?;
    server.wait()?.expect(0)?;
    trial.finish()
}

/// Sockets that are bound to an interface: what they send goes by it and nothing else reaches them, as natively.
#[test]
fn sockets_bound_to_an_interface_go_by_it() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("links-device")?;
    let pair = Pair::new("dev", false)?;
    let (ns, out) = (&pair.inside, &pair.outside);
    ip(&format!("-n {ns} link add eth1 type veth peer name eth1 netns {out}"))?;
    for (ns, number) in [(ns, 1), (out, 2)] {
        ip(&format!("-n {ns} link set eth1 up"))?;
        ip(&format!("-n {ns} addr add 10.88.0.{number}/24 dev eth1"))?;
    }
    // Says whom it hears, and knocks where it is told to.
    let server = "
import socket, threading
t = socket.create_server(('', 7001))
def tcp():
    while True:
        c, at = t.accept(); c.sendall(at[0].encode()); c.close()
threading.Thread(target=tcp, daemon=True).start()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('', 7000)); print('ready', flush=True)
while True:
    data, at = u.recvfrom(100); word, *args = data.decode().split()
    if word == 'end': break
    if word == 'who': u.sendto(at[0].encode(), at)
    elif word == 'knock':
        s = socket.socket(); s.settimeout(20)
        u.sendto(str(s.connect_ex((args[0], int(args[1])))).encode(), at); s.close()
    elif word == 'tell': u.sendto(b'told', (args[0], int(args[1]))); u.sendto(b'done', at)
";
    let program = "
import errno, socket
def made(kind, device):
    s = socket.socket(socket.AF_INET, kind); s.settimeout(20)
    if device: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return s
def udp(device=None): return made(socket.SOCK_DGRAM, device)
def tcp(device=None): return made(socket.SOCK_STREAM, device)
def ask(s, words, to='10.77.0.2'):
    s.sendto(words.encode(), (to, 7000)); return s.recv(100).decode()
def who(s, to):
    s.connect((to, 7001)); return s.recv(100).decode(), s.getsockname()[0]
# To the other network's address, to one behind either, and to everybody: by the routes, or by the interface.
for to in ('10.78.0.1', '10.88.0.2', '10.77.0.2'):
    print(to, [ask(udp(d), 'who', to) for d in (None, 'eth0', 'eth1')], [who(tcp(d), to) for d in (None, 'eth0', 'eth1')])
for d in ('eth0', 'eth1'):
    s = udp(d); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    print(d, ask(s, 'who', '255.255.255.255'))
# What comes by another one is not theirs.
control = udp()
a = tcp('eth1'); a.bind(('', 7100)); a.listen()
print([ask(control, f'knock {ip} 7100') for ip in ('10.77.0.1', '10.88.0.1')])
b = tcp('eth0'); b.bind(('', 7100)); b.listen()
print([ask(control, f'knock {ip} 7100') for ip in ('10.77.0.1', '10.88.0.1')])
print(b.accept()[0].getsockname()[0], [a.accept()[0].getsockname()[0] for _ in range(2)])
try: tcp().bind(('', 7100))
except OSError as e: print(errno.errorcode[e.errno])
x, y = udp('eth0'), udp('eth1')
for s in (x, y): s.bind(('', 7200))
for at in ('10.88.0.1', '10.77.0.1'): ask(control, f'tell {at} 7200')
print(x.recvfrom(100), y.recvfrom(100))
# Own addresses belong to their interfaces.
s = udp('eth0'); s.bind(('10.77.0.1', 0))
for d in (None, 'eth0'): udp(d).sendto(b'own', s.getsockname()); print(s.recv(10))
s = tcp('eth0'); s.settimeout(1)
try: s.connect(('127.0.0.1', 7100)); print('connected')
except OSError: print('no way')
l = tcp('lo'); l.bind(('127.0.0.1', 7300)); l.listen(); tcp().connect(('127.0.0.1', 7300)); print('by the loopback')
control.sendto(b'end', ('10.77.0.2', 7000))
";
    let mut outputs = Vec::new();
    for native in [true, false] {
        let mut other = outside(&trial, &pair, &["python3", "-c", server]).start()?;
        other.until_says("ready")?;
        let outcome = if native {
            trial.host(["ip", "netns", "exec", ns, "python3", "-c", program]).run()?
        } else {
            python_inside(&trial, &pair, program)?.run()?
        };
        outputs.push(outcome.expect(0)?.out().clone());
        other.wait()?.expect(0)?;
    }
    ensure!(outputs[0] == outputs[1], "natively:\n{}\ninside:\n{}", outputs[0], outputs[1]);
    ensure!(outputs[0].contains("'10.88.0.1'"), "{}", outputs[0]);
    trial.finish()
}

/// What goes out by a link is counted there and not on the loopback, in either direction for itself.
#[test]
fn each_interface_counts_what_it_carries() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("links-counts")?;
    let pair = Pair::new("cnt", false)?;
    let server = "
import socket
s = socket.create_server(('10.77.0.2', 7001)); print('ready', flush=True)
c, _ = s.accept(); left = 200000
while left: left -= len(c.recv(left))
c.sendall(b'got it'); c.recv(1)
";
    let program = "
import socket
def device(name):
    row = next(l for l in open('/proc/net/dev') if l.strip().startswith(name + ':')).split(':')[1].split()
    return [int(row[at]) for at in (0, 1, 8, 9)]
def snmp(group, *names):
    head, row = [l.split() for l in open('/proc/net/snmp') if l.startswith(group + ':')]
    return [int(row[head.index(name)]) for name in names]
lo, eth, ip, tcp = device('lo'), device('eth0'), snmp('Ip', 'OutRequests'), snmp('Tcp', 'InSegs', 'OutSegs')
c = socket.create_connection(('10.77.0.2', 7001)); c.sendall(bytes(200000)); print(c.recv(100))
grown = [b - a for a, b in zip(eth, device('eth0'))]
print(lo == device('lo'), 200000 < grown[2] < 230000, grown[0] < 20000, grown[1] > 0 < grown[3])
print(snmp('Ip', 'OutRequests')[0] - ip[0] > 2, [b > a for a, b in zip(tcp, snmp('Tcp', 'InSegs', 'OutSegs'))])
before = device('eth0')[2:]
s = socket.create_server(('127.0.0.1', 0)); d = socket.create_connection(s.getsockname()); d.sendall(bytes(50000))
print(device('lo')[0] - lo[0] > 50000, device('eth0')[2] - before[0] < 1000)
";
    let mut other = outside(&trial, &pair, &["python3", "-c", server]).start()?;
    other.until_says("ready")?;
    let out = python_inside(&trial, &pair, program)?.run()?.expect(0)?;
    out.expect_out("b'got it'\nTrue True True True\nTrue [True, True]\nTrue True\n")?;
    other.wait()?.expect(0)?;
    trial.finish()
}
