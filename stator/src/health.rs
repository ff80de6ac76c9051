//! `stator health`: asks a component whether it is ready, where there is no other HTTP client, as in
//! a container's health check.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::cli::HealthArgs;
use crate::exit::Exit;

/// How long the component may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// The path that is asked where the URL has none.
const READY_PATH: &str = "/health/ready";

/// Bytes of the answer's first line that are read at most.
const STATUS_BYTES_MAX: u64 = 256;

/// Why the component does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The URL is not one that can be asked.
    #[error("{0} is no http:// URL; give one like http://127.0.0.1:8000/health/ready")]
    Url(String),
    /// It answers, but not 200.
    #[error("{url} answers {status}; the component's log says what it waits for")]
    NotReady {
        /// What was asked.
        url: String,
        /// The answer's first line.
        status: String,
    },
    /// It does not answer.
    #[error("{url} does not answer: {reason}; start the component, or give its admin address")]
    NoAnswer {
        /// What was asked.
        url: String,
        /// The system's reason.
        reason: String,
    },
}

impl HealthError {
    /// The command's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Url(_) => Exit::Usage,
            Self::NotReady { .. } | Self::NoAnswer { .. } => Exit::Unavailable,
        }
    }
}

/// Asks once. Errors: anything but a 200 within two seconds.
pub async fn command(arguments: HealthArgs) -> Result<(), HealthError> {
    let url = arguments.url;
    let (authority, path) = split(&url).ok_or_else(|| HealthError::Url(url.clone()))?;
    let no_answer = |reason: String| HealthError::NoAnswer { url: url.clone(), reason };
    let status = match tokio::time::timeout(DEADLINE, ask(authority, path)).await {
        Ok(asked) => asked.map_err(|error| no_answer(error.to_string()))?,
        Err(_) => return Err(no_answer(format!("nothing came within {DEADLINE:?}"))),
    };
    match status.split(' ').nth(1) {
        Some("200") => Ok(()),
        None => Err(no_answer("the connection was closed".into())),
        Some(_) => Err(HealthError::NotReady { url, status }),
    }
}

/// Authority and path of an `http://` URL.
fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) if at + 1 < rest.len() => rest.split_at(at),
        Some(at) => (&rest[..at], READY_PATH),
        None => (rest, READY_PATH),
    };
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    has_port.then_some((authority, path))
}

/// The first line of the answer.
async fn ask(authority: &str, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(authority).await?;
    let question = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    connection.write_all(question.as_bytes()).await?;
    let mut status = String::new();
    BufReader::new(connection.take(STATUS_BYTES_MAX)).read_line(&mut status).await?;
    Ok(status.trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split() {
        let check = |url, expected| assert_eq!(split(url), expected, "{url}");
        check("http://127.0.0.1:8000", Some(("127.0.0.1:8000", READY_PATH)));
        check("http://router:9/", Some(("router:9", READY_PATH)));
        check("http://[::1]:80/health", Some(("[::1]:80", "/health")));
        check("https://127.0.0.1:8000", None);
        check("127.0.0.1:8000", None);
        check("http://127.0.0.1", None);
        check("http://:80/health", None);
        check("", None);
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        let check = async |answer: &'static str, expected: Result<(), &str>| {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut asked = [0; 512];
                let _read = connection.read(&mut asked).await.unwrap();
                connection.write_all(answer.as_bytes()).await.unwrap();
            });
            let result = command(HealthArgs { url }).await.map_err(|error| error.to_string());
            let as_expected = match (&result, expected) {
                (Ok(()), Ok(())) => true,
                (Err(sentence), Err(part)) => sentence.contains(part),
                _ => false,
            };
            assert!(as_expected, "{answer:?}: {result:?}");
        };
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())).await;
        check("HTTP/1.1 503 Service Unavailable\r\n\r\n", Err("answers HTTP/1.1 503")).await;
        check("", Err("does not answer: the connection was closed")).await;
    }
}
