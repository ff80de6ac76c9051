//! What it costs to encode a text: by this crate and, beside it, by the `tokenizers` crate. A chat
//! prompt, a long prompt and a hostile one, with a vocabulary of 32,768 tokens of a made-up
//! language; also how long such a file takes to load.

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{LLAMA3, Shape, patterns};
use tokenizer::Tokenizer;

const WORDS: usize = 60_000;
const VOCABULARY_TOKENS: usize = 32_768;

/// Words of two to five syllables; a few are said often, most hardly ever.
struct Language {
    words: Vec<String>,
    random: ChaCha8Rng,
}

impl Language {
    fn new() -> Language {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut letter = |of: &'static [u8]| char::from(of[random.random_range(0..of.len())]);
        let mut word = |syllables: usize| -> String {
            (0..syllables)
                .flat_map(|_| [letter(b"bdfghklmnprstvwz"), letter(b"aeiou"), letter(b"nrst")])
                .collect()
        };
        let words = (0..WORDS).map(|number| word(1 + number % 4)).collect();
        Language { words, random }
    }

    fn text(&mut self, words: usize) -> String {
        let mut text = String::new();
        for number in 1..=words {
            let often = self.random.random::<f64>().powi(4);
            text.push_str(&self.words[(often * WORDS as f64) as usize]);
            text.push_str(if number % 12 == 0 { ".\n" } else { " " });
        }
        text
    }
}

fn encode(criterion: &mut Criterion) {
    let mut language = Language::new();
    let mut shape = Shape::new(patterns(&[LLAMA3]));
    shape.vocabulary_tokens = VOCABULARY_TOKENS;
    let corpus: Vec<String> = (0..400).map(|_| language.text(1_000)).collect();
    let file = shape.train(1, Some(&corpus)).to_string().into_bytes();
    let ours = Tokenizer::from_bytes(&file, VOCABULARY_TOKENS * 2).expect("we load it");
    let theirs = tokenizers::Tokenizer::from_bytes(&file).expect("they load it");
    assert_eq!(ours.slow_because(), None);
    let chat = format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>", language.text(30));
    let hostile = language.text(20_000).replace([' ', '.', '\n'], "");
    let texts = [("chat", chat), ("2,000 words", language.text(2_000)), ("one word", hostile)];
    for (name, text) in texts {
        let tokens = ours.encode(&text, false).expect("we encode it").len();
        let mut group = criterion.benchmark_group(format!("encode/{name}, {tokens} tokens"));
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(BenchmarkId::from_parameter("ours"), |bencher| {
            bencher.iter(|| ours.encode(black_box(&text), false));
        });
        group.bench_function(BenchmarkId::from_parameter("tokenizers"), |bencher| {
            bencher.iter(|| theirs.encode_fast(black_box(text.as_str()), false));
        });
    }
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10);
    group.bench_function("ours, which loads theirs too", |bencher| {
        bencher.iter(|| Tokenizer::from_bytes(black_box(&file), VOCABULARY_TOKENS * 2));
    });
    group.bench_function("tokenizers", |bencher| {
        bencher.iter(|| tokenizers::Tokenizer::from_bytes(black_box(&file)));
    });
}

criterion_group!(benches, encode);
criterion_main!(benches);
