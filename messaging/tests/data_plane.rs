//! Connections of both kinds: who reaches whom, what a failure says, what ends when.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use axum::routing::get;
use messaging::{ConnectError, DataPlane, TcpOptions, TlsFiles};
use testkit::Certificates;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Channel;
use tower::ServiceExt;

/// No wait of these tests is meant to take this long.
const DEADLINE: Duration = Duration::from_secs(20);

/// Serves until it is aborted; answers calls of `/`.
async fn serve(data_plane: &DataPlane) -> (String, JoinHandle<()>) {
    let incoming = data_plane.listen("worker/1").await.unwrap();
    let endpoint = incoming.endpoint().to_string();
    let routes = Routes::from(axum::Router::new().route("/", get(|| async { "here" })));
    let server = data_plane.server().add_routes(routes);
    (endpoint, tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() }))
}

async fn call(channel: &Channel) -> Result<(), tonic::transport::Error> {
    let request = axum::http::Request::get("/").body(Body::empty()).unwrap();
    let response = channel.clone().oneshot(request).await?;
    assert_eq!(response.status(), 200);
    Ok(())
}

fn tcp() -> DataPlane {
    DataPlane::tcp(TcpOptions::default()).unwrap()
}

#[tokio::test]
async fn a_listener_is_reached_until_it_is_dropped_and_its_connections_end_with_it() {
    for data_plane in [DataPlane::default(), tcp()] {
        let (endpoint, server) = serve(&data_plane).await;
        let channel = data_plane.connect(&endpoint).await.unwrap();
        call(&channel).await.unwrap();
        server.abort();
        let ended = async {
            while call(&channel).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, ended).await.expect("the old connection is cut");
        let refused = data_plane.connect(&endpoint).await.unwrap_err().to_string();
        assert!(refused.starts_with(&format!("cannot connect to {endpoint}: ")), "{refused}");
    }
}

#[tokio::test]
async fn each_listener_over_tcp_has_a_port_of_its_own_and_the_host_it_is_told() {
    let advertise = Some("localhost".to_string());
    let data_plane = DataPlane::tcp(TcpOptions { advertise, ..Default::default() }).unwrap();
    let (one, _server) = serve(&data_plane).await;
    let (other, _server) = serve(&data_plane).await;
    assert_ne!(one, other);
    for endpoint in [one, other] {
        assert!(endpoint.starts_with("localhost:"), "{endpoint}");
        call(&data_plane.connect(&endpoint).await.unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn who_listens_everywhere_must_say_where_it_is_reached() {
    let listen = "0.0.0.0:0".parse().unwrap();
    let data_plane = DataPlane::tcp(TcpOptions { listen, ..Default::default() }).unwrap();
    let refused = data_plane.listen("worker/1").await.err().unwrap();
    assert_eq!(refused.to_string(), "listening on all addresses needs one to advertise");
}

/// The refusal, which must have come in time and say all of `parts`.
#[track_caller]
fn check_refused(connected: Result<Channel, ConnectError>, began: Instant, part: &str) {
    let refused = connected.map(drop).unwrap_err().to_string();
    assert!(refused.contains(part), "{refused:?} does not say {part:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{refused} after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_counts_once_the_other_side_has_spoken() {
    // Accepted by the system, as for a process that is stopped; nobody ever says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let began = Instant::now();
    let connected = tcp().connect(&silent.local_addr().unwrap().to_string()).await;
    check_refused(connected, began, "no answer within 2 s");
    for (endpoint, part) in
        [("nowhere", "invalid socket address"), ("a b:1", "of the form host:port")]
    {
        check_refused(tcp().connect(endpoint).await, Instant::now(), part);
    }
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_by_both_sides() {
    let (endpoint, _server) = serve(&tcp()).await;
    let (proxy, stop) = silenced_proxy(endpoint).await;
    let channel = tcp().connect(&proxy).await.unwrap();
    call(&channel).await.unwrap();
    let server_closed = stop.await.unwrap();
    let began = Instant::now();
    // No new connection can be made, so that this is an error, and not a second attempt.
    tokio::time::timeout(DEADLINE, call(&channel)).await.expect("an error in time").unwrap_err();
    tokio::time::timeout(DEADLINE, server_closed).await.expect("closed in time").unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// A proxy for one connection, which stops carrying anything once the first answer has passed, and
/// then gives a task that ends when the server closes its side.
// A task that gives a task: the two ends are waited for one after the other.
#[allow(clippy::async_yields_async)]
async fn silenced_proxy(target: String) -> (String, JoinHandle<JoinHandle<()>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let proxy = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut server = tokio::net::TcpStream::connect(target).await.unwrap();
        let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut answered = false;
        while !answered {
            tokio::select! {
                read = client.read(&mut up) => server.write_all(&up[..read.unwrap()]).await.unwrap(),
                read = server.read(&mut down) => {
                    let bytes = &down[..read.unwrap()];
                    answered = bytes.windows(4).any(|window| window == b"here");
                    client.write_all(bytes).await.unwrap();
                }
            }
        }
        tokio::spawn(async move {
            let _held_open_and_never_read = client;
            while server.read(&mut down).await.is_ok_and(|bytes| bytes > 0) {}
        })
    });
    (address, proxy)
}

/// A data plane that shows what `certificate` signed and believes what `authority` signed.
fn plane(files: &Certificates, certificate: Option<&str>, authority: Option<&str>) -> DataPlane {
    let chain_and_key =
        |name: &str| (files.path(format!("{name}-chain")), files.path(format!("{name}-key")));
    let tls = TlsFiles {
        certificate: certificate.map(chain_and_key),
        authority: authority.map(|name| files.path(format!("{name}-ca"))),
    };
    DataPlane::tcp(TcpOptions { tls: Some(tls), ..Default::default() }).unwrap()
}

#[tokio::test]
async fn tls_lets_in_who_shows_what_it_must_and_says_why_not() {
    let files = Certificates::new(&["ours", "theirs"]);
    let mutual = plane(&files, Some("ours"), Some("ours"));
    let (endpoint, _server) = serve(&mutual).await;
    call(&mutual.connect(&endpoint).await.unwrap()).await.unwrap();

    let refused = [
        (plane(&files, None, Some("ours")), "refuses this component's TLS certificate"),
        (plane(&files, Some("theirs"), Some("ours")), "refuses this component's TLS certificate"),
        (plane(&files, Some("ours"), Some("theirs")), "its TLS certificate is not accepted"),
        (tcp(), "it speaks TLS and this component does not"),
    ];
    for (client, part) in refused {
        check_refused(client.connect(&endpoint).await, Instant::now(), part);
    }
    let (plain, _server) = serve(&tcp()).await;
    check_refused(mutual.connect(&plain).await, Instant::now(), "it does not speak TLS");

    let (one_sided, _server) = serve(&plane(&files, Some("ours"), None)).await;
    let without_certificate = plane(&files, None, Some("ours"));
    call(&without_certificate.connect(&one_sided).await.unwrap()).await.unwrap();
    let cannot_listen = without_certificate.listen("worker/1").await.err().unwrap().to_string();
    assert_eq!(cannot_listen, "listening with TLS needs a certificate and its key");
}

#[test]
fn tls_files_that_cannot_be_used_are_named() {
    let files = Certificates::new(&["ours", "theirs"]);
    files.write("empty", "");
    let path = |name: &str| files.path(name);
    let both = |chain, key| Some((path(chain), path(key)));
    let cases = [
        (both("missing", "ours-key"), None, "missing"),
        (both("ours-chain", "empty"), None, "empty"),
        (both("empty", "ours-key"), None, "empty"),
        (both("ours-chain", "theirs-key"), None, "theirs-key"),
        (None, Some(path("empty")), "empty"),
    ];
    for (certificate, authority, name) in cases {
        let tls = Some(TlsFiles { certificate, authority });
        let refused = DataPlane::tcp(TcpOptions { tls, ..Default::default() }).err().unwrap();
        let expected = format!("cannot use the TLS file {}: ", Path::display(&path(name)));
        assert!(refused.to_string().starts_with(&expected), "{refused}");
    }
}
