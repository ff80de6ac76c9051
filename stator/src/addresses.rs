//! Which addresses may be listened on, and under which others reach them.

use std::net::SocketAddr;

use messaging::advertised_host;
use tokio::net::{TcpListener, lookup_host};

use crate::error::CommandError;

/// Why a data plane must not be open to anyone.
pub const OPEN_DATA: &str = "nothing protects it: anyone who reaches it may use the model and read \
    prompts, unless --tls-cert, --tls-key and --tls-ca are given";

/// What protects an address that is not loopback, where anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// The user says that the network does.
    pub insecure: bool,
    /// Whoever connects must show a certificate.
    pub client_certificates: bool,
}

/// Refuses an open address that nothing protects. `why` goes on "is not a loopback address, and".
pub fn check(
    flag: &str,
    address: SocketAddr,
    protection: Protection,
    why: &str,
) -> Result<(), CommandError> {
    let Protection { insecure, client_certificates } = protection;
    if address.ip().is_loopback() || insecure || client_certificates {
        return Ok(());
    }
    Err(CommandError::Arguments(format!(
        "{flag} {address} is not a loopback address, and {why}; listen on 127.0.0.1, or add \
         --insecure if your network protects it"
    )))
}

/// Refuses to listen on all addresses without one to advertise, and to advertise a host that has no
/// address.
pub async fn check_advertised(
    flag: &str,
    listen: SocketAddr,
    advertise: Option<&str>,
) -> Result<(), CommandError> {
    let Some(advertise) = advertise else {
        return match listen.ip().is_unspecified() {
            false => Ok(()),
            true => Err(CommandError::Arguments(format!(
                "{flag} {listen} listens on all addresses, and others need one to connect to; add \
                 --advertise HOST"
            ))),
        };
    };
    let host = advertised_host(advertise);
    let unusable = |reason: String| {
        CommandError::Arguments(format!(
            "--advertise {advertise} cannot be reached by others: {reason}; give a host name or \
             address of this machine"
        ))
    };
    let mut found = lookup_host((host, 0)).await.map_err(|error| unusable(error.to_string()))?;
    match found.find(|address| !address.ip().is_unspecified()) {
        Some(_) => Ok(()),
        None => Err(unusable("it stands for all addresses".into())),
    }
}

/// Listens for HTTP. Errors: the address is taken, or not one of this machine.
pub async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, CommandError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| CommandError::Listen { address, flag, source })
}
