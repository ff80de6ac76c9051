//! What is sent, and what is counted when all goes well or slowly.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{self, Server, answer, content, events, parse, run, tokens_of};
use axum::http::header::CONNECTION;
use loadtest::LoadtestError;
use serde_json::Value;
use tokio::sync::Mutex;

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_counts_what_was_sent() {
    let server = Server::answering().await;
    let report = server
        .run("--concurrency 3 --duration 300ms --input-tokens 100 --output-tokens 20 --slo-ttft-ms 60000")
        .await;
    let (ok, sent) = (report.requests.ok, server.requests());
    assert!(ok > 3);
    assert_eq!((ok, report.requests.total()), (sent.len() as u64, ok));
    assert_eq!(report.configuration.model, "first");
    assert_eq!((report.tokens.events, report.tokens.output_tokens), (20 * ok, 20 * ok));
    assert_eq!(report.tokens.cached_prompt_tokens, ok);
    let prompt_tokens: usize = sent.iter().map(tokens_of).sum();
    assert_eq!(report.tokens.prompt_tokens, prompt_tokens as u64);
    let latency = report.latency_ms;
    assert_eq!(latency.ttft.unwrap().count, ok);
    assert_eq!(latency.itl.unwrap().count, 19 * ok);
    assert_eq!((latency.tpot.unwrap().count, latency.end_to_end.unwrap().count), (ok, ok));
    assert!(latency.lateness.is_none());
    let goodput = report.goodput.unwrap();
    assert_eq!((goodput.requests, goodput.share), (ok, 1.0));
    assert!((report.rates.events_per_s * report.elapsed_s / (20 * ok) as f64 - 1.0).abs() < 1e-9);
    // One connection each, and none but those.
    assert!(server.connections() <= 3, "{}", server.connections());
    report.check_success().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_a_connection_of_its_own_when_asked_for() {
    let server = Server::answering().await;
    let report =
        server.run("--concurrency 2 --duration 100ms --output-tokens 2 --new-connections").await;
    let ok = report.requests.ok;
    assert!(ok > 3);
    assert!(server.connections() as u64 >= ok, "{} of {ok}", server.connections());
    report.check_success().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_sends_at_its_rate() {
    let server = Server::answering().await;
    let report =
        server.run("--rate 100 --arrivals constant --duration 300ms --output-tokens 4").await;
    assert_eq!((report.requests.ok, report.requests.total()), (30, 30));
    assert_eq!(report.latency_ms.lateness.unwrap().count, 30);
    assert!((report.rates.requests_per_s * report.elapsed_s / 30.0 - 1.0).abs() < 1e-9);
    assert!(report.elapsed_s >= 0.3);
    assert!(report.goodput.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_the_warm_up_are_not_counted() {
    let server = Server::answering().await;
    let arguments = "--rate 100 --arrivals constant --warmup 200ms --duration 100ms";
    let report = server.run(arguments).await;
    assert_eq!((report.requests.total(), server.requests().len()), (10, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_have_the_asked_length() {
    for (input, prefix, expected) in
        [(100, 0, 99..=101), (1000, 0, 999..=1001), (500, 300, 498..=502), (9, 4, 7..=11)]
    {
        let server = Server::answering().await;
        let arguments =
            format!("--rate 200 --duration 50ms --input-tokens {input} --prefix-tokens {prefix}");
        let report = server.run(&arguments).await;
        assert!(report.requests.ok > 0);
        for request in server.requests() {
            assert!(expected.contains(&tokens_of(&request)), "{input}: {}", tokens_of(&request));
        }
        assert_eq!(report.calibration.tokens_per_word, support::TOKENS_PER_WORD as f64);
        assert_eq!(report.calibration.overhead_tokens, support::TOKENS_PER_MESSAGE as f64);
        assert_eq!(report.calibration.system_overhead_tokens, support::TOKENS_PER_MESSAGE as f64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_share_a_prefix_and_go_on_with_the_servers_answers() {
    for load in ["--concurrency 2", "--rate 200"] {
        let server = Server::answering().await;
        let shape = "--turns 3 --input-tokens 60 --prefix-tokens 20 --output-tokens 3";
        server.run(&format!("{load} --duration 150ms {shape}")).await;
        let (mut prefixes, mut questions, mut turns) = (HashSet::new(), HashSet::new(), [0; 3]);
        for request in server.requests() {
            let messages = request["messages"].as_array().unwrap();
            let turn = (messages.len() - 2) / 2;
            turns[turn] += 1;
            prefixes.insert(messages[0].to_string());
            assert_eq!(messages[0]["role"], "system");
            for pair in messages[1..].chunks(2) {
                assert_eq!(pair[0]["role"], "user");
                if let Some(reply) = pair.get(1) {
                    assert_eq!(reply["role"], "assistant");
                    assert_eq!(reply["content"], "w0 w1 w2 ");
                }
            }
            let question = messages.last().unwrap();
            assert!(questions.insert(question.to_string()), "{question} was asked before");
        }
        assert_eq!(prefixes.len(), 1, "{load}");
        assert!(turns[0] >= turns[1] && turns[1] >= turns[2] && turns[2] > 0, "{load} {turns:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_asks_the_same_again() {
    let mut asked = Vec::new();
    for seed in [1, 1, 2] {
        let server = Server::answering().await;
        let arguments = format!("--rate 100 --duration 100ms --seed {seed} --model other");
        server.run(&arguments).await;
        let mut requests: Vec<_> = server.requests().iter().map(Value::to_string).collect();
        requests.sort();
        asked.push(requests);
    }
    assert_eq!(asked[0], asked[1]);
    assert_ne!(asked[1], asked[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_ask_for_streams_of_the_asked_length() {
    let server = Server::answering().await;
    server.run("--rate 100 --duration 50ms --output-tokens 7 --seed 5 --model m").await;
    server.run("--rate 100 --duration 50ms --output-tokens 7 --no-ignore-eos").await;
    let requests = server.requests();
    let mut first = requests[0].clone();
    first.as_object_mut().unwrap().remove("messages");
    let expected = serde_json::json!({ "model": "m", "max_tokens": 7, "temperature": 0, "seed": 5,
        "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true } });
    assert_eq!(first, expected);
    assert!(requests.last().unwrap().get("ignore_eos").is_none());
}

/// Serves one request at a time, and the tenth for 300 ms.
async fn stalling_server() -> Server {
    let lane = Arc::new(Mutex::new(()));
    Server::start(move |request, number| {
        let lane = lane.clone();
        async move {
            let _held = lane.lock().await;
            if number == 10 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            answer(&request)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() {
    let open = stalling_server().await;
    let open = open.run("--rate 100 --arrivals constant --duration 500ms --output-tokens 2").await;
    let closed = stalling_server().await;
    let closed = closed.run("--concurrency 1 --duration 500ms --output-tokens 2").await;
    // 50 requests arrive, 30 of them during the stall: a tenth waits for more than 250 ms. The one
    // worker of the closed loop sees one slow request.
    let (open, closed) = (open.latency_ms.ttft.unwrap(), closed.latency_ms.ttft.unwrap());
    assert!(open.p50 > 20.0 && open.p90 > 200.0, "{open:?}");
    assert!(closed.p90 < 100.0 && closed.max > 290.0, "{closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_after_the_drain_is_unfinished_and_its_wait_counts() {
    let server = Server::start(|_, _| std::future::pending()).await;
    let report = server.run("--concurrency 2 --duration 50ms --drain 100ms").await;
    assert_eq!((report.requests.unfinished, report.requests.total()), (2, 2));
    let waited = report.latency_ms.end_to_end.unwrap();
    assert!(waited.count == 2 && waited.max >= 99.0, "{waited:?}");
    assert_eq!(report.latency_ms.ttft.unwrap().count, 2);
    let error = report.check_success().unwrap_err().to_string();
    assert!(error.contains("no request ended in time"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_ends_the_run_with_a_report() {
    let server = Server::start(|request, number| async move {
        if number >= 5 {
            std::future::pending::<()>().await;
        }
        answer(&request)
    })
    .await;
    let arguments = format!("http://{} --concurrency 1 --duration 60s", server.address);
    let report = run(&arguments, server.has_requests(6)).await.unwrap();
    assert!(report.interrupted && report.elapsed_s < 30.0);
    assert_eq!((report.requests.ok, report.requests.unfinished), (5, 1));
    assert_eq!(report.latency_ms.end_to_end.unwrap().count, 5);
    let at_once = run(&arguments, std::future::ready(())).await;
    assert!(matches!(at_once, Err(LoadtestError::Interrupted)));
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_connections_are_replaced() {
    let server = Server::start(|request, _| async move {
        let mut response = answer(&request);
        response.headers_mut().insert(CONNECTION, "close".parse().unwrap());
        response
    })
    .await;
    let report = server.run("--concurrency 2 --duration 100ms --output-tokens 2").await;
    assert_eq!(report.requests.total(), report.requests.ok);
    assert!(server.connections() as u64 >= report.requests.ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_usage_cannot_size_prompts() {
    let parsed = parse("http://127.0.0.1:1 --rate 1").unwrap();
    assert_eq!(parsed.rate, Some(1.0));
    let server = axum::Router::new()
        .fallback(|| async { events(&[content("word"), "data: [DONE]\n\n".into()]) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, server).await.unwrap() });
    let arguments = format!("{address} --rate 1 --model m");
    let error = run(&arguments, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("carry no usage"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_file_has_the_report() {
    let server = Server::answering().await;
    let directory = std::env::temp_dir().join(format!("loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("report.json");
    std::fs::write(&path, "x".repeat(100_000)).unwrap();
    let own = std::process::id();
    let pid = if cfg!(target_os = "linux") { format!("--pid {own}") } else { String::new() };
    let load = "--concurrency 1 --duration 100ms --output-tokens 4 --slo-itl-ms 1000";
    let report = server.run(&format!("{load} {pid} --json {}", path.display())).await;
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["requests"]["ok"], report.requests.ok);
    assert_eq!(json["configuration"]["concurrency"], 1);
    assert_eq!(json["configuration"]["rate_per_s"], Value::Null);
    assert_eq!(json["goodput"]["share"], 1.0);
    for key in ["count", "mean", "p50", "p90", "p95", "p99", "p99_9", "max"] {
        assert!(json["latency_ms"]["ttft"][key].is_number(), "{key}");
    }
    if cfg!(target_os = "linux") {
        let [generator, asked] = json["processes"].as_array().unwrap().as_slice() else { panic!() };
        assert_eq!(
            (&generator["is_generator"], &asked["is_generator"]),
            (&true.into(), &false.into())
        );
        assert_eq!((&asked["pid"], &asked["ended"]), (&own.into(), &false.into()));
        assert!(asked["rss_peak_bytes"].as_u64().unwrap() > 1 << 20);
        assert!(asked["cpu_s"].as_f64().unwrap() >= 0.0);
    }
    let table = report.to_string();
    for part in ["Requests", "Throughput", "TTFT", "goodput", "closed loop, 1 at once"] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
}
