//! Frames from a link: headers, fragments, questions of neighbours, words of routers, segments for connections in every
//! state, urgent data that they tell of included; and filters of packet sockets over them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::Chunk;
use netstack::asker::Asker;
use netstack::bpf::{Instruction, Program, View};
use netstack::flow::{Settings, TcpFlow, Tuple};
use netstack::frame::{Arrived, Frame};
use netstack::icmp;
use netstack::iface::Interfaces;
use netstack::neighbor::{Arp, Discovery, Neighbors};
use netstack::packet::{Header, Packet, Reassembler, TCP};
use netstack::router::Advertisement;
use netstack::stream::{End, LoopStream, Taken};
use netstack::table::{FlowTable, Segment, reset_for, tuple_of};

const BUFFER: usize = 4096;
const SETTINGS: Settings = Settings { mtu: 1500, hops: 64, no_delay: false, keep_alive: None };

/// A segment that is for a connection, and not far from what that expects: it says the rest.
fn near(flow: &TcpFlow, piece: &[u8]) -> Option<Frame> {
    let ([a, b, flags, c, d, window], data) = piece.split_first_chunk()?;
    let Tuple { local, remote } = flow.tuple();
    let (ours, expected) = flow.next_numbers();
    let ahead = i32::from(i16::from_le_bytes([*a, *b])).cast_unsigned();
    let mut segment = Vec::new();
    segment.extend_from_slice(&remote.port().to_be_bytes());
    segment.extend_from_slice(&local.port().to_be_bytes());
    segment.extend_from_slice(&expected.wrapping_add(ahead).to_be_bytes());
    segment.extend_from_slice(&ours.to_be_bytes());
    segment.extend_from_slice(&[5 << 4, flags & 63, *window, 0, 0, 0, *c, *d]);
    segment.extend_from_slice(data);
    let header = Header {
        from: remote.ip(),
        to: local.ip(),
        protocol: TCP,
        hops: 64,
        class: 0,
        id: 0,
        dont_fragment: true,
    };
    header.frames(&segment, 65_535)?.pop()
}

/// Gives a flow a packet, and moves bytes both ways.
fn step(flow: &mut TcpFlow, stream: &mut LoopStream, packet: &[u8], piece: &[u8], now: u64) {
    let mut out = Vec::new();
    flow.arrive(packet, now, &mut out);
    if let Some(mark) = flow.take_urgent() {
        let _ = stream.announce_urgent(End::Server, mark);
    }
    flow.send(&piece[..piece.len().min(100)]);
    if piece.len() % 3 == 0 {
        flow.send_urgent(now / 10_000);
    }
    flow.advance(now, &mut out);
    let mut bytes = vec![0; 64];
    let got = flow.receive(&mut bytes);
    let _ = stream.push(End::Server, Chunk::new(bytes, got));
    let _ = stream.take_urgent(End::Client, piece.len() % 2 == 0);
    if let Ok(Taken::Chunk { chunk, limit }) = stream.take(End::Client, piece.len() % 5 == 0, 1) {
        let _ = stream.give_back(End::Client, chunk, limit.min(piece.len()));
    }
    let _ = (stream.at_mark(End::Client), stream.readable(End::Client));
    if flow.is_finished() {
        flow.close();
    }
}

fuzz_target!(|data: &[u8]| {
    let tuple = Tuple { local: "10.0.0.1:80".parse().unwrap(), remote: "10.0.0.2:1000".parse().unwrap() };
    let mut out = Vec::new();
    let mut server = TcpFlow::accept(tuple, 7, BUFFER, &SETTINGS, 0).unwrap();
    let mut client = TcpFlow::connect(tuple, 7, BUFFER, &SETTINGS, 0).unwrap();
    client.advance(0, &mut out);
    let mut partial = Reassembler::default();
    let mut table = FlowTable::<()>::default();
    table.rest(tuple, 1, 1, 0);
    let mut neighbors = Neighbors::default();
    let mut interfaces = Interfaces::default();
    let mut filter = None;
    let mut now = 0;
    // What the sockets of both flows have received.
    let mut streams = [(); 2].map(|()| LoopStream::new((1 << 20, 1 << 20), (1 << 20, 1 << 20)));
    // Each piece of the input is a frame, after two bytes of its length.
    let mut rest = data;
    while let [a, b, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*a, *b]) & 0xfff).min(tail.len());
        let (piece, tail) = tail.split_at(len);
        rest = tail;
        now += 1_000_000;
        if let Some(program) = &filter {
            let view = View {
                frame: piece,
                start: 14,
                network: 14,
                protocol: 0x800,
                kind: 0,
                interface: 1,
                hardware: 1,
            };
            let _ = Program::run(program, &view);
        }
        let list = piece.chunks_exact(8).map(|one| Instruction {
            code: u16::from_le_bytes([one[0], one[1]]),
            jt: one[2],
            jf: one[3],
            k: u32::from_le_bytes([one[4], one[5], one[6], one[7]]),
        });
        filter = Program::check(list.collect()).or(filter);
        for (flow, stream) in [&mut server, &mut client].into_iter().zip(&mut streams) {
            if let Some(frame) = near(flow, piece) {
                step(flow, stream, frame.packet(), piece, now);
            }
        }
        let Some(frame) = Arrived::parse(piece) else { continue };
        let _ = Asker::parse(frame.packet);
        if let Some(arp) = Arp::parse(frame.packet) {
            neighbors.learn(1, arp.sender.1.into(), arp.sender.0, arp.is_question, now, &mut Vec::new());
        }
        let Some(packet) = Packet::parse(frame.packet) else { continue };
        let _ = packet.is_intact();
        let _ = partial.join(&packet, now);
        let _ = Discovery::parse(packet.payload);
        if let Some(said) = Advertisement::parse(packet.payload) {
            said.apply(&mut interfaces, 1, std::net::Ipv6Addr::LOCALHOST);
        }
        let _ = icmp::reply_v4(packet.payload);
        let _ = reset_for(&packet);
        if let Some(segment) = Segment::parse(packet.payload) {
            let _ = table.orphan(&tuple_of(&packet, &segment), &segment, now);
        }
        // Whoever it is from: the flows are given what their table would give them, and worse.
        for (flow, stream) in [&mut server, &mut client].into_iter().zip(&mut streams) {
            step(flow, stream, packet.whole, piece, now);
        }
    }
});
