//! How a worker stands to its cluster: for whoever runs it, and for what serves its requests.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whether a worker is registered, and whether it is about to leave.
pub struct Presence {
    address: watch::Sender<Option<String>>,
    draining: CancellationToken,
}

impl Presence {
    pub(crate) fn new() -> Self {
        Self { address: watch::Sender::new(None), draining: CancellationToken::new() }
    }

    pub(crate) fn set_registered(&self, address: String) {
        self.address.send_replace(Some(address));
    }

    /// Waits until the worker is in the registry. Returns where it listens: an address, or its name
    /// in process.
    pub async fn registered(&self) -> String {
        let mut address = self.address.subscribe();
        match address.wait_for(Option::is_some).await {
            Ok(address) => address.clone().unwrap_or_default(),
            // The sender is this presence itself.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether the worker is in the registry and takes requests.
    pub fn is_ready(&self) -> bool {
        self.address.borrow().is_some() && !self.is_draining()
    }

    /// From now on the worker's registration says that it takes nothing new, and it refuses what
    /// comes all the same. What it has goes on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether the worker is about to leave, and takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until the worker is about to leave.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }
}
