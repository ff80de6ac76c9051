//! Answers that are sent whole.

use axum::response::Response;

use super::asked::{Asked, Endpoint};
use super::echo::Echo;
use super::listing::json;
use super::speaker::Speaker;
use crate::choices::{Choices, News};
use crate::openai::{
    ApiError, ChatChoice, CompletionChoice, Head, TokenText, Usage, chat_completion,
    text_completion,
};

/// Waits for all choices.
pub async fn answer(asked: &Asked, head: &Head, choices: Choices) -> Result<Response, ApiError> {
    match asked.endpoint {
        Endpoint::Chat => chat(asked, head, choices).await,
        Endpoint::Completion => completion(asked, head, choices).await,
    }
}

async fn chat(asked: &Asked, head: &Head, mut choices: Choices) -> Result<Response, ApiError> {
    let speakers = (0..asked.parameters.n).map(|_| asked.speaker());
    let is_legacy = asked.is_legacy();
    let logprobs = asked.parameters.logprobs.map(|_| Vec::new());
    let mut told: Vec<(Speaker, ChatChoice)> = speakers
        .map(|speaker| {
            (speaker, ChatChoice { logprobs: logprobs.clone(), is_legacy, ..Default::default() })
        })
        .collect();
    let mut reasoning_tokens = 0;
    while let Some(News { choice, piece }) = choices.next().await? {
        let (speaker, whole) = &mut told[choice];
        let said = speaker.hear(piece);
        said.deltas.into_iter().for_each(|delta| whole.add(delta));
        whole.logprobs.iter_mut().for_each(|all| all.extend(said.logprobs.iter().cloned()));
        whole.finish_reason = said.finish.unwrap_or("stop");
        reasoning_tokens += said.reasoning_tokens;
    }
    let whole: Vec<ChatChoice> = told.into_iter().map(|(_, choice)| choice).collect();
    let usage = Usage { reasoning_tokens, ..choices.usage() };
    Ok(json(chat_completion(head, &whole, usage)))
}

async fn completion(
    asked: &Asked,
    head: &Head,
    mut choices: Choices,
) -> Result<Response, ApiError> {
    let (n, best_of) = (asked.parameters.n as usize, asked.parameters.best_of as usize);
    let mut echo = Echo::of(asked);
    let count = asked.prompts.len() * best_of;
    let mut wholes: Vec<CompletionChoice> =
        (0..count).map(|_| CompletionChoice::default()).collect();
    while let Some(News { choice, mut piece }) = choices.next().await? {
        echo.iter_mut().for_each(|echo| echo.apply(choice, &mut piece));
        let whole = &mut wholes[choice];
        whole.text.push_str(&piece.text);
        whole.logprobs.get_or_insert_default().append(&mut piece.logprobs);
        whole.finish_reason = piece.finish.unwrap_or("stop");
    }
    let mut best: Vec<CompletionChoice> = Vec::with_capacity(asked.prompts.len() * n);
    let mut rest = wholes.into_iter();
    for _ in &asked.prompts {
        best.extend(best_choices(rest.by_ref().take(best_of).collect(), n));
    }
    if asked.parameters.logprobs.is_none() {
        best.iter_mut().for_each(|choice| choice.logprobs = None);
    }
    Ok(json(text_completion(head, &best, choices.usage())))
}

/// The `n` with the largest logprob per token, the best first; all as they are where all are wanted.
fn best_choices(mut choices: Vec<CompletionChoice>, n: usize) -> Vec<CompletionChoice> {
    if choices.len() > n {
        let mean = |choice: &CompletionChoice| mean_logprob(choice.logprobs.as_deref());
        choices.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        choices.truncate(n);
    }
    choices
}

fn mean_logprob(tokens: Option<&[TokenText]>) -> f32 {
    let own = tokens.unwrap_or_default().iter().filter(|token| !token.is_echoed);
    let (sum, count) =
        own.fold((0.0, 0), |(sum, count), token| (sum + token.logprob.unwrap_or(0.0), count + 1));
    if count == 0 { f32::NEG_INFINITY } else { sum / count as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(text: &str, logprobs: &[f32]) -> CompletionChoice {
        let token = |logprob: &f32| TokenText { logprob: Some(*logprob), ..Default::default() };
        let logprobs = Some(logprobs.iter().map(token).collect());
        CompletionChoice { text: text.into(), logprobs, finish_reason: "stop" }
    }

    #[track_caller]
    fn check(n: usize, expected: &[&str]) {
        let choices = vec![
            choice("worst", &[-3.0, -1.0]),
            choice("best", &[-1.0, -0.5, -0.5]),
            choice("good", &[-1.0]),
        ];
        let texts: Vec<String> = best_choices(choices, n).into_iter().map(|c| c.text).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn the_likeliest_choices_per_token_are_kept() {
        check(1, &["best"]);
        check(2, &["best", "good"]);
        check(3, &["worst", "best", "good"]);
    }
}
