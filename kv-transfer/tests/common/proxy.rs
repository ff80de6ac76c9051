//! A path between reader and source that does to bytes what it is told, at the byte it is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// What happens to bytes on their way to the reader.
#[derive(Clone)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection closes.
    Close,
    /// The lowest bit of the next byte changes.
    Flip,
    /// That many bytes come a second time.
    Repeat(usize),
    /// No byte moves until the test says so.
    Hold(Arc<Gate>),
    /// From here on, so many bytes move each time.
    Drip(usize, Duration),
}

/// Where a held connection waits.
#[derive(Default)]
pub struct Gate {
    reached: Notify,
    opened: Notify,
}

impl Gate {
    /// Waits until a connection is held.
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Lets it go on.
    pub fn open(&self) {
        self.opened.notify_one();
    }
}

/// A fault at the `at`th byte to the reader, once; what follows passes unchanged.
#[derive(Clone)]
pub struct Script {
    pub at: usize,
    pub fault: Fault,
}

pub struct Proxy {
    pub address: String,
    serving: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Proxy {
    /// Passes every connection on to `source`.
    pub async fn start(source: String, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((reader, _)) = listener.accept().await {
                connections.spawn(connection(reader, source.clone(), script.clone()));
            }
        });
        Self { address, serving }
    }
}

async fn connection(reader: TcpStream, source: String, script: Script) {
    let Ok(source) = TcpStream::connect(source).await else { return };
    let ((mut reader, to_reader), (from_source, mut source)) =
        (reader.into_split(), source.into_split());
    tokio::select! {
        _ended = tokio::io::copy(&mut reader, &mut source) => {}
        _ended = downstream(from_source, to_reader, script) => {}
    }
}

async fn downstream(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    script: Script,
) -> std::io::Result<()> {
    let before = tokio::io::copy(&mut (&mut from).take(script.at as u64), &mut to).await?;
    if before < script.at as u64 {
        return Ok(());
    }
    match script.fault {
        Fault::None => {}
        Fault::Close => return Ok(()),
        Fault::Flip => {
            let byte = from.read_u8().await?;
            to.write_u8(byte ^ 1).await?;
        }
        Fault::Repeat(bytes) => {
            let mut repeated = vec![0; bytes];
            from.read_exact(&mut repeated).await?;
            to.write_all(&[&repeated[..], &repeated[..]].concat()).await?;
        }
        Fault::Hold(gate) => {
            gate.reached.notify_one();
            gate.opened.notified().await;
        }
        Fault::Drip(bytes, interval) => loop {
            let mut some = vec![0; bytes];
            let bytes = from.read(&mut some).await?;
            if bytes == 0 {
                return Ok(());
            }
            to.write_all(&some[..bytes]).await?;
            tokio::time::sleep(interval).await;
        },
    }
    tokio::io::copy(&mut from, &mut to).await?;
    Ok(())
}
