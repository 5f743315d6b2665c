//! Tests of `AF_UNIX` sockets against a flat caller.

use super::*;
use crate::{ControlIn, NoPaths, SocketFile};
use sentry_memory::{UserReader, UserWriter};
use sentry_vfs::testing::TestCaller;
use sentry_vfs::{FileDescription, OpenFlags};

fn cx(caller: &TestCaller) -> SockCtx<'_> {
    SockCtx { caller, nonblock: true, paths: &NoPaths }
}

fn pair(caller: &TestCaller, kind: i32) -> (Arc<UnixSocket>, Arc<UnixSocket>) {
    UnixSocket::pair(caller, &UnixNamespace::new(), kind, 0).unwrap()
}

fn send_with(
    caller: &TestCaller,
    socket: &UnixSocket,
    data: &[u8],
    to: Option<&[u8]>,
    rights: Vec<Arc<FileDescription>>,
) -> Result<IoStart<usize>> {
    let mut reader = UserReader::buffer(data);
    let control = ControlIn { rights, ..ControlIn::default() };
    socket.try_send(&cx(caller), &mut SendMsg { data: &mut reader, flags: 0, to, control })
}

fn send(caller: &TestCaller, socket: &UnixSocket, data: &[u8]) -> Result<IoStart<usize>> {
    send_with(caller, socket, data, None, Vec::new())
}

struct Got {
    count: usize,
    data: Vec<u8>,
    rights: Vec<Arc<FileDescription>>,
    creds: Option<Ucred>,
    from: Option<Vec<u8>>,
    flags: i32,
}

fn recv_with(caller: &TestCaller, socket: &UnixSocket, size: usize, flags: i32) -> Result<Option<Got>> {
    let mut buf = vec![0; size];
    let mut writer = UserWriter::buffer(&mut buf);
    let mut msg = RecvMsg::new(&mut writer, flags);
    let IoStart::Done(count) = socket.try_recv(&cx(caller), &mut msg)? else { return Ok(None) };
    let RecvMsg { rights, creds, from, out_flags, .. } = msg;
    let written = writer.written();
    buf.truncate(written);
    Ok(Some(Got { count, data: buf, rights, creds, from, flags: out_flags }))
}

fn recv(caller: &TestCaller, socket: &UnixSocket, size: usize) -> Result<Option<Vec<u8>>> {
    Ok(recv_with(caller, socket, size, 0)?.map(|got| got.data))
}

fn open(socket: Arc<UnixSocket>) -> Arc<FileDescription> {
    FileDescription::new(SocketFile::new(socket), OpenFlags::RDWR, None)
}

fn name(text: &str) -> Vec<u8> {
    let mut out = 1_u16.to_ne_bytes().to_vec();
    out.push(0);
    out.extend_from_slice(text.as_bytes());
    out
}

#[test]
fn streams_carry_bytes_and_end() {
    let c = TestCaller::new(1);
    let (a, b) = pair(&c, libc::SOCK_STREAM);
    assert_eq!(recv(&c, &b, 10), Ok(None));
    send(&c, &a, b"hello ").unwrap();
    send(&c, &a, b"world").unwrap();
    assert_eq!(recv_with(&c, &b, 8, libc::MSG_PEEK).unwrap().unwrap().data, b"hello wo");
    assert_eq!(recv(&c, &b, 8), Ok(Some(b"hello wo".to_vec())));
    assert_eq!(recv(&c, &b, 8), Ok(Some(b"rld".to_vec())));
    a.shutdown(libc::SHUT_WR).unwrap();
    assert_eq!(send(&c, &a, b"x"), Err(Errno::EPIPE));
    assert_eq!(c.sent(), [(0, libc::SIGPIPE)]);
    assert_eq!(recv(&c, &b, 8), Ok(Some(Vec::new())));
    assert!(b.readiness().contains(Events::RDHUP | Events::IN));
    send(&c, &b, b"back").unwrap();
    drop(b);
    assert_eq!(recv(&c, &a, 8), Ok(Some(b"back".to_vec())));
    assert!(a.readiness().contains(Events::HUP));
}

#[test]
fn a_full_stream_waits_and_unread_data_resets() {
    let c = TestCaller::new(1);
    let (a, b) = pair(&c, libc::SOCK_STREAM);
    let big = vec![7; 1 << 20];
    let IoStart::Done(n) = send(&c, &a, &big).unwrap() else { panic!("nothing sent") };
    assert!((100_000..400_000).contains(&n), "{n}");
    assert_eq!(send(&c, &a, b"x"), Ok(IoStart::WouldBlock));
    assert!(!a.readiness().contains(Events::OUT));
    assert_eq!(recv(&c, &b, 1 << 20).unwrap().unwrap().len(), n);
    assert!(a.readiness().contains(Events::OUT));
    send(&c, &a, b"x").unwrap();
    drop(b);
    assert_eq!(recv(&c, &a, 1), Err(Errno::ECONNRESET));
    assert_eq!(recv(&c, &a, 1), Ok(Some(Vec::new())));
}

#[test]
fn datagrams_keep_their_bounds() {
    let c = TestCaller::new(1);
    let (a, b) = pair(&c, libc::SOCK_DGRAM);
    send(&c, &a, b"one").unwrap();
    send(&c, &a, b"").unwrap();
    send(&c, &a, b"three").unwrap();
    let got = recv_with(&c, &b, 2, libc::MSG_TRUNC).unwrap().unwrap();
    assert_eq!((got.count, &got.data[..], got.flags), (3, &b"on"[..], libc::MSG_TRUNC));
    assert_eq!(recv(&c, &b, 9), Ok(Some(Vec::new())));
    assert_eq!(recv(&c, &b, 9), Ok(Some(b"three".to_vec())));
    assert_eq!(recv(&c, &b, 9), Ok(None));
    drop(b);
    assert_eq!(send(&c, &a, b"x"), Err(Errno::ECONNREFUSED));
    assert_eq!(send(&c, &a, b"x"), Err(Errno::ENOTCONN));
}

#[test]
fn connections_are_made_and_accepted() {
    let server = TestCaller::new(5);
    let client = TestCaller::new(6);
    let ns = UnixNamespace::new();
    let new = |c: &TestCaller| UnixSocket::new(c, &ns, libc::SOCK_STREAM, 0).unwrap();
    let listener = new(&server);
    assert_eq!(listener.listen(&cx(&server), 0), Err(Errno::EINVAL));
    listener.bind(&cx(&server), &name("x")).unwrap();
    assert_eq!(new(&server).bind(&cx(&server), &name("x")), Err(Errno::EADDRINUSE));
    let first = new(&client);
    assert_eq!(first.try_connect(&cx(&client), &name("x")), Err(Errno::ECONNREFUSED));
    listener.listen(&cx(&server), 0).unwrap();
    assert_eq!(first.try_connect(&cx(&client), &name("x")), Ok(IoStart::Done(())));
    assert_eq!(first.try_connect(&cx(&client), &name("x")), Err(Errno::EISCONN));
    let second = new(&client);
    assert_eq!(second.try_connect(&cx(&client), &name("x")), Err(Errno::EAGAIN));
    send(&client, &first, b"hi").unwrap();
    assert_eq!(listener.readiness(), Events::READABLE);
    let IoStart::Done(accepted) = listener.try_accept(&cx(&server)).unwrap() else { panic!("none") };
    let accepted = accepted.as_any().downcast_ref::<UnixSocket>().unwrap();
    assert_eq!(recv(&server, accepted, 9), Ok(Some(b"hi".to_vec())));
    assert_eq!(first.peer_address().unwrap(), name("x"));
    assert_eq!(accepted.local_address().unwrap(), name("x"));
    let peer = |s: &UnixSocket| s.get_option(&server, libc::SOL_SOCKET, libc::SO_PEERCRED).unwrap();
    assert_eq!(peer(accepted)[..4], 6_i32.to_ne_bytes());
    assert_eq!(peer(&first)[..4], 5_i32.to_ne_bytes());
    // A connection that was never accepted is reset with its listener.
    assert_eq!(second.try_connect(&cx(&client), &name("x")), Ok(IoStart::Done(())));
    drop(listener);
    assert_eq!(recv(&client, &second, 9), Err(Errno::ECONNRESET));
    new(&server).bind(&cx(&server), &name("x")).unwrap();
}

#[test]
fn descriptors_travel_and_stop_the_read() {
    let c = TestCaller::new(1);
    let (a, b) = pair(&c, libc::SOCK_STREAM);
    let (x, y) = pair(&c, libc::SOCK_STREAM);
    send(&c, &a, b"before").unwrap();
    send_with(&c, &a, b"with", None, vec![open(x)]).unwrap();
    send(&c, &a, b"after").unwrap();
    let got = recv_with(&c, &b, 100, 0).unwrap().unwrap();
    assert_eq!((&got.data[..], got.rights.len()), (&b"beforewith"[..], 1));
    send(&c, &y, b"through").unwrap();
    let socket = SocketFile::of(&got.rights[0]).unwrap();
    assert_eq!(recv(&c, socket.as_any().downcast_ref().unwrap(), 9), Ok(Some(b"through".to_vec())));
    assert_eq!(recv(&c, &b, 100), Ok(Some(b"after".to_vec())));
    drop(got);
    assert_eq!(recv(&c, &y, 9), Ok(Some(Vec::new())));
}

#[test]
fn a_long_chain_of_queued_sockets_closes_without_recursion() {
    let c = TestCaller::new(1);
    let ns = UnixNamespace::new();
    let mut inner = None;
    for _ in 0..5000 {
        let (a, b) = UnixSocket::pair(&c, &ns, libc::SOCK_STREAM, 0).unwrap();
        let rights: Vec<_> = inner.take().into_iter().collect();
        send_with(&c, &a, b"x", None, rights).unwrap();
        inner = Some(open(b));
    }
    std::thread::Builder::new().stack_size(256 * 1024).spawn(move || drop(inner)).unwrap().join().unwrap();
    assert_eq!(ns.take_off(16_384), Ok(()));
    assert_eq!(ns.take_off(1), Err(Errno::ETOOMANYREFS));
}

#[test]
fn sockets_that_only_they_themselves_hold_are_closed() {
    let c = TestCaller::new(1);
    let ns = UnixNamespace::new();
    let pair = || {
        let (a, b) = UnixSocket::pair(&c, &ns, libc::SOCK_STREAM, 0).unwrap();
        (open(a), open(b))
    };
    let send_file = |to: &Arc<FileDescription>, what: &Arc<FileDescription>| {
        let socket = SocketFile::of(to).unwrap();
        let socket = socket.as_any().downcast_ref::<UnixSocket>().unwrap();
        send_with(&c, socket, b"x", None, vec![Arc::clone(what)]).unwrap();
    };
    let dead = |file: &std::sync::Weak<FileDescription>| file.strong_count() == 0;
    // One through itself, two through one another, and one that somebody can still receive.
    let (a, b) = pair();
    let (p, q) = pair();
    let (r, s) = pair();
    send_file(&b, &a);
    send_file(&q, &r);
    send_file(&s, &p);
    let (x, y) = pair();
    let (inner, other) = pair();
    send_file(&x, &inner);
    let weak: Vec<_> = [&a, &p, &r].map(Arc::downgrade).into();
    let kept = Arc::downgrade(&inner);
    drop(inner);
    drop((a, b, p, q, r, s));
    drop(pair());
    assert!(weak.iter().all(dead));
    assert!(!dead(&kept));
    drop((x, y, other));
    assert!(dead(&kept));
    assert_eq!(ns.take_off(16_384), Ok(()));
}

#[test]
fn credentials_come_where_asked_for() {
    let c = TestCaller::new(42);
    let (a, b) = pair(&c, libc::SOCK_DGRAM);
    b.set_option(&c, libc::SOL_SOCKET, libc::SO_PASSCRED, &1_i32.to_ne_bytes()).unwrap();
    send(&c, &a, b"x").unwrap();
    let got = recv_with(&c, &b, 9, 0).unwrap().unwrap();
    assert_eq!(got.creds, Some(Ucred { pid: 42, uid: 0, gid: 0 }));
    assert_eq!(got.from, Some(Vec::new()));
    // The one that passes credentials gets a name when it sends.
    send(&c, &b, b"x").unwrap();
    assert_eq!(recv_with(&c, &a, 9, 0).unwrap().unwrap().from.unwrap().len(), 8);
}

#[test]
fn a_full_datagram_socket_wakes_its_senders() {
    let c = TestCaller::new(1);
    let ns = UnixNamespace::new();
    let new = || UnixSocket::new(&c, &ns, libc::SOCK_DGRAM, 0).unwrap();
    let (receiver, sender) = (new(), new());
    receiver.bind(&cx(&c), &name("r")).unwrap();
    let mut sent = 0;
    while send_with(&c, &sender, b"x", Some(&name("r")), Vec::new()).unwrap() == IoStart::Done(1) {
        sent += 1;
    }
    assert_eq!(sent, MAX_DATAGRAMS + 1);
    assert_eq!(sender.try_connect(&cx(&c), &name("r")), Ok(IoStart::Done(())));
    assert!(!sender.readiness().contains(Events::OUT));
    let sleeper = Arc::new(sentry_base::Sleeper::default());
    sender.wait_queue().add(Events::OUT, Arc::clone(&sleeper) as Arc<dyn sentry_base::Observer>);
    recv(&c, &receiver, 9).unwrap();
    assert!(sender.readiness().contains(Events::OUT));
    let file = open(sender);
    assert_eq!(file.ops().link_text().unwrap(), format!("socket:[{}]", file.attr().unwrap().ino));
}
