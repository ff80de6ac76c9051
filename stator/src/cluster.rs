//! What all components of a cluster have: a name, a network, signals, and an end in order.

use std::fs;
use std::time::Duration;

use messaging::{DataPlane, NatsOptions, Network, TcpOptions, TlsFiles};

use crate::addresses::Protection;
use crate::cli::{ComponentArgs, NatsArgs, TlsArgs};
use crate::error::CommandError;
use crate::exit;
use crate::signals::Signals;

/// How long the NATS server may take to hear that a component leaves. Beyond, its entry expires.
const FAREWELL: Duration = Duration::from_secs(2);

/// Characters that a name may have.
const NAME_CHARACTERS_MAX: usize = 64;

/// The name that the arguments give, or one that nobody else has. Errors: it cannot be a name.
pub fn name(given: Option<&str>, role: &str) -> Result<String, CommandError> {
    let Some(name) = given else { return Ok(format!("{role}-{:016x}", rand::random::<u64>())) };
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match (1..=NAME_CHARACTERS_MAX).contains(&name.len()) && name.chars().all(is_allowed) {
        true => Ok(name.to_string()),
        false => Err(CommandError::Arguments(format!(
            "--name {name} cannot be a name; use 1 to {NAME_CHARACTERS_MAX} letters, digits, '-' \
             and '_'"
        ))),
    }
}

/// What protects the addresses that a component opens to others of its cluster.
pub fn protection(component: &ComponentArgs, tls: &TlsArgs) -> Protection {
    // Without a certificate of its own a component cannot listen with TLS at all.
    let client_certificates = tls.tls_ca.is_some() && tls.tls_cert.is_some();
    Protection { insecure: component.insecure, client_certificates }
}

/// The data plane of a component that only connects to others. Errors: the TLS files.
pub fn connecting(tls: &TlsArgs) -> Result<DataPlane, CommandError> {
    Ok(DataPlane::tcp(TcpOptions { tls: tls_files(tls), ..Default::default() })?)
}

/// The files that the arguments name, if any.
pub fn tls_files(arguments: &TlsArgs) -> Option<TlsFiles> {
    let TlsArgs { tls_cert, tls_key, tls_ca } = arguments.clone();
    let certificate = tls_cert.zip(tls_key);
    let is_wanted = certificate.is_some() || tls_ca.is_some();
    is_wanted.then_some(TlsFiles { certificate, authority: tls_ca })
}

/// Joins the cluster of a NATS server. Errors: it cannot be reached, or will not do.
pub async fn join(
    url: &str,
    login: &NatsArgs,
    name: &str,
    data_plane: DataPlane,
) -> Result<Network, CommandError> {
    let mut network = Network::connect(nats_options(url, login, name)?).await?;
    network.data_plane = data_plane;
    Ok(network)
}

fn nats_options(url: &str, login: &NatsArgs, name: &str) -> Result<NatsOptions, CommandError> {
    let password = login.nats_password_file.as_ref().map(|path| {
        let unreadable = |error| {
            CommandError::Arguments(format!(
                "--nats-password-file {} cannot be read: {error}; name a file with the password",
                path.display()
            ))
        };
        // Editors end files with a line's end, which no password has.
        fs::read_to_string(path).map(|text| text.trim_end().to_string()).map_err(unreadable)
    });
    Ok(NatsOptions {
        cluster: login.cluster.clone(),
        name: name.to_string(),
        user: login.nats_user.clone(),
        password: password.transpose()?,
        nkey_seed_file: login.nats_nkey.clone(),
        credentials_file: login.nats_creds.clone(),
        tls_ca_file: login.nats_tls_ca.clone(),
        connect_timeout: Duration::from_secs(login.nats_connect_timeout),
        ..NatsOptions::new(url)
    })
}

/// Says that the orderly end has begun, and ends the process at the next signal.
pub fn end_at_next(mut signals: Signals) {
    eprintln!("stator: finishing running requests; Ctrl-C again ends at once");
    tokio::spawn(async move {
        signals.next().await;
        exit::now(exit::INTERRUPTED);
    });
}

/// Waits until the NATS server knows that this component is gone.
pub async fn leave(network: &Network) {
    if !network.flush(FAREWELL).await {
        tracing::warn!("the NATS server was not told of the end; the entry expires by itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_made() {
        let made = name(None, "router").unwrap();
        assert!(made.starts_with("router-") && made.len() == 23, "{made}");
        let long = "x".repeat(64);
        for given in ["a", "A-1_z", &long] {
            assert_eq!(name(Some(given), "router").unwrap(), given);
        }
        for given in ["", "a.b", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(name(Some(given), "router").is_err(), "{given}");
        }
    }
}
