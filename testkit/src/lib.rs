//! Real servers for tests. Only tests depend on this crate.

mod binary;
mod nats;

pub use binary::nats_server_binary;
pub use nats::{NatsServer, NatsSettings};
