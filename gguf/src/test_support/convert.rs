//! A GGUF file of a model directory in Hugging Face layout, as llama.cpp's converter makes it.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Writable, Writer, quantize, tokenizer_metadata};
use crate::TensorType;

/// How to make a file.
pub struct Conversion<'a> {
    /// How the matrices are stored, by their names in the file. Vectors are F32.
    pub matrices: &'a dyn Fn(&str) -> TensorType,
    /// `tokenizer.ggml.pre`, where the directory has a tokenizer.
    pub pre: &'a str,
    /// Stores the matrices as F32 numbers that are, one by one, what `matrices` would stand for.
    pub dequantized: bool,
}

/// A tensor of the directory.
struct Source {
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

/// Converts a directory. Panics where it is not as expected: for tests alone.
pub fn convert(directory: &Path, conversion: &Conversion<'_>) -> Writer {
    let config = json(&directory.join("config.json"));
    let mut writer = Writer::default();
    let architecture = write_settings(&mut writer, &config);
    write_tokenizer(&mut writer, directory, conversion.pre, &config);
    let heads = integer(&config["num_attention_heads"]);
    let kv_heads = config["num_key_value_heads"].as_u64().map_or(heads, |heads| heads as usize);
    for (name, mut tensor) in read_tensors(directory) {
        let name = gguf_name(&name);
        if architecture == "llama" && (name.contains(".attn_q.") || name.contains(".attn_k.")) {
            tensor.permute(if name.contains(".attn_q.") { heads } else { kv_heads });
        }
        let kind = match tensor.shape.len() {
            1 => TensorType::F32,
            _ => storable(&tensor, (conversion.matrices)(&name)),
        };
        let (bytes, numbers) = quantize(kind, &tensor.numbers);
        match conversion.dequantized {
            true => {
                let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                writer.tensor(&name, &tensor.shape, TensorType::F32, bytes);
            }
            false => writer.tensor(&name, &tensor.shape, kind, bytes),
        }
    }
    writer
}

/// Rows that are no whole blocks are stored otherwise, as llama.cpp does.
fn storable(tensor: &Source, kind: TensorType) -> TensorType {
    let row = tensor.shape[tensor.shape.len() - 1];
    let fallback = match kind {
        TensorType::Q4_K => TensorType::Q5_0,
        TensorType::Q6_K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    match row.is_multiple_of(kind.block_elements()) {
        true => kind,
        false => storable(tensor, fallback),
    }
}

impl Source {
    /// Of each head, from halves that rotate together to neighbours that do.
    fn permute(&mut self, heads: usize) {
        let outputs = self.shape[0];
        let row = self.numbers.len() / outputs;
        let head_dim = outputs / heads;
        let from = |to: usize| {
            let (head, place) = (to / head_dim, to % head_dim);
            head * head_dim + place % 2 * (head_dim / 2) + place / 2
        };
        let rows = (0..outputs).flat_map(|to| &self.numbers[from(to) * row..][..row]);
        self.numbers = rows.copied().collect();
    }
}

fn write_settings(writer: &mut Writer, config: &Value) -> &'static str {
    let architecture = match config["architectures"][0].as_str().expect("an architecture") {
        "LlamaForCausalLM" | "MistralForCausalLM" => "llama",
        "Qwen2ForCausalLM" => "qwen2",
        "Qwen3ForCausalLM" => "qwen3",
        other => panic!("architecture {other}"),
    };
    writer.set("general.architecture", architecture);
    let mut set = |key: &str, value: Writable| writer.set(&format!("{architecture}.{key}"), value);
    let heads = integer(&config["num_attention_heads"]);
    let hidden = integer(&config["hidden_size"]);
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |dim| dim as usize);
    let kv_heads = config["num_key_value_heads"].as_u64().map_or(heads, |heads| heads as usize);
    set("block_count", integer(&config["num_hidden_layers"]).into());
    set("context_length", integer(&config["max_position_embeddings"]).into());
    set("embedding_length", hidden.into());
    set("feed_forward_length", integer(&config["intermediate_size"]).into());
    set("attention.head_count", heads.into());
    set("attention.head_count_kv", kv_heads.into());
    set("attention.key_length", head_dim.into());
    set("attention.value_length", head_dim.into());
    set("rope.dimension_count", head_dim.into());
    let epsilon = config["rms_norm_eps"].as_f64().expect("an epsilon");
    set("attention.layer_norm_rms_epsilon", Writable::F32(epsilon as f32));
    let rope = match &config["rope_parameters"] {
        Value::Null => &config["rope_scaling"],
        rope => rope,
    };
    let theta = rope["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    set("rope.freq_base", Writable::F32(theta as f32));
    match rope["rope_type"].as_str().or(rope["type"].as_str()) {
        Some("linear") => {
            set("rope.scaling.type", "linear".into());
            set("rope.scaling.factor", Writable::F32(float(&rope["factor"])));
        }
        Some("llama3") => {
            let factors = llama3_factors(rope, theta, head_dim);
            let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            writer.tensor("rope_freqs.weight", &[head_dim / 2], TensorType::F32, bytes);
        }
        _ => {}
    }
    write_windows(writer, config, architecture);
    architecture
}

/// The divisions of the frequencies that Llama 3.1's settings come to.
fn llama3_factors(rope: &Value, theta: f64, head_dim: usize) -> Vec<f32> {
    let factor = f64::from(float(&rope["factor"]));
    let low = f64::from(float(&rope["low_freq_factor"]));
    let high = f64::from(float(&rope["high_freq_factor"]));
    let original = f64::from(float(&rope["original_max_position_embeddings"]));
    let of_pair = |pair: usize| {
        let wavelength =
            2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / head_dim as f64);
        let turns = original / wavelength;
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(|pair| of_pair(pair) as f32).collect()
}

fn write_windows(writer: &mut Writer, config: &Value, architecture: &str) {
    let layers = integer(&config["num_hidden_layers"]);
    let mistral = config["architectures"][0] == "MistralForCausalLM";
    let qwen = architecture != "llama" && config["use_sliding_window"] == true;
    let Some(window) = config["sliding_window"].as_u64().filter(|_| mistral || qwen) else {
        return;
    };
    writer.set(&format!("{architecture}.attention.sliding_window"), Writable::U32(window as u32));
    let first = config["max_window_layers"].as_u64().unwrap_or(28) as usize;
    let slides = |layer: usize| match &config["layer_types"] {
        Value::Array(types) => types[layer] == "sliding_attention",
        _ => mistral || layer >= first,
    };
    let pattern = (0..layers).map(slides).collect();
    let key = format!("{architecture}.attention.sliding_window_pattern");
    writer.set(&key, Writable::Bools(pattern));
}

fn write_tokenizer(writer: &mut Writer, directory: &Path, pre: &str, config: &Value) {
    if let Some(id) = config["eos_token_id"].as_u64() {
        writer.set("tokenizer.ggml.eos_token_id", Writable::U32(id as u32));
    }
    if !directory.join("tokenizer.json").is_file() {
        return;
    }
    let tokenizer = json(&directory.join("tokenizer.json"));
    for (key, value) in tokenizer_metadata(&tokenizer, pre) {
        writer.set(&key, value);
    }
    let settings = json(&directory.join("tokenizer_config.json"));
    if let Some(template) = settings["chat_template"].as_str() {
        writer.set("tokenizer.chat_template", template);
    }
}

fn read_tensors(directory: &Path) -> BTreeMap<String, Source> {
    let files = std::fs::read_dir(directory).expect("the directory is there");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("model") && name.ends_with(".safetensors")
    });
    let mut tensors = BTreeMap::new();
    for path in paths {
        let file = std::fs::read(path).expect("a readable file");
        for (name, view) in SafeTensors::deserialize(&file).expect("a safetensors file").iter() {
            let numbers = widen(view.dtype(), view.data());
            tensors.insert(name.to_string(), Source { shape: view.shape().to_vec(), numbers });
        }
    }
    tensors
}

fn widen(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    let halves = || data.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    match dtype {
        Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        other => panic!("dtype {other:?}"),
    }
}

/// What a tensor of the directory is called in GGUF files.
fn gguf_name(name: &str) -> String {
    const PARTS: [(&str, &str); 15] = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
    ];
    PARTS.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn integer(value: &Value) -> usize {
    value.as_u64().expect("an integer") as usize
}

fn float(value: &Value) -> f32 {
    value.as_f64().expect("a number") as f32
}
