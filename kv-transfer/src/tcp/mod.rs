//! The tcp way: blocks between processes and hosts.
//!
//! A `Server` stands in the worker that has blocks and sends them from where they lie; `Connections`
//! stand in the worker that wants them and receive them where they belong. `wire` has the frames.
//!
//! What is bounded, and what happens at the bound:
//! - Bytes that a source sends on one connection: its credit, which it grants in its hello. A read
//!   of more is refused; a reader has reads under way for at most that many bytes.
//! - Bytes that a source sends, or a reader awaits, over all connections: `bytes_max` of the limits.
//!   At a source a read waits `CREDIT_WAIT_MAX`, then it is refused as busy; at a reader a pull waits
//!   within its deadline.
//! - Connections: a source refuses further ones as busy; a reader's pulls wait within their deadline.
//! - Time: each constant below says what it bounds. Whoever waits too long closes the connection,
//!   and with it goes whatever was pinned.

mod answer;
mod client;
mod connections;
mod failure;
mod server;
mod stream;
pub mod wire;

use std::time::Duration;

pub(crate) use client::batches;
pub use client::{Connection, Failure, Right};
pub(crate) use connections::Lender;
pub use connections::{Connections, ReaderLimits};
pub use server::{Sender, Server, ServerLimits, ServerStatus};
pub use stream::{Broken, Stream};

/// From the first packet to the source's hello.
pub const CONNECT_MAX: Duration = Duration::from_secs(1);

/// While bytes are due, at least one moves in this time; otherwise the other side counts as gone.
pub const PROGRESS_MAX: Duration = Duration::from_secs(1);

/// A read waits for this long at its source until others have been answered.
pub const CREDIT_WAIT_MAX: Duration = Duration::from_millis(500);

/// From the first byte of a `read` to its last, so that nobody holds a connection byte by byte.
pub const ASK_MAX: Duration = Duration::from_secs(5);

/// For how long one read, or one loan, may pin its blocks, at whatever pace it moves.
pub const READ_MAX: Duration = Duration::from_secs(10);

/// A source closes a connection on which nothing was asked for so long.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
