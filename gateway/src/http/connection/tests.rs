//! Clients that are slow, silent or no HTTP clients at all. The clock is simulated.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::routing::get;
use futures::stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::serve::serve as serve_all;
use super::*;

const GET: &[u8] = b"GET /short HTTP/1.1\r\n\r\n";

/// `/short` is answered at once, `/endless` with as much as the client takes, `/slow` every 20 s.
/// `left` is closed when an endless answer is given up.
fn app() -> (Router, oneshot::Receiver<()>) {
    let (leaving, left) = oneshot::channel::<()>();
    let leaving = Arc::new(parking_lot::Mutex::new(Some(leaving)));
    let endless = move || async move {
        let kept = leaving.lock().take();
        Body::from_stream(stream::repeat_with(move || {
            let _kept = &kept;
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1000]))
        }))
    };
    let slow = || async {
        Body::from_stream(stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), ()))
        }))
    };
    let app = Router::new()
        .route("/short", get(|| async { "short" }))
        .route("/endless", get(endless))
        .route("/slow", get(slow));
    (app, left)
}

/// A client's end, and what runs the server's.
fn connected(app: Router) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (server, client) = duplex(4096);
    let limits = ConnectionLimits::default();
    let serving = tokio::spawn(serve(server, app, limits, CancellationToken::new()));
    (client, serving)
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_let_go() {
    for sent in [&b""[..], b"GET /sh", GET, PREFACE, &PREFACE[..10]] {
        let (mut client, serving) = connected(app().0);
        let began = Instant::now();
        client.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(text.starts_with("HTTP/1.1 200 OK\r\n"), sent == GET, "{text}");
        drop(client);
        serving.await.unwrap();
        let took_s = began.elapsed().as_secs();
        // Who began HTTP/2 is asked for a sign of life before.
        assert!((50..=80).contains(&took_s), "{took_s} {sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_let_go() {
    let (app, left) = app();
    let (mut client, serving) = connected(app);
    let began = Instant::now();
    client.write_all(b"GET /endless HTTP/1.1\r\n\r\n").await.unwrap();
    left.await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 30);
    serving.await.unwrap();
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_does_not_end_the_others() {
    let (app, left) = app();
    let (client, _serving) = connected(app);
    let (mut requests, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = |path: &str| {
        let uri = format!("http://server{path}");
        requests.send_request(Request::get(uri).body(Empty::<Bytes>::new()).unwrap())
    };
    let began = Instant::now();
    let (endless, slow) = (ask("/endless").await.unwrap(), ask("/slow").await.unwrap());
    left.await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 30);
    let mut slow = slow.into_body();
    for _ in 0..10 {
        assert_eq!(slow.frame().await.unwrap().unwrap().into_data().unwrap(), "x");
    }
    assert_eq!(ask("/short").await.unwrap().collect().await.unwrap().to_bytes(), "short");
    drop(endless);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_is_told_so() {
    let many = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    for (sent, status, code) in [
        ("nonsense\r\n\r\n".to_string(), 400, "malformed_request"),
        ("GET / HTTP/3.0\r\n\r\n".into(), 400, "malformed_request"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".into(), 400, "malformed_request"),
        ("GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n".into(), 400, "malformed_request"),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, "headers_too_large"),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(70_000)), 431, "headers_too_large"),
        (format!("{}nonsense\r\n\r\n", "\r\n"), 400, "malformed_request"),
    ] {
        let (client, serving) = connected(app().0);
        let (mut reading, mut writing) = tokio::io::split(client);
        let sending = tokio::spawn(async move { writing.write_all(sent.as_bytes()).await });
        let mut answer = String::new();
        reading.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head} {code}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], code, "{body}");
        let _cut = sending.await.unwrap();
        drop(reading);
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn at_the_limit_connections_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (limits, shutdown) =
        (ConnectionLimits { connections_max: 1, ..Default::default() }, CancellationToken::new());
    let serving = tokio::spawn(serve_all(listener, app().0, limits, shutdown.clone()));

    let mut first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(GET).await.unwrap();
    let mut byte = [0];
    for _ in 0..3 {
        first.write_all(GET).await.unwrap();
        first.read_exact(&mut byte).await.unwrap();
    }
    // The second client's request has been there for several of the first one's.
    assert!(second.try_read(&mut byte).is_err());
    drop(first);
    second.read_exact(&mut byte).await.unwrap();
    assert_eq!(byte, *b"H");

    // Idle connections do not hold up the end.
    shutdown.cancel();
    serving.await.unwrap();
}
