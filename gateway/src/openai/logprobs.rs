//! Log probabilities in the dialect of chat and in that of text completions.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// JSON cannot carry minus infinity; OpenAI sends this instead.
const LOGPROB_MIN: f32 = -9999.0;

/// One generated token, as logprobs report it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenText {
    pub text: String,
    /// The true bytes, which `text` cannot show where a character is split over tokens.
    pub bytes: Vec<u8>,
    /// Where it begins in the answer, in characters.
    pub offset_characters: usize,
    /// Natural logarithm; none of a prompt's first token.
    pub logprob: Option<f32>,
    /// It is the prompt's.
    pub is_echoed: bool,
    /// It is markup, which the text does not show.
    pub is_special: bool,
    /// The most likely tokens of this position: text, bytes, logprob.
    pub top: Vec<(String, Vec<u8>, f32)>,
}

/// `logprobs` of a chat choice.
#[derive(Serialize)]
pub struct ChatLogprobs<'a> {
    content: Vec<ChatToken<'a>>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatToken<'a> {
    #[serde(flatten)]
    token: ChatAlternative<'a>,
    top_logprobs: Vec<ChatAlternative<'a>>,
}

#[derive(Serialize)]
struct ChatAlternative<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> ChatLogprobs<'a> {
    pub fn new(tokens: &'a [TokenText]) -> ChatLogprobs<'a> {
        ChatLogprobs { content: tokens.iter().map(ChatToken::new).collect(), refusal: None }
    }
}

impl<'a> ChatToken<'a> {
    fn new(token: &'a TokenText) -> ChatToken<'a> {
        ChatToken {
            token: ChatAlternative::new(&token.text, &token.bytes, token.logprob.unwrap_or(0.0)),
            top_logprobs: token
                .top
                .iter()
                .map(|(text, bytes, logprob)| ChatAlternative::new(text, bytes, *logprob))
                .collect(),
        }
    }
}

impl<'a> ChatAlternative<'a> {
    fn new(token: &'a str, bytes: &'a [u8], logprob: f32) -> ChatAlternative<'a> {
        ChatAlternative { token, logprob: finite(logprob), bytes }
    }
}

/// `logprobs` of a text completion choice.
#[derive(Serialize)]
pub struct CompletionLogprobs<'a> {
    tokens: Vec<&'a str>,
    token_logprobs: Vec<Option<f32>>,
    /// Null when no alternatives were asked for.
    top_logprobs: Option<Vec<Option<Alternatives<'a>>>>,
    text_offset: Vec<usize>,
}

impl<'a> CompletionLogprobs<'a> {
    pub fn new(tokens: &'a [TokenText]) -> CompletionLogprobs<'a> {
        let any_alternatives = tokens.iter().any(|token| !token.top.is_empty());
        CompletionLogprobs {
            tokens: tokens.iter().map(|token| token.text.as_str()).collect(),
            token_logprobs: tokens.iter().map(|token| token.logprob.map(finite)).collect(),
            top_logprobs: any_alternatives.then(|| tokens.iter().map(alternatives).collect()),
            text_offset: tokens.iter().map(|token| token.offset_characters).collect(),
        }
    }
}

/// A prompt's first token follows nothing, so that there is nothing that could have come instead.
fn alternatives(token: &TokenText) -> Option<Alternatives<'_>> {
    token.logprob.map(|_| Alternatives(token))
}

/// A map from text to logprob: the likeliest tokens, and the chosen one where it is not of them.
struct Alternatives<'a>(&'a TokenText);

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let TokenText { text, logprob, top, .. } = self.0;
        for (index, (text, _, logprob)) in top.iter().enumerate() {
            // Different tokens can read the same; the likelier one comes first and stays.
            if !top[..index].iter().any(|(earlier, ..)| earlier == text) {
                map.serialize_entry(text, &finite(*logprob))?;
            }
        }
        if let Some(logprob) = logprob
            && !top.is_empty()
            && !top.iter().any(|(other, ..)| other == text)
        {
            map.serialize_entry(text, &finite(*logprob))?;
        }
        map.end()
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
