//! Device files: null and its kin, random numbers, terminals, the devpts file system, and the contents of `/dev`.
//!
//! **Invariants.** A device is opened by its number alone, whatever node it is reached through ([`Devices`]). A terminal
//! lives while its far side does; once that is gone its open files answer as hung up, for good. Signals of a terminal
//! are sent after its lock is released.
//!
//! **Lock ranks:** a terminal's state is `FileData` 50; the registry and attributes are leaves. No user copy is made
//! under a terminal's lock.
//!
//! **Threat.** Both sides of a terminal may be hostile: input, echo and output buffers are bounded, and no byte may be
//! typed on behalf of a user (`TIOCSTI`).

mod devices;
mod devpts;
mod mem;
mod populate;
mod tty;

pub use devices::Devices;
pub use devpts::{DevPts, DevPtsType};
pub use mem::is_zero;
pub use populate::populate;
pub use tty::{HostSide, MasterFile, PTS_MAJOR, Terminals, Tty, TtyFile};
