//! Random bytes from the host's generator.

use crate::{Errno, Result};

/// Fills `buf` with random bytes of cryptographic quality (`getrandom(2)` of the host).
pub fn fill(buf: &mut [u8]) -> Result<()> {
    hostsys::random::fill(buf).map_err(|e| Errno::from_io(&e))
}

/// A random 64-bit number; zero only with the generator's own probability.
pub fn next_u64() -> u64 {
    let mut bytes = [0; 8];
    match fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => crate::mono_now(),
    }
}
