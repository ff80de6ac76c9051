//! Sliding windows: which layers see only the newest tokens.

use serde::Deserialize;

use super::config_json::Problem;
use super::family::Family;

/// The settings of `config.json`. Where one is absent, transformers' default holds.
#[derive(Deserialize)]
pub struct WindowSettings {
    #[serde(default = "default_sliding_window")]
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "default_max_window_layers")]
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
}

fn default_sliding_window() -> Option<usize> {
    Some(4096)
}

fn default_max_window_layers() -> usize {
    28
}

impl WindowSettings {
    /// The window of each layer: how many tokens a token sees, itself included.
    pub fn of_layers(&self, family: Family, layers: usize) -> Result<Vec<Option<usize>>, Problem> {
        let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
        let (window, first_layer) = match family {
            Family::Llama => (None, 0),
            Family::Mistral => (self.sliding_window, 0),
            // Despite its name, the layers from `max_window_layers` on are those with a window.
            Family::Qwen2 | Family::Qwen3 => {
                (self.sliding_window.filter(|_| self.use_sliding_window), self.max_window_layers)
            }
        };
        if family == Family::Llama && self.use_sliding_window {
            return Err(Problem::Unsupported("use_sliding_window in a Llama".into()));
        }
        if window == Some(0) {
            return Err(Problem::Corrupt("sliding_window is 0, expected at least 1".into()));
        }
        let by_family = (0..layers).map(|layer| window.filter(|_| layer >= first_layer)).collect();
        let Some(types) = &self.layer_types else { return Ok(by_family) };
        let listed = listed(types, window, layers)?;
        // transformers reads the list in Qwen models alone; elsewhere it must say nothing new.
        if !qwen && listed != by_family {
            return Err(Problem::Unsupported("layers of different types in a Mistral".into()));
        }
        Ok(listed)
    }
}

fn listed(
    types: &[String],
    window: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>, Problem> {
    if types.len() != layers {
        let found = types.len();
        return Err(Problem::Corrupt(format!(
            "layer_types has {found} entries for {layers} layers"
        )));
    }
    let window_of = |kind: &String| match (kind.as_str(), window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => {
            Err(Problem::Corrupt("layer_types has sliding_attention, and no window is set".into()))
        }
        (other, _) => Err(Problem::Unsupported(format!("layer type {other}"))),
    };
    types.iter().map(window_of).collect()
}
