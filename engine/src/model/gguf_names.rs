//! What tensors are called in GGUF files, and in Hugging Face checkpoints.

/// Outside of layers.
const TOP: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Of each layer.
const OF_LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a tensor of a GGUF file; `None` for those that no model here has.
pub fn of_hugging_face(name: &str) -> Option<String> {
    let (part, property) = name.rsplit_once('.')?;
    if !matches!(property, "weight" | "bias") {
        return None;
    }
    let Some(of_layer) = part.strip_prefix("blk.") else {
        let (_, theirs) = TOP.iter().find(|(ours, _)| *ours == part)?;
        return Some(format!("{theirs}.{property}"));
    };
    let (layer, part) = of_layer.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, theirs) = OF_LAYER.iter().find(|(ours, _)| *ours == part)?;
    Some(format!("model.layers.{layer}.{theirs}.{property}"))
}

/// The GGUF name of a tensor of a Hugging Face checkpoint, or the name itself.
pub fn of_gguf(name: &str) -> String {
    let known = || {
        let (part, property) = name.rsplit_once('.')?;
        let Some(of_layer) = part.strip_prefix("model.layers.") else {
            let (ours, _) = TOP.iter().find(|(_, theirs)| *theirs == part)?;
            return Some(format!("{ours}.{property}"));
        };
        let (layer, part) = of_layer.split_once('.')?;
        let (ours, _) = OF_LAYER.iter().find(|(_, theirs)| *theirs == part)?;
        Some(format!("blk.{layer}.{ours}.{property}"))
    };
    known().unwrap_or_else(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let check = |gguf: &str, hugging_face: &str| {
            assert_eq!(of_hugging_face(gguf).as_deref(), Some(hugging_face));
            assert_eq!(of_gguf(hugging_face), gguf);
        };
        check("token_embd.weight", "model.embed_tokens.weight");
        check("output.weight", "lm_head.weight");
        check("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias");
        check("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight");
        for unknown in ["blk.0.ffn_gate_inp.weight", "blk.x.attn_q.weight", "output", "a.b.weight"]
        {
            assert_eq!(of_hugging_face(unknown), None, "{unknown}");
        }
        assert_eq!(of_gguf("other"), "other");
    }
}
