//! `GET /v1/models` and `/v1/models/{id}`.

use serde::Serialize;

use super::response::to_json;

/// A model that this server answers for.
#[derive(Debug, Clone, Serialize)]
pub struct ModelCard {
    pub id: String,
    object: &'static str,
    /// Unix time.
    created: u64,
    owned_by: &'static str,
    /// Context length in tokens, under the name that benchmark clients look for.
    max_model_len: usize,
}

impl ModelCard {
    pub fn new(id: String, created_s: u64, context_tokens: usize) -> ModelCard {
        ModelCard {
            id,
            object: "model",
            created: created_s,
            owned_by: "stator",
            max_model_len: context_tokens,
        }
    }
}

/// The answer to `GET /v1/models`, as JSON.
pub fn model_list(models: &[ModelCard]) -> String {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: &'a [ModelCard],
    }
    to_json(&List { object: "list", data: models })
}

/// The answer to `GET /v1/models/{id}`, as JSON.
pub fn model_object(model: &ModelCard) -> String {
    to_json(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_models() {
        let card = ModelCard::new("m".into(), 7, 4096);
        let object =
            r#"{"id":"m","object":"model","created":7,"owned_by":"stator","max_model_len":4096}"#;
        assert_eq!(model_object(&card), object);
        assert_eq!(model_list(&[card]), format!(r#"{{"object":"list","data":[{object}]}}"#));
    }
}
