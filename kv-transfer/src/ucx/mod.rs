//! The ucx way: blocks between hosts by RDMA (InfiniBand, RoCE), or by whatever else UCX finds.
//!
//! The reader reads one-sided, without the source's process: it asks the source's `tcp::Server` to
//! lend blocks, which answers a live lease's capability with how the pool is reached and keeps the
//! blocks pinned; it reads them into its own pool, a run of neighbours at a time; and gives them
//! back, which tells whether the lease has lasted. A source cannot stop a reader, nor could it tell
//! who reads: that blocks are pinned while they are lent, that they are reused only after a grace
//! once their lease has expired, and that nothing counts before `finish`, makes up for it.
//!
//! UCX may abort or hang with a peer that dies, so no worker loads it. A worker starts an `Agent`: a
//! process that maps the worker's pool (`HostMemory::shared`, or a GPU's by IPC: `memory.rs`) and does
//! the reading and the being read (`agent.rs`, over `pool.rs`, over `bindings.rs`). They talk over a socket of their own
//! (`frames.rs`). When the agent ends, its gets fail, which leads to the next way, and another is
//! started (`supervisor.rs`).
//!
//! What is bounded, and what happens at the bound:
//! - Gets at an agent: `AGENT_GETS_MAX`; beyond, they fail. A reader's limits are below that.
//! - Bytes under way at an agent: 128 reads of at most 1 MiB, 32 from one peer; further ones wait
//!   their turn.
//! - Peers of an agent: 256 stay connected; those that were not used for longest are closed.
//! - What UCX does not give back: an agent of which 256 peers have failed ends, and another begins.
//! - Time: a peer from which nothing comes for `SILENCE_MAX` is given up, an agent that does not
//!   answer for `ANSWER_MAX` is killed; restarts wait longer each time.
//!
//! Of pools on GPUs:
//! - A network card does not wait for a GPU's computation. Before anything is read, the source waits
//!   for what writes the blocks, and the reader for what may still use the blocks that are to be
//!   filled; afterwards the agent has the GPU settle what came (`settle_remote_writes`).
//! - Where network cards do not get at the GPU's memory, UCX would copy in small pieces by way of its
//!   own connections, and say nothing. There the agent refuses.
//!
//! UCX neither encrypts nor knows who reads: the network has to be trusted. By UCX's registration a
//! key allows writes too; nobody here writes.

mod agent;
mod bindings;
mod error;
mod frames;
#[cfg(test)]
mod layout;
mod memory;
mod pool;
mod process;
mod supervisor;

use std::time::Duration;

pub use agent::run as run_agent;
pub use error::UcxError;
pub use process::Launch;
pub use supervisor::{Agent, AgentStatus};

/// Gets that an agent has at once.
pub const AGENT_GETS_MAX: usize = 256;

/// While bytes are due from a peer, some come in this time.
pub const SILENCE_MAX: Duration = crate::tcp::PROGRESS_MAX;

/// An agent answers within this; otherwise it hangs.
pub const ANSWER_MAX: Duration = Duration::from_secs(2);

/// From an agent's start to its pool's readiness: devices have to register all of its memory.
pub const START_MAX: Duration = Duration::from_secs(60);

/// The first pause before an agent is started again.
pub const RESTART_MIN: Duration = Duration::from_millis(100);

/// The longest.
pub const RESTART_MAX: Duration = Duration::from_secs(30);

/// For how long a source is read by the next way after this one failed.
pub const AVOIDED: Duration = Duration::from_secs(10);
