//! Frames and packets that no ordinary connection makes: packet sockets, limits of bandwidth, connections that both sides
//! open, paths that become narrower. The other end of the link is the host's kernel.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use xtask::bundle::{Bundle, write_config};
use xtask::trial::{Invocation, Trial};

use crate::common::{busybox, debian};
use crate::links::{Pair, ip, outside, possible, python_inside};

/// What a bundle runs, in the namespace of `pair`, with flags of the command and annotations.
pub(crate) fn run<'t>(
    trial: &'t Trial,
    pair: &Pair,
    bundle: &Bundle,
    flags: &[&str],
    annotations: &[(&str, &str)],
) -> Result<Invocation<'t>> {
    let mut config = bundle.config();
    config["linux"]["namespaces"][1] = json!({ "type": "network", "path": pair.path() });
    for (name, value) in annotations {
        config["annotations"][name] = json!(value);
    }
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    Ok(trial.casemate(flags.iter().map(PathBuf::from).chain(words)))
}

#[test]
fn programs_send_and_see_frames() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("packet-see")?;
    let pair = Pair::new("a", false)?;
    let program = r"
import socket, struct, subprocess, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(('eth0', 3)); s.settimeout(30)
own = s.getsockname()[4]
everybody = b'\xff' * 6
me, peer = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
# A question of ARP by hand, and its answer.
s.send(everybody + own + struct.pack('!HHHBBH6s4s6s4s', 0x806, 1, 0x800, 6, 4, 1, own, me, bytes(6), peer))
while True:
    frame, at = s.recvfrom(2000)
    if frame[12:14] == b'\x08\6' and frame[20:22] == b'\0\2' and frame[28:32] == peer: break
print('answered', at[0], at[1], at[2], at[3], at[4] == frame[6:12])
# A datagram of ours is seen as it goes, its answer as it comes.
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'to nobody', ('10.77.0.2', 9999))
seen = set()
while len(seen) < 2:
    frame, at = s.recvfrom(2000)
    if frame[12:14] != b'\x08\0': continue
    if frame[23] == 17 and frame[-9:] == b'to nobody' and frame[23:24] == b'\x11': seen.add(('udp', at[2]))
    if frame[23] == 1 and frame[34:36] == b'\3\3': seen.add(('icmp', at[2]))
print(sorted(seen))
n, dropped = struct.unpack('II', s.getsockopt(263, 6, 8)); print(n >= 3, dropped)
print(sum('eth0' not in line for line in open('/proc/net/packet')))
";
    let expected = "answered eth0 2054 0 1 True\n[('icmp', 0), ('udp', 4)]\nTrue 0\n2\n";
    python_inside(&trial, &pair, program)?.run()?.expect(0)?.expect_out(expected)?;
    trial.finish()
}

#[test]
fn addresses_are_asked_for_by_arp_and_dhcp() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("packet-dhcp")?;
    let pair = Pair::new("h", false)?;
    let leases = trial.path().join("leases");
    let conf = trial.path().join("udhcpd.conf");
    std::fs::write(&leases, "")?;
    let text = format!(
        "start 10.77.0.50\nend 10.77.0.50\ninterface eth0\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n",
        leases.display(),
        trial.path().join("pid").display()
    );
    std::fs::write(&conf, text)?;
    let conf = conf.to_string_lossy().into_owned();
    let mut server = outside(&trial, &pair, &["busybox", "udhcpd", "-f", &conf]).start()?;
    let script = "arping -c 2 -w 30 -I eth0 10.77.0.2 | grep -c 'reply from 10.77.0.2'
udhcpc -i eth0 -n -q -t 20 -T 2 -f -s /bin/true 2>&1 | grep -o 'lease of 10.77.0.50 obtained'";
    let bundle = Bundle::new(busybox()?, ["sh", "-c", script]).all_capabilities();
    let out = run(&trial, &pair, &bundle, &[], &[])?.run()?.expect(0)?;
    out.expect_out("2\nlease of 10.77.0.50 obtained\n")?;
    server.signal(rustix::process::Signal::KILL)?;
    server.wait()?;
    trial.finish()
}

#[test]
fn packet_sockets_need_a_capability() -> Result<()> {
    let trial = Trial::new("packet-may")?;
    let script = "arping -c 1 -I lo 127.0.0.1 2>&1 | grep -o 'Operation not permitted'";
    let mut config = Bundle::new(busybox()?, ["sh", "-c", script]).config();
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        config["process"]["capabilities"][set] = json!([]);
    }
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    trial.casemate(words).run()?.expect(0)?.expect_out("Operation not permitted\n")?;
    trial.finish()
}

/// Bytes that a limited transfer carries, and the limit in bits.
const CARRIED: usize = 3_000_000;
const LIMIT: f64 = 8_000_000.0;

#[test]
fn links_carry_no_more_than_they_may() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-rate")?;
    let pair = Pair::new("b", false)?;
    let server = format!(
        "
import socket
s = socket.create_server(('10.77.0.2', 7000)); print('ready', flush=True)
c, _ = s.accept(); c.settimeout(60)
n = 0
while n < {CARRIED}: n += len(c.recv(65536))
c.sendall(b'd')
c.sendall(bytes({CARRIED}))
while c.recv(1): pass
"
    );
    let client = format!(
        "
import socket, time
s = socket.create_connection(('10.77.0.2', 7000)); s.settimeout(60)
start = time.monotonic()
s.sendall(bytes({CARRIED})); s.recv(1)
print(time.monotonic() - start)
start, n = time.monotonic(), 0
while n < {CARRIED}: n += len(s.recv(65536))
print(time.monotonic() - start)
"
    );
    // The one limit by a flag, below what the annotation would allow, the other by an annotation.
    let annotations = [("kubernetes.io/egress-bandwidth", "1G"), ("kubernetes.io/ingress-bandwidth", "8M")];
    let mut server = outside(&trial, &pair, &["python3", "-c", &server]).start()?;
    server.until_says("ready")?;
    let bundle = Bundle::new(debian()?, ["python3", "-c", &client]);
    let out = run(&trial, &pair, &bundle, &["--egress-bandwidth", "8M"], &annotations)?.run()?.expect(0)?;
    let times: Vec<f64> = out.out().lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times.len() == 2, "{out}");
    for (direction, seconds) in ["out", "in"].into_iter().zip(times) {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let share = CARRIED as f64 * 8.0 / seconds / LIMIT;
        // The first burst is free; a machine that is busy with others carries less.
        ensure!((0.2..1.15).contains(&share), "{direction}: {share:.2} of the limit in {seconds:.2} s");
    }
    server.wait()?.expect(0)?;
    trial.finish()
}

#[test]
fn an_annotation_that_is_no_bandwidth_is_named() -> Result<()> {
    let trial = Trial::new("link-rate-bad")?;
    let mut config = Bundle::new(busybox()?, ["true"]).config();
    config["annotations"]["kubernetes.io/egress-bandwidth"] = json!("fast");
    let dir = trial.path().join("bundle");
    write_config(&dir, &config)?;
    let words: [PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    let out = trial.casemate(words).run()?;
    ensure!(out.code() != 0 && out.err().contains("egress-bandwidth: \"fast\""), "{out}");
    trial.finish()
}

/// One side of connections that both sides open: from fixed ports to fixed ports at which nobody listens.
const BOTH: &str = r"
import errno, select, socket, sys
own, other, first, theirs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
# Whose hardware address is whose is learned before.
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((other, 9)); u.send(b'x'); u.settimeout(20)
try: u.recv(1)
except ConnectionRefusedError: pass
print('up', flush=True); sys.stdin.readline()
all = []
for n in range(4):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((own, first + n)); s.setblocking(False)
    s.connect_ex((other, theirs + n)); all.append(s)
for s in all:
    select.select([], [s], [], 50)
    failed = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed == errno.ECONNREFUSED: print('late', flush=True); sys.exit(0)
    assert failed == 0, failed
    s.setblocking(True); s.settimeout(50)
data = bytes(range(256)) * 400
for s in all: s.sendall(data)
for s in all: s.shutdown(socket.SHUT_WR)
for s in all:
    got = b''
    while part := s.recv(65536): got += part
    print(got == data, flush=True)
    s.close()
sys.stdin.readline()
";

#[test]
fn connections_that_both_sides_open_and_close_at_once() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    // Where one side comes too late for the other one's segments to be still under way, it is refused: once more, then.
    for attempt in 0..4 {
        if open_both(&format!("c{attempt}"))? {
            return Ok(());
        }
    }
    bail!("the two sides never met")
}

fn open_both(name: &str) -> Result<bool> {
    let trial = Trial::new("link-both")?;
    let pair = Pair::new(name, true)?;
    let own = trial.programs().inside.join("syscall-tests").to_string_lossy().into_owned();
    let middle = pair.middle().context("a link with a middle")?;
    // What one side has sent is under way when the other one sends.
    let words =
        ["ip", "netns", "exec", middle, &own, "traffic", "relay", "left", "right", "0", "0", "0", "500"];
    let mut relay = trial.host(words).start()?;
    relay.until_says("ready")?;
    let limit = Duration::from_secs(100);
    let ours = ["python3", "-c", BOTH, "10.77.0.1", "10.77.0.2", "5000", "6000"];
    let bundle = Bundle::new(debian()?, ours);
    let mut inside = run(&trial, &pair, &bundle, &[], &[])?.limit(limit).piped_stdin().start()?;
    let theirs = ["python3", "-c", BOTH, "10.77.0.2", "10.77.0.1", "6000", "5000"];
    let mut other = outside(&trial, &pair, &theirs).limit(limit).piped_stdin().start()?;
    inside.until_says("up")?;
    other.until_says("up")?;
    let (mut a, mut b) = (inside.stdin.take().context("a pipe")?, other.stdin.take().context("a pipe")?);
    a.write_all(b"\n")?;
    b.write_all(b"\n")?;
    // The sandbox stays until the other side has heard everything.
    let whole = format!("up\n{}", "True\n".repeat(4));
    let until = Instant::now() + limit;
    let ended = |said: &str| said == whole || said.contains("late");
    while !(ended(&inside.so_far()) && ended(&other.so_far())) {
        ensure!(Instant::now() < until, "inside: {}\noutside: {}", inside.so_far(), other.so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop((a, b));
    let (inside, other) = (inside.wait()?.expect(0)?, other.wait()?.expect(0)?);
    relay.signal(rustix::process::Signal::KILL)?;
    relay.wait()?;
    let met = inside.out() == whole && other.out() == whole;
    trial.finish()?;
    Ok(met)
}

#[test]
fn a_path_becomes_narrower() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-narrow")?;
    let pair = Pair::new("r", false)?;
    // A host behind the other end, which is a router.
    let far = Far::new(&pair.outside)?;
    let server = r"
import hashlib, socket
s = socket.create_server(('10.79.0.2', 7000)); print('ready', flush=True)
c, _ = s.accept(); c.settimeout(60)
total, n, told = hashlib.sha256(), 0, False
while part := c.recv(65536):
    total.update(part); n += len(part)
    if n > 2_000_000 and not told: told = True; print('narrower', flush=True)
print(n, total.hexdigest())
c.sendall(total.digest())
";
    let words = ["ip", "netns", "exec", &far.name, "python3", "-c", server];
    let mut server = trial.host(words).start()?;
    server.until_says("ready")?;
    let client = r"
import hashlib, random, socket, sys
data = random.Random(3).randbytes(2_500_000)
s = socket.create_connection(('10.79.0.2', 7000)); s.settimeout(60)
s.sendall(data)
print('half', flush=True); sys.stdin.readline()
s.sendall(data); s.shutdown(socket.SHUT_WR)
print(s.recv(32) == hashlib.sha256(data + data).digest())
# A datagram that does not fit any more is cut.
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('10.79.0.2', 7001)); u.send(bytes(1400)); u.settimeout(30)
try: u.recv(1)
except ConnectionRefusedError: print('refused')
";
    let bundle = Bundle::new(debian()?, ["python3", "-c", client]);
    let mut inside = run(&trial, &pair, &bundle, &[], &[])?.piped_stdin().start()?;
    inside.until_says("half")?;
    server.until_says("narrower")?;
    // The router's own link is narrower than the far one believes.
    ip(&format!("-n {} link set far mtu 700", pair.outside))?;
    drop(inside.stdin.take().map(|mut pipe| pipe.write_all(b"\n")));
    inside.wait()?.expect(0)?.expect_out("half\nTrue\nrefused\n")?;
    let out = server.wait()?.expect(0)?;
    ensure!(out.out().contains("\n5000000 "), "{out}");
    trial.finish()
}

/// A namespace behind a router. It is removed when this is dropped.
struct Far {
    name: String,
}

impl Far {
    fn new(router: &str) -> Result<Self> {
        let far = Self { name: format!("{router}f") };
        let name = &far.name;
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {router} link add far type veth peer name eth0 netns {name}"))?;
        ip(&format!("-n {router} addr add 10.79.0.1/24 dev far"))?;
        ip(&format!("-n {name} addr add 10.79.0.2/24 dev eth0"))?;
        ip(&format!("-n {router} link set far mtu 1000"))?;
        ip(&format!("-n {router} link set far up"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route add default via 10.79.0.1"))?;
        let forward = ["netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1"];
        let output = Command::new("ip").args(forward).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(far)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

#[test]
fn the_engines_resolver_takes_queries_by_tcp() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-resolver")?;
    let pair = Pair::new("q", false)?;
    // As Docker's is: on the loopback of the container's namespace. By UDP every answer is cut short.
    let resolver = r"
import socket, struct, threading
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.11', 53))
t = socket.create_server(('127.0.0.11', 53)); print('ready', flush=True)
def datagrams():
    while True:
        q, by = u.recvfrom(65536); u.sendto(q[:2] + b'\x83\x80' + q[4:], by)
def serve(c):
    f = c.makefile('rb')
    while head := f.read(2):
        q = f.read(struct.unpack('!H', head)[0])
        a = q[:2] + b'\x81\x80' + q[4:] + bytes(range(250)) * 160
        c.sendall(struct.pack('!H', len(a)) + a)
threading.Thread(target=datagrams, daemon=True).start()
while True: threading.Thread(target=serve, args=(t.accept()[0],), daemon=True).start()
";
    let words = ["ip", "netns", "exec", pair.inside.as_str(), "python3", "-c", resolver];
    let mut resolver = trial.host(words).start()?;
    resolver.until_says("ready")?;
    let program = r"
import socket, struct
query = lambda n: struct.pack('!HHHHHH', n, 0x100, 1, 0, 0, 0) + b'\3www\7example\3org\0\0\1\0\1'
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.11', 53)); u.settimeout(30)
u.send(query(7)); a = u.recv(65536); print(a[:2] == b'\0\7', a[2] & 2)
def ask(s, n):
    q = query(n); s.sendall(struct.pack('!H', len(q)) + q)
    f = s.makefile('rb'); a = f.read(struct.unpack('!H', f.read(2))[0])
    return a[:2] == struct.pack('!H', n) and a[12:len(q)] == q[12:] and a[len(q):] == bytes(range(250)) * 160
all = [socket.create_connection(('127.0.0.11', 53), 30) for _ in range(8)]
print(all[0].getpeername(), all[0].getsockname()[0])
print(sum(ask(s, n + m) for n in (100, 200) for m, s in enumerate(all)))
for s in all: s.close()
for port in (54, 22):
    try: socket.create_connection(('127.0.0.11', port), 30)
    except ConnectionRefusedError: print('refused')
";
    let out = python_inside(&trial, &pair, program)?.run()?.expect(0)?;
    out.expect_out("True 2\n('127.0.0.11', 53) 127.0.0.1\n16\nrefused\nrefused\n")?;
    resolver.signal(rustix::process::Signal::KILL)?;
    resolver.wait()?;
    trial.finish()
}

#[test]
fn routers_of_the_link_are_believed() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let trial = Trial::new("link-router")?;
    let pair = Pair::new("v", false)?;
    let outer = &pair.outside;
    ip(&format!("-n {outer} addr add fe80::99/64 dev eth0 nodad"))?;
    ip(&format!("-n {outer} addr add fd99::1/128 dev lo nodad"))?;
    let program = r"
import socket, time
print('up', flush=True)
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
until = time.monotonic() + 60
while time.monotonic() < until:
    try: s.connect(('fd99::1', 9)); break
    except OSError: time.sleep(0.05)
print(s.getsockname()[0].startswith('fd88::'))
s.settimeout(30); s.send(b'x')
try: s.recv(1)
except ConnectionRefusedError: print('refused')
";
    let mut inside = python_inside(&trial, &pair, program)?.start()?;
    inside.until_says("up")?;
    let router = r"
import socket, struct, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.bind(('fe80::99', 0, 0, socket.if_nametoindex('eth0')))
prefix = struct.pack('!BBBBIII', 3, 4, 64, 0xc0, 3600, 1800, 0) + socket.inet_pton(socket.AF_INET6, 'fd88::')
said = struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
for _ in range(3): s.sendto(said, ('ff02::1', 0, 0, socket.if_nametoindex('eth0'))); time.sleep(0.2)
";
    // What is sent to the new address has to find its way back.
    ip(&format!("-n {outer} route add fd88::/64 dev eth0"))?;
    outside(&trial, &pair, &["python3", "-c", router]).run()?.expect(0)?;
    inside.wait()?.expect(0)?.expect_out("up\nTrue\nrefused\n")?;
    trial.finish()
}

/// A capture by libpcap, which asks for rings of the third version first and takes the second one where that is refused.
#[test]
fn tcpdump_finds_a_ring() -> Result<()> {
    if !xtask::engine::installed(&["tcpdump", "python3"]) {
        return Ok(());
    }
    let trial = Trial::new("tcpdump")?;
    let script = "cd /tmp; for how in '-i lo' '-i any'; do
           timeout 60 tcpdump -nn -t -c 2 $how udp port 9999 >seen 2>said & dump=$!
           until grep -q listening said; do kill -0 $dump || break; sleep 0.02; done
           python3 -c \"import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 9998))
for _ in range(2): s.sendto(b'0123456789', ('127.0.0.1', 9999))\"
           wait $dump; echo $?; grep -o '127.0.0.1.9998 > 127.0.0.1.9999: UDP, length 10' seen; rm said
         done";
    // As root the user that tcpdump would become owns nothing here.
    let script = script.replace("tcpdump -nn", "tcpdump -Z root -nn");
    let line = "127.0.0.1.9998 > 127.0.0.1.9999: UDP, length 10\n";
    let out = trial.casemate(["do", "--", "bash", "-c", &script]).run()?.expect(0)?;
    out.expect_out(&format!("0\n{line}{line}").repeat(2))?;
    trial.finish()
}
