//! Real servers and certificates for tests. Only tests depend on this crate.

mod binary;
mod certificates;
mod nats;

pub use binary::nats_server_binary;
pub use certificates::Certificates;
pub use nats::{NatsServer, NatsSettings};
