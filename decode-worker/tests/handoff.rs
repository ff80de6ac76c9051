//! The handoff between a prefill and a decode worker: the tokens are those of a worker alone,
//! whatever the prefill worker does, and nothing is left behind.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{Compute, CpuRunner, EngineConfig, KernelPath, Model};
use kv_transfer::{CUDA, LeaseLimits, LeaseTable, TCP, Ways, tcp};
use messaging::Network;
use prefill_worker::{KvListener, KvSource};
use protocol::v1::generation_client::GenerationClient;
use protocol::v1::prefill_client::PrefillClient;
use protocol::v1::prefill_event::Kind as Event;
use protocol::v1::prefill_server::{Prefill, PrefillServer};
use protocol::v1::{self, FinishReason, KvLink, Role, session_request::Kind};
use protocol::{Incarnation, WorkerLife};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};
use worker::{EngineHost, EnginePlace, Transfers, Worker, WorkerConfig};

const KV_BLOCKS: usize = 64;

/// A prefill and a decode worker.
struct Pair {
    network: Network,
    prefill: Arc<EngineHost>,
    decode: Arc<EngineHost>,
    /// What the decode worker learned of its copies.
    transfers: Arc<Transfers>,
    _stop: DropGuard,
}

fn start_worker(name: &str, role: Role, model: &Arc<Model>) -> Worker {
    let life = WorkerLife { id: name.into(), incarnation: Incarnation(7) };
    let engine = EngineConfig {
        block_size: 16,
        kv_blocks: KV_BLOCKS,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        waiting_sequences_max: 64,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    };
    let compute = Arc::new(Compute::new(1, KernelPath::detect()).unwrap());
    let card = v1::ModelCard { name: "m".into(), ..Default::default() };
    let runner = Box::new(CpuRunner::new(model.clone(), compute));
    let place = EnginePlace::Thread;
    let hardware = Some(hardware(name));
    Worker::start(WorkerConfig { life, role, runner, place, engine, card, hardware }).unwrap()
}

/// That of a process of its own on one host.
fn hardware(process: &str) -> v1::Hardware {
    let id = |name: &str| name.as_bytes().to_vec().into();
    let (host_id, process_id) = (id("host"), id(process));
    let place = v1::Place { host_id, process_id, device: "cpu".into(), ..Default::default() };
    v1::Hardware { place: Some(place), kv_ways: vec![TCP.into()], ..Default::default() }
}

impl Pair {
    /// In one process.
    fn start() -> Self {
        let ways = Ways::default();
        Self::reading(ways.clone(), ways, None)
    }

    /// As if each were in its own.
    async fn of_processes() -> Self {
        let ways = Ways::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let limits = tcp::ServerLimits::default();
        let server = tcp::Server::bind(any, ways.local.clone(), limits).await.unwrap();
        let address = server.local_address().unwrap().to_string();
        Self::reading(Ways::default(), ways, Some(KvListener { server, address }))
    }

    fn reading(ways: Ways, ways_of_prefill: Ways, listener: Option<KvListener>) -> Self {
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/qwen3-tied");
        let model = Arc::new(Model::load(&fixture, KernelPath::detect()).unwrap());
        let network = Network::default();
        let stop = CancellationToken::new();
        let prefill = start_worker("prefill", Role::Prefill, &model);
        let decode = start_worker("decode", Role::Decode, &model);
        let hosts = (prefill.host.clone(), decode.host.clone());
        let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
        let kv = KvSource { leases, listener };
        let transfers = decode.transfers.clone();
        let decode = decode_worker::run(decode, network.clone(), ways, stop.clone());
        let prefill =
            prefill_worker::run(prefill, kv, network.clone(), ways_of_prefill, stop.clone());
        tokio::spawn(prefill);
        tokio::spawn(decode);
        Self { network, prefill: hosts.0, decode: hosts.1, transfers, _stop: stop.drop_guard() }
    }

    /// Sends one request, and returns its tokens. Keeps the session open until it has ended.
    async fn generate(&self, prompt: &[u32], prefill: Option<v1::PrefillWorker>) -> Vec<u32> {
        let (messages, outbound) = mpsc::channel(4);
        messages.send(generate_message(prompt, prefill)).await.unwrap();
        let mut client = GenerationClient::new(self.connect("decode/7").await);
        let mut frames = client.session(ReceiverStream::new(outbound)).await.unwrap().into_inner();
        let mut tokens = Vec::new();
        loop {
            let frame = frames.message().await.unwrap().expect("the session goes on");
            for update in frame.updates {
                assert_eq!(update.failure, None);
                tokens.extend(update.tokens.iter().map(|token| token.id));
                if update.finish() != FinishReason::Unspecified {
                    return tokens;
                }
            }
        }
    }

    async fn connect(&self, endpoint: &str) -> tonic::transport::Channel {
        // The worker listens as soon as its task has begun.
        loop {
            match self.network.data_plane.connect(endpoint).await {
                Ok(channel) => return channel,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Waits until no block is used in either pool: then no lease is left either.
    async fn at_rest(&self) {
        let rest = async {
            for host in [&self.prefill, &self.decode] {
                while host.load().blocks.used > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let blocks = host.load().blocks;
                assert_eq!(blocks.free + blocks.cached, KV_BLOCKS);
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(5), rest).await;
        let load = || (self.prefill.load(), self.decode.load());
        assert!(in_time.is_ok(), "blocks are left: {:?}", load());
    }
}

fn generate_message(prompt: &[u32], prefill: Option<v1::PrefillWorker>) -> v1::SessionRequest {
    let generate = v1::GenerateRequest {
        request: 1,
        request_id: "r".into(),
        prompt_tokens: prompt.to_vec(),
        sampling: Some(v1::Sampling {
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 42,
            ..Default::default()
        }),
        stopping: Some(v1::Stopping { max_tokens: 24, ignore_eos: true, ..Default::default() }),
        prefill,
        generated_tokens: Vec::new(),
        cache_salt: String::new(),
        grammar: String::new(),
        prompt_logprobs: None,
        priority: 0,
    };
    v1::SessionRequest { kind: Some(Kind::Generate(generate)) }
}

fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|index| (index * 37 + 5) % 384).collect()
}

fn prefill_at(endpoint: &str, incarnation: u64) -> Option<v1::PrefillWorker> {
    Some(v1::PrefillWorker {
        worker_id: "prefill".into(),
        incarnation,
        data_endpoint: endpoint.into(),
    })
}

#[tokio::test]
async fn remote_prefill_gives_the_tokens_of_a_worker_alone() {
    for tokens in [1, 15, 16, 17, 63, 64, 65, 300] {
        let alone = Pair::start().generate(&prompt(tokens), None).await;
        let pair = Pair::start();
        // The second time, both prefix caches hold the prompt.
        for _ in 0..2 {
            let remote = pair.generate(&prompt(tokens), prefill_at("prefill/7", 7)).await;
            assert_eq!(remote, alone, "a prompt of {tokens}");
            pair.at_rest().await;
        }
        if tokens >= 16 {
            assert!(pair.prefill.load().blocks.cached > 0, "the prefill worker computed");
        }
    }
}

#[tokio::test]
async fn a_wrong_address_or_life_is_survived() {
    let expected = Pair::start().generate(&prompt(100), None).await;
    let pair = Pair::start();
    for prefill in [prefill_at("nowhere/1", 1), prefill_at("prefill/7", 8)] {
        assert_eq!(pair.generate(&prompt(100), prefill).await, expected);
        pair.at_rest().await;
    }
    assert_eq!(pair.prefill.load().blocks.cached, 0, "the prefill worker was not used");
}

/// A prefill worker that says what it is told to, then breaks off.
struct Scripted {
    events: Vec<Event>,
}

#[tonic::async_trait]
impl Prefill for Scripted {
    type PrefillStream = ReceiverStream<Result<v1::PrefillEvent, Status>>;

    async fn prefill(
        &self,
        _request: Request<v1::PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        let (sender, stream) = mpsc::channel(16);
        for event in self.events.clone() {
            let event = v1::PrefillEvent { kind: Some(event) };
            sender.send(Ok(event)).await.expect("room for the script");
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew_lease(
        &self,
        _request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        Ok(Response::new(v1::LeaseState { valid: false }))
    }

    async fn finish_lease(
        &self,
        _request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        Ok(Response::new(v1::LeaseState { valid: false }))
    }
}

fn granted(pair: &Pair) -> Event {
    Event::Granted(v1::KvDescriptor {
        worker_id: "prefill".into(),
        incarnation: 7,
        lease: 1,
        capability: vec![0; 16].into(),
        lease_ms: 10_000,
        layout: Some(pair.decode.layout().into()),
        endpoints: Vec::new(),
        place: None,
        rdma: None,
    })
}

fn ready(blocks: u32) -> Event {
    Event::Ready(v1::BlocksReady { blocks, added: (0..blocks).collect() })
}

fn first_token(id: u32) -> Event {
    let token = Some(v1::Token { id, ..Default::default() });
    Event::FirstToken(v1::FirstToken { token, ..Default::default() })
}

#[tokio::test]
async fn every_way_to_break_off_is_survived_with_the_same_tokens() {
    let prompt = prompt(100);
    let expected = Pair::start().generate(&prompt, None).await;
    let first = expected[0];
    let pair = Pair::start();
    let no_capability = Event::Granted(v1::KvDescriptor::default());
    let other_layout = v1::KvLayout { block_size: 32, ..pair.decode.layout().into() };
    let with = |change: fn(&mut v1::KvDescriptor)| match granted(&pair) {
        Event::Granted(mut descriptor) => {
            change(&mut descriptor);
            Event::Granted(descriptor)
        }
        other => other,
    };
    let scripts = [
        ("nothing said", vec![]),
        ("no lease", vec![ready(1)]),
        ("a lease without capability", vec![no_capability]),
        ("after the grant", vec![granted(&pair)]),
        (
            "another layout",
            vec![
                match granted(&pair) {
                    Event::Granted(descriptor) => Event::Granted(v1::KvDescriptor {
                        layout: Some(other_layout),
                        ..descriptor
                    }),
                    other => other,
                },
                ready(3),
            ],
        ),
        ("another worker's lease", vec![with(|granted| granted.incarnation = 8), ready(3)]),
        ("a token of another vocabulary", vec![granted(&pair), first_token(1 << 20)]),
        ("two grants", vec![granted(&pair), granted(&pair)]),
        ("blocks that do not add up", vec![granted(&pair), ready(99)]),
        ("blocks that cannot be read", vec![granted(&pair), ready(3)]),
        ("after the first token", vec![granted(&pair), first_token(first)]),
        ("all said, no block readable", vec![granted(&pair), first_token(first), ready(7)]),
        ("blocks before the token", vec![granted(&pair), ready(7), first_token(first)]),
    ];
    for (index, (name, events)) in scripts.into_iter().enumerate() {
        let endpoint = format!("scripted/{index}");
        let incoming = pair.network.data_plane.listen(&endpoint).await.unwrap();
        let service = PrefillServer::new(Scripted { events });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        let tokens = pair.generate(&prompt, prefill_at(&endpoint, 7)).await;
        assert_eq!(tokens, expected, "{name}");
        pair.at_rest().await;
    }
}

/// A prefill worker that says that its blocks, which are reached by tcp alone, are on a GPU of this host.
struct OnGpu {
    real: tonic::transport::Channel,
}

#[tonic::async_trait]
impl Prefill for OnGpu {
    type PrefillStream = ReceiverStream<Result<v1::PrefillEvent, Status>>;

    async fn prefill(
        &self,
        request: Request<v1::PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        let mut real = PrefillClient::new(self.real.clone());
        let mut events = real.prefill(request.into_inner()).await?.into_inner();
        let (sender, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(mut event)) = events.message().await {
                if let Some(Event::Granted(granted)) = &mut event.kind {
                    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
                    let tcp = &granted.endpoints[0].address;
                    let address = format!("{}@{tcp}", boot.trim());
                    granted.endpoints = vec![v1::KvEndpoint { way: CUDA.into(), address }];
                }
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        PrefillClient::new(self.real.clone()).renew_lease(request.into_inner()).await
    }

    async fn finish_lease(
        &self,
        request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        PrefillClient::new(self.real.clone()).finish_lease(request.into_inner()).await
    }
}

#[tokio::test]
async fn a_copy_that_fell_back_to_tcp_teaches_of_what_tcp_goes_over() {
    let expected = Pair::start().generate(&prompt(100), None).await;
    let pair = Pair::of_processes().await;
    let real = pair.connect("prefill/7").await;
    let incoming = pair.network.data_plane.listen("on-gpu").await.unwrap();
    let service = PrefillServer::new(OnGpu { real });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    assert_eq!(pair.generate(&prompt(100), prefill_at("on-gpu", 7)).await, expected);
    pair.at_rest().await;
    let models = pair.transfers.models();
    let links: Vec<KvLink> = models.iter().map(v1::TransferModel::link).collect();
    assert_eq!(links, [KvLink::Host]);
}

#[tokio::test]
async fn a_gateway_that_goes_leaves_nothing_behind() {
    let pair = Pair::start();
    for frames_read in [0, 1, 5] {
        for prefill in [None, prefill_at("prefill/7", 7)] {
            let (messages, outbound) = mpsc::channel(4);
            messages.send(generate_message(&prompt(200), prefill)).await.unwrap();
            let mut client = GenerationClient::new(pair.connect("decode/7").await);
            let session = client.session(ReceiverStream::new(outbound)).await.unwrap();
            let mut frames = session.into_inner();
            for _ in 0..frames_read {
                frames.message().await.unwrap();
            }
            drop((messages, frames));
            pair.at_rest().await;
        }
    }
}

#[tokio::test]
async fn a_cancelled_request_leaves_nothing_behind() {
    let pair = Pair::start();
    let (messages, outbound) = mpsc::channel(4);
    let mut client = GenerationClient::new(pair.connect("decode/7").await);
    let mut frames = client.session(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    for _ in 0..20 {
        messages.send(generate_message(&prompt(200), prefill_at("prefill/7", 7))).await.unwrap();
        frames.message().await.unwrap();
        let cancel = Kind::Cancel(v1::CancelRequest { request: 1 });
        messages.send(v1::SessionRequest { kind: Some(cancel) }).await.unwrap();
        pair.at_rest().await;
    }
}
