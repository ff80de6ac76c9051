//! Files that are broken or made to break: a sentence, never a panic, never memory that the file
//! does not have.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use gguf::test_support::{Conversion, Writable, Writer, convert};
use gguf::{Gguf, GgufError, TensorType, tokenizer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Everything that is read of a file, to its end or its first error.
fn read_all(bytes: &[u8]) -> Result<(), GgufError> {
    let gguf = Gguf::parse(bytes, Path::new("model.gguf"))?;
    for tensor in &gguf.tensors {
        assert!(tensor.bytes.end <= bytes.len(), "{tensor:?} lies in the file");
        let elements: usize = tensor.shape.iter().product();
        let blocks = elements / tensor.kind.block_elements();
        assert_eq!(tensor.bytes.len(), blocks * tensor.kind.block_bytes());
    }
    tokenizer::end_token_ids(&gguf)?;
    tokenizer::chat_template(&gguf)?;
    tokenizer::bos_token(&gguf)?;
    tokenizer::eos_token(&gguf)?;
    tokenizer::tokenizer_json(&gguf)?;
    Ok(())
}

/// Little files with all kinds of values, a tokenizer of either model, and tensors.
fn small(model: &str) -> Writer {
    let mut writer = Writer::default();
    writer.set("general.architecture", "llama");
    writer.set("general.alignment", Writable::U32(32));
    writer.set("some.i32", Writable::I32(-3));
    writer.set("some.u64", Writable::U64(1 << 40));
    writer.set("some.f32", Writable::F32(0.5));
    writer.set("some.bools", Writable::Bools(vec![true, false]));
    writer.set("some.u32s", Writable::U32s(vec![1, 2, 3]));
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "\u{2581}", "é", "unused"];
    writer.set("tokenizer.ggml.model", model);
    writer.set("tokenizer.ggml.pre", "llama-bpe");
    writer.set("tokenizer.ggml.tokens", Writable::Texts(tokens.map(str::to_string).to_vec()));
    let types = vec![2, 3, 3, 6, 1, 1, 1, 1, 4, 5];
    writer.set("tokenizer.ggml.token_type", Writable::I32s(types));
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    writer.set("tokenizer.ggml.scores", Writable::F32s(scores));
    writer.set("tokenizer.ggml.merges", Writable::Texts(vec!["a b".into()]));
    writer.set("tokenizer.ggml.bos_token_id", Writable::U32(1));
    writer.set("tokenizer.ggml.eos_token_id", Writable::U32(2));
    writer.set("tokenizer.chat_template", "{{ messages }}");
    writer.tensor("token_embd.weight", &[10, 32], TensorType::Q8_0, vec![1; 340]);
    writer.tensor("output_norm.weight", &[32], TensorType::F32, vec![0; 128]);
    writer
}

#[test]
fn whole_files_are_read() {
    for model in ["gpt2", "llama"] {
        let bytes = small(model).finish();
        read_all(&bytes).unwrap();
        let gguf = Gguf::parse(&bytes, Path::new("model.gguf")).unwrap();
        assert_eq!(gguf.unsigned("some.u64").unwrap(), Some(1 << 40));
        assert_eq!(gguf.unsigneds("some.u32s").unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(gguf.bools("some.bools").unwrap(), Some(vec![true, false]));
        assert_eq!(gguf.float("some.f32").unwrap(), Some(0.5));
        assert_eq!(gguf.text("absent").unwrap(), None);
        assert!(gguf.unsigned("some.i32").is_err());
        assert_eq!(gguf.tensor("token_embd.weight").unwrap().shape, [10, 32]);
        assert_eq!(tokenizer::end_token_ids(&gguf).unwrap(), [2]);
        assert_eq!(tokenizer::bos_token(&gguf).unwrap(), Some("<s>"));
    }
}

#[test]
fn every_truncated_file_is_refused() {
    let bytes = small("llama").finish();
    let last = bytes.len() - 1;
    for len in 0..=last {
        // What is cut off at the end may be the padding after the last tensor.
        assert!(read_all(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
    }
}

#[test]
fn mutated_files_are_read_or_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let files = ["gpt2", "llama"].map(|model| small(model).finish());
    let (mut read, mut refused) = (0, 0);
    for turn in 0..60_000 {
        let mut bytes = files[turn % 2].clone();
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut bytes, &mut rng);
        }
        match read_all(&bytes) {
            Ok(()) => read += 1,
            Err(error) => {
                let sentence = error.to_string();
                assert!(
                    sentence.starts_with("model.gguf ") && sentence.contains("; "),
                    "{sentence}"
                );
                refused += 1;
            }
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
}

/// One byte, or eight that become a count or a length of a kind that breaks things.
fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..bytes.len());
    match rng.random_range(0..6) {
        0 => bytes[at] = rng.random(),
        1 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 => bytes.truncate(at.max(1)),
        3 => {
            let extreme = [0, 1, u64::MAX, u64::MAX / 8 + 1, 1 << 32, 1 << 63, 0x7fff_ffff];
            let value = extreme[rng.random_range(0..extreme.len())].to_le_bytes();
            let len = value.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&value[..len]);
        }
        4 => {
            let from = rng.random_range(0..bytes.len());
            let len = rng.random_range(0..64).min(bytes.len() - from.max(at));
            bytes.copy_within(from..from + len, at);
        }
        _ => drop(bytes.splice(at..at, [rng.random(), rng.random()])),
    }
}

#[track_caller]
fn check(bytes: &[u8], part: &str) {
    let error = read_all(bytes).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn wrong_files_are_refused_with_a_sentence() {
    let whole = small("llama").finish();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    check(b"", "does not begin with \"GGUF\"");
    check(&with(0, b"GGML"), "does not begin with \"GGUF\"");
    check(&with(4, &1u32.to_le_bytes()), "GGUF version 1, which is not supported");
    check(&with(4, &3u32.to_be_bytes()), "big-endian numbers");
    check(&with(8, &u64::MAX.to_le_bytes()), "tensors, more than");
    check(&with(16, &u64::MAX.to_le_bytes()), "keys, more than");
    check(&with(24, &u64::MAX.to_le_bytes()), "truncated");
    check(&whole[..whole.len() - 40], "ends before tensor output_norm.weight does: truncated");
    check(&whole[..100], "ends within its header: truncated");

    let change = |key: &str, value: Writable| {
        let mut writer = small("llama");
        writer.set(key, value);
        writer.finish()
    };
    check(&change("split.count", Writable::U32(3)), "split into 3 files");
    check(&change("general.alignment", Writable::U32(48)), "general.alignment is 48");
    check(&change("general.alignment", Writable::U32(1024)), "not aligned to 1024");
    check(&change("tokenizer.ggml.model", "bert".into()), "a tokenizer of model bert");
    check(&change("tokenizer.ggml.tokens", Writable::U32(1)), "not an array of texts");
    check(&change("tokenizer.ggml.tokens", Writable::Texts(Vec::new())), "it has 0 tokens");
    let scores = Writable::F32s(vec![0.0]);
    check(&change("tokenizer.ggml.scores", scores), "it has 1 scores for 10 tokens");
    let scores = Writable::F32s(vec![-1000.0; 10]);
    check(&change("tokenizer.ggml.scores", scores), "scores of its tokens are all the same");
    check(&change("tokenizer.ggml.eos_token_id", Writable::U32(10)), "there are 10 tokens");
    let texts = |text: &str| Writable::Texts(vec![text.to_string(); 10]);
    check(&change("tokenizer.ggml.tokens", texts("x")), "are both \"x\"");
    let kinds = Writable::I32s(vec![1; 9]);
    check(&change("tokenizer.ggml.token_type", kinds), "it has 9 token types for 10 tokens");

    let mut byte_level = small("gpt2");
    byte_level.set("tokenizer.ggml.merges", Writable::Texts(vec!["a z".into()]));
    check(&byte_level.finish(), "its merge \"a z\" is of unknown tokens");
    byte_level.set("tokenizer.ggml.pre", "gpt-5");
    check(
        &byte_level.finish(),
        "pre-tokenizer gpt-5, which is not supported; supported: llama-bpe",
    );

    let mut twice = small("llama");
    twice.tensor("output_norm.weight", &[1], TensorType::F32, vec![0; 4]);
    check(&twice.finish(), "two tensors output_norm.weight");
    let mut keys = small("llama");
    keys.metadata.push(("some.f32".into(), Writable::F32(1.0)));
    check(&keys.finish(), "the key some.f32 twice");
}

#[test]
fn the_demo_is_converted_and_read() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let kinds = |_: &str| TensorType::BF16;
    let conversion = Conversion { matrices: &kinds, pre: "stator-demo", dequantized: false };
    let file = convert(&demo, &conversion).finish();
    read_all(&file).unwrap();
    let gguf = Gguf::parse(&file, Path::new("demo.gguf")).unwrap();
    assert_eq!(gguf.text("general.architecture").unwrap(), Some("qwen3"));
    assert_eq!(tokenizer::end_token_ids(&gguf).unwrap(), [0, 2]);
    assert_eq!(tokenizer::eos_token(&gguf).unwrap(), Some("<|im_end|>"));
}
