//! A value read once from memory that hostile code can write.

/// A value that came from memory which hostile code can write. It was fetched once; it must be checked before use.
#[derive(Clone, Copy)]
pub struct Untrusted<T>(T);

impl<T: Copy> Untrusted<T> {
    /// Wraps a value that was just fetched, once, from shared memory.
    pub fn fetched(value: T) -> Self {
        Self(value)
    }

    /// The value, if `ok` accepts it.
    pub fn check(self, ok: impl FnOnce(&T) -> bool) -> Option<T> {
        ok(&self.0).then_some(self.0)
    }

    /// The value where every bit pattern is as good as another (a register of the application itself).
    pub fn any(self) -> T {
        self.0
    }
}

impl<T> std::fmt::Debug for Untrusted<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Untrusted(..)")
    }
}
