//! What following a grammar costs a decoding step: the mask of a token, for vocabularies of two sizes,
//! in a schema as clients send them; and what a grammar costs that was compiled before.
//!
//! `cargo bench -p grammar`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use grammar::{Compiler, Grammar};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokenizer::Tokenizer;

const GRAMMAR: &str = r#"start: %json {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["person", "place", "thing"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 100000},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 60}, "maxItems": 4}
    },
    "required": ["name", "kind", "size", "notes"],
    "additionalProperties": false,
    "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}
}"#;

const SIZES: [usize; 2] = [32_768, 151_936];
/// The first token ends a text.
const END: u32 = 0;

/// Made-up words beside all printable characters. No merges: masks ask for none.
fn tokenizer(tokens: usize) -> Tokenizer {
    let mut rng = StdRng::seed_from_u64(1);
    let mut vocabulary = serde_json::Map::new();
    vocabulary.insert("<end>".into(), json!(END));
    for character in ('!'..='~').chain(['Ġ']) {
        vocabulary.insert(character.into(), json!(vocabulary.len()));
    }
    while vocabulary.len() < tokens {
        let length = rng.random_range(2..9);
        let space = if rng.random_bool(0.5) { "Ġ" } else { "" };
        let letters = (0..length).map(|_| rng.random_range('a'..='z'));
        let word: String = space.chars().chain(letters).collect();
        let id = vocabulary.len();
        vocabulary.entry(word).or_insert(json!(id));
    }
    let file = json!({
        "version": "1.0",
        "added_tokens": [{ "id": END, "content": "<end>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false }],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    });
    Tokenizer::from_bytes(file.to_string().as_bytes(), tokens).expect("a tokenizer")
}

/// A random answer from its beginning to its end, as a decoding sequence meets it.
fn walk(grammar: &Grammar, rng: &mut StdRng) -> usize {
    let (mut state, mut tokens) = (grammar.begin(), 0);
    loop {
        let allowed = state.allowed().expect("a schema that can be followed");
        let token = allowed.only().or_else(|| allowed.iter().choose(rng)).expect("never none");
        state.accept(token).expect("it is allowed");
        tokens += 1;
        if token == END {
            return tokens;
        }
    }
}

fn masks(criterion: &mut Criterion) {
    for size in SIZES {
        let compiler =
            Compiler::new(Arc::new(tokenizer(size)), size, &[END]).expect("a vocabulary");
        let grammar = compiler.compile(GRAMMAR).expect("a grammar");
        criterion.bench_function(&format!("{size} tokens: mask and accept, per token"), |bench| {
            bench.iter_custom(|iterations| {
                let (mut rng, mut tokens) = (StdRng::seed_from_u64(7), 0);
                let began = std::time::Instant::now();
                while tokens < iterations {
                    tokens += walk(&grammar, &mut rng) as u64;
                }
                began.elapsed().mul_f64(iterations as f64 / tokens as f64)
            });
        });
        criterion.bench_function(&format!("{size} tokens: a grammar compiled before"), |bench| {
            bench.iter(|| black_box(compiler.compile(GRAMMAR).is_ok()));
        });
        let mut number = 0;
        criterion.bench_function(&format!("{size} tokens: a new grammar"), |bench| {
            bench.iter(|| {
                number += 1;
                let text = GRAMMAR.replace("100000", &format!("{}", 100_000 + number));
                black_box(compiler.compile(&text).is_ok())
            });
        });
    }
}

criterion_group!(benches, masks);
criterion_main!(benches);
