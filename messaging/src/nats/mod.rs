//! The bus and the registry over a NATS server (2.11 or newer, with JetStream).
//!
//! Nothing of the data path waits for the server: what is published lies in an outbox, what is
//! registered in the keeper's hands, and what is known of the others in a table that stays as it is
//! while the server is away.

mod asker;
mod bucket;
mod bus;
mod dial;
mod error;
mod forward;
mod keeper;
mod link;
mod mirror;
mod options;
mod outbox;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

pub(crate) use bus::NatsBus;
pub use error::NetworkError;
pub(crate) use forward::RemoteReply;
pub(crate) use keeper::Keeper;
pub(crate) use link::Link;
pub use link::NetworkCounters;
pub use options::NatsOptions;

use crate::table::Table;
use asker::Asker;
use bucket::Bucket;

/// All that runs over one connection.
pub(crate) struct Connected {
    pub bus: NatsBus,
    pub keeper: Keeper,
    pub table: Table,
    pub link: Arc<Link>,
}

/// Connects, checks that the server will do, and reads who is there.
pub(crate) async fn connect(options: NatsOptions) -> Result<Connected, NetworkError> {
    let deadline = Instant::now() + options.connect_timeout;
    let link = Arc::new(dial::dial(&options, deadline).await?);
    let wire = link.wire();
    let bucket = Bucket::new(wire.client.clone(), &options);
    dial::check(wire, &bucket, deadline).await?;
    let asker = Asker::start(wire).await;
    let table = Table::default();
    let (mirror, ready) = mirror::start(wire.clone(), bucket.clone(), table.clone());
    if timeout_at(deadline, ready).await.is_err() {
        return Err(NetworkError::Bucket {
            address: wire.address.to_string(),
            bucket: bucket.name().to_string(),
            reason: "its entries do not arrive; check what this user may do".to_string(),
        });
    }
    let keeper = Keeper::start(&link, asker.clone(), bucket, mirror);
    let bus = NatsBus::start(&link, asker, &options.cluster);
    Ok(Connected { bus, keeper, table, link })
}

/// Waits until the server has what was published and registered; false where it did not within
/// `timeout`.
pub(crate) async fn flush(bus: &NatsBus, keeper: &Keeper, timeout: Duration) -> bool {
    let flushed = async {
        keeper.flushed().await;
        bus.flushed().await;
    };
    tokio::time::timeout(timeout, flushed).await.is_ok()
}
