//! The mock model of all simulated workers: its card, and what it says when nothing goes wrong.

use std::sync::Arc;

use engine::{
    Engine, EngineConfig, MockRunner, MockTimes, MockVocabulary, SequenceId, SequenceRequest,
};
use protocol::v1;
use serde_json::json;

use crate::plan::Request;

/// Tokens there are: pairs of letters, so that a text shows its tokens.
pub const VOCABULARY: usize = 26 * 26;

/// Its name for clients.
pub const NAME: &str = "m";

const CONTEXT_TOKENS: usize = 4096;

/// What its workers say of it.
pub fn card() -> v1::ModelCard {
    // Byte-level tokenizers know each byte; the engine never says those.
    let pairs = (0..VOCABULARY as u32).map(|token| (text_of_token(token), json!(token)));
    let vocabulary: serde_json::Map<String, serde_json::Value> = pairs.collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    v1::ModelCard {
        name: NAME.into(),
        context_tokens: CONTEXT_TOKENS as u32,
        tokenizer_json: tokenizer.to_string().into_bytes().into(),
        vocabulary_size: VOCABULARY as u32,
        ..Default::default()
    }
}

/// What one worker computes with.
pub fn runner(times: MockTimes) -> Box<MockRunner> {
    let words = (0..VOCABULARY as u32).collect();
    let vocabulary = MockVocabulary {
        vocabulary_size: VOCABULARY,
        words,
        context_tokens: CONTEXT_TOKENS,
        eos_token_ids: Vec::new(),
    };
    Box::new(MockRunner::new(times, vocabulary))
}

fn text_of_token(token: u32) -> String {
    [token / 26, token % 26].map(|letter| char::from(b'a' + letter as u8)).iter().collect()
}

/// Knows every answer: asks an engine alone, one request at a time.
pub struct Oracle {
    engine: parking_lot::Mutex<Engine>,
}

impl Oracle {
    pub fn new() -> Arc<Self> {
        let config = EngineConfig {
            block_size: 16,
            kv_blocks: 64,
            max_num_seqs: 1,
            max_num_batched_tokens: 4096,
            waiting_sequences_max: 1,
            speculative_tokens: 0,
            step_target: None,
            shares_memory: false,
        };
        let engine = Engine::new(runner(MockTimes::default()), config).unwrap();
        Arc::new(Self { engine: parking_lot::Mutex::new(engine) })
    }

    pub fn text_of(&self, request: &Request) -> String {
        let mut engine = self.engine.lock();
        let asked = SequenceRequest {
            id: SequenceId(0),
            prompt: request.prompt.clone(),
            generated: Vec::new(),
            sampling: v1::Sampling {
                temperature: request.temperature,
                seed: u64::from(request.seed),
                ..Default::default()
            },
            stopping: v1::Stopping { max_tokens: request.max_tokens, ..Default::default() },
            // No cache: each answer is computed from the start.
            cache_salt: format!("{request:?}"),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        };
        engine.generate(asked).unwrap();
        let mut text = String::new();
        loop {
            let output = engine.step().unwrap();
            if output.is_idle() {
                return text;
            }
            let tokens = output.sequences.into_iter().flat_map(|news| news.tokens);
            tokens.for_each(|token| text.push_str(&text_of_token(token.id)));
        }
    }
}
