//! Hash maps for names and numbers that the application chooses: a fast hash under a random key.
//!
//! The key is drawn once from the host's generator and never leaves the process, and every map has a seed of its own,
//! so that nobody outside can prepare names that fall into one bucket.

use core::hash::BuildHasher;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use foldhash::SharedSeed;
use foldhash::quality::{FoldHasher, SeedableRandomState};

/// A map under the process's key.
pub type KeyedMap<K, V> = HashMap<K, V, KeyedState>;
/// A set under the process's key.
pub type KeyedSet<K> = HashSet<K, KeyedState>;

/// Makes the hashers of one map.
#[derive(Debug, Clone)]
pub struct KeyedState(SeedableRandomState);

impl Default for KeyedState {
    fn default() -> Self {
        static KEY: OnceLock<(SharedSeed, u64)> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (shared, first) =
            KEY.get_or_init(|| (SharedSeed::from_u64(crate::rand::next_u64()), crate::rand::next_u64()));
        // An odd step visits every number before it comes back to one.
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let seed = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(step));
        Self(SeedableRandomState::with_seed(seed, shared))
    }
}

impl BuildHasher for KeyedState {
    type Hasher = FoldHasher;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_find_what_they_hold_and_differ_in_their_keys() {
        let mut map: KeyedMap<std::sync::Arc<[u8]>, u32> = KeyedMap::default();
        for n in 0..1000_u32 {
            map.insert(std::sync::Arc::from(n.to_string().as_bytes()), n);
        }
        assert!((0..1000_u32).all(|n| map.get(n.to_string().as_bytes()) == Some(&n)));
        let (a, b) = (KeyedState::default(), KeyedState::default());
        assert!((0..8_u32).any(|n| a.hash_one(n) != b.hash_one(n)));
    }
}
