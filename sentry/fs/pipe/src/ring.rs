//! A byte ring that grows on demand: the data of a pipe.

use sentry_base::Result;

/// The first allocation, in bytes.
const FIRST: usize = 4096;

/// Bytes in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    buf: Vec<u8>,
    head: usize,
    len: usize,
}

impl Ring {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `more` bytes past those held.
    fn reserve(&mut self, more: usize) {
        let need = self.len + more;
        if need > self.buf.len() {
            let mut grown = Vec::with_capacity(need.next_power_of_two().max(FIRST));
            let (a, b) = self.parts(self.len);
            grown.extend_from_slice(a);
            grown.extend_from_slice(b);
            grown.resize(grown.capacity(), 0);
            self.buf = grown;
            self.head = 0;
        }
    }

    /// The first `n` bytes, as at most two pieces.
    fn parts(&self, n: usize) -> (&[u8], &[u8]) {
        let n = n.min(self.len);
        let first = n.min(self.buf.len() - self.head);
        (
            self.buf.get(self.head..self.head + first).unwrap_or_default(),
            self.buf.get(..n - first).unwrap_or_default(),
        )
    }

    /// Appends up to `n` bytes that `source` writes into the pieces it is given. A short answer ends it; an error counts
    /// only before the first byte.
    pub(crate) fn push_with(
        &mut self,
        n: usize,
        mut source: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<usize> {
        self.reserve(n);
        let size = self.buf.len();
        let mut moved = 0;
        while moved < n {
            let at = (self.head + self.len) % size;
            let want = (n - moved).min(size - at);
            let Some(part) = self.buf.get_mut(at..at + want) else { break };
            match source(part) {
                Ok(got) => {
                    let got = got.min(want);
                    self.len += got;
                    moved += got;
                    if got < want {
                        break;
                    }
                }
                Err(e) if moved == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(moved)
    }

    /// Puts `data` before everything else.
    pub(crate) fn push_front(&mut self, data: &[u8]) {
        self.reserve(data.len());
        let size = self.buf.len().max(1);
        self.head = (self.head + size - data.len()) % size;
        self.len += data.len();
        let first = data.len().min(size - self.head);
        let (a, b) = data.split_at(first);
        if let Some(to) = self.buf.get_mut(self.head..self.head + a.len()) {
            to.copy_from_slice(a);
        }
        if let Some(to) = self.buf.get_mut(..b.len()) {
            to.copy_from_slice(b);
        }
    }

    /// Shows up to `n` bytes from the front to `sink`, under the rules of [`Ring::push_with`]; they stay.
    pub(crate) fn peek_with(&self, n: usize, mut sink: impl FnMut(&[u8]) -> Result<usize>) -> Result<usize> {
        let (a, b) = self.parts(n);
        let moved = sink(a)?;
        if moved < a.len() || b.is_empty() {
            return Ok(moved);
        }
        match sink(b) {
            Ok(more) => Ok(moved + more),
            Err(e) if moved == 0 => Err(e),
            Err(_) => Ok(moved),
        }
    }

    /// Drops `n` bytes from the front.
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.len -= n;
        // An empty ring starts over, so that small transfers stay in the same cache lines.
        self.head = if self.len == 0 { 0 } else { (self.head + n) % self.buf.len().max(1) };
    }

    /// Forgets everything and the memory it took.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
