//! Weights that several processes have together on an emulated GPU.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuda_driver::fake::{self, Fake};
use engine::{
    CudaModel, CudaOptions, CudaRunner, Engine, EngineConfig, KeeperLaunch, KernelPath, Libraries,
    Model, Numerics, RunnerError, SequenceId, SequenceRequest, WeightFormat,
};
use protocol::v1::{Sampling, Stopping};

/// Set in a process that is a keeper: how long it stays without users, in milliseconds.
const GRACE_MS: &str = "STATOR_TEST_KEEPER_GRACE_MS";
const SOON: Duration = Duration::from_secs(60);

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama2")
}

fn libraries(driver: &Path) -> Libraries {
    let folder = fake::libraries();
    Libraries {
        driver: Some(driver.to_path_buf()),
        nvrtc: Some(folder.join(fake::NVRTC)),
        cublas: Some(folder.join(fake::CUBLAS)),
    }
}

/// Not a test by itself: what the others start as a keeper, which is told its socket behind all else.
#[test]
fn be_the_keeper() {
    let Ok(grace_ms) = std::env::var(GRACE_MS) else { return };
    let socket = PathBuf::from(std::env::args_os().next_back().unwrap());
    let fake = Fake::new();
    let model = Model::load(&fixture(), KernelPath::Portable).unwrap();
    let grace = Duration::from_millis(grace_ms.parse().unwrap());
    let libraries = libraries(fake.path());
    CudaModel::keep(&model, WeightFormat::AsStored, 0, &libraries, &socket, grace).unwrap();
}

/// A directory for sockets, and how keepers are started there.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("stator-{name}-{}", std::process::id())))
    }

    fn launch(&self, grace_ms: u64) -> KeeperLaunch {
        let variable = format!("{GRACE_MS}={grace_ms}");
        let program = std::env::current_exe().unwrap();
        let arguments: [OsString; 5] = [
            variable.into(),
            program.into(),
            "--exact".into(),
            "--nocapture".into(),
            "be_the_keeper".into(),
        ];
        KeeperLaunch {
            program: "/usr/bin/env".into(),
            arguments: arguments.to_vec(),
            directory: self.0.clone(),
        }
    }

    fn sockets(&self) -> usize {
        let files = fs::read_dir(&self.0).unwrap().flatten();
        files.filter(|file| file.path().extension().is_some_and(|end| end == "sock")).count()
    }

    /// Ids of processes whose arguments name this directory.
    fn keepers(&self) -> Vec<i32> {
        let is_ours = |id: &i32| {
            let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(self.0.to_str().unwrap())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(is_ours).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for keeper in self.keepers() {
            // SAFETY: it only sends a signal, to a process that this test started.
            unsafe { libc::kill(keeper, libc::SIGKILL) };
        }
        let _removed = fs::remove_dir_all(&self.0);
    }
}

/// One process that uses weights: another instance of the driver is as another process.
struct User {
    engine: Engine,
    fake: Fake,
}

impl User {
    fn new(keeper: Option<KeeperLaunch>) -> Result<Self, String> {
        Self::with(Fake::new(), keeper)
    }

    fn with(fake: Fake, keeper: Option<KeeperLaunch>) -> Result<Self, String> {
        let options = CudaOptions {
            ordinal: 0,
            numerics: Numerics::Fixed,
            weights: WeightFormat::AsStored,
            kernel_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")),
            libraries: libraries(fake.path()),
            keeper,
        };
        let model = CudaModel::load(&fixture(), &options).map_err(|error| error.to_string())?;
        let config = EngineConfig {
            block_size: 16,
            kv_blocks: 16,
            max_num_seqs: 4,
            max_num_batched_tokens: 64,
            waiting_sequences_max: 4,
            speculative_tokens: 0,
            step_target: None,
            shares_memory: false,
        };
        let engine = Engine::new(Box::new(CudaRunner::new(Arc::new(model))), config).unwrap();
        Ok(Self { engine, fake })
    }

    fn generate(&mut self) -> Result<Vec<u32>, RunnerError> {
        let sampling = Sampling { repetition_penalty: 1.0, top_p: 1.0, ..Default::default() };
        let request = SequenceRequest {
            id: SequenceId(0),
            prompt: (1..30).collect(),
            generated: Vec::new(),
            sampling,
            stopping: Stopping { max_tokens: 6, ignore_eos: true, ..Default::default() },
            cache_salt: String::new(),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        };
        self.engine.generate(request).unwrap();
        let mut tokens = Vec::new();
        loop {
            let output = self.engine.step()?;
            if output.is_idle() {
                return Ok(tokens);
            }
            let news = output.sequences.iter().flat_map(|news| &news.tokens);
            tokens.extend(news.map(|token| token.id));
        }
    }
}

#[track_caller]
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < SOON, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn several_processes_have_weights_together_and_the_keeper_ends_after_them() {
    let place = Place::new("keeper-together");
    let expected = User::new(None).unwrap().generate().unwrap();
    let start = || User::new(Some(place.launch(2_000)));
    let users: Vec<_> = std::thread::scope(|scope| {
        // At once: one of them starts the keeper.
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    assert_eq!((place.keepers().len(), place.sockets()), (1, 1));
    for mut user in users {
        assert_eq!(user.generate().unwrap(), expected);
        let User { engine, fake } = user;
        drop(engine);
        assert_eq!(fake.left(), [""; 0]);
    }
    eventually("the keeper ends", || place.keepers().is_empty());
    assert_eq!(place.sockets(), 0);
    // Who comes later starts another.
    assert_eq!(start().unwrap().generate().unwrap(), expected);
}

#[test]
fn users_of_a_keeper_that_is_killed_compute_no_more() {
    let place = Place::new("keeper-killed");
    let mut user = User::new(Some(place.launch(60_000))).unwrap();
    let expected = user.generate().unwrap();
    for keeper in place.keepers() {
        // SAFETY: it only sends a signal, to a process that this test started.
        unsafe { libc::kill(keeper, libc::SIGKILL) };
    }
    // Known without a step, as an idle worker has to know.
    let watch = user.engine.watch().unwrap();
    eventually("it is noticed", || watch().is_some());
    let failed = |user: &mut User| user.generate().err().map(|error| error.to_string());
    let began = Instant::now();
    let sentence = loop {
        assert!(began.elapsed() < SOON, "it goes on without its weights");
        if let Some(sentence) = failed(&mut user) {
            break sentence;
        }
    };
    assert!(sentence.contains("--share-weights"), "{sentence}");
    // What the dead one left is in nobody's way.
    assert_eq!(User::new(Some(place.launch(60_000))).unwrap().generate().unwrap(), expected);
}

#[test]
fn weights_that_cannot_be_mapped_are_no_reason_for_another_keeper() {
    let place = Place::new("keeper-refused");
    let mut first = User::new(Some(place.launch(60_000))).unwrap();
    let expected = first.generate().unwrap();
    let fake = Fake::new();
    fake.fail("cuIpcOpenMemHandle_v2", 0, 801);
    let sentence = User::with(fake, Some(place.launch(60_000))).err().unwrap();
    assert!(sentence.contains("cannot be shared between these processes"), "{sentence}");
    assert_eq!((place.keepers().len(), place.sockets()), (1, 1));
    assert_eq!(first.generate().unwrap(), expected);
}

#[test]
fn a_keeper_that_cannot_start_says_why() {
    let place = Place::new("keeper-fails");
    let launch = |program: &str, arguments: &[&str]| KeeperLaunch {
        program: program.into(),
        arguments: arguments.iter().map(OsString::from).collect(),
        directory: place.0.clone(),
    };
    let refusal = |launch| User::new(Some(launch)).err().unwrap();
    let sentence = refusal(launch("/nowhere/stator", &[]));
    assert!(sentence.contains("does not start"), "{sentence}");
    let sentence = refusal(launch("/bin/sh", &["-c", "echo the disk is full >&2; exit 1"]));
    assert!(sentence.contains("keeper ended: the disk is full"), "{sentence}");
    fs::set_permissions(&place.0, fs::Permissions::from_mode(0o755)).unwrap();
    let sentence = refusal(launch("/nowhere/stator", &[]));
    assert!(sentence.contains("only this user"), "{sentence}");
}
