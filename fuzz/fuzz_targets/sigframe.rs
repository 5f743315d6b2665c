//! The reader of signal frames: what `rt_sigreturn` takes from a stack that the application has written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sentry_kernel::signal::fuzz(bytes));
