//! Cuts a text into the pieces that tokens do not reach across.

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use serde_json::Value;

use super::Unsupported;

/// GPT-2's pattern, which files name rather than contain.
const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How the patterns of the family end: whitespace, but the last one goes to the word behind it.
const LAST_SPACE_APART: &str = r"|\s+(?!\S)|\s+";

/// Bytes of a piece of whitespace, or of one that the pattern says nothing about. With longer ones
/// the regex engine of the `tokenizers` crate comes to its limits, so that crate has to decide.
const ODD_PIECE_BYTES_MAX: usize = 1 << 14;

/// Memory of one automaton. Those of the family take up to a third of it.
const AUTOMATON_BYTES_MAX: usize = 8 << 20;

const UNSUPPORTED: Unsupported = "has a pre-tokenizer other than patterns and then byte level";
const UNSUPPORTED_PATTERN: Unsupported = "has a pattern that no automaton does";

/// The steps of a pre-tokenizer; each cuts what the one before leaves.
pub(super) struct PreTokenizer {
    steps: Vec<Step>,
}

enum Step {
    Pattern(Box<Pattern>),
    /// Numbers apart from the rest, digit by digit or as a whole.
    Digits {
        each: bool,
    },
}

/// A regular expression: what matches is a piece, and so is what is between matches.
struct Pattern {
    automaton: dense::DFA<Vec<u32>>,
    /// Whether a match may begin with a byte.
    begins: [bool; 256],
    /// Whether what is between matches is left out.
    only_matches: bool,
}

/// Where a piece ends, and whether it is a match.
struct Piece {
    end: usize,
    matched: bool,
}

impl PreTokenizer {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<PreTokenizer, Unsupported> {
        let file = serde_json::to_value(tokenizer.get_pre_tokenizer()).map_err(|_| UNSUPPORTED)?;
        let steps = match &file["pretokenizers"] {
            Value::Array(steps) => steps.as_slice(),
            _ => std::slice::from_ref(&file),
        };
        // The step that spells bytes has to be the last one, because patterns are for text.
        let (byte_level, patterns) = steps.split_last().ok_or(UNSUPPORTED)?;
        if byte_level["type"] != "ByteLevel" || byte_level["add_prefix_space"] != false {
            return Err(UNSUPPORTED);
        }
        let mut steps = patterns.iter().map(Step::of).collect::<Result<Vec<_>, _>>()?;
        if byte_level["use_regex"] != false {
            steps.push(Step::Pattern(Box::new(Pattern::new(GPT2_PATTERN, false)?)));
        }
        Ok(PreTokenizer { steps })
    }

    /// Hands `take` the pieces of a text. `None` where only the `tokenizers` crate knows.
    pub(super) fn split<F: FnMut(&str)>(&self, text: &str, take: &mut F) -> Option<()> {
        split(&self.steps, text, take)
    }
}

fn split<F: FnMut(&str)>(steps: &[Step], text: &str, take: &mut F) -> Option<()> {
    let Some((step, further)) = steps.split_first() else {
        if !text.is_empty() {
            take(text);
        }
        return Some(());
    };
    let mut start = 0;
    while start < text.len() {
        let piece = step.piece(text, start)?;
        if piece.matched || !step.only_matches() {
            split(further, &text[start..piece.end], take)?;
        }
        start = piece.end;
    }
    Some(())
}

impl Step {
    fn of(step: &Value) -> Result<Step, Unsupported> {
        match step["type"].as_str() {
            Some("Digits") => Ok(Step::Digits { each: step["individual_digits"] == true }),
            Some("Split") => {
                let pattern = step["pattern"]["Regex"].as_str().ok_or(UNSUPPORTED)?;
                let only_matches = match (step["behavior"].as_str(), &step["invert"]) {
                    (Some("Isolated"), _) => false,
                    (Some("Removed"), Value::Bool(true)) => true,
                    _ => return Err(UNSUPPORTED),
                };
                Ok(Step::Pattern(Box::new(Pattern::new(pattern, only_matches)?)))
            }
            _ => Err(UNSUPPORTED),
        }
    }

    fn only_matches(&self) -> bool {
        matches!(self, Step::Pattern(pattern) if pattern.only_matches)
    }

    /// The piece that begins at `start`, which is before the end of the text.
    fn piece(&self, text: &str, start: usize) -> Option<Piece> {
        match self {
            Step::Pattern(pattern) => pattern.piece(text, start),
            Step::Digits { each } => Some(digits(text, start, *each)),
        }
    }
}

fn digits(text: &str, start: usize, each: bool) -> Piece {
    let mut characters = text[start..].char_indices();
    let (_, first) = characters.next().unwrap_or_default();
    let matched = first.is_numeric();
    let end = if matched && each {
        start + first.len_utf8()
    } else {
        let other = characters.find(|(_, character)| character.is_numeric() != matched);
        other.map_or(text.len(), |(at, _)| start + at)
    };
    Piece { end, matched }
}

impl Pattern {
    fn new(pattern: &str, only_matches: bool) -> Result<Pattern, Unsupported> {
        if has_own_syntax(pattern) {
            return Err(UNSUPPORTED_PATTERN);
        }
        // The look at what is behind whitespace is no automaton's work; `Pattern::matched` has it.
        let patterns = match pattern.strip_suffix(LAST_SPACE_APART) {
            Some(pattern) => vec![pattern, r"\s+"],
            None => vec![pattern],
        };
        let parsed = patterns.iter().map(|pattern| syntax::parse(pattern).ok());
        let parsed = parsed.collect::<Option<Vec<_>>>().ok_or(UNSUPPORTED_PATTERN)?;
        // Matches must not depend on what is around them, nor be empty.
        let plain = parsed.iter().map(|pattern| pattern.properties()).all(|properties| {
            properties.look_set().is_empty() && properties.minimum_len().is_some_and(|len| len > 0)
        });
        if !plain {
            return Err(UNSUPPORTED_PATTERN);
        }
        let config = dense::Config::new()
            .match_kind(MatchKind::LeftmostFirst)
            .start_kind(StartKind::Anchored)
            .dfa_size_limit(Some(AUTOMATON_BYTES_MAX))
            .determinize_size_limit(Some(2 * AUTOMATON_BYTES_MAX));
        let automaton = dense::Builder::new().configure(config).build_many(&patterns);
        let automaton = automaton.map_err(|_| UNSUPPORTED_PATTERN)?;
        let start = automaton.start_state_forward(&Input::new("").anchored(Anchored::Yes));
        let start = start.map_err(|_| UNSUPPORTED_PATTERN)?;
        let begins = |byte| !automaton.is_dead_state(automaton.next_state(start, byte as u8));
        let begins = std::array::from_fn(begins);
        Ok(Pattern { automaton, begins, only_matches })
    }

    fn piece(&self, text: &str, start: usize) -> Option<Piece> {
        if let Some(end) = self.matched(text, start)? {
            return Some(Piece { end, matched: true });
        }
        // No match begins within a character.
        for end in start + 1..text.len() {
            if end - start > ODD_PIECE_BYTES_MAX {
                return None;
            }
            if self.matched(text, end)?.is_some() {
                return Some(Piece { end, matched: false });
            }
        }
        Some(Piece { end: text.len(), matched: false })
    }

    /// The end of the match that begins at `start`, if there is one.
    fn matched(&self, text: &str, start: usize) -> Option<Option<usize>> {
        if !self.begins[usize::from(text.as_bytes()[start])] {
            return Some(None);
        }
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let Some(found) = self.automaton.try_search_fwd(&input).ok()? else {
            return Some(None);
        };
        let end = found.offset();
        if found.pattern().as_usize() == 0 {
            return Some(Some(end));
        }
        if end - start > ODD_PIECE_BYTES_MAX {
            return None;
        }
        if end == text.len() {
            return Some(Some(end));
        }
        let last = text[start..end].char_indices().next_back().map_or(0, |(at, _)| at);
        Some(Some(if last > 0 { start + last } else { end }))
    }
}

/// Whether a pattern may mean something else to the engine of the `tokenizers` crate: that one has
/// quantifiers that give nothing back, and reads `(?x)` by itself.
fn has_own_syntax(pattern: &str) -> bool {
    let counted = |at: usize| pattern[..at].ends_with(|c: char| c.is_ascii_digit() || c == ',');
    ["++", "*+", "?+", "(?x"].iter().any(|syntax| pattern.contains(syntax))
        || pattern.match_indices("}+").any(|(at, _)| counted(at))
}
