//! Where the server is: its address and the beginning of its paths.

use hyper::Uri;

use crate::error::LoadtestError;

/// A server, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address to connect to.
    pub host: String,
    pub port: u16,
    /// The `Host` header.
    pub authority: String,
    /// What every path begins with: `/v1`, behind a prefix if the URL had one.
    pub base: String,
}

impl Target {
    /// Reads a URL with or without scheme, trailing slash and `/v1`.
    pub fn parse(url: &str) -> Result<Self, LoadtestError> {
        let wrong = |why: &str| {
            let advice = "give something like http://127.0.0.1:8000";
            LoadtestError::Arguments(format!("URL {url} {why}; {advice}"))
        };
        let full = if url.contains("://") { url.to_string() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|_| wrong("is none"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("needs TLS, which loadtest does not speak yet")),
            _ => return Err(wrong("is not one of HTTP")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            // Not repeated in the message: it may hold a password.
            let sentence = "URL has a user name in it; loadtest sends only OPENAI_API_KEY";
            return Err(LoadtestError::Arguments(sentence.into()));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query"));
        }
        let path = uri.path().trim_end_matches('/');
        let base = if path.ends_with("/v1") { path.into() } else { format!("{path}/v1") };
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').into(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().into(),
            base,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls() {
        #[track_caller]
        fn check(url: &str, expected: Result<(&str, u16, &str), &str>) {
            match (Target::parse(url), expected) {
                (Ok(target), Ok((host, port, base))) => {
                    assert_eq!((&*target.host, target.port, &*target.base), (host, port, base));
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (got, expected) => panic!("{url}: {got:?}, not {expected:?}"),
            }
        }
        check("http://127.0.0.1:8000", Ok(("127.0.0.1", 8000, "/v1")));
        check("http://127.0.0.1:8000/", Ok(("127.0.0.1", 8000, "/v1")));
        check("http://127.0.0.1:8000/v1", Ok(("127.0.0.1", 8000, "/v1")));
        check("http://127.0.0.1:8000/v1/", Ok(("127.0.0.1", 8000, "/v1")));
        check("http://proxy/llm/", Ok(("proxy", 80, "/llm/v1")));
        check("localhost:8000", Ok(("localhost", 8000, "/v1")));
        check("http://[::1]:9", Ok(("::1", 9, "/v1")));
        check("https://api.openai.com", Err("needs TLS"));
        check("ftp://there", Err("not one of HTTP"));
        check("http://", Err("is none"));
        check("http://a b", Err("is none"));
        check("http://h/?x=1", Err("query"));
        check("http://me:secret@h/", Err("user name"));
    }
}
