//! What a gateway counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::Metrics;

/// What a gateway counts. Clones share the counts; the default is shown nowhere.
#[derive(Clone, Debug, Default)]
pub struct GatewayMetrics {
    /// Requests that were admitted and have not ended.
    pub requests_in_flight: Gauge,
    migrations: Family<[(&'static str, &'static str); 1], Counter>,
}

impl GatewayMetrics {
    /// Counts that `metrics` shows.
    pub fn registered(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.register(
            "stator_requests_in_flight",
            "Requests that were admitted and have not ended.",
            counts.requests_in_flight.clone(),
        );
        metrics.register(
            "stator_migrations",
            "Answers that another worker went on with, by why the first one could not.",
            counts.migrations.clone(),
        );
        counts
    }

    /// Counts one answer that another worker goes on with; `cause` is one of a few words.
    pub fn migrated(&self, cause: &'static str) {
        self.migrations.get_or_create(&[("cause", cause)]).inc();
    }
}
