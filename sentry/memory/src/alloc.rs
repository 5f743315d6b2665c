//! Which bytes of the memory file are free: best fit over merged ranges.

use std::collections::{BTreeMap, BTreeSet};

/// The free ranges. Never holds two that touch.
#[derive(Debug)]
pub(crate) struct FreeMap {
    /// Length by start.
    by_start: BTreeMap<u64, u64>,
    /// The same ranges as `(length, start)`.
    by_len: BTreeSet<(u64, u64)>,
}

impl FreeMap {
    pub fn new(size: u64) -> Self {
        let mut map = Self { by_start: BTreeMap::new(), by_len: BTreeSet::new() };
        map.insert(0, size);
        map
    }

    fn insert(&mut self, start: u64, len: u64) {
        if len > 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
        }
    }

    fn remove(&mut self, start: u64) -> Option<u64> {
        let len = self.by_start.remove(&start)?;
        self.by_len.remove(&(len, start));
        Some(len)
    }

    /// Takes `len` bytes, at `near` if they are free there (a file that grows stays in one piece), else from the
    /// smallest range that holds them.
    pub fn take(&mut self, len: u64, near: Option<u64>) -> Option<u64> {
        if len == 0 {
            return None;
        }
        let start = match near.filter(|n| self.by_start.get(n).is_some_and(|l| *l >= len)) {
            Some(start) => start,
            None => self.by_len.range((len, 0)..).next()?.1,
        };
        let had = self.remove(start)?;
        self.insert(start + len, had - len);
        Some(start)
    }

    /// Gives a range back and joins it with its free neighbours.
    pub fn give(&mut self, mut start: u64, mut len: u64) {
        if let Some((&before, &before_len)) = self.by_start.range(..start).next_back()
            && before + before_len == start
        {
            self.remove(before);
            start = before;
            len += before_len;
        }
        if let Some(after_len) = self.remove(start + len) {
            len += after_len;
        }
        self.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_fit_and_merge() {
        let mut map = FreeMap::new(100);
        assert_eq!(map.take(10, None), Some(0));
        assert_eq!(map.take(10, None), Some(10));
        assert_eq!(map.take(10, None), Some(20));
        map.give(10, 10);
        // The hole fits exactly, so it is preferred to the tail.
        assert_eq!(map.take(10, None), Some(10));
        assert_eq!(map.take(5, Some(30)), Some(30));
        map.give(0, 10);
        map.give(20, 10);
        map.give(10, 10);
        map.give(30, 5);
        assert_eq!(map.by_start.len(), 1);
        assert_eq!(map.take(100, None), Some(0));
        assert_eq!(map.take(1, None), None);
    }
}
