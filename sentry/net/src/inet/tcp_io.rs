//! Bytes of a TCP connection: send and receive (`tcp_sendmsg_locked`, `tcp_recvmsg_locked` of `net/ipv4/tcp.c`).
//!
//! A sender fills a buffer from the application's memory and hands it to the stream; a receiver takes one out, copies
//! it to the application, and gives back what is left. The stream's lock is not held over either copy.

use netstack::Chunk;
use netstack::buffer::{LARGE, SMALL};
use netstack::stream::{Taken, UrgentTaken};
use sentry_base::{Errno, Result};
use sentry_vfs::IoStart;

use super::addr::errno;
use super::broken_pipe;
use super::tcp::{Connection, Phase, TcpCore};
use crate::{RecvMsg, SendMsg, SockCtx};

/// What a send or receive without a connection gives.
enum Unconnected {
    Waits,
    Fails(Errno),
    Listens,
    Never,
    ShutRead,
}

impl TcpCore {
    fn unconnected(&self) -> Unconnected {
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Connecting(_) => Unconnected::Waits,
            Phase::Listening(_) => Unconnected::Listens,
            _ => match state.fault.take() {
                Some(errno) => Unconnected::Fails(errno),
                None if state.shut_read => Unconnected::ShutRead,
                None => Unconnected::Never,
            },
        }
    }

    pub(super) fn try_send(&self, cx: &SockCtx<'_>, msg: &mut SendMsg<'_, '_>) -> Result<IoStart<usize>> {
        let Some(Connection { link, end, .. }) = self.connection() else {
            return match self.unconnected() {
                Unconnected::Waits => Ok(IoStart::WouldBlock),
                Unconnected::Fails(errno) => Err(errno),
                _ => Err(broken_pipe(cx.caller, msg.flags)),
            };
        };
        let urgent = msg.flags & libc::MSG_OOB != 0;
        let _turn = self.writer.lock();
        // What goes out by a link is counted there.
        let is_local = link.flow().is_none();
        let mut sent = 0;
        loop {
            let left = msg.data.remaining();
            if left == 0 && sent > 0 {
                return Ok(IoStart::Done(sent));
            }
            let room = link.stream.lock().room(end, self.net.memory.stream_cap());
            let room = match room {
                Ok(room) => room,
                Err(_) if sent > 0 => return Ok(IoStart::Done(sent)),
                Err(netstack::Error::Broken) => return Err(broken_pipe(cx.caller, msg.flags)),
                Err(error) => return Err(errno(error)),
            };
            if left == 0 {
                return Ok(IoStart::Done(0));
            }
            if room == 0 {
                return Ok(if sent > 0 { IoStart::Done(sent) } else { IoStart::WouldBlock });
            }
            let want = left.min(room.max(SMALL)).min(LARGE);
            let mut buffer = self.net.buffer(want);
            let got = match msg.data.read(buffer.get_mut(..want).unwrap_or_default()) {
                Ok(got) => got,
                Err(errno) => {
                    self.net.recycle(Some(buffer));
                    return if sent > 0 { Ok(IoStart::Done(sent)) } else { Err(errno) };
                }
            };
            let last = got.checked_sub(1).and_then(|at| buffer.get(at)).copied();
            let (pushed, marked) = {
                let mut stream = link.stream.lock();
                let before = stream.unread_by_peer(end);
                let pushed = stream.push(end, Chunk::new(buffer, got));
                let queued = stream.unread_by_peer(end).saturating_sub(before);
                self.net.memory.queue(queued);
                // The last byte that this call sends, though the caller has more (`tcp_push`).
                let cap = self.net.memory.stream_cap();
                let ends = urgent
                    && pushed.is_ok()
                    && (msg.data.remaining() == 0 || got < want || matches!(stream.room(end, cap), Ok(0)));
                let byte = last.filter(|_| ends);
                (pushed, byte.map(|byte| stream.mark_urgent(end, byte, got)))
            };
            let (mut change, spare) = match pushed {
                Ok(pushed) => pushed,
                Err(_) if sent > 0 => return Ok(IoStart::Done(sent)),
                Err(netstack::Error::Broken) => return Err(broken_pipe(cx.caller, msg.flags)),
                Err(error) => return Err(errno(error)),
            };
            self.net.recycle(spare);
            if is_local {
                self.net.stats.packet(got + 52);
                self.net.stats.tcp_sent.add(1);
                self.net.stats.tcp_received.add(1);
            }
            change.merge(marked.unwrap_or_default());
            link.apply(change);
            sent += got;
            if got < want {
                return Ok(IoStart::Done(sent));
            }
        }
    }

    pub(super) fn try_recv(&self, cx: &SockCtx<'_>, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        // A stream names no sender.
        msg.from = Some(Vec::new());
        if msg.flags & libc::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let Some(connection) = self.connection() else {
            if msg.flags & libc::MSG_OOB != 0 {
                return Err(Errno::EINVAL);
            }
            return match self.unconnected() {
                Unconnected::Waits => Ok(IoStart::WouldBlock),
                Unconnected::Fails(errno) => Err(errno),
                Unconnected::ShutRead => Ok(IoStart::Done(0)),
                Unconnected::Listens | Unconnected::Never => Err(Errno::ENOTCONN),
            };
        };
        if msg.flags & libc::MSG_OOB != 0 {
            return Self::recv_urgent(&connection, msg).map(IoStart::Done);
        }
        let _turn = self.reader.lock();
        if msg.flags & libc::MSG_PEEK != 0 {
            return self.peek(&connection, msg);
        }
        self.recv(cx.nonblock, &connection, msg)
    }

    fn recv_urgent(connection: &Connection, msg: &mut RecvMsg<'_, '_>) -> Result<usize> {
        let peek = msg.flags & libc::MSG_PEEK != 0;
        let taken = connection.link.stream.lock().take_urgent(connection.reader(), peek);
        let byte = match taken {
            UrgentTaken::Byte(byte) => byte,
            UrgentTaken::Nothing => return Err(Errno::EINVAL),
            UrgentTaken::Closed => return Err(Errno::ENOTCONN),
            UrgentTaken::End => return Ok(0),
            // Never waited for (`tcp_recv_urg`).
            UrgentTaken::NotYet => return Err(Errno::EAGAIN),
        };
        msg.out_flags |= libc::MSG_OOB;
        if msg.data.remaining() == 0 {
            msg.out_flags |= libc::MSG_TRUNC;
            return Ok(0);
        }
        if msg.flags & libc::MSG_TRUNC != 0 {
            return Ok(1);
        }
        msg.data.write(&[byte])
    }

    fn recv(
        &self,
        nonblock: bool,
        connection: &Connection,
        msg: &mut RecvMsg<'_, '_>,
    ) -> Result<IoStart<usize>> {
        let (link, end) = (&connection.link, &connection.reader());
        // With `MSG_TRUNC` the bytes are thrown away and the application's memory is left alone.
        let discard = msg.flags & libc::MSG_TRUNC != 0;
        let mut want = msg.data.remaining();
        let mut copied = 0;
        loop {
            let taken = {
                let mut stream = link.stream.lock();
                let before = stream.unread();
                let taken = stream.take(*end, copied > 0, if nonblock { want.min(1) } else { want });
                // An urgent byte that was passed over.
                self.net.memory.unqueue(before - stream.unread());
                taken
            };
            let (chunk, limit) = match taken {
                Ok(Taken::Chunk { chunk, limit }) => (chunk, limit),
                Ok(Taken::WouldBlock) if copied == 0 => return Ok(IoStart::WouldBlock),
                Ok(_) => break,
                Err(error) => return Err(errno(error)),
            };
            let part = limit.min(want);
            let written = match chunk.bytes().get(..part) {
                Some(bytes) if !discard && !bytes.is_empty() => msg.data.write(bytes),
                _ => Ok(part),
            };
            let used = written.unwrap_or(0);
            let (change, spare) = link.stream.lock().give_back(*end, chunk, used);
            self.net.recycle(spare);
            link.apply(change);
            if let Err(errno) = written
                && copied == 0
            {
                return Err(errno);
            }
            copied += used;
            want -= used;
            if used < part || want == 0 {
                break;
            }
        }
        self.move_peek_offset(copied, false);
        Ok(IoStart::Done(copied))
    }

    fn peek(&self, connection: &Connection, msg: &mut RecvMsg<'_, '_>) -> Result<IoStart<usize>> {
        let (link, end) = (&connection.link, &connection.reader());
        let discard = msg.flags & libc::MSG_TRUNC != 0;
        let offset = self.options.set_or(libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1);
        let offset = usize::try_from(offset).unwrap_or(0);
        let want = msg.data.remaining();
        let mut stream = link.stream.lock();
        let data = &mut *msg.data;
        let shown = stream
            .peek(*end, offset, want, |part| if discard { Ok(part.len()) } else { data.write(part) })?;
        if shown == 0 {
            let nothing = stream.outcome_when_empty(*end).map_err(errno)?;
            return Ok(match nothing {
                Taken::WouldBlock => IoStart::WouldBlock,
                _ => IoStart::Done(0),
            });
        }
        drop(stream);
        self.move_peek_offset(shown, true);
        Ok(IoStart::Done(shown))
    }

    /// Moves the place of the next peek, where one is set (`SO_PEEK_OFF`).
    fn move_peek_offset(&self, n: usize, forward: bool) {
        let now = self.options.set_or(libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1);
        if now < 0 || n == 0 {
            return;
        }
        let n = i32::try_from(n).unwrap_or(i32::MAX);
        let next = if forward { now.saturating_add(n) } else { (now - n).max(0) };
        self.options.put_number(libc::SOL_SOCKET, libc::SO_PEEK_OFF, next);
    }
}
