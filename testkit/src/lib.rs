//! Real servers for tests. Only tests depend on this crate.

mod binary;
mod nats;

pub use nats::{NatsServer, NatsSettings};
