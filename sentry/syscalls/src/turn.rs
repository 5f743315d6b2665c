//! Letting other tasks have the worker.

use core::task::Poll;

/// Bytes that one call moves before other tasks have a turn.
pub const PIECE: u64 = 512 << 10;

/// Goes to the end of the run queue.
pub async fn give_up() {
    let mut yielded = false;
    core::future::poll_fn(|waker| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        waker.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How long a call has had the worker.
pub struct Turn {
    began_at: u64,
}

impl Turn {
    pub fn new() -> Self {
        Self { began_at: 0 }
    }

    /// The call has moved so many bytes in all: enough for one turn?
    pub async fn took(&mut self, moved: u64) {
        if moved - self.began_at >= PIECE {
            self.began_at = moved;
            give_up().await;
        }
    }
}
