//! What prompt lookup brings: `cargo run -p engine --example prompt_lookup -- MODEL [ROUNDS [THREADS]]`, on the
//! bundled model (`models/demo`) or another one of its dialect.
//!
//! Prints for each kind of text and number of streams, and each number of tokens to guess: tokens per
//! second of this process' CPU time, and which share of the guesses came true. All settings take
//! turns, and the best of their rounds counts, so that what else the machine does matters little.
//! The engine is told how long steps take, as a worker tells it.
//! Linux alone says how long threads computed (`/proc/self/task`).

use std::path::Path;
use std::sync::Arc;

use engine::{
    Compute, CpuRunner, Engine, EngineConfig, Guesses, KernelPath, Model, SequenceId,
    SequenceRequest,
};
use protocol::v1::{LatencyModel, Sampling, Stopping};
use tokenizer::Tokenizer;

const GUESSES: [usize; 4] = [0, 3, 7, 15];
const STREAMS: [usize; 3] = [1, 4, 8];
const ANSWER_TOKENS: u32 = 96;

/// Kinds of texts: what is new, what repeats the prompt, what repeats itself.
const QUESTIONS: [(&str, f32, &str); 4] = [
    ("an answer", 0.0, "What is a KV cache, and why does a server keep one?"),
    ("an answer, sampled", 1.0, "How does a router choose a worker?"),
    (
        "a call of a tool",
        0.0,
        "Create a ticket \"The printer on the second floor is out of paper\" with priority high, \
         and then one called \"The printer on the third floor is out of paper\" with priority low.",
    ),
    ("a text that repeats itself", 0.0, "one two three one two three one two three one two three"),
];
const TOOLS: &str = "You can call these tools:\n<tools>\n{\"type\": \"function\", \"name\": \
                     \"create_ticket\", \"description\": \"Create a ticket\", \"parameters\": \
                     {\"type\": \"object\", \"properties\": {\"title\": {\"type\": \"string\"}, \
                     \"priority\": {\"type\": \"string\", \"enum\": [\"low\", \"high\"]}}}}\n</tools>";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: prompt_lookup MODEL [ROUNDS [THREADS]]")?;
    let rounds: usize = arguments.next().map_or(Ok(3), |rounds| rounds.parse())?;
    let threads: usize = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let path = KernelPath::detect();
    let model = Arc::new(Model::load(Path::new(&directory), path)?);
    let text = std::fs::read(Path::new(&directory).join("tokenizer.json"))?;
    let tokenizer = Tokenizer::from_bytes(&text, model.config.vocabulary_size)?;
    let compute = Arc::new(Compute::new(threads, path)?);

    println!(
        "| text | streams | {} |",
        GUESSES.map(|count| format!("{count} guessed")).join(" | ")
    );
    println!("|---|---|{}", "---|".repeat(GUESSES.len()));
    for (kind, temperature, question) in QUESTIONS {
        let prompt = tokenizer.encode(&prompt(kind, question), false)?;
        for streams in STREAMS {
            let requests: Vec<_> =
                (0..streams as u64).map(|id| request(id, &prompt, temperature)).collect();
            let mut best = [(0.0, Guesses::default()); GUESSES.len()];
            // What a step takes alone, and each stream in it.
            let latency = latency(&model, &compute, &prompt)?;
            for _ in 0..rounds {
                for (best, guesses) in best.iter_mut().zip(GUESSES) {
                    let runner = CpuRunner::new(model.clone(), compute.clone());
                    let mut engine = Engine::new(Box::new(runner), config(guesses))?;
                    engine.learn_latency(latency);
                    let measured = run(&mut engine, &requests)?;
                    if measured.0 > best.0 {
                        *best = measured;
                    }
                }
            }
            let cells = best.map(|(tokens_per_s, guesses)| {
                let share = 100 * guesses.accepted / guesses.computed.max(1);
                format!("{tokens_per_s:.0} ({share}% of {})", guesses.computed)
            });
            println!("| {kind} | {streams} | {} |", cells.join(" | "));
        }
    }
    Ok(())
}

/// From steps of one stream and of eight.
fn latency(
    model: &Arc<Model>,
    compute: &Arc<Compute>,
    prompt: &[u32],
) -> Result<LatencyModel, Box<dyn std::error::Error>> {
    let mut steps_us = [f32::MAX; 2];
    for _ in 0..3 {
        for (step_us, streams) in steps_us.iter_mut().zip([1, 8]) {
            let runner = CpuRunner::new(model.clone(), compute.clone());
            let mut engine = Engine::new(Box::new(runner), config(0))?;
            let requests = (0..streams).map(|id| request(id, prompt, 0.0));
            requests.into_iter().try_for_each(|request| engine.generate(request))?;
            engine.step()?;
            for _ in 0..10 {
                *step_us = step_us.min(engine.step()?.took.as_secs_f32() * 1e6);
            }
        }
    }
    let sequence_us = (steps_us[1] - steps_us[0]).max(0.0) / 7.0;
    let step_us = (steps_us[0] - sequence_us).max(0.0);
    Ok(LatencyModel { step_us, sequence_us, ..Default::default() })
}

fn prompt(kind: &str, question: &str) -> String {
    let system = match kind.contains("tool") {
        true => format!("<|im_start|>system\n{TOOLS}<|im_end|>\n"),
        false => String::new(),
    };
    match kind.contains("repeats") {
        true => question.to_string(),
        false => {
            format!("{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        }
    }
}

fn config(speculative_tokens: usize) -> EngineConfig {
    EngineConfig {
        block_size: 16,
        kv_blocks: 512,
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        waiting_sequences_max: 64,
        speculative_tokens,
        step_target: None,
        shares_memory: false,
    }
}

fn request(id: u64, prompt: &[u32], temperature: f32) -> SequenceRequest {
    SequenceRequest {
        id: SequenceId(id),
        prompt: prompt.to_vec(),
        generated: Vec::new(),
        sampling: Sampling {
            temperature,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: id,
            ..Default::default()
        },
        stopping: Stopping { max_tokens: ANSWER_TOKENS, ..Default::default() },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    }
}

/// Tokens per second from the first step after the prompts on, and what was guessed.
fn run(
    engine: &mut Engine,
    requests: &[SequenceRequest],
) -> Result<(f64, Guesses), Box<dyn std::error::Error>> {
    requests.iter().try_for_each(|request| engine.generate(request.clone()))?;
    engine.step()?;
    let (began_ns, mut tokens, mut guesses) = (computed_ns()?, 0, Guesses::default());
    while engine.load().running + engine.load().waiting > 0 {
        let output = engine.step()?;
        tokens += output.sequences.iter().map(|news| news.tokens.len()).sum::<usize>();
        guesses.add(output.guesses);
    }
    Ok((tokens as f64 * 1e9 / (computed_ns()? - began_ns) as f64, guesses))
}

/// For how long this process' threads have been computing, together.
fn computed_ns() -> Result<u64, Box<dyn std::error::Error>> {
    let mut total_ns = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total_ns += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(total_ns)
}
