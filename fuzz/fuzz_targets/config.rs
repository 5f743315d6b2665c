//! The reader of `config.json`: parser, checks, profiles of system calls, and the plan that is made of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| runtime::fuzzing::config(bytes));
