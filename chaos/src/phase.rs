//! What a phase computes with, and the sizes that keep its streams running for some seconds.

use crate::fault::Pace;
use crate::question::Lengths;

/// A part of a run: one engine, one cluster.
#[derive(Clone, Debug)]
pub struct Phase {
    /// For reports, logs and request ids.
    pub name: String,
    /// Arguments of every worker's engine.
    pub engine: Vec<String>,
    /// Arguments of the undisturbed server's: the same answers, maybe sooner.
    pub oracle_engine: Vec<String>,
    /// How much is asked and answered.
    pub lengths: Lengths,
    /// Different questions.
    pub questions: usize,
    /// Streams at once.
    pub streams: usize,
    /// What each connection that carries KV blocks takes at most: a long prompt's take part of a second.
    pub kv_bytes_per_s: u64,
    /// Faults, one at a time.
    pub faults: usize,
    /// Pairs of faults at once.
    pub overlapping: usize,
    /// How long they last.
    pub pace: Pace,
}

impl Phase {
    // Pools are small, so that memory at rest is soon all that they ever touch.

    /// The mock engine: its next token is a function of all KV bytes, so that one wrong byte anywhere
    /// changes the text. Steps of 20 ms, 100 ms for each 512 tokens of a prompt.
    pub fn mock(streams: usize, faults: usize, overlapping: usize) -> Self {
        Self::of_mock("mock", "2048", streams, faults, overlapping)
    }

    fn of_mock(
        name: &str,
        kv_blocks: &str,
        streams: usize,
        faults: usize,
        overlapping: usize,
    ) -> Self {
        let times = ["--mock-step-us", "20000", "--mock-prefill-us-per-token", "200"];
        let engine = ["--engine", "mock", "--kv-blocks", kv_blocks].into_iter().chain(times);
        Self {
            name: name.into(),
            engine: engine.map(String::from).collect(),
            oracle_engine: vec!["--engine".into(), "mock".into()],
            lengths: Lengths {
                short_words: 5..40,
                shared_words: 300,
                long_words: 500..900,
                answer_tokens: 60..160,
            },
            questions: 64,
            streams,
            kv_bytes_per_s: 40_000,
            faults,
            overlapping,
            pace: Pace::USUAL,
        }
    }

    /// As [`Phase::mock`], with everything as short as it may be.
    pub fn short(streams: usize, faults: usize, overlapping: usize) -> Self {
        let mut phase = Self::mock(streams, faults, overlapping);
        phase.lengths.answer_tokens = 50..90;
        phase.pace = Pace::SHORT;
        phase
    }

    /// As [`Phase::mock`], where sequences take each other's blocks all the time: each pool has room
    /// for two or three of the longest requests, and there are more streams than have room.
    pub fn tight(streams: usize, faults: usize, overlapping: usize) -> Self {
        let phase = Self::of_mock("tight", "200", streams, faults, overlapping);
        Self { lengths: Lengths { answer_tokens: 100..300, ..phase.lengths }, ..phase }
    }

    /// As [`Phase::tight`], with everything as short as it may be.
    pub fn short_tight(streams: usize, faults: usize, overlapping: usize) -> Self {
        let mut phase = Self::tight(streams, faults, overlapping);
        phase.lengths.answer_tokens = 50..90;
        phase.pace = Pace::SHORT;
        phase
    }

    /// The bundled model, computed for real.
    pub fn cpu(streams: usize, faults: usize, overlapping: usize) -> Self {
        let engine = ["--threads", "1", "--kv-blocks", "1024"].map(String::from).to_vec();
        Self {
            name: "cpu".into(),
            oracle_engine: engine.clone(),
            engine,
            lengths: Lengths {
                short_words: 5..30,
                shared_words: 80,
                long_words: 120..250,
                answer_tokens: 60..160,
            },
            questions: 32,
            streams,
            kv_bytes_per_s: 4_000_000,
            faults,
            overlapping,
            pace: Pace::USUAL,
        }
    }
}
