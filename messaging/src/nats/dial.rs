//! Getting a connection, and finding out whether its server will do.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{AccountError, AccountErrorKind};
use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr, rustls};
use rand::Rng;
use tokio::time::Instant;

use super::bucket::{Bucket, BucketError};
use super::link::{Events, Link, Wire};
use super::options::redacted;
use super::{NatsOptions, NetworkError};
use crate::bus::SUBSCRIPTION_QUEUE;

/// A server that hangs is noticed after three of these.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long one attempt may take, with TLS and credentials.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause between two attempts to connect.
const RECONNECT_DELAY_MS: u64 = 250;

/// Commands that may wait in the client library. While the server is away, those who ask wait for
/// room, at most as long as their request may take.
const CLIENT_QUEUE: usize = 1024;

/// Connects, trying again until `deadline` where nobody answers.
pub async fn dial(options: &NatsOptions, deadline: Instant) -> Result<Link, NetworkError> {
    options.check()?;
    let address = redacted(&options.url);
    let servers = servers(options)?;
    loop {
        let events = Events::new(&address);
        let attempt = client_options(options, &servers, events.clone()).await?;
        let error = match attempt.connect(servers.as_slice()).await {
            Ok(client) => return Ok(Link::new(client, events)),
            Err(error) => error,
        };
        let reason = match diagnosis(&error) {
            Diagnosis::Refused => return Err(NetworkError::Refused { address }),
            Diagnosis::Tls(reason) => return Err(NetworkError::Tls { address, reason }),
            Diagnosis::Away(reason) => reason,
        };
        if Instant::now() >= deadline {
            let waited = options.connect_timeout;
            return Err(NetworkError::Unreachable { address, waited, reason });
        }
        tracing::info!(server = address, error = reason, "waiting for nats");
        tokio::time::sleep(reconnect_delay(2)).await;
    }
}

/// Whether the server is new enough and keeps a registry for us.
pub async fn check(wire: &Wire, bucket: &Bucket, deadline: Instant) -> Result<(), NetworkError> {
    let address = wire.address.to_string();
    let info = wire.client.server_info();
    if !is_new_enough(&info.version) {
        return Err(NetworkError::TooOld { address, version: info.version });
    }
    if !info.jetstream {
        return Err(NetworkError::NoJetStream { address });
    }
    loop {
        let error = match bucket.account().await {
            Ok(()) => match bucket.open().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            },
            Err(error) if is_without_jetstream(&error) => {
                return Err(NetworkError::NoJetStream { address });
            }
            Err(error) => BucketError { reason: error.to_string(), passes: true },
        };
        if !error.passes || Instant::now() >= deadline {
            let (bucket, reason) = (bucket.name().to_string(), error.reason);
            return Err(NetworkError::Bucket { address, bucket, reason });
        }
        tokio::time::sleep(reconnect_delay(2)).await;
    }
}

async fn client_options(
    options: &NatsOptions,
    servers: &[ServerAddr],
    events: Events,
) -> Result<ConnectOptions, NetworkError> {
    let built = ConnectOptions::new()
        .name(&options.name)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(ATTEMPT_TIMEOUT)
        .reconnect_delay_callback(reconnect_delay)
        .subscription_capacity(SUBSCRIPTION_QUEUE)
        .client_capacity(CLIENT_QUEUE)
        .request_timeout(Some(ATTEMPT_TIMEOUT))
        .event_callback(move |event| {
            events.handle(&event);
            std::future::ready(())
        });
    Ok(with_tls(with_credentials(built, options, servers).await?, options))
}

async fn with_credentials(
    mut built: ConnectOptions,
    options: &NatsOptions,
    servers: &[ServerAddr],
) -> Result<ConnectOptions, NetworkError> {
    let in_url = servers.iter().find_map(|server| {
        Some((server.username()?.to_string(), server.password().map(str::to_string)))
    });
    match (&options.user, in_url) {
        (Some(user), _) => {
            let password = options.password.clone().unwrap_or_default();
            built = built.user_and_password(user.clone(), password);
        }
        (None, Some((user, Some(password)))) => built = built.user_and_password(user, password),
        // A lone name before the @ is a token.
        (None, Some((token, None))) => built = built.token(token),
        (None, None) => {}
    }
    if let Some(token) = &options.token {
        built = built.token(token.clone());
    }
    if let Some(path) = &options.nkey_seed_file {
        built = built.nkey(read(path, "nkey seed").await?.trim().to_string());
    }
    if let Some(path) = &options.credentials_file {
        let text = read(path, "NATS credentials").await?;
        let credentials = built.credentials(&text);
        built = credentials
            .map_err(|error| NetworkError::unreadable("NATS credentials", path, &error))?;
    }
    Ok(built)
}

fn with_tls(mut built: ConnectOptions, options: &NatsOptions) -> ConnectOptions {
    if let Some(path) = &options.tls_ca_file {
        built = built.add_root_certificates(path.clone()).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&options.tls_certificate_file, &options.tls_key_file) {
        built = built.add_client_certificate(certificate.clone(), key.clone());
    }
    built
}

async fn read(path: &Path, what: &'static str) -> Result<String, NetworkError> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|error| NetworkError::unreadable(what, path, &error))
}

fn servers(options: &NatsOptions) -> Result<Vec<ServerAddr>, NetworkError> {
    let parse = |url: &str| {
        let bad = |reason| NetworkError::BadUrl { url: redacted(url), reason };
        let server: ServerAddr =
            url.trim().parse().map_err(|error: io::Error| bad(error.to_string()))?;
        match server.scheme() {
            "nats" | "tls" => Ok(server),
            scheme => Err(bad(format!("{scheme} is not spoken here"))),
        }
    };
    options.url.split(',').map(parse).collect()
}

/// Soon, and not all at once.
fn reconnect_delay(attempt: usize) -> Duration {
    let longest = if attempt <= 1 { RECONNECT_DELAY_MS / 5 } else { RECONNECT_DELAY_MS };
    Duration::from_millis(rand::rng().random_range(longest / 2..=longest))
}

enum Diagnosis {
    Refused,
    Tls(String),
    Away(String),
}

fn diagnosis(error: &ConnectError) -> Diagnosis {
    let text = innermost(error);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            Diagnosis::Refused
        }
        ConnectErrorKind::Tls => Diagnosis::Tls(text),
        _ if text.to_ascii_lowercase().contains("authentication") => Diagnosis::Refused,
        _ if is_tls(error) => Diagnosis::Tls(text),
        _ => Diagnosis::Away(text),
    }
}

/// The client library hands failed handshakes on as I/O errors.
fn is_tls(error: &ConnectError) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if error.is::<rustls::Error>() || wrapped.is_some_and(|error| error.is::<rustls::Error>()) {
            return true;
        }
        source = error.source();
    }
    false
}

fn innermost(error: &ConnectError) -> String {
    let mut text = error.kind().to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u64>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (2, 11)
}

fn is_without_jetstream(error: &AccountError) -> bool {
    match error.kind() {
        AccountErrorKind::JetStreamUnavailable => true,
        AccountErrorKind::JetStream(error) => matches!(
            error.error_code(),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let check = |version, expected| assert_eq!(is_new_enough(version), expected, "{version}");
        check("2.9.10", false);
        check("2.10.99", false);
        check("2.11.0", true);
        check("2.15.1", true);
        check("2.12.0-RC.1", true);
        check("3.0.0", true);
        check("", false);
    }
}
