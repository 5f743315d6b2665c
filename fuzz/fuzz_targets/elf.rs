//! The program loader's parsers: ELF headers, interpreters, `#!` lines, and the plan of a program's mappings.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sentry_loader::fuzz(bytes));
