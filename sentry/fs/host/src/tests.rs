//! Pipes, sockets and files as a caller would hand them over.

use std::fs::{self, File};
use std::io::{Read, Seek, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sentry_base::wait::Observer;
use sentry_base::{Errno, Events, Result};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::testing::{BASE, TestCaller};
use sentry_vfs::{FileOps, IoStart, OpenFlags, Pos, Whence};

use super::*;

/// A watcher with its thread.
struct Running(Arc<Watcher>, Option<std::thread::JoinHandle<()>>);

impl Running {
    fn new() -> Self {
        let watcher = Watcher::new().unwrap();
        let runs = Arc::clone(&watcher);
        Self(watcher, Some(std::thread::spawn(move || runs.run())))
    }

    fn file(&self, fd: impl Into<OwnedFd>) -> HostFile {
        HostFile::new(fd.into(), &self.0, (5, 6)).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

struct Tell(mpsc::Sender<Events>);

impl Observer for Tell {
    fn notify(&self, events: Events) {
        let _ = self.0.send(events);
    }
}

/// What the file tells those who wait.
fn told(file: &HostFile, mask: Events) -> mpsc::Receiver<Events> {
    let (send, receive) = mpsc::channel();
    file.wait_queue().unwrap().add(mask, Arc::new(Tell(send)));
    receive
}

fn read(file: &HostFile, len: usize, pos: Pos) -> Result<Option<String>> {
    let caller = TestCaller::new(1);
    let mut buf = vec![0; len];
    Ok(match file.try_read(&caller.io(OpenFlags::empty()), &mut UserWriter::buffer(&mut buf), pos)? {
        IoStart::Done(n) => Some(String::from_utf8(buf[..n].to_vec()).unwrap()),
        IoStart::WouldBlock => None,
    })
}

fn write(file: &HostFile, text: &[u8], pos: Pos) -> Result<Option<usize>> {
    let caller = TestCaller::new(1);
    Ok(match file.try_write(&caller.io(OpenFlags::empty()), &mut UserReader::buffer(text), pos)? {
        IoStart::Done(n) => Some(n),
        IoStart::WouldBlock => None,
    })
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn an_empty_pipe_makes_its_reader_wait_and_tells_him() {
    let r = Running::new();
    let (reader, mut writer) = pipe().unwrap();
    let file = r.file(reader);
    let told = told(&file, Events::READABLE);
    assert_eq!(read(&file, 9, Pos::Stream), Ok(None));
    writer.write_all(b"hello").unwrap();
    assert!(told.recv_timeout(LONG).unwrap().contains(Events::READABLE));
    assert_eq!(read(&file, 3, Pos::Stream), Ok(Some("hel".into())));
    assert!(file.readiness().contains(Events::READABLE));
    assert_eq!(read(&file, 9, Pos::Stream), Ok(Some("lo".into())));
    assert!(!file.readiness().contains(Events::IN));
    drop(writer);
    assert!(told.recv_timeout(LONG).is_ok());
    assert_eq!(read(&file, 9, Pos::Stream), Ok(Some(String::new())));
    assert!(file.readiness().contains(Events::HUP));
}

#[test]
fn a_full_pipe_blocks_nobody_and_loses_nothing() {
    let r = Running::new();
    let (mut reader, writer) = pipe().unwrap();
    let file = r.file(writer);
    let told = told(&file, Events::WRITABLE);
    let text: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let expect = text.clone();
    let end = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all == expect
    });
    let mut done = 0;
    while done < text.len() {
        match write(&file, &text[done..], Pos::Stream).unwrap() {
            Some(n) => done += n,
            None => drop(told.recv_timeout(LONG).unwrap()),
        }
    }
    drop(file);
    assert!(end.join().unwrap());
}

#[test]
fn a_broken_pipe_is_a_signal_and_an_error() {
    let r = Running::new();
    let (reader, writer) = pipe().unwrap();
    let file = r.file(writer);
    drop(reader);
    let caller = TestCaller::new(1);
    let error = file.try_write(&caller.io(OpenFlags::empty()), &mut UserReader::buffer(b"x"), Pos::Stream);
    assert_eq!(error, Err(Errno::EPIPE));
    assert_eq!(caller.sent(), [(0, libc::SIGPIPE)]);
}

#[test]
fn sockets_move_both_ways() {
    let r = Running::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let file = r.file(ours);
    assert_eq!(read(&file, 9, Pos::Stream), Ok(None));
    assert_eq!(write(&file, b"ping", Pos::Stream), Ok(Some(4)));
    let mut buf = [0; 4];
    theirs.read_exact(&mut buf).unwrap();
    let told = told(&file, Events::READABLE);
    theirs.write_all(b"pong").unwrap();
    assert!(told.recv_timeout(LONG).is_ok());
    assert_eq!(read(&file, 9, Pos::Stream), Ok(Some("pong".into())));
    // Seen from outside, the descriptor is as blocking as before.
    assert!(!rustix::fs::fcntl_getfl(&theirs).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn a_regular_file_shares_its_offset_with_the_caller() {
    let r = Running::new();
    let path = std::env::temp_dir().join(format!("fs-host-test-{}", std::process::id()));
    fs::write(&path, "0123456789").unwrap();
    let mut caller = File::options().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    caller.seek(std::io::SeekFrom::Start(2)).unwrap();
    let file = r.file(caller.try_clone().unwrap());
    assert_eq!(read(&file, 3, Pos::At(2)), Ok(Some("234".into())));
    assert_eq!(caller.stream_position().unwrap(), 5);
    // A read elsewhere leaves the offset alone.
    assert_eq!(read(&file, 2, Pos::At(0)), Ok(Some("01".into())));
    assert_eq!(caller.stream_position().unwrap(), 5);
    assert_eq!(write(&file, b"ab", Pos::At(5)), Ok(Some(2)));
    // What the caller writes in between is not written over.
    caller.write_all(b"XY").unwrap();
    assert_eq!(write(&file, b"cd", Pos::At(7)), Ok(Some(2)));
    assert_eq!(file.seek(0, Whence::Current, 9, 0), Ok(11));
    assert_eq!(file.seek(0, Whence::Set, 11, 0), Ok(0));
    assert_eq!(read(&file, 99, Pos::At(0)), Ok(Some("01234abXYcd".into())));
    let description = HostFile::open(caller.into(), &r.0, (5, 6)).unwrap();
    assert_eq!(*description.position().lock(), 11);
    assert!(description.flags().reads() && description.flags().writes());
    assert_eq!(description.attr().unwrap().uid, 5);
    let dir = File::open(std::env::temp_dir()).unwrap();
    assert!(HostFile::open(dir.into(), &r.0, (5, 6)).is_err());
}

#[test]
fn dev_null_and_questions() {
    let r = Running::new();
    let null = r.file(File::options().read(true).write(true).open("/dev/null").unwrap());
    assert_eq!(read(&null, 9, Pos::Stream), Ok(Some(String::new())));
    assert_eq!(write(&null, b"xyz", Pos::Stream), Ok(Some(3)));
    assert!(null.wait_queue().is_none());
    let caller = TestCaller::new(1);
    let io = caller.io(OpenFlags::empty());
    assert_eq!(null.ioctl(&io, abi::tty::ioc::TCGETS, BASE), Err(Errno::ENOTTY));
    let (reader, mut writer) = pipe().unwrap();
    let pipe = r.file(reader);
    writer.write_all(b"four").unwrap();
    assert_eq!(pipe.ioctl(&io, abi::tty::ioc::FIONREAD, BASE), Ok(0));
    assert_eq!(caller.memory.lock()[..4], 4_i32.to_ne_bytes());
    assert_eq!(pipe.seek(0, Whence::Current, 0, 0).is_err(), !pipe.seekable());
}

#[test]
fn the_end_of_a_peer_is_told() {
    let r = Running::new();
    let (ours, theirs) = hostsys::sock::packet_pair().unwrap();
    let (send, receive) = mpsc::channel();
    let observer: Arc<dyn Observer> = Arc::new(Tell(send));
    r.0.watch(ours.as_fd(), Events::empty(), &observer).unwrap();
    drop(theirs);
    assert!(receive.recv_timeout(LONG).unwrap().contains(Events::HUP));
}
