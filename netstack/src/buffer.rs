//! Buffers that travel through queues, and the pool that they come from and go back to.
//!
//! A buffer's bytes are always initialised, so that one that comes from the pool is filled without being cleared first.

/// Bytes of a small and of a large buffer.
pub const SMALL: usize = 4096;
pub const LARGE: usize = 64 * 1024;

/// Buffers that the pool keeps of each size.
const KEPT_SMALL: usize = 256;
const KEPT_LARGE: usize = 64;

/// Buffers that wait to be used again.
#[derive(Debug, Default)]
pub struct BufferPool {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

impl BufferPool {
    /// A buffer of the smallest size that holds `want` bytes, or of the largest size. `None`: make one with
    /// [`BufferPool::fresh`], outside the lock.
    pub fn get(&mut self, want: usize) -> Option<Vec<u8>> {
        if want <= SMALL { self.small.pop() } else { self.large.pop() }
    }

    /// A new buffer as [`BufferPool::get`] gives them.
    pub fn fresh(want: usize) -> Vec<u8> {
        vec![0; if want <= SMALL { SMALL } else { LARGE }]
    }

    /// Takes a buffer back.
    pub fn put(&mut self, buffer: Vec<u8>) {
        match buffer.len() {
            SMALL if self.small.len() < KEPT_SMALL => self.small.push(buffer),
            LARGE if self.large.len() < KEPT_LARGE => self.large.push(buffer),
            _ => {}
        }
    }
}

/// Bytes on their way: part of a buffer.
#[derive(Debug, Default)]
pub struct Chunk {
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl Chunk {
    /// The first `len` bytes of `buffer`.
    pub fn new(buffer: Vec<u8>, len: usize) -> Self {
        let end = len.min(buffer.len());
        Self { buffer, at: 0, end }
    }

    pub fn len(&self) -> usize {
        self.end - self.at
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.at..self.end).unwrap_or_default()
    }

    /// Drops up to `n` bytes from the front.
    pub fn consume(&mut self, n: usize) {
        self.at += n.min(self.len());
    }

    /// Appends `data` where all of it fits behind the bytes that are there.
    pub(crate) fn append(&mut self, data: &[u8]) -> bool {
        match self.buffer.get_mut(self.end..self.end + data.len()) {
            Some(room) => {
                room.copy_from_slice(data);
                self.end += data.len();
                true
            }
            None => false,
        }
    }

    /// The buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}
