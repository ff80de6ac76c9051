//! Servers and options that will not do: each is one sentence, soon.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use messaging::{NatsOptions, Network, NetworkError};
use testkit::{Certificates, NatsServer, NatsSettings};

/// Refusals come at once; retrying would last `connect_timeout`.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What `options` are refused with.
async fn refusal(options: NatsOptions) -> NetworkError {
    match Network::connect(options).await {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    }
}

async fn check(options: NatsOptions, says: &[&str]) -> NetworkError {
    let start = Instant::now();
    let error = refusal(options).await;
    let sentence = error.to_string();
    for part in says {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
    assert!(!sentence.contains("secret") && !sentence.contains('\n'), "{sentence:?}");
    assert!(start.elapsed() < AT_ONCE, "{sentence:?} took {:?}", start.elapsed());
    error
}

async fn check_server(
    settings: NatsSettings,
    change: impl FnOnce(&mut NatsOptions),
    says: &[&str],
) -> NetworkError {
    let server = NatsServer::start_with(settings);
    let mut options = NatsOptions::new(server.url());
    change(&mut options);
    let address = options.url.rsplit_once('@').map_or(options.url.as_str(), |(_, host)| host);
    let says: Vec<&str> = says.iter().copied().chain([address]).collect();
    check(options.clone(), &says).await
}

#[tokio::test]
async fn credentials() {
    let says = ["refuses these credentials", "give the user"];
    let password = || NatsSettings::with_password("joe", "right");
    check_server(password(), |_| {}, &says).await;
    let in_url =
        |options: &mut NatsOptions| options.url = options.url.replace("://", "://joe:secret@");
    let error = check_server(password(), in_url, &says).await;
    assert!(!error.is_usage());
    let with_options = |options: &mut NatsOptions| {
        options.user = Some("joe".to_string());
        options.password = Some("secret".to_string());
    };
    check_server(password(), with_options, &says).await;
    let with_token = |options: &mut NatsOptions| options.token = Some("secret".to_string());
    check_server(NatsSettings::with_token("right"), with_token, &says).await;
    let public_key = nkeys::KeyPair::new_user().public_key();
    check_server(NatsSettings::with_nkey(&public_key), |_| {}, &says).await;
}

#[tokio::test]
async fn tls() {
    let files = Certificates::new(&["ours", "theirs"]);
    let (certificate, key, ca) =
        (files.path("ours-chain"), files.path("ours-key"), files.path("ours-ca"));
    let says = ["no TLS connection", "check the CA and client certificates"];
    let server = NatsSettings::with_tls(&certificate, &key, None);
    check_server(server.clone(), |_| {}, &says).await;
    let theirs = |options: &mut NatsOptions| options.tls_ca_file = Some(files.path("theirs-ca"));
    check_server(server, theirs, &says).await;
    let verifies = NatsSettings::with_tls(&certificate, &key, Some(&ca));
    let without = |options: &mut NatsOptions| options.tls_ca_file = Some(ca.clone());
    check_server(verifies.clone(), without, &says).await;
    let strange = |options: &mut NatsOptions| {
        options.tls_ca_file = Some(ca.clone());
        options.tls_certificate_file = Some(files.path("theirs-chain"));
        options.tls_key_file = Some(files.path("theirs-key"));
    };
    check_server(verifies, strange, &says).await;
    let plain = |options: &mut NatsOptions| options.tls_ca_file = Some(ca.clone());
    check_server(NatsSettings::default(), plain, &says).await;
}

#[tokio::test]
async fn servers_without_a_registry() {
    let says = ["has no JetStream", "-js"];
    check_server(NatsSettings::without_jetstream(), |_| {}, &says).await;
    let account = "accounts { A: { users: [ { user: a, password: b } ] } }";
    let in_account = |options: &mut NatsOptions| options.url = options.url.replace("//", "//a:b@");
    check_server(NatsSettings::with(account.to_string()), in_account, &says).await;
}

#[tokio::test]
async fn a_bucket_whose_entries_cannot_expire() {
    let server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let bucket =
        async_nats::jetstream::kv::Config { bucket: "stator".to_string(), ..Default::default() };
    async_nats::jetstream::new(client).create_key_value(bucket).await.unwrap();
    let says = ["the registry bucket 'stator'", "cannot expire", "remove it"];
    check(NatsOptions::new(server.url()), &says).await;
}

/// A server that says it is old.
#[tokio::test]
async fn old_servers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let info = r#"{"server_id":"x","version":"2.9.10","max_payload":1048576,"jetstream":true}"#;
        write!(stream, "INFO {info}\r\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            if line == "PING" {
                stream.write_all(b"PONG\r\n").unwrap();
            }
        }
    });
    check(NatsOptions::new(url), &["version 2.9.10", "2.11 or newer", "upgrade"]).await;
}

#[tokio::test]
async fn nobody_there() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = NatsOptions::new(format!("nats://joe:secret@{unused}"));
    options.connect_timeout = Duration::from_millis(700);
    let start = Instant::now();
    let says = ["cannot reach a NATS server", "for 0.7 s", "refused", &unused.to_string()];
    let error = check(options, &says).await;
    assert!(start.elapsed() >= Duration::from_millis(700), "it is tried again");
    assert!(!error.is_usage());
}

/// Someone listens who never says a word.
#[tokio::test]
async fn nobody_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = NatsOptions::new(format!("nats://{}", silent.local_addr().unwrap()));
    options.connect_timeout = Duration::from_millis(500);
    check(options, &["cannot reach a NATS server", "timed out"]).await;
}

#[tokio::test]
async fn options_that_cannot_be_used() {
    let url = |url: &str| NatsOptions::new(url);
    let mut usage = Vec::new();
    usage.push(check(url("http://host"), &["'http://host'", "nats://host:port"]).await);
    usage.push(check(url("nats://joe:secret@:x"), &["cannot use the NATS URL"]).await);
    let file = |change: fn(&mut NatsOptions)| {
        let mut options = url("nats://127.0.0.1:1");
        change(&mut options);
        options
    };
    let seed = file(|options| options.nkey_seed_file = Some("/nowhere/seed".into()));
    usage.push(check(seed, &["nkey seed", "/nowhere/seed", "No such file"]).await);
    let credentials = file(|options| options.credentials_file = Some("/nowhere/x.creds".into()));
    usage.push(check(credentials, &["NATS credentials", "/nowhere/x.creds"]).await);
    let ca = file(|options| options.tls_ca_file = Some("/nowhere/ca.pem".into()));
    usage.push(check(ca, &["CA certificates", "/nowhere/ca.pem"]).await);
    let lone = file(|options| options.tls_certificate_file = Some("/nowhere/client.pem".into()));
    usage.push(check(lone, &["tls_certificate_file", "give both"]).await);
    let cluster = file(|options| options.cluster = "a.b".to_string());
    usage.push(check(cluster, &["cluster", "'a.b'", "letters, digits"]).await);
    let renewal = file(|options| options.renew_interval = options.entry_ttl);
    usage.push(check(renewal, &["renew_interval", "entry_ttl"]).await);
    for error in usage {
        assert!(error.is_usage(), "{error}");
    }
}
