//! Every kernel compiles, by NVIDIA's own compiler, for cards of three generations, and spills nothing.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use cuda_kernels::{CompileError, Dtype, KernelCache, KernelShape, Module, Nvrtc, Source};

const ARCHITECTURES: [(u32, u32); 3] = [(8, 0), (9, 0), (10, 0)];

const LLAMA_8B: KernelShape = KernelShape {
    head_dim: 128,
    heads: 32,
    kv_heads: 8,
    block_size: 16,
    kv: Dtype::Bf16,
    activations: Dtype::Bf16,
    weights: Dtype::Bf16,
    neighbours: false,
    shared_bytes_max: 163 << 10,
};

/// What `make test` installs, or what STATOR_NVRTC names.
fn nvrtc() -> Nvrtc {
    let path = std::env::var_os("STATOR_NVRTC").map_or_else(installed, PathBuf::from);
    Nvrtc::load(Some(&path), 13).expect("make test installs the compiler; or STATOR_NVRTC names it")
}

fn installed() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/venv/lib");
    let versions = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let file = "site-packages/nvidia/cu13/lib/libnvrtc.so.13";
    let mut found = versions.map(|version| version.path().join(file)).filter(|path| path.exists());
    found.next().unwrap_or_else(|| root.join("python3/site-packages").join("libnvrtc.so.13"))
}

/// Registers, spilled bytes and static shared memory of a kernel, as the compiler's log says.
#[derive(Debug)]
struct Usage {
    kernel: String,
    registers: u32,
    spilled_bytes: u32,
    shared_bytes: u32,
}

fn usages(log: &str) -> Vec<Usage> {
    let number_before = |line: &str, word: &str| -> u32 {
        let words: Vec<&str> = line[..line.find(word).unwrap_or(0)].split_whitespace().collect();
        words.last().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let mut usages: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            usages.push(Usage { kernel, registers: 0, spilled_bytes: 0, shared_bytes: 0 });
        }
        let Some(usage) = usages.last_mut() else { continue };
        if line.contains("bytes spill stores") {
            usage.spilled_bytes = number_before(line, " bytes spill stores");
        }
        if line.contains(" registers") {
            usage.registers = number_before(line, " registers");
            usage.shared_bytes = number_before(line, " bytes smem");
        }
    }
    usages
}

#[track_caller]
fn check(nvrtc: &Nvrtc, module: Module, shape: &KernelShape, capability: (u32, u32)) {
    shape.check().expect("a shape that kernels compute");
    let architecture = nvrtc.architecture(capability.0, capability.1).expect("a card it knows");
    assert_eq!(architecture, format!("sm_{}{}", capability.0, capability.1));
    let compiled = nvrtc.compile(&module.source(shape), &architecture);
    let compiled = compiled.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(compiled.image[..4], *b"\x7fELF", "machine code");
    let usages = usages(&compiled.log);
    let mut kernels: Vec<&str> = usages.iter().map(|usage| usage.kernel.as_str()).collect();
    kernels.sort_unstable();
    let mut expected = module.kernels();
    expected.sort_unstable();
    assert_eq!(kernels, expected, "{}", compiled.log);
    for usage in &usages {
        println!("{architecture} {} {usage:?}", module.name());
        assert_eq!(usage.spilled_bytes, 0, "{architecture}: {usage:?}");
        assert!(usage.registers > 0 && usage.shared_bytes <= 48 << 10, "{usage:?}");
    }
    assert!(!compiled.log.contains("warning"), "{}", compiled.log);
}

#[test]
fn kernels_compile_for_three_generations_of_cards() {
    let nvrtc = nvrtc();
    for capability in ARCHITECTURES {
        for module in Module::ALL {
            check(&nvrtc, module, &LLAMA_8B, capability);
        }
    }
}

#[test]
fn attention_compiles_for_other_heads() {
    let nvrtc = nvrtc();
    let shapes = [
        KernelShape { head_dim: 64, heads: 14, kv_heads: 2, kv: Dtype::F16, ..LLAMA_8B },
        KernelShape { head_dim: 80, kv_heads: 32, kv: Dtype::F32, ..LLAMA_8B },
        KernelShape { head_dim: 96, heads: 24, activations: Dtype::F16, ..LLAMA_8B },
        KernelShape { head_dim: 256, heads: 16, kv_heads: 1, ..LLAMA_8B },
        KernelShape { head_dim: 256, heads: 8, activations: Dtype::F32, ..LLAMA_8B },
        KernelShape { head_dim: 256, heads: 16, kv_heads: 1, kv: Dtype::F32, ..LLAMA_8B },
        KernelShape { head_dim: 72, ..LLAMA_8B },
    ];
    for shape in shapes {
        check(&nvrtc, Module::Attention, &shape, (9, 0));
        check(&nvrtc, Module::Layer, &shape, (9, 0));
    }
}

/// Whole heads of sums are in registers: what a compiler has room for, it must be shown.
#[test]
fn tensor_cores_have_registers_for_all_heads_of_models() {
    let nvrtc = nvrtc();
    let shape = |head_dim, heads, kv_heads| KernelShape { head_dim, heads, kv_heads, ..LLAMA_8B };
    let shapes = [
        shape(64, 32, 8),
        KernelShape { block_size: 4, ..shape(80, 32, 32) },
        KernelShape { kv: Dtype::F16, ..shape(96, 24, 8) },
        shape(112, 64, 8),
        KernelShape { kv: Dtype::F16, ..LLAMA_8B },
        shape(128, 128, 8),
        shape(160, 40, 8),
        shape(192, 16, 8),
        shape(256, 8, 4),
        KernelShape { shared_bytes_max: 99 << 10, ..shape(256, 8, 1) },
    ];
    for shape in shapes {
        assert!(shape.has_tensor_cores());
        for capability in ARCHITECTURES {
            check(&nvrtc, Module::Attention, &shape, capability);
        }
    }
}

#[test]
fn a_card_that_is_newer_than_the_compiler_has_ptx() {
    let nvrtc = nvrtc();
    let architecture = nvrtc.architecture(99, 0).unwrap();
    assert!(architecture.starts_with("compute_"), "{architecture}");
    let source = Module::Blocks.source(&LLAMA_8B);
    let compiled = nvrtc.compile(&source, &architecture).unwrap();
    let ptx = String::from_utf8(compiled.image).expect("text");
    assert!(ptx.contains(".entry copy_blocks") && ptx.ends_with('\0'), "{ptx}");
    let refusal = nvrtc.architecture(7, 5).unwrap_err();
    assert!(matches!(refusal, CompileError::Card { .. }), "{refusal}");
}

/// Products are fused into sums where the source says so and nowhere else.
#[test]
fn arithmetic_is_what_the_source_says() {
    let nvrtc = nvrtc();
    let text = "extern \"C\" __global__ void probe(float* x) { x[0] = x[1] * x[2] + x[3]; \
                x[4] = fmaf(x[5], x[6], x[7]); x[8] = x[9] / sqrtf(x[10]); }";
    let source = Source { module: Module::Blocks, text: text.into(), defines: Vec::new() };
    let compiled = nvrtc.compile(&source, "compute_90").unwrap();
    let ptx = String::from_utf8(compiled.image).expect("text");
    for instruction in ["mul.rn.f32", "add.rn.f32", "fma.rn.f32", "div.rn.f32", "sqrt.rn.f32"] {
        assert!(ptx.contains(instruction), "{instruction}: {ptx}");
    }
    assert_eq!(ptx.matches("fma.rn").count(), 1, "{ptx}");
    assert!(!ptx.contains(".ftz"), "{ptx}");
}

#[test]
fn what_does_not_compile_says_why() {
    let nvrtc = nvrtc();
    let source = Source {
        module: Module::Layer,
        text: "void f() { nonsense; }".into(),
        defines: Vec::new(),
    };
    let error = nvrtc.compile(&source, "sm_90").unwrap_err().to_string();
    assert!(
        error.starts_with("layer does not compile for sm_90: NVRTC_ERROR_COMPILATION"),
        "{error}"
    );
    assert!(error.contains("\"nonsense\" is undefined"), "{error}");
}

#[test]
fn no_compiler_is_a_sentence() {
    let error = Nvrtc::load(Some(&PathBuf::from("/nowhere/libnvrtc.so")), 13).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("/nowhere/libnvrtc.so") && error.contains("pip install"), "{error}");
}

#[test]
fn what_was_compiled_is_found_again() {
    let nvrtc = nvrtc();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernel-cache");
    let _ = std::fs::remove_dir_all(&directory);
    let cache = KernelCache::new(directory.clone());
    let source = Module::Blocks.source(&LLAMA_8B);
    let image = cache.image(&nvrtc, &source, "sm_90").unwrap();
    let files = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let [file] = &files()[..] else { panic!("one file") };
    let written = std::fs::metadata(file).unwrap().modified().unwrap();
    assert_eq!(cache.image(&nvrtc, &source, "sm_90").unwrap(), image);
    assert_eq!(std::fs::metadata(file).unwrap().modified().unwrap(), written, "it was read");
    // A damaged one is made again.
    std::fs::write(file, b"damaged").unwrap();
    assert_eq!(cache.image(&nvrtc, &source, "sm_90").unwrap(), image);
    assert!(std::fs::read(file).unwrap().ends_with(&image));
    cache.image(&nvrtc, &source, "sm_80").unwrap();
    assert_eq!(files().len(), 2);
}
