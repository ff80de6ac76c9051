//! `stator gateway`: the OpenAI API of a cluster.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use gateway::{Gateway, GatewayConfig};
use telemetry::Metrics;
use tokio_util::sync::CancellationToken;

use crate::addresses::{self, Protection};
use crate::cli::{GatewayArgs, TestDefect};
use crate::cluster;
use crate::error::CommandError;
use crate::observe;
use crate::signals::Signals;

/// Why an API must not be open to anyone.
pub const OPEN_API: &str = "the API asks for no keys: anyone who reaches it may use it";

/// Runs a gateway until a signal ends it, then lets running requests end.
pub async fn command(arguments: GatewayArgs) -> Result<(), CommandError> {
    let mut signals = Signals::listen()?;
    let GatewayArgs { component, listen, clients, tls } = arguments;
    let name = cluster::name(component.name.as_deref(), "gateway")?;
    // TLS is between components: the API itself is plain HTTP.
    let protection = Protection { insecure: component.insecure, client_certificates: false };
    addresses::check("--listen", listen, protection, OPEN_API)?;
    let data_plane = cluster::connecting(&tls)?;
    let listener = addresses::bind("--listen", listen).await?;
    let network = tokio::select! {
        joined = cluster::join(&component.nats, &component.login, &name, data_plane) => joined?,
        () = signals.next() => return Ok(()),
    };

    let address = listener.local_addr()?;
    let grace = Duration::from_secs(component.drain_timeout);
    let breaks_migration = component.test_defect == Some(TestDefect::BrokenMigration);
    let config = GatewayConfig { grace, breaks_migration, ..clients.limits() };
    let metrics = Metrics::new();
    observe::network(&metrics, &network);
    let gateway = Gateway::new(config, network.clone());
    let gateway = Arc::new(gateway.with_routes(telemetry::metrics_route(&metrics)));
    observe::gateway(&metrics, &gateway);
    let stop = CancellationToken::new();
    let (serving, stopping) = (gateway, stop.clone());
    let mut running = tokio::spawn(async move { serving.serve(listener, stopping).await });
    let text = format!("gateway {name} ready\n  API   http://{address}/v1\n");
    let _closed = std::io::stdout().write_all(text.as_bytes());
    tokio::select! {
        () = signals.next() => {}
        ended = &mut running => return Err(CommandError::of_task("the gateway", ended)),
    }
    cluster::end_at_next(signals);
    stop.cancel();
    running.await.map_err(|error| CommandError::of_task("the gateway", Err(error)))?;
    cluster::leave(&network).await;
    Ok(())
}
