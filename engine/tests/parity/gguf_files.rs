//! The same of GGUF files made of the fixtures.

use std::path::PathBuf;

use gguf::TensorType;
use gguf::test_support::{Conversion, Writable, Writer, convert};

use super::*;

/// A GGUF file of a fixture, gone when dropped.
pub(super) struct Made(pub(super) PathBuf);

impl Made {
    pub(super) fn of(name: &str, matrices: TensorType, dequantized: bool) -> Self {
        Self::mixed(name, matrices, dequantized, |_| true)
    }

    /// Matrices that are not `chosen` by their names are F32.
    fn mixed(
        name: &str,
        kind: TensorType,
        dequantized: bool,
        chosen: impl Fn(&str) -> bool,
    ) -> Self {
        let matrices = |name: &str| if chosen(name) { kind } else { TensorType::F32 };
        let conversion = Conversion { matrices: &matrices, pre: "stator-demo", dequantized };
        let file = convert(&fixture(name), &conversion).finish();
        let thread = std::thread::current().id();
        let name = name.rsplit('/').next().unwrap();
        let path = format!("{name}-{kind}-{dequantized}-{}-{thread:?}.gguf", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path);
        std::fs::write(&path, file).unwrap();
        Self(path)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What is left behind lies in the build's own folder.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How the matrices of a fixture are stored.
fn stored(name: &str) -> TensorType {
    match name {
        _ if BF16.contains(&name) => TensorType::BF16,
        _ if F16.contains(&name) => TensorType::F16,
        _ => TensorType::F32,
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in fixtures() {
        let file = Made::of(name, stored(name), false);
        for path in paths(name) {
            let largest = largest_error(&mut engine(&file.0, path, ROOMY), name);
            assert!(largest <= 1.0, "{name} on {path}: {largest} of what is allowed");
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in F32 {
        let file = Made::of(name, TensorType::F32, false);
        let mut engine = engine(&file.0, KernelPath::detect(), ROOMY);
        for case in &expected(name) {
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine).0[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

/// Rows of queries and keys are in another order in Llamas; the others compute the same bits.
#[test]
fn qwens_compute_what_the_directory_computes() {
    for name in fixtures().filter(|name| name.starts_with("qwen")) {
        let file = Made::of(name, stored(name), false);
        let case = &expected(name)[4];
        for path in paths(name) {
            let mut answers = [fixture(name), file.0.clone()].map(|model| {
                let mut engine = engine(&model, path, ROOMY);
                engine.generate(request(0, case, Some(20))).unwrap();
                run(&mut engine).0
            });
            let [directory, file] = &mut answers;
            assert!(directory == file, "{name} on {path}");
        }
    }
}

#[test]
fn neither_company_nor_chunks_nor_preemption_change_anything() {
    for name in ["llama3-rope-scaled", "mistral-window"] {
        let file = Made::of(name, stored(name), false);
        check_invariance(&file.0, KernelPath::Portable, &expected(name));
    }
}

/// Quantised weights compute what the numbers compute that they stand for. Activations are rounded to
/// 8 bits for the products, and KV to f16: hence the bounds, as shares of the range of logits. Random
/// weights amplify what is rounded; trained ones do not.
#[test]
fn quantised_logits_are_those_of_the_dequantised_model() {
    let small = [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_0];
    for kind in small.into_iter().chain([TensorType::Q4_K, TensorType::Q6_K]) {
        check_quantised("../../../models/demo", kind, 1.5e-2);
    }
    for name in ["llama3-rope-scaled", "llama3-tied", "qwen3-tied", "qwen2-bias"] {
        small.into_iter().for_each(|kind| check_quantised(name, kind, 6e-2));
    }
}

fn check_quantised(name: &str, kind: TensorType, allowed: f32) {
    let (quantized, plain) = (Made::of(name, kind, false), Made::of(name, kind, true));
    let expected = last_logits(&plain.0, KernelPath::Portable);
    let range = expected.iter().fold(0.0f32, |range, logit| range.max(-logit));
    for path in [KernelPath::Portable, KernelPath::detect()] {
        let found = last_logits(&quantized.0, path);
        assert!(found.iter().all(|logit| logit.is_finite()), "{name} in {kind} on {path}");
        let errors = found.iter().zip(&expected).map(|(ours, theirs)| (ours - theirs).abs());
        let largest = errors.fold(0.0f32, f32::max) / range;
        assert!(largest <= allowed, "{name} in {kind} on {path}: {largest} of the range");
        assert!(largest > 0.0, "{name} in {kind} on {path}: not quantised");
    }
}

/// The logits after some tokens, less the largest.
fn last_logits(model: &Path, path: KernelPath) -> Vec<f32> {
    let vocabulary = Model::load(model, path).unwrap().config.vocabulary_size;
    let prompt = (0..120).map(|at| (at * at * 7 + at) % vocabulary as u32).collect();
    let case = Case { prompt, greedy: vec![0] };
    logits(&mut engine(model, path, ROOMY), &case, vocabulary)
}

/// Rows of an embedding are only read: to the bit, they are the numbers that they stand for.
#[test]
fn quantised_embeddings_are_what_they_stand_for() {
    for kind in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_0] {
        let [quantized, plain] = [false, true].map(|dequantized| {
            let chosen = |name: &str| name == "token_embd.weight";
            let file = Made::mixed("llama3-rope-scaled", kind, dequantized, chosen);
            last_logits(&file.0, KernelPath::Portable)
        });
        assert!(quantized == plain, "{kind}");
    }
}

/// Whatever a header says, a file is loaded or refused with a sentence.
#[test]
fn mutated_files_load_or_are_refused() {
    let made = Made::of("llama3-rope-scaled", TensorType::F32, false);
    let whole = std::fs::read(&made.0).unwrap();
    // Some space of metadata and tensor infos, before the tensors.
    let header = whole.len() - 494_000;
    let (mut loaded, mut refused) = (0, 0);
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..1500 {
        let mut file = whole.clone();
        for _ in 0..=random(3) {
            file[random(header)] = [0, 1, 2, 0x7f, 0xff, random(256) as u8][random(6)];
        }
        std::fs::write(&made.0, file).unwrap();
        match Model::load(&made.0, KernelPath::Portable) {
            Ok(_) => loaded += 1,
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.contains(".gguf ") && sentence.contains("; "), "{sentence}");
                refused += 1;
            }
        }
    }
    assert!(loaded > 50 && refused > 50, "{loaded} loaded, {refused} refused");
}

/// What other models have and this engine does not compute is refused by its name.
#[test]
fn what_is_not_computed_is_refused_by_name() {
    let conversion =
        Conversion { matrices: &|_| TensorType::F32, pre: "default", dequantized: false };
    let whole = convert(&fixture("llama3-tied"), &conversion);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("refused.gguf");
    let check = |change: &dyn Fn(&mut Writer), part: &str| {
        let mut writer = whole.clone();
        change(&mut writer);
        std::fs::write(&path, writer.finish()).unwrap();
        let error = Model::load(&path, KernelPath::Portable).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(part)), "{part}: {error:?}");
    };
    let set = |key: &'static str, value: Writable| {
        move |writer: &mut Writer| writer.set(key, value.clone())
    };
    let add = |name: &'static str, kind: TensorType, blocks: usize| {
        move |writer: &mut Writer| {
            writer.remove_tensor(name);
            let (elements, bytes) = (kind.block_elements(), kind.block_bytes());
            writer.tensor(name, &[blocks * elements], kind, vec![0; blocks * bytes]);
        }
    };
    let f32 = TensorType::F32;
    check(
        &set("general.architecture", "mamba".into()),
        "architecture mamba, which is not supported",
    );
    check(&set("llama.expert_count", Writable::U32(8)), "8 experts");
    check(&set("llama.rope.scaling.type", "yarn".into()), "rope scaling of type yarn");
    check(
        &set("llama.rope.dimension_count", Writable::U32(8)),
        "llama.rope.dimension_count 8 with",
    );
    check(&set("llama.attention.head_count", Writable::U32s(vec![4, 2, 4])), "layers of different");
    check(&set("llama.block_count", Writable::U32(0)), "llama.block_count is 0, expected 1 to");
    check(&set("llama.block_count", Writable::U32(2)), "tensor blk.2.");
    check(&set("llama.block_count", Writable::U32(4)), "tensor blk.3.attn_norm.weight is missing");
    check(&set("llama.feed_forward_length", Writable::U32(96)), "the configuration implies");
    check(&set("llama.context_length", "long".into()), "llama.context_length is not an integer");
    check(&add("blk.0.ffn_gate_inp.weight", f32, 4), "tensor blk.0.ffn_gate_inp.weight");
    check(&add("blk.0.attn_k.bias", f32, 4), "tensor blk.0.attn_k.bias");
    check(&add("blk.0.attn_norm.weight", f32, 4), "has shape [4], the configuration implies [64]");
    check(&add("rope_freqs.weight", f32, 3), "rope_freqs.weight is F32 [3], not F32 [");
    check(&|writer| writer.remove_tensor("token_embd.weight"), "token_embd.weight is missing");
    let unsupported = |writer: &mut Writer| {
        writer.remove_tensor("blk.1.attn_q.weight");
        let kind = TensorType::named("Q4_1").unwrap();
        writer.tensor("blk.1.attn_q.weight", &[64, 64], kind, vec![0; 64 * 40]);
    };
    check(&unsupported, "type Q4_1 (tensor blk.1.attn_q.weight)");
    std::fs::remove_file(&path).unwrap();
}
