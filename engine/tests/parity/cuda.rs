//! The same of the decoder for NVIDIA GPUs, on one that is emulated: the driver, the compiler and
//! cuBLAS are those of `cuda-driver/fake`, all else is what runs on a card.

use cuda_driver::fake;
use engine::{CudaModel, CudaOptions, CudaRunner, Libraries, WeightFormat};

use super::*;

fn options(numerics: Numerics) -> CudaOptions {
    let libraries = fake::libraries();
    CudaOptions {
        ordinal: 1,
        numerics,

        weights: WeightFormat::AsStored,
        kernel_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")),
        libraries: Libraries {
            driver: Some(libraries.join(fake::DRIVER)),
            nvrtc: Some(libraries.join(fake::NVRTC)),
            cublas: Some(libraries.join(fake::CUBLAS)),
        },
        keeper: None,
    }
}

fn cuda(directory: &Path, numerics: Numerics) -> Arc<CudaModel> {
    Arc::new(CudaModel::load(directory, &options(numerics)).unwrap())
}

fn engine_on(model: &Arc<CudaModel>, sizes: Sizes) -> Engine {
    engine_of(Box::new(CudaRunner::new(model.clone())), sizes)
}

/// Whose sizes vectors divide.
fn computable() -> impl Iterator<Item = &'static str> {
    fixtures().filter(|name| *name != UNEVEN)
}

/// Its intermediate size is no multiple of 8.
const UNEVEN: &str = "qwen3-untied-sharded";

#[test]
fn logits_are_those_of_transformers() {
    check_logits(computable(), &|name, numerics| engine_on(&cuda(&fixture(name), numerics), ROOMY));
}

#[test]
fn greedy_tokens_are_those_of_transformers_and_so_ours() {
    for name in F32.into_iter().filter(|name| *name != UNEVEN) {
        let sizes = Sizes { max_num_batched_tokens: 128, ..ROOMY };
        let mut engine = engine_on(&cuda(&fixture(name), Numerics::Fixed), sizes);
        for case in &expected(name)[..5] {
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine).0[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

#[test]
fn kv_is_that_of_our_kernels() {
    check_kv(&|name| engine_on(&cuda(&fixture(name), Numerics::Fixed), ROOMY));
}

/// Tokens that the GPU chooses are those that the host would choose from its logits.
#[test]
fn tokens_are_chosen_as_the_host_does() {
    let model = cuda(&fixture("qwen2-bias"), Numerics::Fast);
    let mut engine = engine_on(&model, ROOMY);
    let neutral = Sampling { repetition_penalty: 1.0, top_p: 1.0, seed: 5, ..Default::default() };
    let samplings = [
        Sampling { ..neutral.clone() },
        Sampling { temperature: 1.0, ..neutral.clone() },
        Sampling { temperature: 0.7, top_k: 5, ..neutral.clone() },
        Sampling { temperature: 1.5, top_p: 0.8, ..neutral.clone() },
        Sampling { temperature: 1.0, min_p: 0.1, top_p: 0.9, ..neutral.clone() },
        Sampling { frequency_penalty: 1.5, ..neutral.clone() },
    ];
    let case = &expected("qwen2-bias")[3];
    for sampling in samplings {
        let [by_gpu, by_host] = [None, Some(0)].map(|logprobs| {
            let sampling = Sampling { logprobs, ..sampling.clone() };
            engine.generate(SequenceRequest { sampling, ..request(0, case, None) }).unwrap();
            ids(&run(&mut engine).0[&0])
        });
        assert_eq!(by_gpu.len(), 64);
        assert_eq!(by_gpu, by_host, "{sampling:?}");
    }
}

/// Weights of 8 bits stay so on the GPU.
#[test]
fn gguf_files_compute_what_the_directory_computes() {
    use gguf::TensorType;
    let made =
        |dequantized| gguf_files::Made::of("../../../models/demo", TensorType::Q8_0, dequantized);
    let (quantized, plain) = (made(false), made(true));
    let case = Case { prompt: (300..420).collect(), greedy: vec![0] };
    let vocabulary = Model::load(&plain.0, KernelPath::Portable).unwrap().config.vocabulary_size;
    let expected = logits(&mut engine(&plain.0, KernelPath::Portable, ROOMY), &case, vocabulary);
    let range = expected.iter().fold(0.0f32, |range, logit| range.max(-logit));
    for numerics in [Numerics::Fixed, Numerics::Fast] {
        let mut engine = engine_on(&cuda(&quantized.0, numerics), ROOMY);
        for (found, expected) in logits(&mut engine, &case, vocabulary).iter().zip(&expected) {
            assert!((found - expected).abs() <= 2e-2 * range, "{found} for {expected} of {range}");
        }
    }
}

/// Weights of FP8 are rounded a little, by one path as by the other.
#[test]
fn fp8_is_near_what_it_was_rounded_from() {
    let directory = fixture("../../../models/demo");
    let case = Case { prompt: (300..420).collect(), greedy: vec![0] };
    let vocabulary = Model::load(&directory, KernelPath::Portable).unwrap().config.vocabulary_size;
    let plain = logits(&mut engine(&directory, KernelPath::Portable, ROOMY), &case, vocabulary);
    let range = plain.iter().fold(0.0f32, |range, logit| range.max(-logit));
    let rounded = [Numerics::Fixed, Numerics::Fast].map(|numerics| {
        let options = CudaOptions { weights: WeightFormat::Fp8, ..options(numerics) };
        let model = Arc::new(CudaModel::load(&directory, &options).unwrap());
        assert!(model.numerics_id.contains("-fp8-cuda-sm90-bf16-"), "{}", model.numerics_id);
        logits(&mut engine_on(&model, ROOMY), &case, vocabulary)
    });
    let largest = |one: &[f32], other: &[f32]| {
        let errors = one.iter().zip(other).map(|(one, other)| (one - other).abs() / range);
        errors.fold(0.0f32, f32::max)
    };
    let errors = [&plain, &rounded[1]].map(|other| largest(&rounded[0], other));
    assert!(errors[0] > 1e-3, "it is another model: {errors:?}");
    assert!(errors[0] < 0.1 && errors[1] < 2e-2, "{errors:?}");
}

/// Whatever computes otherwise has another id; who computes the same has the same one.
#[test]
fn numerics_ids_tell_paths_apart() {
    let name = &fixture("qwen3-tied");
    let ids = [Numerics::Fixed, Numerics::Fixed, Numerics::Fast]
        .map(|numerics| cuda(name, numerics).numerics_id.clone());
    let ours = Model::load(name, KernelPath::Portable).unwrap();
    assert_eq!(ids[0], ids[1]);
    assert!(ids[0].starts_with(&format!("{}-cuda-sm90-f32-fixed64-", ours.weights_id)), "{ids:?}");
    assert!(ids[2].contains("-f32-fast-"), "{ids:?}");
}

#[test]
fn sizes_that_vectors_do_not_divide_are_refused() {
    let refusal = CudaModel::load(&fixture(UNEVEN), &options(Numerics::Fixed)).err().unwrap();
    let sentence = refusal.to_string();
    assert!(sentence.contains("intermediate_size that is a multiple of 8, not 100"), "{sentence}");
}
