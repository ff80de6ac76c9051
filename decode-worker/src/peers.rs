//! Connections to prefill workers, made when first needed and kept.

use std::collections::HashMap;

use messaging::{ConnectError, DataPlane};
use parking_lot::Mutex;
use protocol::v1::prefill_client::PrefillClient;
use tonic::transport::Channel;

/// Connections kept; at the limit all are let go and made anew as needed.
const CONNECTIONS_MAX: usize = 1024;

/// The prefill workers this worker has called.
pub struct Peers {
    data_plane: DataPlane,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    /// No connections.
    pub fn new(data_plane: DataPlane) -> Self {
        Self { data_plane, channels: Mutex::default() }
    }

    /// A client for the worker at an endpoint. Endpoints name one life of a worker.
    pub async fn client(&self, endpoint: &str) -> Result<PrefillClient<Channel>, ConnectError> {
        let known = self.channels.lock().get(endpoint).cloned();
        if let Some(channel) = known {
            return Ok(PrefillClient::new(channel));
        }
        let channel = self.data_plane.connect(endpoint).await?;
        let mut channels = self.channels.lock();
        if channels.len() >= CONNECTIONS_MAX {
            channels.clear();
        }
        channels.insert(endpoint.to_string(), channel.clone());
        Ok(PrefillClient::new(channel))
    }

    /// Lets a connection go that failed.
    pub fn forget(&self, endpoint: &str) {
        self.channels.lock().remove(endpoint);
    }
}
