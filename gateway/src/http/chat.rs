//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::Shared;
use super::asked::{Asked, Endpoint, PromptTokens, Speech};
use super::generate::{encode, find_model, respond};
use crate::models::Model;
use crate::openai::{ApiError, ChatRequest, Tools};
use crate::text::{TemplateError, TemplateVariables};
use crate::tools::{Thinking, grammar_of};

/// Answers a conversation.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, chat) = shared.admission.admit(request, ChatRequest::parse).await?;
    let ChatRequest { mut parameters, messages, tools, constraint, variables } = chat;
    let model = find_model(&shared, &parameters.model)?;
    if tools.must_call() {
        // They end what is said; a call that has to come is whole.
        parameters.stop.clear();
    }
    let prepare = move |model: &Model| {
        let for_template = tools.for_template();
        let prompt = render(model, &messages, for_template.as_deref(), &variables)?;
        // The template writes the special tokens itself.
        let tokens = encode(model, "messages", &prompt, false)?;
        let thinking = model.dialect.thinking_after(&prompt);
        let grammar = grammar_of(&tools, constraint.as_ref(), &model.dialect, thinking)?;
        let param = constraint.map_or("tools".to_string(), |constraint| constraint.param);
        Ok(Prepared { tokens, thinking, grammar, param, tools })
    };
    let (place, prepared) = admitted.tokens(&model, prepare).await?;
    let Prepared { tokens, thinking, grammar, param, tools } = prepared;
    let asked = Asked {
        endpoint: Endpoint::Chat,
        prompts: vec![PromptTokens { tokens: tokens.into(), text: None }],
        grammar: shared.grammars.checked(&model, grammar, &param).await?,
        grammar_param: param.into(),
        speech: speech(&model, tools, thinking),
        model,
        parameters,
    };
    respond(&shared, place, asked).await
}

/// What becomes of a conversation.
struct Prepared {
    tokens: Vec<u32>,
    /// Where the answer begins.
    thinking: Thinking,
    /// What it must match, and which field asked for that.
    grammar: Option<String>,
    param: String,
    tools: Tools,
}

/// How calls and reasoning are found in the answers, where there may be any.
fn speech(model: &Arc<Model>, tools: Tools, thinking: Thinking) -> Option<Speech> {
    let with_tools = tools.may_call();
    if !with_tools && !model.dialect.may_reason() {
        return None;
    }
    let shown = match with_tools {
        true => model.dialect.shown_specials(),
        false => model.dialect.shown_specials_without_tools(),
    };
    let is_legacy = tools.are_legacy;
    let (shown_specials, model) = (shown.into(), model.clone());
    let new_parser = move || {
        let parser = model.dialect.parser_after(with_tools, thinking);
        let parser = parser.with_functions(tools.callable_names());
        if tools.parallel_calls { parser } else { parser.with_one_call() }
    };
    Some(Speech { new_parser: Box::new(new_parser), shown_specials, is_legacy })
}

fn render(
    model: &Model,
    messages: &[Value],
    tools: Option<&[Value]>,
    variables: &TemplateVariables,
) -> Result<String, ApiError> {
    let template = model.template.as_ref().ok_or_else(|| {
        let message = format!(
            "The model `{}` has no chat template. Use /v1/completions instead.",
            model.name
        );
        ApiError::invalid_value("model", message)
    })?;
    template.render_with(messages, tools, variables).map_err(|error| {
        if !matches!(error, TemplateError::Raised(_)) {
            tracing::warn!(model = model.name, ?error, "the chat template failed");
        }
        error.into()
    })
}
