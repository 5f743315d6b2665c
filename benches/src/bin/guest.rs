//! The static program that runs inside: loops of one system call each, timed by itself.
//!
//! Purpose: `guest bench NAME COUNT` repeats one operation and prints nanoseconds for each; `guest threads N` is a
//! program of many threads with a known result; `guest hold N` makes N connections over loopback, says so and keeps them
//! for some seconds; `guest true` ends at once.
//! Invariants: a loop makes only the calls that its name says, by the bare `syscall` wrapper, and counts nothing else.
//! Lock ranks: none. Threat: none, the program is itself the workload.
#![allow(unsafe_code, reason = "the program exists to make bare system calls")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "every block makes system calls on this program's own buffers and descriptors"
)]
#![allow(
    clippy::exit,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "the workload stops when it cannot go on"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "counts are small, and times are noisier than a double"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: guest bench NAME COUNT | guest threads N | guest hold N | guest true";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words[..] {
        ["true"] => {}
        ["bench", name, count] => {
            let count: u64 = count.parse().expect("COUNT is a number");
            let Some((_, run)) = OPERATIONS.iter().find(|(known, _)| *known == name) else {
                eprintln!("no operation {name}");
                std::process::exit(2);
            };
            println!("{:.1}", run(count));
        }
        ["threads", count] => println!("{}", threads(count.parse().expect("N is a number"))),
        ["hold", count] => hold(count.parse().expect("N is a number")),
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
}

/// Does one operation `count` times and gives nanoseconds for one.
type Operation = fn(u64) -> f64;

/// Each operation by name; a loop of each.
const OPERATIONS: &[(&str, Operation)] = &[
    ("getpid", |count| plain(count, libc::SYS_getpid)),
    ("gettid", |count| plain(count, libc::SYS_gettid)),
    ("getuid", |count| plain(count, libc::SYS_getuid)),
    ("yield", |count| plain(count, libc::SYS_sched_yield)),
    ("getppid", |count| plain(count, libc::SYS_getppid)),
    ("clock", clock),
    ("pipe", pipe_write_read),
    ("pingpong", ping_pong),
    ("tcp", tcp_ping_pong),
    ("tcp-connect", tcp_connect_ping),
    ("fork", fork_exit_wait),
    ("exec", fork_exec_wait),
    ("open", open_fstat_close),
    ("stat", stat),
    ("pipe-busy", pipe_write_read_busy),
    ("touch", first_touch),
    ("cow", copy_after_fork),
    ("cpu", compute),
];

/// Times `count` calls after a tenth as many to warm up.
fn timed(count: u64, mut call: impl FnMut()) -> f64 {
    for _ in 0..=count / 10 {
        call();
    }
    let start = Instant::now();
    for _ in 0..count {
        call();
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

fn checked(value: i64, call: &str) -> i64 {
    if value < 0 {
        eprintln!("{call}: {}", std::io::Error::last_os_error());
        std::process::exit(1);
    }
    value
}

/// A call without arguments.
fn plain(count: u64, number: i64) -> f64 {
    timed(count, || {
        unsafe { libc::syscall(number) };
    })
}

fn clock(count: u64) -> f64 {
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    timed(count, || {
        let done = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut now) };
        checked(done, "clock_gettime");
    })
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    checked(unsafe { libc::pipe(ends.as_mut_ptr()) }.into(), "pipe");
    ends
}

fn write_byte(fd: i32) {
    let byte = 7u8;
    checked(unsafe { libc::write(fd, (&raw const byte).cast(), 1) } as i64, "write");
}

/// Reads one byte; false at the end of the stream.
fn read_byte(fd: i32) -> bool {
    let mut byte = 0u8;
    checked(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } as i64, "read") == 1
}

fn pipe_write_read(count: u64) -> f64 {
    let [reader, writer] = pipe();
    timed(count, || {
        write_byte(writer);
        read_byte(reader);
    })
}

/// The same while every processor has a program that never stops.
fn pipe_write_read_busy(count: u64) -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let busy: Vec<i32> = (0..processors)
        .map(|_| {
            let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
            if child == 0 {
                loop {
                    std::hint::spin_loop();
                }
            }
            child
        })
        .collect();
    let ns = pipe_write_read(count);
    busy.into_iter().for_each(end_server);
    ns
}

const PAGE: usize = 4096;

/// Private memory without a file, in small pages, as all peers have it alike.
fn memory(pages: u64) -> (*mut u8, usize) {
    let len = pages as usize * PAGE;
    let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, read_write, private, -1, 0) };
    checked(start as i64, "mmap");
    checked(unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) }.into(), "madvise");
    (start.cast(), len)
}

/// Writes a byte to each page and gives nanoseconds for one.
fn write_pages((start, len): (*mut u8, usize)) -> f64 {
    let begin = Instant::now();
    for offset in (0..len).step_by(PAGE) {
        unsafe { start.add(offset).write_volatile(7) };
    }
    begin.elapsed().as_nanos() as f64 / (len / PAGE) as f64
}

/// The first byte written to each of `pages` pages.
fn first_touch(pages: u64) -> f64 {
    write_pages(memory(pages))
}

/// A byte written to each of `pages` pages that a child has as well.
fn copy_after_fork(pages: u64) -> f64 {
    let memory = memory(pages);
    write_pages(memory);
    let [reader, writer] = pipe();
    let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
    if child == 0 {
        read_byte(reader);
        unsafe { libc::_exit(0) };
    }
    let ns = write_pages(memory);
    write_byte(writer);
    wait(child);
    ns
}

/// Arithmetic that makes no call and touches no memory.
fn compute(count: u64) -> f64 {
    let mut value = 1u64;
    timed(count, || {
        value = std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    })
}

/// One byte there and one back between two processes.
fn ping_pong(count: u64) -> f64 {
    let ([there_r, there_w], [back_r, back_w]) = (pipe(), pipe());
    let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
    if child == 0 {
        unsafe { libc::close(there_w) };
        while read_byte(there_r) {
            write_byte(back_w);
        }
        unsafe { libc::_exit(0) };
    }
    let ns = timed(count, || {
        write_byte(there_w);
        read_byte(back_r);
    });
    unsafe { libc::close(there_w) };
    wait(child);
    ns
}

/// A process that sends every byte back, connection after connection, and the address it does so at.
fn echo_server() -> (i32, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
    let address = listener.local_addr().expect("the listener's address");
    let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
    if child == 0 {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        }
    }
    (child, address)
}

fn end_server(child: i32) {
    checked(unsafe { libc::kill(child, libc::SIGKILL) }.into(), "kill");
    checked(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }.into(), "waitpid");
}

fn ping(stream: &mut TcpStream) {
    let mut byte = [7];
    stream.write_all(&byte).expect("write to the server");
    stream.read_exact(&mut byte).expect("read from the server");
}

fn tcp_ping_pong(count: u64) -> f64 {
    let (child, address) = echo_server();
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let ns = timed(count, || ping(&mut stream));
    end_server(child);
    ns
}

fn tcp_connect_ping(count: u64) -> f64 {
    let (child, address) = echo_server();
    let ns = timed(count, || ping(&mut TcpStream::connect(address).expect("connect")));
    end_server(child);
    ns
}

/// Connections of one process to another, idle once each has been used.
fn hold(count: u64) {
    const KEPT: Duration = Duration::from_secs(4);
    let mut files: libc::rlimit = unsafe { std::mem::zeroed() };
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) }.into(), "getrlimit");
    files.rlim_cur = files.rlim_max;
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files) }.into(), "setrlimit");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("its address");
    let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
    if child == 0 {
        let mut held: Vec<TcpStream> = Vec::new();
        for _ in 0..count {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("read from the client");
            stream.write_all(&byte).expect("write to the client");
            held.push(stream);
        }
        std::thread::sleep(KEPT);
        unsafe { libc::_exit(0) };
    }
    drop(listener);
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).expect("connect");
        ping(&mut stream);
        held.push(stream);
    }
    println!("{count}");
    std::thread::sleep(KEPT);
    wait(child);
}

fn wait(child: i32) {
    let mut status = 0;
    checked(unsafe { libc::waitpid(child, &raw mut status, 0) }.into(), "waitpid");
    if status != 0 {
        eprintln!("a child ended with wait status {status:#x}");
        std::process::exit(1);
    }
}

fn fork_exit_wait(count: u64) -> f64 {
    timed(count, || {
        let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
        if child == 0 {
            unsafe { libc::_exit(0) };
        }
        wait(child);
    })
}

/// `fork`, then `execve` of `/bin/true`, as a shell starts a command.
fn fork_exec_wait(count: u64) -> f64 {
    let path = c"/bin/true";
    let argv = [path.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    timed(count, || {
        let child = checked(unsafe { libc::fork() }.into(), "fork") as i32;
        if child == 0 {
            unsafe {
                libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
                libc::_exit(127);
            }
        }
        wait(child);
    })
}

fn open_fstat_close(count: u64) -> f64 {
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    timed(count, || {
        let fd = unsafe { libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY) };
        checked(fd.into(), "open");
        checked(unsafe { libc::fstat(fd, &raw mut about) }.into(), "fstat");
        unsafe { libc::close(fd) };
    })
}

fn stat(count: u64) -> f64 {
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    timed(count, || {
        checked(unsafe { libc::stat(c"/etc/passwd".as_ptr(), &raw mut about) }.into(), "stat");
    })
}

/// Threads that meet at a barrier, count under a lock, wait on a condition, and pass a token round a ring of
/// channels; a lost wake-up or update shows in the sum, or as a hang.
fn threads(count: u64) -> u64 {
    let atomic = Arc::new(AtomicU64::new(0));
    let locked = Arc::new((Mutex::new(0u64), Condvar::new()));
    let barrier = Arc::new(Barrier::new(count as usize));
    let mut inputs: Vec<mpsc::Sender<u64>> = Vec::new();
    let mut outputs = Vec::new();
    for _ in 0..count {
        let (input, output) = mpsc::channel();
        inputs.push(input);
        outputs.push(output);
    }
    // Thread n reads from its own channel and writes to that of n + 1; the last one's end is the caller's.
    let (ring_end, back) = mpsc::channel();
    let first = inputs.remove(0);
    inputs.push(ring_end);
    let rounds = 50;
    let mut handles = Vec::new();
    for (n, (output, next)) in (0..count).zip(outputs.into_iter().zip(inputs)) {
        let (atomic, locked, barrier) = (Arc::clone(&atomic), Arc::clone(&locked), Arc::clone(&barrier));
        handles.push(std::thread::spawn(move || {
            barrier.wait();
            for _ in 0..1000 {
                atomic.fetch_add(1, Ordering::Relaxed);
                *locked.0.lock().unwrap() += 1;
            }
            barrier.wait();
            // Each waits for its turn: every wake-up is needed by exactly one thread.
            let (turn, condition) = &*locked;
            let mut value = turn.lock().unwrap();
            while *value < count * 1000 + n {
                value = condition.wait(value).unwrap();
            }
            *value += 1;
            drop(value);
            condition.notify_all();
            for _ in 0..rounds {
                let token = output.recv().unwrap();
                next.send(token + 1).unwrap();
            }
        }));
    }
    let mut token = 0;
    for _ in 0..rounds {
        first.send(token).unwrap();
        token = back.recv().unwrap();
    }
    for handle in handles {
        handle.join().unwrap();
    }
    token + atomic.load(Ordering::Relaxed) + *locked.0.lock().unwrap()
}
