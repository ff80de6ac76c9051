//! A worker at a glance: all that a prediction needs of it, close together and without anything to
//! look up, because a decision looks at every worker.

use protocol::link::TransferRate;
use protocol::v1::LatencyModel;

use crate::worker_table::Time;

/// What is known against choosing a worker, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing.
    Sound,
    /// It was not heard of lately.
    Silent,
    /// Someone found it dead, silent or hung.
    Suspected,
}

/// See the module's description. Made anew whenever something of it changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauge {
    /// How long its steps take.
    pub latency: LatencyModel,
    /// Tokens per block; 0 where there is no worker.
    pub block_size: u32,
    /// Prompt tokens that one of its steps computes at most.
    pub chunk_tokens: f32,
    /// One token's KV.
    pub token_bytes: f32,
    /// Which host it is on, as a number; absent where that is not known.
    pub host: Option<u16>,
    /// At which spot of that it computes, likewise; those of prefill workers have numbers.
    pub spot: Option<u16>,
    /// How fast KV gets here from other hosts by its network card.
    pub network: TransferRate,
    /// What that card lets through at most on the way out.
    pub network_bound: TransferRate,
    /// How fast KV gets to and from other hosts by RDMA, where it can.
    pub rdma: Option<TransferRate>,
    /// Streams that share its steps.
    pub streams: f32,
    /// Tokens present in those streams.
    pub stream_tokens: f32,
    /// A sequence with fewer tokens could have blocks beside what was sent here.
    pub room_tokens: f32,
    /// When it will have computed all prompts that were sent to it.
    pub busy_until: Time,
    /// Until when it counts as heard of lately.
    pub heard_until: Time,
    /// Until when it is suspected.
    pub suspected_until: Time,
    /// It is about to leave.
    pub is_draining: bool,
}

impl Gauge {
    /// What is known against choosing it.
    pub fn standing(&self, now: Time) -> Standing {
        if now < self.suspected_until {
            Standing::Suspected
        } else if now > self.heard_until {
            Standing::Silent
        } else {
            Standing::Sound
        }
    }

    /// Time until it begins to compute a new prompt, in microseconds.
    pub fn queue_us(&self, now: Time) -> f32 {
        // Signed, because that is one instruction.
        self.busy_until.saturating_sub(now) as i64 as f32
    }
}
