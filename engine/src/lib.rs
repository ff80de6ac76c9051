//! Computes tokens: a decoder driven by its `config.json`, CPU kernels with a fixed reduction
//! order, a paged KV pool with a prefix cache, a continuous-batching scheduler and a sampler.
//!
//! `Engine::step` is synchronous. The engine knows no bus, no HTTP and no worker roles.

#[cfg(feature = "candle")]
mod candle;
mod cuda;
mod engine;
#[doc(hidden)] // Public for benchmarks alone.
pub mod kernels;
mod kv;
mod load_error;
mod model;
mod numerics;
mod probe;
mod runner;
mod sampler;
mod schedule;

#[cfg(feature = "candle")]
pub use candle::{CandleDevice, CandleModel};
pub use cuda::{CudaModel, CudaOptions, KeeperLaunch, Libraries, WeightFormat, copy_kernel};
pub use engine::{Engine, EngineConfig, Load, RefusedSequence, SequenceOutput, StepOutput};
pub use kernels::{Compute, Defect, KernelPath};
pub use kv::{BlockCounts, KvEvent, Reserved};
pub use load_error::LoadError;
pub use model::{Int8Cache, Model, ModelConfig, parse_json, read_optional};
pub use numerics::Numerics;
#[cfg(feature = "candle")]
pub use runner::CandleRunner;
pub use runner::{
    CpuRunner, CudaRunner, Facts, MockRunner, MockTimes, MockVocabulary, Runner, RunnerError,
    Sizes, Watch,
};
pub use schedule::{Guesses, SequenceId, SequenceRequest};
