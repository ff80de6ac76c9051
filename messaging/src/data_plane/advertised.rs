//! What a component says others should connect to.

use std::net::IpAddr;

/// The host of `HOST` or `HOST:PORT`.
pub fn advertised_host(advertise: &str) -> &str {
    let host = match advertise.rsplit_once(':') {
        Some((host, port)) if is_port(host, port) => host,
        _ => advertise,
    };
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Of an IPv6 address without brackets, no part is a port.
fn is_port(host: &str, port: &str) -> bool {
    port.parse::<u16>().is_ok() && (host.ends_with(']') || !host.contains(':'))
}

/// `HOST` or `HOST:PORT` as `host:port`, with the port that is listened on where none is given.
pub fn advertised_endpoint(advertise: &str, bound_port: u16) -> String {
    let host = advertised_host(advertise);
    let port = match advertise.rsplit_once(':') {
        Some((host, port)) if is_port(host, port) => port.to_string(),
        _ => bound_port.to_string(),
    };
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertised_addresses_have_a_host_and_a_port() {
        let cases = [
            ("worker-1", "worker-1:7000"),
            ("worker-1:81", "worker-1:81"),
            ("10.0.0.7", "10.0.0.7:7000"),
            ("10.0.0.7:81", "10.0.0.7:81"),
            ("fd00::7", "[fd00::7]:7000"),
            ("[fd00::7]", "[fd00::7]:7000"),
            ("[fd00::7]:81", "[fd00::7]:81"),
        ];
        for (advertise, expected) in cases {
            assert_eq!(advertised_endpoint(advertise, 7000), expected);
        }
    }
}
