//! What this server has and does: `GET /v1/models`, `GET /v1/models/{id}` and `GET /openapi.json`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;

use super::Shared;
use crate::models::Model;
use crate::openai::{ApiError, ModelCard, model_list, model_object};

/// All models.
pub async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let cards: Vec<ModelCard> = shared.models.all().iter().map(|model| card(model)).collect();
    json(model_list(&cards))
}

/// One model. Names may contain slashes.
pub async fn model(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Response, ApiError> {
    // Not `Path`, which answers what is not UTF-8 in words of its own.
    let path = uri.path().strip_prefix("/v1").unwrap_or(uri.path());
    let id = path.strip_prefix("/models/").unwrap_or_default();
    let id = percent_decode_str(id).decode_utf8_lossy();
    let model = shared.models.get(&id).ok_or_else(|| ApiError::model_not_found(&id))?;
    Ok(json(model_object(&card(&model))))
}

/// What is served, in OpenAPI's terms.
pub async fn openapi() -> Response {
    const DESCRIPTION: &str = include_str!("../../../docs/openapi.json");
    ([(CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

fn card(model: &Model) -> ModelCard {
    ModelCard::new(model.name.clone(), model.created_s, model.context_tokens)
}

/// A response of JSON text.
pub fn json(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}
