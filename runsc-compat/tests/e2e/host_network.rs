//! Sandboxes on the host's network: servers and clients inside and outside meet on the host's loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::bundle::Bundle;
use xtask::trial::Trial;

use crate::common::debian;

const PATIENCE: Duration = Duration::from_mins(1);

/// A program in a container whose configuration names no network namespace.
fn config(trial: &Trial, bundle: &Bundle, name: &str) -> Result<std::path::PathBuf> {
    let mut config = bundle.config();
    if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
        all.retain(|ns| ns["type"] != "network");
    }
    let dir = trial.path().join(name);
    xtask::bundle::write_config(&dir, &config)?;
    Ok(dir)
}

fn python(trial: &Trial, program: &str) -> Result<std::path::PathBuf> {
    let bundle = Bundle::new(debian()?, ["python3", "-c", program]);
    config(trial, &bundle, "bundle/host")
}

fn run(trial: &Trial, dir: std::path::PathBuf) -> Result<xtask::trial::Running> {
    let words: [std::path::PathBuf; 4] = ["run".into(), "--bundle".into(), dir, trial.id().into()];
    trial.casemate(words).start()
}

fn listener() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// A client that has come, or the cause why there is none.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(std::time::Instant::now() < until, "nobody has connected");
        thread::sleep(Duration::from_millis(5));
    }
}

fn line(stream: &mut TcpStream) -> Result<String> {
    let mut text = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

#[test]
fn a_server_inside_is_reached_from_outside() -> Result<()> {
    let trial = Trial::new("hostnet-server")?;
    let (listener, port) = listener()?;
    // The server tells where it is by a connection of its own; each client sends bytes until it half closes, and gets
    // their hash. One of them is served by epoll, edge-triggered.
    let program = format!(
        "
import hashlib, select, socket
s = socket.create_server(('127.0.0.1', 0))
assert s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
out = socket.create_connection(('127.0.0.1', {port}))
out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
out.sendall(b'%d\\n' % s.getsockname()[1])
c, at = s.accept()
assert at == c.getpeername(), at
h = hashlib.sha256()
while data := c.recv(1 << 20): h.update(data)
c.sendall(h.hexdigest().encode())
c.close()
s.setblocking(False)
p = select.epoll()
p.register(s, select.EPOLLIN | select.EPOLLET)
h, files = hashlib.sha256(), {{}}
done = False
while not done:
    for fd, what in p.poll(60):
        if fd == s.fileno():
            while True:
                try: c, _ = s.accept()
                except BlockingIOError: break
                c.setblocking(False)
                files[c.fileno()] = c
                p.register(c, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
        else:
            while True:
                # Less than was asked for is the end of it, for now, unless all has come.
                try: data = files[fd].recv(5000)
                except BlockingIOError: break
                h.update(data)
                if not data: done = True
                if not data or len(data) < 5000 and not what & select.EPOLLRDHUP: break
files[fd].setblocking(True)
files[fd].sendall(h.hexdigest().encode())
files[fd].shutdown(socket.SHUT_WR)
print('served')
"
    );
    let running = run(&trial, python(&trial, &program)?)?;
    let mut told = accept(&listener)?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, line(&mut told)?.parse()?));
    let bytes: Vec<u8> = (0..8_000_003_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let mut hashes = Vec::new();
    for pause in [false, true] {
        let mut client = TcpStream::connect(at)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        for part in bytes.chunks(if pause { 1_000_000 } else { bytes.len() }) {
            client.write_all(part)?;
            if pause {
                thread::sleep(Duration::from_millis(2));
            }
        }
        client.shutdown(Shutdown::Write)?;
        let mut hash = String::new();
        client.read_to_string(&mut hash)?;
        hashes.push(hash);
    }
    running.wait()?.expect(0)?.expect_out("served\n")?;
    let file = trial.path().join("bytes");
    std::fs::write(&file, &bytes)?;
    let sum = std::process::Command::new("sha256sum").arg(&file).output()?;
    let sum = String::from_utf8(sum.stdout)?;
    let sum = sum.split_whitespace().next().context("sha256sum")?;
    ensure!(hashes == [sum, sum], "{hashes:?} and not {sum}");
    trial.finish()
}

#[test]
fn a_client_inside_reaches_the_hosts_loopback() -> Result<()> {
    let trial = Trial::new("hostnet-client")?;
    let (listener, port) = listener()?;
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    udp.set_read_timeout(Some(PATIENCE))?;
    let udp_port = udp.local_addr()?.port();
    // A port where nobody listens.
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let program = format!(
        "
import errno, hashlib, os, select, socket, threading
c = socket.create_connection(('127.0.0.1', {port}))
c.settimeout(60)
h, n = hashlib.sha256(), 0
while data := c.recv(1 << 18): h.update(data); n += len(data)
print(n, c.recv(1) == b'')
c.sendall(h.hexdigest().encode())
c.close()
# Refused, waiting and not.
for wait in (True, False):
    s = socket.socket()
    s.setblocking(wait)
    e = s.connect_ex(('127.0.0.1', {nobody}))
    if not wait and e == errno.EINPROGRESS:
        p = select.poll()
        p.register(s, select.POLLOUT)
        assert p.poll(60000)[0][1] & (select.POLLERR | select.POLLHUP)
        e = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    print(errno.errorcode[e])
# Datagrams, connected and not.
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(60)
u.setsockopt(socket.IPPROTO_IP, 12, 1)
u.sendto(b'one', ('127.0.0.1', {udp_port}))
data, control, flags, at = u.recvmsg(100, 100)
print(data, at[1] == {udp_port}, [c[2][0] for c in control])
u.connect(('127.0.0.1', {udp_port}))
u.send(b'two')
room = bytearray(2)
print(u.recv_into(room, 2, socket.MSG_TRUNC), room, u.getpeername()[1] == {udp_port})
u.setblocking(False)
try: u.recv(10)
except BlockingIOError: print('nothing')
# Two ends inside, over the host's loopback; descriptors are duplicated, inherited and spliced.
s = socket.create_server(('127.0.0.1', 0))
a = socket.create_connection(s.getsockname())
b, _ = s.accept()
# The host's list of sockets, in which ours have our numbers.
listed = [l.split() for l in open('/proc/net/tcp')][1:]
ports = {{int(l[1].split(':')[1], 16): int(l[9]) for l in listed if l[3] == '0A'}}
print({port} in ports, ports[s.getsockname()[1]] == os.fstat(s.fileno()).st_ino)
if os.fork() == 0:
    b.sendall(b'from a child')
    os._exit(0)
os.wait()
d = os.dup(a.fileno())
print(os.read(d, 100), d != a.fileno())
os.close(d)
with open('/tmp/f', 'wb') as f: f.write(b'x' * 300000)
with open('/tmp/f', 'rb') as f:
    t = threading.Thread(target=lambda: b.sendfile(f))
    t.start()
    got = a.recv(300000, socket.MSG_WAITALL)
    t.join()
print(len(got))
b.send(b'tail')
assert select.select([a], [], [], 60)[0]
import array, fcntl, termios
room = array.array('i', [0])
fcntl.ioctl(a, termios.FIONREAD, room)
print(room[0], a.recv(2, socket.MSG_PEEK), a.recv(4))
a.settimeout(0.05)
try: a.recv(1)
except TimeoutError: print('timed out')
a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')
a.close()
try: b.recv(1)
except ConnectionResetError: print('reset')
"
    );
    let running = run(&trial, python(&trial, &program)?)?;
    let mut stream = accept(&listener)?;
    let data = vec![b'z'; 5_000_000];
    stream.write_all(&data)?;
    stream.shutdown(Shutdown::Write)?;
    let mut hash = String::new();
    stream.read_to_string(&mut hash)?;
    ensure!(hash.len() == 64, "{hash:?}");
    for answer in [&b"three"[..], b"four!"] {
        let mut buffer = [0; 16];
        let (_, from) = udp.recv_from(&mut buffer)?;
        udp.send_to(answer, from)?;
    }
    let expected = "5000000 True\nECONNREFUSED\nECONNREFUSED\nb'three' True [64]\n5 bytearray(b'fo') True\nnothing\n\
         True True\nb'from a child' True\n300000\n4 b'ta' b'tail'\ntimed out\nreset\n";
    running.wait()?.expect(0)?.expect_out(expected)?;
    trial.finish()
}

/// Cases that look for nothing right after an edge. A program that looks at a host socket may see what is new before the
/// host's kernel has told of it, and is told then, once more.
const EDGES: [&str; 4] = [
    "inet_stream/epoll_edge_and_level",
    "inet_dgram/epoll_edges_per_datagram",
    "inet_wait/epoll_of_a_listener",
    "inet_wait/epoll_out_edge_after_room",
];

/// The cases of sockets hold by the host's sockets as they do natively, but for a few.
#[test]
fn cases_of_sockets_hold() -> Result<()> {
    let trial = Trial::new("hostnet-cases")?;
    let program = trial.programs().inside.join("syscall-tests").to_string_lossy().into_owned();
    let mut words = vec!["do", "--network=host", "--", &program, "run", "--jobs", "4"];
    words.extend(["inet_stream", "inet_dgram", "inet_wait", "inet_options"]);
    let outcome = trial.casemate(words).run()?;
    let out = outcome.out();
    let fails: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("fail ")).collect();
    let is_late = |fail: &&str| EDGES.iter().any(|case| fail.starts_with(case));
    ensure!(fails.iter().all(is_late), "{fails:?}");
    if fails.is_empty() {
        outcome.expect(0)?;
    }
    trial.finish()
}

#[test]
fn two_sandboxes_meet_on_the_host() -> Result<()> {
    let trial = Trial::new("hostnet-two")?;
    let (listener, port) = listener()?;
    let server = format!(
        "
import socket
s = socket.create_server(('127.0.0.1', 0))
socket.create_connection(('127.0.0.1', {port})).sendall(b'%d\\n' % s.getsockname()[1])
c, _ = s.accept()
c.sendall(c.recv(100).upper())
"
    );
    let running = run(&trial, python(&trial, &server)?)?;
    let at = line(&mut accept(&listener)?)?;
    let client = format!(
        "import socket; c = socket.create_connection(('127.0.0.1', {at})); c.sendall(b'hello'); print(c.recv(100))"
    );
    let other = trial.casemate(["do", "--network=host", "--", "python3", "-c", &client]);
    other.run()?.expect(0)?.expect_out("b'HELLO'\n")?;
    running.wait()?.expect(0)?;
    // Without being asked for it nobody is on the host's network.
    let alone = format!(
        "import socket; s = socket.socket(); print(s.connect_ex(('127.0.0.1', {port})), len(socket.if_nameindex()))"
    );
    trial.casemate(["do", "--", "python3", "-c", &alone]).run()?.expect(0)?.expect_out("111 1\n")?;
    trial.finish()
}

#[test]
fn a_policy_holds_for_host_sockets() -> Result<()> {
    let trial = Trial::new("hostnet-policy")?;
    let (open, closed) = (listener()?, listener()?);
    let (udp_open, udp_closed) =
        (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    udp_open.set_read_timeout(Some(PATIENCE))?;
    udp_closed.set_nonblocking(true)?;
    closed.0.set_nonblocking(true)?;
    let (udp_open_port, udp_closed_port) = (udp_open.local_addr()?.port(), udp_closed.local_addr()?.port());
    let policy = trial.path().join("policy.json");
    std::fs::write(
        &policy,
        format!(
            r#"{{ "default": "deny", "rules": [
                {{ "action": "allow", "to": ["127.0.0.1"], "ports": [{}, {udp_open_port}] }} ] }}"#,
            open.1
        ),
    )?;
    let program = format!(
        "
import errno, socket
def tcp(at, family=socket.AF_INET):
    # A host without IPv6 reaches nothing by it.
    try: s = socket.socket(family)
    except OSError: return print('EHOSTUNREACH')
    s.settimeout(5)
    print(errno.errorcode.get(s.connect_ex(at), 'fine'))
    return s
c = tcp(('127.0.0.1', {open}))
tcp(('127.0.0.1', {closed}))
tcp(('0.0.0.0', {closed}))
tcp(('::ffff:127.0.0.1', {closed}), socket.AF_INET6)
tcp(('169.254.169.254', 80))
# By a socket that has been connected, and by a send that connects.
print(errno.errorcode[c.connect_ex(('127.0.0.1', {closed}))])
f = socket.socket()
try: f.sendto(b'x', 0x20000000, ('127.0.0.1', {closed}))
except OSError as e: print(errno.errorcode[e.errno])
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(60)
for port in ({udp_closed_port}, {udp_open_port}):
    u.sendto(b'knock', ('127.0.0.1', port))
    try: print(u.recvfrom(100)[0])
    except OSError as e: print(errno.errorcode[e.errno])
print(errno.errorcode[u.connect_ex(('127.0.0.1', {udp_closed_port}))])
u.connect(('127.0.0.1', {udp_open_port}))
u.send(b'again')
print(u.recv(100), u.getpeername()[1] == {udp_open_port}, u.getsockname()[1] > 0)
u.sendto(b'x', ('127.0.0.1', {udp_closed_port}))
try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
except OSError as e: print(errno.errorcode[e.errno])
",
        open = open.1,
        closed = closed.1,
    );
    let expected = "fine\nEHOSTUNREACH\nEHOSTUNREACH\nEHOSTUNREACH\nEHOSTUNREACH\nEHOSTUNREACH\nENOTSUP\n\
         EHOSTUNREACH\nb'yes'\nEHOSTUNREACH\nb'yes' True True\nEACCES\n";
    let answering = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..2 {
            let (_, from) = udp_open.recv_from(&mut [0; 16])?;
            udp_open.send_to(b"yes", from)?;
        }
        Ok(())
    });
    let policy = policy.to_string_lossy().into_owned();
    let words = ["do", "--network=host", "--net-policy", &policy, "--", "python3", "-c", &program];
    let result = trial.casemate(words).run()?;
    result.expect(0)?.expect_out(expected)?;
    answering.join().map_err(|_| anyhow::anyhow!("the answering thread has panicked"))??;
    ensure!(closed.0.accept().is_err(), "a denied connection has come");
    ensure!(udp_closed.recv(&mut [0; 16]).is_err(), "a denied datagram has come");
    trial.finish()
}
