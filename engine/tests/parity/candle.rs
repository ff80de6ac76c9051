//! The same of a decoder on candle's tensors, on the CPU.

use engine::{CandleDevice, CandleModel, CandleRunner};

use super::*;

fn candle(directory: &Path, numerics: Numerics) -> Arc<CandleModel> {
    Arc::new(CandleModel::load(directory, CandleDevice::Cpu, numerics).unwrap())
}

fn engine_on(model: &Arc<CandleModel>, sizes: Sizes) -> Engine {
    engine_of(Box::new(CandleRunner::new(model.clone())), sizes)
}

#[test]
fn logits_are_those_of_transformers() {
    check_logits(fixtures(), &|name, numerics| engine_on(&candle(&fixture(name), numerics), ROOMY));
}

#[test]
fn greedy_tokens_are_those_of_transformers_and_so_ours() {
    for name in F32 {
        let sizes = Sizes { max_num_batched_tokens: 128, ..ROOMY };
        let mut engine = engine_on(&candle(&fixture(name), Numerics::Fixed), sizes);
        for case in &expected(name) {
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine).0[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

#[test]
fn neither_company_nor_chunks_nor_preemption_change_anything() {
    for name in ["qwen2-bias", "mistral-window", "llama2"] {
        let model = candle(&fixture(name), Numerics::Fixed);
        let build = |sizes| engine_on(&model, sizes);
        check_invariance_of(&build, &format!("{name} by candle"), &expected(name));
    }
}

#[test]
fn kv_is_that_of_our_kernels() {
    check_kv(&|name| engine_on(&candle(&fixture(name), Numerics::Fixed), ROOMY));
}

/// Files of Llamas rotate other pairs; quantised weights are brought to the device as numbers.
#[test]
fn gguf_files_compute_what_the_directory_computes() {
    use gguf::TensorType;
    for name in ["llama3-rope-scaled", "qwen3-tied"] {
        let file = gguf_files::Made::of(name, TensorType::F32, false);
        let mut engine = engine_on(&candle(&file.0, Numerics::Fixed), ROOMY);
        let largest = largest_error(&mut engine, name);
        assert!(largest <= 1.0, "{name}: {largest} of what is allowed");
    }
    let made =
        |dequantized| gguf_files::Made::of("../../../models/demo", TensorType::Q8_0, dequantized);
    let (quantized, plain) = (made(false), made(true));
    let case = Case { prompt: (300..420).collect(), greedy: vec![0] };
    let vocabulary = Model::load(&plain.0, KernelPath::Portable).unwrap().config.vocabulary_size;
    let expected = logits(&mut engine(&plain.0, KernelPath::Portable, ROOMY), &case, vocabulary);
    let model = candle(&quantized.0, Numerics::Fixed);
    let found = logits(&mut engine_on(&model, ROOMY), &case, vocabulary);
    let range = expected.iter().fold(0.0f32, |range, logit| range.max(-logit));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 2e-2 * range, "{found} for {expected} of {range}");
    }
}

/// Whatever computes otherwise has another id; who computes the same has the same one.
#[test]
fn numerics_ids_tell_paths_apart() {
    let name = &fixture("qwen3-tied");
    let ids = [Numerics::Fixed, Numerics::Fixed, Numerics::Fast]
        .map(|numerics| candle(name, numerics).numerics_id.clone());
    let ours = Model::load(name, KernelPath::Portable).unwrap();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    for id in &ids {
        assert_ne!(id, &ours.numerics_id);
        assert!(id.starts_with(&ours.weights_id) && id.contains("-candle"), "{id}");
    }
}

/// What the id says of candle's version is what is built.
#[test]
fn the_numerics_id_has_the_version_of_candle() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let lock = std::fs::read_to_string(lock).unwrap();
    let (_, rest) = lock.split_once("name = \"candle-core\"\nversion = \"").unwrap();
    let version = rest.split('"').next().unwrap();
    let id = candle(&fixture("llama2"), Numerics::Fast).numerics_id.clone();
    assert!(id.contains(&format!("-candle{version}-cpu-f16-fast-")), "{id} for {version}");
}
