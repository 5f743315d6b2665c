//! The messages between the `casemate` command and the Sentry.
//!
//! One `SOCK_SEQPACKET` pair joins the two. The command sends one [`Boot`] message with the descriptors that it
//! names, then signals and window sizes. The Sentry answers [`Event::Ready`] or [`Event::Failed`], and at the end
//! [`Event::Exited`]. The end of the stream on either side means that the peer is gone: the Sentry then leaves.
//!
//! Commands that come later connect to a socket that the Sentry listens on, and send one [`Request`] each. After
//! [`Request::Exec`] the connection is to the new process what the first one is to init.
//!
//! **Invariants.** A message is JSON of at most [`MAX_MESSAGE`] bytes. The boot message is longer: it travels in a
//! sealed memfd of at most [`MAX_BOOT`] bytes.
//!
//! **Threat.** The Sentry may be taken over by its guest. What it sends is parsed by a bounded, memory-safe parser,
//! and used as numbers and as text to show, never as a path or a command.

mod boot;
mod channel;
mod event;
mod network;
mod request;
mod text;
mod timing;

pub use boot::*;
pub use channel::{Channel, ChannelError, MAX_BOOT, MAX_MESSAGE};
pub use event::*;
pub use network::{Address, Link, MAX_LINKS, Network, Route};
pub use request::*;
pub use text::Text;
pub use timing::Stopwatch;
