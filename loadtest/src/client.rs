//! Requests to one server, over connections that are kept unless it is asked for others.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use parking_lot::Mutex;

use crate::connection::{Connection, SendError, explain};
use crate::error::LoadtestError;
use crate::target::Target;

/// A server and the connections to it.
pub struct Client {
    address: SocketAddr,
    base: String,
    headers: HeaderMap,
    /// Connections are kept for further requests.
    keeps: bool,
    /// Open connections without a request; at most as many as requests were ever under way at
    /// once. The last one used is the next one taken.
    idle: Mutex<Vec<Connection>>,
}

/// A response whose body is still to come.
pub struct Reply {
    pub response: Response<Incoming>,
    connection: Connection,
}

impl Client {
    /// Finds the server and connects once, so that its absence is known before the run. Unless it `keeps`
    /// connections, each request after the first has its own.
    pub async fn connect(
        target: &Target,
        api_key: Option<&str>,
        keeps: bool,
    ) -> Result<Self, LoadtestError> {
        let headers = headers(target, api_key)?;
        let unreachable = |why: &str| {
            let name = &target.authority;
            LoadtestError::Server(format!("{name} is not reachable: {why}; is the server running?"))
        };
        let addresses = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let addresses = addresses.map_err(|error| unreachable(&error.to_string()))?;
        let mut failure = "the name has no address".to_string();
        for address in addresses {
            match Connection::open(address).await {
                Ok(connection) => {
                    let (base, idle) = (target.base.clone(), Mutex::new(vec![connection]));
                    return Ok(Self { address, base, headers, keeps, idle });
                }
                Err(why) => failure = why,
            }
        }
        Err(unreachable(&failure))
    }

    /// Sends a request to a path below `/v1` and waits for the response's head. Errors: a sentence.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base)
            .parse()
            .map_err(|_| format!("{}{path} is no path", self.base))?;
        *request.headers_mut() = self.headers.clone();
        // Kept connections may have been closed; whatever was not sent goes over the next one.
        loop {
            let (mut connection, kept) = match self.take_idle().await {
                Some(connection) => (connection, true),
                None => (Connection::open(self.address).await?, false),
            };
            match connection.send(request).await {
                Ok(response) => return Ok(Reply { response, connection }),
                Err(SendError::NotSent(back)) if kept => request = *back,
                Err(SendError::NotSent(_)) => return Err("the server closes connections".into()),
                Err(SendError::Broken(error)) => return Err(explain(&error)),
            }
        }
    }

    /// Keeps the connection of a response whose body was read to its end.
    pub fn keep(&self, reply: Reply) {
        if self.keeps {
            self.idle.lock().push(reply.connection);
        }
    }

    /// Reads a body, but no more than so many bytes of it; what came before an error counts.
    pub async fn whole(&self, mut reply: Reply, bytes_max: usize) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            match reply.data().await {
                Some(Ok(data)) => {
                    body.extend_from_slice(&data[..data.len().min(bytes_max - body.len())])
                }
                Some(Err(_)) => return body,
                None => break,
            }
            if body.len() == bytes_max {
                return body;
            }
        }
        self.keep(reply);
        body
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().pop()?;
            if connection.ready().await {
                return Some(connection);
            }
        }
    }
}

impl Reply {
    /// The next piece of the body; `None` at its end.
    pub async fn data(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        self.connection.data(self.response.body_mut()).await
    }
}

fn headers(target: &Target, api_key: Option<&str>) -> Result<HeaderMap, LoadtestError> {
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_str(&target.authority);
    let wrong = |sentence: &str| LoadtestError::Arguments(sentence.into());
    headers.insert(HOST, host.map_err(|_| wrong("the URL's host cannot be sent"))?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let version = concat!("stator-loadtest/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(version));
    if let Some(key) = api_key.filter(|key| !key.is_empty()) {
        let bearer = HeaderValue::from_str(&format!("Bearer {key}"));
        let mut bearer = bearer
            .map_err(|_| wrong("OPENAI_API_KEY holds a character that no header may hold"))?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_sent_and_never_shown() {
        let target = Target::parse("h:1").unwrap();
        let sent = headers(&target, Some("secret")).unwrap();
        assert_eq!(sent[AUTHORIZATION], "Bearer secret");
        assert!(!format!("{sent:?}").contains("secret"));
        let refused = headers(&target, Some("sec\nret")).unwrap_err().to_string();
        assert!(refused.contains("OPENAI_API_KEY") && !refused.contains("sec"), "{refused}");
        for none in [None, Some("")] {
            assert!(!headers(&target, none).unwrap().contains_key(AUTHORIZATION));
        }
    }
}
