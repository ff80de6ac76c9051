//! The prompt at the beginning of its choices.

use std::collections::HashMap;

use super::asked::Asked;
use crate::generation::{Piece, with_text};
use crate::openai::TokenText;
use protocol::v1;

/// Puts prompts before their choices; does nothing where that was not asked for.
pub struct Echo {
    /// One per prompt.
    prompts: Vec<EchoedPrompt>,
    choices_per_prompt: usize,
    /// Characters before each choice's own text, once it has begun.
    offsets: HashMap<usize, usize>,
}

struct EchoedPrompt {
    text: String,
    /// Its tokens with their logprobs, once they are known.
    report: Vec<TokenText>,
    first: Option<TokenText>,
}

impl Echo {
    /// For a request's choices.
    pub fn of(asked: &Asked) -> Option<Self> {
        if !asked.parameters.echo {
            return None;
        }
        let prompts = asked.prompts.iter().map(|prompt| EchoedPrompt {
            text: match &prompt.text {
                Some(text) => text.clone(),
                None => asked.model.tokenizer.decode(&prompt.tokens).unwrap_or_default(),
            },
            first: asked.reports_prompt().then(|| {
                let token = v1::Token { id: prompt.tokens[0], ..Default::default() };
                with_text(&asked.model, &token, None, 0)
            }),
            report: Vec::new(),
        });
        Some(Self {
            prompts: prompts.collect(),
            choices_per_prompt: asked.parameters.best_of as usize,
            offsets: HashMap::new(),
        })
    }

    /// Puts the prompt before a choice's first piece.
    pub fn apply(&mut self, choice: usize, piece: &mut Piece) {
        let prompt = &mut self.prompts[choice / self.choices_per_prompt];
        if !piece.prompt.is_empty() {
            prompt.report = std::mem::take(&mut piece.prompt);
        }
        let offset = *self.offsets.entry(choice).or_insert_with(|| {
            piece.text.insert_str(0, &prompt.text);
            let mut tokens = prompt.tokens();
            let characters = prompt.text.chars().count();
            tokens.append(&mut piece.logprobs);
            piece.logprobs = tokens;
            characters
        });
        for token in piece.logprobs.iter_mut().filter(|token| !token.is_echoed) {
            token.offset_characters += offset;
        }
    }
}

impl EchoedPrompt {
    /// With the places of their texts, one after the other.
    fn tokens(&self) -> Vec<TokenText> {
        let mut characters = 0;
        let place = |token: &TokenText| {
            // A token may begin within a character, which is then the one it belongs to.
            let continues = token.bytes.first().is_some_and(|byte| is_continuation(*byte));
            let offset_characters = characters - usize::from(continues && characters > 0);
            let placed = TokenText { offset_characters, is_echoed: true, ..token.clone() };
            if !token.is_special {
                characters += token.bytes.iter().filter(|byte| !is_continuation(**byte)).count();
            }
            placed
        };
        self.first.iter().chain(&self.report).map(place).collect()
    }
}

/// Whether a byte goes on with a character of UTF-8.
fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}
