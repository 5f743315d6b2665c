//! End-to-end tests of the `casemate` binary: real programs in real root filesystems, seen from outside.
//!
//! Every test has a directory, a state root and IDs of its own; every command runs under a supervisor with a time
//! limit and fails the test when it leaves a process behind. No test looks at what the machine does besides.
//! `CASEMATE_TEST_LONG=1` asks for the long forms.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests stop with a panic when what they rely on is not so"
)]
#![allow(
    clippy::format_collect,
    clippy::format_push_string,
    reason = "brevity counts for more than speed here"
)]

mod attacks;
mod common;
mod configuration;
mod cycles;
mod deaths;
mod debugger;
mod exit;
mod fields;
mod files;
mod host_command;
mod host_network;
mod host_sockets;
mod hostile;
mod idle;
mod intrusion;
mod ipc;
mod jobs;
mod languages;
mod lifecycle;
mod links;
mod lower;
mod many;
mod namespaces;
mod net_attacks;
mod network;
mod notify;
mod outside;
mod packets;
mod pods;
mod posture;
mod rootless;
mod seccomp;
mod servers;
mod shell;
mod stress;
mod systemd;
mod terminal;
mod tools;
mod urgent;
