//! What applications may rely on: traps, mappings, threads, forks, kicks, copies.
#![allow(unsafe_code, reason = "reads the addresses of the code that is copied into guests")]

mod common;

use std::sync::Arc;

use common::*;
use platform::{Context, Platform, TrapEvent};
use platform_systrap::Systrap;

guest_code!(count_calls, "2: mov eax, 39\n syscall\n add rbx, rax\n jmp 2b");

fn system_calls_return_what_the_sentry_says(platform: &Arc<Systrap>) {
    let mut guest = Guest::new(platform, count_calls());
    guest.regs.rdi = 7;
    for turn in 0..1000 {
        assert_eq!(guest.syscall(), 39);
        assert_eq!(guest.regs.rbx, turn * 2);
        assert_eq!(guest.regs.rdi, 7);
        assert_eq!(guest.regs.rcx, guest.regs.rip);
        guest.regs.rax = 2;
    }
}

fn main() {
    run(&[("system_calls_return_what_the_sentry_says", system_calls_return_what_the_sentry_says)]);
}
