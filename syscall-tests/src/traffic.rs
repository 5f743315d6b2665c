//! Connections with known contents, for networks that lose, double, delay and reorder packets.
//!
//! `traffic serve ADDRESS` takes connections and datagrams at an address, `traffic connect ADDRESS COUNT JOBS` makes them.
//! Every connection says what it is about to do in its first bytes; either side compares what comes with what a generator
//! gives for the connection's number, byte by byte. A datagram comes back as it was sent. The server ends when it is told
//! how many connections there were, and says whether it has seen as many. `traffic relay` is a bad link.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes at the beginning of a connection: kind, number, bytes up, bytes down.
const HEAD: usize = 25;
/// The longest wait for anything; past it a connection is stuck, and that is a failure.
const PATIENCE: Duration = Duration::from_secs(50);

/// What a connection does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Sends, closes its half, reads the answer.
    Half,
    /// The server sends and closes first, then reads.
    ServerFirst,
    /// Both send at the same time.
    Both,
    /// The server reads slowly into a small buffer, so that the window closes.
    Slow,
    /// The client resets in the middle.
    Reset,
    /// How many there were; ends the server.
    Count,
}

const KINDS: [Kind; 6] = [Kind::Half, Kind::ServerFirst, Kind::Both, Kind::Slow, Kind::Reset, Kind::Count];

/// The bytes of one direction of a connection.
struct Stream(u64);

impl Stream {
    fn new(number: u64, up: bool) -> Self {
        Self((number * 2 + u64::from(up)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, into: &mut [u8]) {
        for byte in into {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = (self.0 >> 24) as u8;
        }
    }
}

fn send(stream: &TcpStream, mut bytes: Stream, len: u64) -> io::Result<()> {
    let (mut left, mut step) = (len, 1);
    let mut buffer = vec![0; 48 << 10];
    while left > 0 {
        // Small and large pieces in turn.
        step = (step * 7 + 3) % buffer.len();
        let part = (left as usize).min(step.max(1));
        bytes.fill(&mut buffer[..part]);
        (&*stream).write_all(&buffer[..part])?;
        left -= part as u64;
    }
    Ok(())
}

fn check(stream: &TcpStream, mut bytes: Stream, len: u64, pause: Duration) -> io::Result<()> {
    let (mut buffer, mut wanted) = (vec![0; 32 << 10], vec![0; 32 << 10]);
    let mut got = 0;
    while got < len {
        let n = (&*stream).read(&mut buffer)?;
        if n == 0 {
            return Err(io::Error::other(format!("the end came after {got} of {len} bytes")));
        }
        bytes.fill(&mut wanted[..n]);
        if buffer[..n] != wanted[..n] {
            return Err(io::Error::other(format!("wrong bytes among {n} after {got} of {len}")));
        }
        got += n as u64;
        if !pause.is_zero() && got < 100_000 {
            thread::sleep(pause);
        }
    }
    if got > len {
        return Err(io::Error::other(format!("{got} bytes came, {len} were sent")));
    }
    Ok(())
}

fn check_end(stream: &TcpStream) -> io::Result<()> {
    match (&*stream).read(&mut [0; 16])? {
        0 => Ok(()),
        n => Err(io::Error::other(format!("{n} bytes after the last one"))),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn linger_zero(stream: &TcpStream) {
    let value = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as u32;
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const value).cast(),
            len,
        );
    }
}

/// Reads until a reset comes; whatever comes before must be right. One that was lost is provoked.
fn await_reset(stream: &TcpStream, mut bytes: Stream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    let until = Instant::now() + PATIENCE;
    let (mut buffer, mut wanted) = (vec![0; 32 << 10], vec![0; 32 << 10]);
    while Instant::now() < until {
        let read = match (&*stream).read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (&*stream).write(&[0]).map(|_| 0),
            Ok(0) => return Err(io::Error::other("an end came, and no reset")),
            other => other,
        };
        let n = match read {
            Ok(n) => n,
            Err(error)
                if [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&error.kind()) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        bytes.fill(&mut wanted[..n]);
        if buffer[..n] != wanted[..n] {
            return Err(io::Error::other("wrong bytes before the reset"));
        }
    }
    Err(io::Error::other("no reset came"))
}

/// Serves one connection; the count that it tells, if that is what it is for.
fn attend(stream: &TcpStream) -> io::Result<Option<u64>> {
    prepare(stream)?;
    let mut head = [0; HEAD];
    (&*stream).read_exact(&mut head)?;
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    let (kind, number, up, down) = (KINDS[usize::from(head[0]) % KINDS.len()], word(1), word(9), word(17));
    match kind {
        Kind::Count => return Ok(Some(number)),
        Kind::Half => {
            check(stream, Stream::new(number, true), up, Duration::ZERO)?;
            check_end(stream)?;
            send(stream, Stream::new(number, false), down)?;
        }
        Kind::ServerFirst => {
            send(stream, Stream::new(number, false), down)?;
            stream.shutdown(Shutdown::Write)?;
            check(stream, Stream::new(number, true), up, Duration::ZERO)?;
            check_end(stream)?;
        }
        Kind::Both => {
            let copy = stream.try_clone()?;
            let sender = thread::spawn(move || send(&copy, Stream::new(number, false), down));
            check(stream, Stream::new(number, true), up, Duration::ZERO)?;
            sender.join().unwrap()?;
            check_end(stream)?;
        }
        Kind::Slow => {
            check(stream, Stream::new(number, true), up, Duration::from_millis(2))?;
            check_end(stream)?;
            send(stream, Stream::new(number, false), down)?;
        }
        Kind::Reset => {
            // A reset may overtake everything that was sent before it: this much has come.
            (&*stream).write_all(&[0])?;
            await_reset(stream, Stream::new(number, true))?;
        }
    }
    Ok(None)
}

fn serve(at: SocketAddr) -> io::Result<i32> {
    let listener = TcpListener::bind(at)?;
    let datagrams = UdpSocket::bind(at)?;
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((n, from)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..n], from);
        }
    });
    println!("ready");
    let (served, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let wanted = Arc::new(Mutex::new(None));
    for stream in listener.incoming() {
        let stream = stream?;
        let (served, wrong, wanted) = (Arc::clone(&served), Arc::clone(&wrong), Arc::clone(&wanted));
        thread::spawn(move || match attend(&stream) {
            Ok(None) => {
                served.fetch_add(1, Ordering::SeqCst);
            }
            Ok(Some(count)) => {
                // The last ones may still be at it.
                let until = Instant::now() + PATIENCE;
                while served.load(Ordering::SeqCst) + wrong.load(Ordering::SeqCst) < count
                    && Instant::now() < until
                {
                    thread::sleep(Duration::from_millis(5));
                }
                *wanted.lock().unwrap() = Some(count);
                let _ = (&stream).write_all(&served.load(Ordering::SeqCst).to_le_bytes());
                // Until the client has it: nobody sends it again once this program's network is gone.
                let _ = (&stream).read(&mut [0]);
                let good = served.load(Ordering::SeqCst);
                println!("served {good} of {count}");
                std::process::exit(i32::from(good != count));
            }
            Err(error) => {
                eprintln!("server: {error}");
                wrong.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    Ok(0)
}

fn head(kind: Kind, number: u64, up: u64, down: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = KINDS.iter().position(|k| *k == kind).unwrap() as u8;
    for (at, word) in [(1, number), (9, up), (17, down)] {
        head[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    head
}

fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    prepare(&stream)?;
    Ok(stream)
}

fn converse(to: SocketAddr, number: u64) -> io::Result<()> {
    let kind = KINDS[(number % 5) as usize];
    let mut sizes = Stream::new(number ^ 0x5555, true);
    let mut raw = [0; 8];
    sizes.fill(&mut raw);
    // Mostly short, some of a few hundred kilobytes.
    let most = if raw[0] % 8 == 0 { 300_000 } else { 20_000 };
    let size = |a: u8, b: u8, c: u8| u64::from_le_bytes([a, b, c, 0, 0, 0, 0, 0]) % most;
    let (up, down) = (size(raw[1], raw[2], raw[3]), size(raw[4], raw[5], raw[6]));
    let stream = open(to)?;
    (&stream).write_all(&head(kind, number, up, down))?;
    match kind {
        Kind::Half | Kind::Slow => {
            send(&stream, Stream::new(number, true), up)?;
            stream.shutdown(Shutdown::Write)?;
            check(&stream, Stream::new(number, false), down, Duration::ZERO)?;
            check_end(&stream)
        }
        Kind::ServerFirst => {
            check(&stream, Stream::new(number, false), down, Duration::ZERO)?;
            check_end(&stream)?;
            send(&stream, Stream::new(number, true), up)
        }
        Kind::Both => {
            let copy = stream.try_clone()?;
            let sender = thread::spawn(move || {
                send(&copy, Stream::new(number, true), up)?;
                copy.shutdown(Shutdown::Write)
            });
            check(&stream, Stream::new(number, false), down, Duration::ZERO)?;
            sender.join().unwrap()?;
            check_end(&stream)
        }
        Kind::Reset => {
            (&stream).read_exact(&mut [0])?;
            send(&stream, Stream::new(number, true), up)?;
            linger_zero(&stream);
            Ok(())
        }
        Kind::Count => Ok(()),
    }
}

/// A datagram of this length, until it comes back: it and its answer may get lost.
fn bounce(to: SocketAddr, len: usize) -> io::Result<()> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let (mut sent, mut got) = (vec![0; len], vec![0; 65_536]);
    Stream::new(len as u64, true).fill(&mut sent);
    for _ in 0..60 {
        socket.send(&sent)?;
        match socket.recv(&mut got) {
            Ok(n) if got[..n] == sent[..] => return Ok(()),
            Ok(n) => return Err(io::Error::other(format!("{n} other bytes came back for {len}"))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("no answer to a datagram of {len} bytes")))
}

fn connect(to: SocketAddr, count: u64, jobs: u64) -> io::Result<i32> {
    let failed = AtomicU64::new(0);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= count {
                        break;
                    }
                    if let Err(error) = converse(to, number) {
                        eprintln!("connection {number} ({:?}): {error}", KINDS[(number % 5) as usize]);
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    for len in [0, 1, 1000, 1472, 1473, 4000, 9000, 20_000] {
        if let Err(error) = bounce(to, len) {
            eprintln!("datagram of {len} bytes: {error}");
            failed.fetch_add(1, Ordering::SeqCst);
        }
    }
    let stream = open(to)?;
    (&stream).write_all(&head(Kind::Count, count, 0, 0))?;
    let mut answer = [0; 8];
    (&stream).read_exact(&mut answer)?;
    let bad = failed.load(Ordering::SeqCst);
    println!("{} connections, {bad} failures, the server saw {}", count, u64::from_le_bytes(answer));
    Ok(i32::from(bad > 0 || u64::from_le_bytes(answer) != count))
}

/// A packet socket on an interface, whose frames carry what is left to do of them (`struct virtio_net_hdr`).
fn tap(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    let fail = io::Error::last_os_error;
    let one = 1i32;
    let index = unsafe { libc::if_nametoindex(crate::sys::c(name).as_ptr()) };
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0) };
    if index == 0 || fd < 0 {
        return Err(fail());
    }
    let fd = crate::sys::own(fd);
    for (level, option) in [(libc::SOL_PACKET, 15), (libc::SOL_PACKET, 23)] {
        if unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const one).cast(), 4) } != 0 {
            return Err(fail());
        }
    }
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = libc::AF_PACKET as u16;
    at.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    at.sll_ifindex = index as i32;
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const at).cast(), size_of::<libc::sockaddr_ll>() as u32) }
        != 0
    {
        return Err(fail());
    }
    Ok(fd)
}

/// Passes frames between two interfaces, and loses, doubles and delays some: of 1000 each as many as is said, those that
/// are not delayed overtaking the others. The same seed spoils the same frames.
fn relay(a: &str, b: &str, lost: u64, doubled: u64, hasty: u64, delay_ms: u64) -> io::Result<i32> {
    let taps = [tap(a)?, tap(b)?];
    println!("ready");
    let mut random = Stream(0x1234_5678_9abc_def1);
    let mut chance = move |of_1000: u64| {
        let mut raw = [0; 4];
        random.fill(&mut raw);
        u64::from(u32::from_le_bytes(raw)) % 1000 < of_1000
    };
    let mut waiting: std::collections::BTreeMap<(Instant, u64), (usize, Vec<u8>)> = Default::default();
    let mut serial = 0;
    let mut buffer = vec![0; 80_000];
    loop {
        let next = waiting.keys().next().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let mut fds =
            taps.each_ref().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
        let timeout = next.map_or(-1, |left| left.as_millis() as i32 + 1);
        unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
        for (side, fd) in taps.iter().enumerate() {
            for _ in 0..64 {
                let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
                let Ok(got) = usize::try_from(got) else { break };
                let times = if chance(lost) { 0 } else { 1 + usize::from(chance(doubled)) };
                for _ in 0..times {
                    let ms = if chance(hasty) { 0 } else { delay_ms };
                    serial += 1;
                    let at = Instant::now() + Duration::from_millis(ms);
                    waiting.insert((at, serial), (1 - side, buffer[..got].to_vec()));
                }
            }
        }
        while let Some(entry) = waiting.first_entry().filter(|e| e.key().0 <= Instant::now()) {
            let (to, frame) = entry.remove();
            unsafe { libc::write(taps[to].as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
        }
    }
}

pub fn main(args: &[String]) -> i32 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", at] => at.parse().map_err(io::Error::other).and_then(serve),
        ["connect", to, count, jobs] => match (to.parse(), count.parse(), jobs.parse()) {
            (Ok(to), Ok(count), Ok(jobs)) => connect(to, count, jobs),
            _ => Err(io::Error::other("give an address and two numbers")),
        },
        ["relay", a, b, rest @ ..] => {
            let numbers: Vec<u64> = rest.iter().filter_map(|word| word.parse().ok()).collect();
            match numbers[..] {
                [lost, doubled, hasty, delay] => relay(a, b, lost, doubled, hasty, delay),
                _ => Err(io::Error::other("give four numbers")),
            }
        }
        _ => Err(io::Error::other(
            "usage: traffic serve ADDRESS | connect ADDRESS COUNT JOBS | relay A B LOST DOUBLED HASTY DELAY",
        )),
    };
    done.unwrap_or_else(|error| {
        eprintln!("traffic: {error}");
        1
    })
}
