//! What goes wrong, and what a user is told about it.

use crate::support::{Server, answer, broken, content, event, events, parse, run};
use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Every second request gets `response`; `ending` names the count that must have them all.
async fn check(
    response: impl Fn() -> Response + Send + Sync + 'static,
    ending: &str,
    message: &str,
) {
    let server = Server::start(move |request, number| {
        let response = if number % 2 == 0 { answer(&request) } else { response() };
        async move { response }
    })
    .await;
    let report =
        server.run("--rate 200 --arrivals constant --duration 50ms --output-tokens 2").await;
    let counts = serde_json::to_value(report.requests).unwrap();
    assert_eq!((&counts["ok"], &counts[ending]), (&json!(5), &json!(5)), "{message}: {counts}");
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    assert_eq!(report.failures[0].count, 5);
    assert!(report.failures[0].message.contains(message), "{:?}", report.failures);
    assert!(report.to_string().contains(message));
    assert_eq!(report.latency_ms.end_to_end.unwrap().count, 5, "{message}");
    report.check_success().unwrap();
}

fn error(status: u16, message: &str) -> Response {
    let body = json!({ "error": { "message": message, "type": "t" } }).to_string();
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_and_explained() {
    check(|| error(429, "slow down"), "rejected", "HTTP 429: slow down").await;
    check(|| error(503, "no room"), "rejected", "HTTP 503: no room").await;
    check(|| error(500, "a defect"), "failed", "HTTP 500: a defect").await;
    check(|| (StatusCode::BAD_GATEWAY, "<p>").into_response(), "failed", "HTTP 502: <p>").await;
    check(|| "{}".into_response(), "failed", "no stream of events but text/plain").await;
    let told = || events(&[content("a"), event(&json!({ "error": { "message": "worker lost" } }))]);
    check(told, "failed", "worker lost").await;
    check(|| events(&["data: {nonsense\n\n".into()]), "failed", "unreadable event").await;
    let endless = || events(&[format!("data: {}", "x".repeat(2 << 20))]);
    check(endless, "failed", "more than 1 MiB").await;
    check(|| events(&[content("a")]), "cut", "ended without [DONE]").await;
    check(|| events(&[]), "cut", "ended without [DONE]").await;
    check(|| broken(&[content("a")]), "cut", "the stream broke off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_everything_is_no_success() {
    let server = Server::start(|_, _| async { error(500, "out of memory") }).await;
    let report = server.run("--concurrency 2 --duration 50ms").await;
    let sentence = report.check_success().unwrap_err().to_string();
    assert_eq!(sentence, "no request succeeded: HTTP 500: out of memory");
    // A worker pauses after a failure, so that there is one each.
    assert_eq!(report.requests.failed, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_said_to_be_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = run(&format!("http://{address} --rate 1"), std::future::pending()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not reachable") && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_is_counted_and_explained() {
    let server = Server::start(|request, _| async move {
        let mut response = answer(&request);
        response.headers_mut().insert(CONNECTION, "close".parse().unwrap());
        response
    })
    .await;
    let gone = async {
        server.has_requests(5).await;
        server.stop_accepting();
    };
    let (report, ()) = tokio::join!(server.run("--concurrency 1 --duration 400ms"), gone);
    assert!(report.requests.ok >= 5 && report.requests.failed >= 1, "{:?}", report.requests);
    assert!(report.failures[0].message.contains("cannot connect"), "{:?}", report.failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_are_refused_before_anything_is_sent() {
    async fn check(arguments: &str, expected: &str) {
        let found = match parse(arguments) {
            Err(error) => error.to_string(),
            Ok(_) => run(arguments, std::future::pending()).await.unwrap_err().to_string(),
        };
        assert!(found.contains(expected), "{arguments}: {found}");
    }
    for (arguments, expected) in [
        ("", "<URL>"),
        ("h", "<--rate <R>|--concurrency <N>>"),
        ("h --rate 1 --concurrency 1", "cannot be used with"),
        ("h --concurrency 1 --arrivals constant", "cannot be used with"),
        ("h --rate 0", "not within"),
        ("h --rate -1", "unexpected argument"),
        ("h --rate nan", "not within"),
        ("h --rate inf", "not within"),
        ("h --rate x", "not a number"),
        ("h --concurrency 0", "not in 1..=65536"),
        ("h --rate 1 --duration 5", "time unit"),
        ("h --rate 1 --duration 0s", "no time"),
        ("h --rate 1 --duration 8days", "more than a week"),
        ("h --rate 1 --drain 8days", "more than a week"),
        ("h --rate 1 --turns 0", "not in 1..=10000"),
        ("h --rate 1 --output-tokens 0", "not in 1..="),
        ("h --rate 1 --slo-ttft-ms 0", "above 0"),
        ("h --rate 1 --input-tokens 5 --prefix-tokens 5", "must be less than"),
        ("https://h --rate 1", "needs TLS"),
        ("h --rate 1 --json /no/such/directory/x", "cannot be written"),
        #[cfg(target_os = "linux")]
        ("h --rate 1 --pid 4294967295", "no such process"),
    ] {
        check(arguments, expected).await;
    }
}
