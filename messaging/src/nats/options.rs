//! Where the server is, and how one gets in.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use super::NetworkError;

/// How to reach a NATS server, and what of it is ours.
///
/// A user with limited permissions needs to publish and subscribe `<cluster>.>` and `_INBOX.>`,
/// and to publish `$KV.<cluster>.>` and `$JS.API.>`.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://[user:password@]host:port` or `tls://…`; several servers of one NATS cluster with
    /// commas between them.
    pub url: String,
    /// Names the bucket of the registry and begins every subject; systems of different names do
    /// not see each other. Letters, digits, `-` and `_`.
    pub cluster: String,
    /// What this connection is called in the server's reports.
    pub name: String,
    /// User and password, where they are not in the URL.
    pub user: Option<String>,
    /// See `user`.
    pub password: Option<String>,
    /// A token, for servers that ask for one.
    pub token: Option<String>,
    /// A file with the seed of an nkey (`SU…`).
    pub nkey_seed_file: Option<PathBuf>,
    /// A `.creds` file: a JWT and the seed that signs for it.
    pub credentials_file: Option<PathBuf>,
    /// PEM certificates that sign the server's; with them, TLS is required.
    pub tls_ca_file: Option<PathBuf>,
    /// This client's PEM certificate, for servers that verify clients.
    pub tls_certificate_file: Option<PathBuf>,
    /// The key of `tls_certificate_file`.
    pub tls_key_file: Option<PathBuf>,
    /// How long a server that cannot be reached at the start is tried again.
    pub connect_timeout: Duration,
    /// How long an entry of the registry stays without being renewed; the server counts whole
    /// seconds, one at least.
    pub entry_ttl: Duration,
    /// How often entries are renewed: well below `entry_ttl`.
    pub renew_interval: Duration,
    /// How long an entry that expired or vanished is still believed in.
    pub expiry_grace: Duration,
}

impl NatsOptions {
    /// The usual settings for a server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            cluster: "stator".to_string(),
            name: "stator".to_string(),
            user: None,
            password: None,
            token: None,
            nkey_seed_file: None,
            credentials_file: None,
            tls_ca_file: None,
            tls_certificate_file: None,
            tls_key_file: None,
            connect_timeout: Duration::from_secs(30),
            entry_ttl: Duration::from_secs(15),
            renew_interval: Duration::from_secs(5),
            expiry_grace: Duration::from_secs(30),
        }
    }
}

impl NatsOptions {
    /// Whether these can be used at all, before anybody is asked.
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let bad = |option, reason| Err(NetworkError::BadOption { option, reason });
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if self.cluster.is_empty() || !self.cluster.bytes().all(named) {
            let name = &self.cluster;
            return bad("cluster", format!("'{name}' must be letters, digits, '-' and '_' only"));
        }
        if self.renew_interval >= self.entry_ttl || self.entry_ttl < Duration::from_secs(1) {
            let reason = "it must be well below entry_ttl, and that at least 1 s";
            return bad("renew_interval", reason.to_string());
        }
        if self.tls_certificate_file.is_some() != self.tls_key_file.is_some() {
            let reason = "a client certificate and its key go together; give both";
            return bad("tls_certificate_file", reason.to_string());
        }
        let files = [
            ("CA certificates", &self.tls_ca_file),
            ("client certificate", &self.tls_certificate_file),
            ("client key", &self.tls_key_file),
        ];
        for (what, path) in files {
            let Some(path) = path else { continue };
            File::open(path).map_err(|error| NetworkError::unreadable(what, path, &error))?;
        }
        Ok(())
    }
}

/// Without secrets: for logs.
impl fmt::Debug for NatsOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("NatsOptions");
        shown.field("url", &redacted(&self.url)).field("cluster", &self.cluster);
        shown.finish_non_exhaustive()
    }
}

/// The URLs without what stands before an `@`.
pub(crate) fn redacted(url: &str) -> String {
    let one = |url: &str| {
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
        format!("{scheme}://{address}")
    };
    url.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let check = |url: &str, expected: &str| assert_eq!(redacted(url), expected);
        check("nats://127.0.0.1:4222", "nats://127.0.0.1:4222");
        check("nats://joe:s3cr@et@host:1", "nats://host:1");
        check("host:1", "nats://host:1");
        check("token@host:1", "nats://host:1");
        check("nats://a:b@x:1, tls://c:d@y:2", "nats://x:1,tls://y:2");
        let options = NatsOptions::new("nats://joe:secret@host");
        assert!(!format!("{options:?}").contains("secret"));
    }
}
