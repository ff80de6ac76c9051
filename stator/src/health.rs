//! `stator health`: for supervisors of containers, which have no other HTTP client.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::HealthArgs;
use crate::error::CommandError;

/// For the whole answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Of an answer, its first line is of interest.
const ANSWER_BYTES_MAX: usize = 4096;

/// Asks `/health/ready`. Errors: it is not ready, or does not answer.
pub async fn command(arguments: HealthArgs) -> Result<(), CommandError> {
    let url = arguments.url;
    let address = url.strip_prefix("http://").unwrap_or(&url);
    let address = address.split('/').next().unwrap_or_default();
    if !address.contains(':') {
        return Err(CommandError::Arguments(format!(
            "the URL {url} has no port; write it as http://host:port"
        )));
    }
    let answered = tokio::time::timeout(TIMEOUT, status_of(address)).await;
    match answered {
        Ok(Ok(status)) if status == "200" => Ok(()),
        Ok(Ok(status)) => {
            Err(CommandError::Unavailable(format!("{url} is not ready: it answers {status}")))
        }
        Ok(Err(error)) => Err(CommandError::Unavailable(format!("{url} does not answer: {error}"))),
        Err(_) => Err(CommandError::Unavailable(format!("{url} does not answer within 2 s"))),
    }
}

async fn status_of(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let head =
        format!("GET /health/ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.split_whitespace().nth(1).unwrap_or("nothing").to_string())
}
