//! `stator router`: says which workers a request goes to.

use std::io::Write;

use protocol::Incarnation;
use router::{Router, RouterIdentity};
use telemetry::Metrics;
use tokio_util::sync::CancellationToken;

use crate::cli::RouterArgs;
use crate::cluster;
use crate::error::CommandError;
use crate::observe;
use crate::signals::Signals;

/// Runs a router until a signal ends it, then answers what was asked already.
pub async fn command(arguments: RouterArgs) -> Result<(), CommandError> {
    let mut signals = Signals::listen()?;
    let RouterArgs { component, admin, tls } = arguments;
    let name = cluster::name(component.name.as_deref(), "router")?;
    let data_plane = cluster::connecting(&tls)?;
    let listener = observe::bind(&admin, component.insecure).await?;
    let network = tokio::select! {
        joined = cluster::join(&component.nats, &component.login, &name, data_plane) => joined?,
        () = signals.next() => return Ok(()),
    };

    let identity = RouterIdentity { id: name.clone(), incarnation: Incarnation::begin() };
    let router = Router::new(network.clone(), identity);
    let metrics = Metrics::new();
    observe::network(&metrics, &network);
    let core = router.core();
    observe::workers_known(&metrics, move || core.lock().workers().count());
    let core = router.core();
    metrics.gauge(
        "stator_prefill_workers_unpaired",
        "Prefill workers that hand prompts to nobody: no decode worker computes the same bits.",
        move || core.lock().unpaired_prefill_workers() as f64,
    );
    let stop = CancellationToken::new();
    let (still_here, connected) = (stop.clone(), network.clone());
    let ready = move || !still_here.is_cancelled() && connected.is_connected();
    let address = observe::serve(listener, &metrics, ready)?;
    let mut running = tokio::spawn(router.run(stop.clone()));
    let text = format!("router {name} ready\n  admin http://{address}\n");
    let _closed = std::io::stdout().write_all(text.as_bytes());
    tokio::select! {
        () = signals.next() => {}
        ended = &mut running => return Err(CommandError::of_task("the router", ended)),
    }
    stop.cancel();
    running.await.map_err(|error| CommandError::of_task("the router", Err(error)))?;
    cluster::leave(&network).await;
    Ok(())
}
