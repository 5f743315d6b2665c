//! Files at hand: an open file of which a context answers the usual questions by itself.

/// The calls that a context may answer for a file at hand: `fstat(2)` by either name, `read(2)`, `pread64(2)`, `lseek(2)` to a
/// number, `ioctl(2)` with `TCGETS`, and `close(2)`.
pub const HAND_CALLS: [i64; 7] = [
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_ioctl,
];

/// The most bytes of a file that are kept at hand.
pub const HAND_BYTES: usize = 32 * 1024;

/// A regular file that is open, and whose position nobody else moves.
#[derive(Debug, Clone, Copy)]
pub struct HandFile<'a> {
    /// Its descriptor, which nothing but calls of the same thread can take from it.
    pub fd: u32,
    /// `struct stat` as `fstat(2)` gives it, if the file is open for reading and neither bytes nor attributes change in an
    /// epoch. Empty for any other, of which only the position is known.
    pub stat: &'a [u8],
    pub position: u64,
    /// Bytes of the whole file.
    pub size: u64,
    pub piece: HandPiece<'a>,
    /// The epoch ([`crate::Platform::file_epoch`]) for which this holds.
    pub epoch: u64,
    /// The application may close it too, which is then to be done when the context is at rest.
    pub may_close: bool,
}

/// A piece of a file at hand.
#[derive(Debug, Clone, Copy, Default)]
pub struct HandPiece<'a> {
    /// Where it starts in the file.
    pub start: u64,
    /// At most [`HAND_BYTES`].
    pub bytes: &'a [u8],
}

/// What a context has answered since it was asked last. The application can falsify it: it says no more than what the
/// application could have done by calls of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandUse {
    pub calls: u32,
    pub reads: u32,
    pub read_bytes: u64,
}

/// The place for a file at hand of one context. Each file that is put there has a number; what is asked of another number
/// than the present one's is answered as if there were no file.
pub trait AtHand: Send + Sync {
    /// Puts a file there instead of what is there, and gives its number. The context is at rest.
    fn put(&self, file: &HandFile<'_>) -> u64;

    /// Moves the position of the file that is there, and has what is known hold for this epoch. The context is at rest.
    fn renew(&self, number: u64, position: u64, epoch: u64);

    /// Puts another piece of the file there. The context is at rest.
    fn put_piece(&self, number: u64, piece: HandPiece<'_>);

    /// Where the application's reads have come to; no more than a file may have. From any thread.
    fn position(&self, number: u64) -> Option<u64>;

    /// Whether the application has closed the file. From any thread.
    fn is_closed(&self, number: u64) -> bool;

    /// Has the application ask the Sentry from now on, while [`AtHand::position`] goes on telling of an answer that is under
    /// way. From any thread.
    fn revoke(&self, number: u64);

    /// What was answered since the last call. The context is at rest.
    fn take_use(&self, number: u64) -> HandUse;

    /// Takes the file away. The context is at rest.
    fn clear(&self, number: u64);
}

impl std::fmt::Debug for dyn AtHand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtHand")
    }
}
