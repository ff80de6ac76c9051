//! A TCP proxy whose link can fail: bytes stop arriving, or every connection is reset.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How a link fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing passes in either direction, ends of connections neither; nothing breaks. Once the
    /// link is up again, what was sent arrives.
    Silence,
    /// Connections are reset, new ones too.
    Reset,
}

/// How a proxy's connections are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Silent,
    Reset,
}

/// A partition; it is over when this is dropped.
pub struct CutGuard {
    shared: Arc<Shared>,
    cut: Cut,
}

impl Drop for CutGuard {
    fn drop(&mut self) {
        self.shared.change(self.cut, |count| *count -= 1);
    }
}

/// Bytes that one direction of a connection takes in hand at once.
const HAND_BYTES: usize = 16 * 1024;

/// A slow link passes on what it has in hand this often at least.
const SLOW_TURN: Duration = Duration::from_millis(20);

/// Listens on a free port of the loopback and forwards to an address that may change: what a
/// restarted process has is told by [`Proxy::forward_to`], and connections wait for the first.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

struct Shared {
    upstream: watch::Sender<Option<SocketAddr>>,
    link: watch::Sender<Link>,
    /// Silences and resets in force; the worse one counts.
    cuts: Mutex<[usize; 2]>,
    /// Of what comes from upstream; unlimited if absent.
    bytes_per_s: Option<u64>,
    /// The clients' ends of connections on which bytes from upstream were taken and not passed on
    /// yet.
    carrying_to: Mutex<BTreeSet<SocketAddr>>,
}

impl Proxy {
    /// Starts one; `bytes_per_s` limits what each connection carries from upstream. Errors: the
    /// system has no port.
    pub async fn start(bytes_per_s: Option<u64>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: watch::Sender::new(None),
            link: watch::Sender::new(Link::Up),
            cuts: Mutex::default(),
            bytes_per_s,
            carrying_to: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where new connections go from now on.
    pub fn forward_to(&self, address: SocketAddr) {
        self.shared.upstream.send_replace(Some(address));
    }

    /// Makes a partition, for old and new connections, that lasts until the guard is dropped.
    pub fn cut(&self, cut: Cut) -> CutGuard {
        self.shared.change(cut, |count| *count += 1);
        CutGuard { shared: self.shared.clone(), cut }
    }

    /// Whether bytes from upstream are on their way at this moment.
    pub fn is_carrying(&self) -> bool {
        !self.shared.carrying_to.lock().is_empty()
    }

    /// To whom: the clients' ends of those connections.
    pub fn carrying_to(&self) -> Vec<SocketAddr> {
        self.shared.carrying_to.lock().iter().copied().collect()
    }
}

impl Shared {
    fn change(&self, cut: Cut, change: impl FnOnce(&mut usize)) {
        let mut cuts = self.cuts.lock();
        change(&mut cuts[cut as usize]);
        self.link.send_replace(match *cuts {
            [0, 0] => Link::Up,
            [_, 0] => Link::Silent,
            _ => Link::Reset,
        });
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, which ends every connection.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_ended) = connections.join_next() => {}
            // A client that gave up already is nobody's error.
            Ok((client, peer)) = listener.accept() => {
                connections.spawn(connection(client, peer, shared.clone()));
            }
        }
    }
}

async fn connection(client: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let mut link = shared.link.subscribe();
    let upstream = tokio::select! {
        biased;
        () = becomes(&mut link, Link::Reset) => None,
        upstream = connect(&shared) => upstream.ok(),
    };
    let Some(upstream) = upstream else {
        let _closed = client.set_zero_linger();
        return;
    };
    let _closed = (client.set_nodelay(true), upstream.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_upstream, mut to_upstream) = upstream.into_split();
    let passed = {
        let up = Pump { link: shared.link.subscribe(), slow: None };
        let slow = shared.bytes_per_s.map(|rate| (rate, Carrying { to: peer, shared: &shared }));
        let down = Pump { link: shared.link.subscribe(), slow };
        let both = async {
            tokio::try_join!(
                up.run(&mut from_client, &mut to_upstream),
                down.run(&mut from_upstream, &mut to_client)
            )
        };
        tokio::select! {
            biased;
            () = becomes(&mut link, Link::Reset) => false,
            ended = both => ended.is_ok(),
        }
    };
    if !passed {
        let _closed =
            (from_client.as_ref().set_zero_linger(), from_upstream.as_ref().set_zero_linger());
        // Dropped, they would end the connections in good order before the reset.
        to_client.forget();
        to_upstream.forget();
    }
}

async fn becomes(link: &mut watch::Receiver<Link>, wanted: Link) {
    if link.wait_for(|link| *link == wanted).await.is_err() {
        // The proxy is gone, and with it whoever would have said so.
        std::future::pending::<()>().await;
    }
}

/// Connects once the link is up and there is somewhere to go.
async fn connect(shared: &Shared) -> io::Result<TcpStream> {
    becomes(&mut shared.link.subscribe(), Link::Up).await;
    let mut upstream = shared.upstream.subscribe();
    let known = upstream.wait_for(Option::is_some).await.map(|address| *address);
    match known {
        Ok(Some(address)) => TcpStream::connect(address).await,
        _ => Err(io::ErrorKind::NotConnected.into()),
    }
}

/// One direction of a connection.
struct Pump<'a> {
    link: watch::Receiver<Link>,
    /// Bytes per second, and what says that some are on their way.
    slow: Option<(u64, Carrying<'a>)>,
}

impl<'a> Pump<'a> {
    /// Forwards until the end, and forwards the end.
    async fn run(mut self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut hand = vec![0; self.hand_bytes()];
        loop {
            // While the link is silent nothing is read: what is sent waits in the kernel.
            becomes(&mut self.link, Link::Up).await;
            let taken = tokio::select! {
                biased;
                _changed = self.link.changed() => continue,
                taken = from.read(&mut hand) => taken?,
            };
            let _held = if taken == 0 { None } else { self.carry(taken).await };
            becomes(&mut self.link, Link::Up).await;
            if taken == 0 {
                return to.shutdown().await;
            }
            to.write_all(&hand[..taken]).await?;
        }
    }

    fn hand_bytes(&self) -> usize {
        let slow =
            self.slow.as_ref().map(|(rate, _)| (*rate as f64 * SLOW_TURN.as_secs_f64()) as usize);
        slow.unwrap_or(HAND_BYTES).clamp(1, HAND_BYTES)
    }

    /// Takes the time that a slow link takes. The bytes are on their way until the guard is dropped.
    async fn carry(&self, bytes: usize) -> Option<Held<'a>> {
        let (rate, carrying) = self.slow.as_ref()?;
        let held = carrying.hold();
        tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / *rate as f64)).await;
        Some(held)
    }
}

/// A connection that may be carrying bytes from upstream.
struct Carrying<'a> {
    to: SocketAddr,
    shared: &'a Shared,
}

/// It is, while this lives.
struct Held<'a> {
    to: SocketAddr,
    shared: &'a Shared,
}

impl<'a> Carrying<'a> {
    fn hold(&self) -> Held<'a> {
        self.shared.carrying_to.lock().insert(self.to);
        Held { to: self.to, shared: self.shared }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.carrying_to.lock().remove(&self.to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, behind a proxy, and a client that has spoken once.
    async fn echo(bytes_per_s: Option<u64>) -> (Proxy, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(bytes_per_s).await.unwrap();
        proxy.forward_to(server.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    let _ended = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        speak(&mut client, b"hello").await.unwrap();
        (proxy, client)
    }

    async fn speak(client: &mut TcpStream, words: &[u8]) -> io::Result<()> {
        client.write_all(words).await?;
        hear(client, words).await
    }

    async fn hear(client: &mut TcpStream, words: &[u8]) -> io::Result<()> {
        let mut heard = vec![0; words.len()];
        let reading = client.read_exact(&mut heard);
        tokio::time::timeout(Duration::from_secs(10), reading).await.expect("an answer")?;
        assert_eq!(heard, words);
        Ok(())
    }

    #[tokio::test]
    async fn forwards_words_and_ends() {
        let (_proxy, mut client) = echo(None).await;
        let words: Vec<u8> = (0..100_000u32).map(|byte| byte as u8).collect();
        let (mut from, mut to) = client.split();
        let mut heard = Vec::new();
        let (sent, read) = tokio::join!(
            async {
                to.write_all(&words).await?;
                to.shutdown().await
            },
            from.read_to_end(&mut heard)
        );
        sent.unwrap();
        read.unwrap();
        assert_eq!(heard, words);
    }

    #[tokio::test]
    async fn silence_holds_back_and_delivers_later() {
        let (proxy, mut client) = echo(None).await;
        let silenced = proxy.cut(Cut::Silence);
        client.write_all(b"anyone?").await.unwrap();
        let mut newcomer = TcpStream::connect(proxy.address).await.unwrap();
        newcomer.write_all(b"me too").await.unwrap();
        let silence = Duration::from_millis(200);
        let mut byte = [0];
        tokio::time::timeout(silence, client.read(&mut byte)).await.expect_err("silence");
        tokio::time::timeout(silence, newcomer.read(&mut byte)).await.expect_err("silence");
        drop(silenced);
        hear(&mut client, b"anyone?").await.unwrap();
        hear(&mut newcomer, b"me too").await.unwrap();
    }

    #[tokio::test]
    async fn resets_old_and_new_connections() {
        let (proxy, mut client) = echo(None).await;
        let (resetting, silenced) = (proxy.cut(Cut::Reset), proxy.cut(Cut::Silence));
        let mut byte = [0];
        let broken = client.read(&mut byte).await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
        let mut newcomer = TcpStream::connect(proxy.address).await.unwrap();
        speak(&mut newcomer, b"hello").await.expect_err("reset");
        drop(resetting);
        let mut newcomer = TcpStream::connect(proxy.address).await.unwrap();
        newcomer.write_all(b"hello").await.unwrap();
        drop(silenced);
        hear(&mut newcomer, b"hello").await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_link_says_that_it_is_carrying() {
        let (proxy, mut client) = echo(Some(10_000)).await;
        assert!(!proxy.is_carrying());
        let words = [7; 2_000];
        client.write_all(&words).await.unwrap();
        let carrying = async {
            while !proxy.is_carrying() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), carrying).await.expect("it carries");
        assert_eq!(proxy.carrying_to(), [client.local_addr().unwrap()]);
        hear(&mut client, &words).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_upstream_is_a_reset() {
        let proxy = Proxy::start(None).await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        proxy.forward_to(closed);
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        speak(&mut client, b"hello").await.expect_err("reset");
    }
}
