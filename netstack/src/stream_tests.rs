//! The states of a loopback connection, and what readers and writers see in them.

use super::*;
use crate::BufferPool;

fn stream() -> LoopStream {
    LoopStream::new((100, 100), (100, 100))
}

fn send(s: &mut LoopStream, end: End, data: &[u8]) -> Result<Change, Error> {
    let mut buffer = BufferPool::fresh(data.len());
    buffer[..data.len()].copy_from_slice(data);
    s.push(end, Chunk::new(buffer, data.len())).map(|(change, _)| change)
}

fn read(s: &mut LoopStream, end: End, max: usize) -> Result<Option<Vec<u8>>, Error> {
    let mut out = Vec::new();
    loop {
        match s.take(end, !out.is_empty(), max)? {
            Taken::Chunk { chunk, limit } => {
                let n = limit.min(max - out.len());
                out.extend_from_slice(&chunk.bytes()[..n]);
                let _ = s.give_back(end, chunk, n);
                if out.len() == max {
                    return Ok(Some(out));
                }
            }
            Taken::End => return Ok(Some(out)),
            Taken::WouldBlock | Taken::Mark if out.is_empty() => return Ok(None),
            Taken::WouldBlock | Taken::Mark => return Ok(Some(out)),
        }
    }
}

use End::{Client, Server};

#[test]
fn bytes_arrive_in_order_and_small_ones_share_a_buffer() {
    let mut s = stream();
    assert_eq!(send(&mut s, Client, b"ab").unwrap().server, Ready::IN);
    let _ = send(&mut s, Client, b"cd").unwrap();
    assert_eq!(s.server.inbox.len(), 1);
    assert_eq!(read(&mut s, Server, 3).unwrap().unwrap(), b"abc");
    assert_eq!(read(&mut s, Server, 3).unwrap().unwrap(), b"d");
    assert_eq!(read(&mut s, Server, 3).unwrap(), None);
}

#[test]
fn a_full_queue_stops_the_writer_until_a_third_is_free() {
    let mut s = stream();
    assert_eq!(s.room(Client, usize::MAX), Ok(200));
    let _ = send(&mut s, Client, &[1; 200]).unwrap();
    assert_eq!(s.room(Client, usize::MAX), Ok(0));
    assert!(!s.readiness(Client, usize::MAX).contains(Ready::OUT));
    let Taken::Chunk { chunk, .. } = s.take(Server, false, 200).unwrap() else { panic!("no chunk") };
    let (change, _) = s.give_back(Server, chunk, 10);
    assert_eq!(change.client, Ready::empty());
    let Taken::Chunk { chunk, .. } = s.take(Server, false, 200).unwrap() else { panic!("no chunk") };
    let (change, _) = s.give_back(Server, chunk, 100);
    assert_eq!(change.client, Ready::OUT);
}

#[test]
fn half_close_then_close_leaves_the_first_in_time_wait() {
    let mut s = stream();
    let _ = s.shutdown(Client, false, true);
    assert_eq!((s.state(Client), s.state(Server)), (TcpState::FinWait2, TcpState::CloseWait));
    assert_eq!(s.room(Client, usize::MAX), Err(Error::Broken));
    assert_eq!(read(&mut s, Server, 1).unwrap().unwrap(), b"");
    let _ = send(&mut s, Server, b"late").unwrap();
    assert_eq!(read(&mut s, Client, 9).unwrap().unwrap(), b"late");
    assert_eq!(s.close(Server, false).time_wait, Some(Client));
    assert!(s.is_over());
}

#[test]
fn closing_with_unread_bytes_resets_the_peer() {
    let mut s = stream();
    let _ = send(&mut s, Client, b"x").unwrap();
    let _ = send(&mut s, Server, b"y").unwrap();
    let _ = s.close(Server, false);
    assert!(s.readiness(Client, usize::MAX).contains(Ready::ERR | Ready::HUP | Ready::IN));
    // What had come is still there to be read.
    assert_eq!(read(&mut s, Client, 9).unwrap().unwrap(), b"y");
    assert_eq!(read(&mut s, Client, 9), Err(Error::Reset));
    assert_eq!(read(&mut s, Client, 9).unwrap().unwrap(), b"");
    assert_eq!(s.room(Client, usize::MAX), Err(Error::Broken));
}

#[test]
fn writing_to_a_closed_end_works_once() {
    let mut s = stream();
    let _ = s.close(Server, false);
    let _ = send(&mut s, Client, b"x").unwrap();
    assert_eq!(s.room(Client, usize::MAX), Err(Error::Broken));
    assert_eq!(read(&mut s, Client, 9).unwrap().unwrap(), b"");
}

#[test]
fn the_urgent_byte_stands_beside_the_stream() {
    let mut s = stream();
    let _ = send(&mut s, Client, b"ab!").unwrap();
    let change = s.mark_urgent(Client, b'!', 3);
    assert_eq!(change.server, Ready::PRI | Ready::IN | Ready::URGENT);
    let _ = send(&mut s, Client, b"cd").unwrap();
    assert_eq!(s.readable(Server), 2);
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"ab");
    assert!(s.at_mark(Server));
    assert_eq!(s.take_urgent(Server, true), UrgentTaken::Byte(b'!'));
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::Byte(b'!'));
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::Nothing);
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"cd");
    assert!(!s.at_mark(Server));
}

#[test]
fn the_urgent_byte_in_line_begins_a_read() {
    let mut s = stream();
    s.set_urgent_inline(Server, true);
    let _ = send(&mut s, Client, b"ab!").unwrap();
    let _ = s.mark_urgent(Client, b'!', 3);
    let _ = send(&mut s, Client, b"cd").unwrap();
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"ab");
    assert!(s.at_mark(Server));
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::Nothing);
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"!cd");
    assert!(!s.at_mark(Server) && !s.readiness(Server, usize::MAX).contains(Ready::PRI));
}

#[test]
fn urgent_data_is_known_before_it_comes() {
    let mut s = stream();
    let _ = send(&mut s, Client, b"a").unwrap();
    let mark = Mark { at: 2, byte: None };
    assert_eq!(s.announce_urgent(Client, mark).server, Ready::URGENT);
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::NotYet);
    assert!(!s.readiness(Server, usize::MAX).contains(Ready::PRI));
    assert_eq!(s.readable(Server), 1);
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"a");
    // The byte comes out of order: there for `MSG_OOB`, and not for the stream.
    assert_eq!(s.announce_urgent(Client, mark).server, Ready::empty());
    let mark = Mark { byte: Some(b'!'), ..mark };
    assert_eq!(s.announce_urgent(Client, mark).server, Ready::PRI | Ready::IN);
    assert_eq!(s.announce_urgent(Client, mark).server, Ready::empty());
    assert!(s.readiness(Server, usize::MAX).contains(Ready::PRI) && !s.at_mark(Server));
    let _ = send(&mut s, Client, b"b!c").unwrap();
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"b");
    assert!(s.at_mark(Server));
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"c");
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::Nothing);
    // One that the reader is past is no news, nor is an older one.
    assert_eq!(s.announce_urgent(Client, mark).server, Ready::empty());
    assert_eq!(s.announce_urgent(Client, Mark { at: 9, byte: None }).server, Ready::URGENT);
    assert_eq!(s.announce_urgent(Client, Mark { at: 8, byte: Some(b'?') }).server, Ready::empty());
    let _ = s.shutdown(Client, false, true);
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::End);
    let _ = s.fail(Server, Error::Reset);
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::End);
}

#[test]
fn a_second_urgent_byte_takes_the_place_of_the_first() {
    let mut s = stream();
    let _ = send(&mut s, Client, b"xA").unwrap();
    let _ = s.mark_urgent(Client, b'A', 2);
    let _ = send(&mut s, Client, b"B").unwrap();
    assert_eq!(s.mark_urgent(Client, b'B', 1).freed, 0);
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"xA");
    // Before one who stands at the first it goes.
    let _ = send(&mut s, Client, b"C").unwrap();
    assert_eq!(s.mark_urgent(Client, b'C', 1).freed, 1);
    assert!(s.at_mark(Server) && s.readable(Server) == 0);
    assert_eq!(s.take_urgent(Server, false), UrgentTaken::Byte(b'C'));
    assert_eq!(read(&mut s, Server, 9).unwrap(), None);
    // It had not come itself.
    let _ = s.announce_urgent(Client, Mark { at: 4, byte: None });
    assert_eq!(s.announce_urgent(Client, Mark { at: 5, byte: None }).freed, 0);
    let _ = send(&mut s, Client, b"DEf").unwrap();
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"D");
}

#[test]
fn peeks_stop_at_the_urgent_byte() {
    for inline in [false, true] {
        let mut s = stream();
        s.set_urgent_inline(Server, inline);
        let _ = send(&mut s, Client, b"ab!").unwrap();
        let _ = s.mark_urgent(Client, b'!', 3);
        let _ = send(&mut s, Client, b"cd").unwrap();
        let peek = |from: usize| {
            let mut all = Vec::new();
            let n = s.peek(Server, from, 9, |part| {
                all.extend_from_slice(part);
                Ok::<_, Error>(part.len())
            });
            assert_eq!(n, Ok(all.len()));
            all
        };
        assert_eq!([peek(0), peek(1)], [b"ab".to_vec(), b"b".to_vec()]);
        assert_eq!(peek(2), if inline { b"!cd".to_vec() } else { b"cd".to_vec() });
        assert_eq!([peek(3), peek(4)], [b"cd".to_vec(), b"d".to_vec()]);
    }
}

#[test]
fn a_low_water_mark_holds_readers_back_until_the_end() {
    let mut s = stream();
    s.set_low_water(Server, 3);
    let _ = send(&mut s, Client, b"ab").unwrap();
    assert!(!s.readiness(Server, usize::MAX).contains(Ready::IN));
    assert_eq!(read(&mut s, Server, 9).unwrap(), None);
    let _ = s.shutdown(Client, false, true);
    assert_eq!(read(&mut s, Server, 9).unwrap().unwrap(), b"ab");
}

#[test]
fn short_memory_leaves_a_connection_one_buffer() {
    let mut s = LoopStream::new((1 << 20, 1 << 20), (1 << 20, 1 << 20));
    assert_eq!(s.room(Client, crate::buffer::LARGE), Ok(crate::buffer::LARGE));
    for _ in 0..2 {
        let _ = send(&mut s, Client, &vec![0; 40_000]).unwrap();
    }
    assert_eq!(s.room(Client, crate::buffer::LARGE), Ok(0));
    assert_eq!(s.close(Server, false).freed, 80_000);
}
