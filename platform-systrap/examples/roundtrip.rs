//! Times of the platform alone: a system call's round trip, map and unmap, fork, a switch between two threads.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::exit,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![allow(unsafe_code, reason = "reads the addresses of the code that is copied into guests")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::*;
use platform::{Kick, MapSource, Platform, Prot, Sharing};
use platform_systrap::{Options, Systrap};

guest_code!(calls, "2: mov eax, 39\n syscall\n jmp 2b");

fn timed(what: &str, turns: u32, mut act: impl FnMut()) {
    for _ in 0..turns / 10 {
        act();
    }
    let start = Instant::now();
    for _ in 0..turns {
        act();
    }
    println!("{what:40} {:9.0} ns", start.elapsed().as_nanos() as f64 / f64::from(turns));
}

fn main() {
    let platform = Systrap::new(Options::default()).expect("the platform starts");
    let mut guest = Guest::new(&platform, calls());
    timed("getpid, spinning", 100_000, || {
        guest.syscall();
    });
    guest.spin = false;
    timed("getpid, worker sleeps", 30_000, || {
        guest.syscall();
    });
    let at = range(0x9000_0000, 0x1000);
    let all = Prot::READ | Prot::WRITE;
    timed("map + unmap, anonymous", 10_000, || {
        guest.space.map(at, MapSource::Zero, all, Sharing::Private).expect("map");
        guest.space.unmap(at).expect("unmap");
    });
    let file = hostsys::memory::memfd(c"bench").expect("memfd");
    hostsys::memory::set_len(std::os::fd::AsFd::as_fd(&file), 0x1_0000).expect("size");
    timed("map, file", 10_000, || {
        let source = MapSource::File { file: std::os::fd::AsFd::as_fd(&file), offset: 0, writable: true };
        guest.space.map(at, source, all, Sharing::Shared).expect("map");
    });
    timed("protect", 10_000, || guest.space.protect(at, all).expect("protect"));
    let mut buffer = [0u8; 64];
    timed("copy in, 64 bytes", 100_000, || {
        guest.space.copy_in(DATA, &mut buffer, platform::FaultMode::Normal).expect("copy");
    });
    timed("fork", 1_000, || drop(guest.space.fork(&[], &[]).expect("fork")));
    timed("fork, first context, first call", 1_000, || {
        let child = guest.space.fork(&[], &[]).expect("fork");
        let mut child = Guest::on(&platform, child);
        child.syscall();
    });
    timed("new space, first context, map, call", 1_000, || {
        Guest::new(&platform, calls()).syscall();
    });
    timed("new thread (spare)", 10_000, || {
        platform.new_context(&guest.space).expect("context");
    });
    let mut held = Vec::new();
    timed("new thread", 1_000, || held.push(platform.new_context(&guest.space).expect("context")));
    let mut other = Guest::on(&platform, std::sync::Arc::clone(&guest.space));
    other.spin = false;
    timed("switch between two threads, sleeping", 10_000, || {
        guest.syscall();
        other.syscall();
    });
    let kicker: std::sync::Arc<dyn Kick> = guest.context.kicker();
    kicker.kick();
    platform.shutdown();
}
