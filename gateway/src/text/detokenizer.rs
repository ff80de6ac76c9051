//! Tokens to text, one token at a time.

use tokenizer::Tokenizer;

/// Turns the tokens of one answer into text as they come, and holds back the bytes of a character
/// that is not complete yet.
///
/// It works on the bytes of the tokens, so a push costs no more than the token is long, and the
/// text does not depend on what was pushed when. Bytes that can no longer become a character are
/// replaced by U+FFFD as `String::from_utf8_lossy` does it; a character that is incomplete when the
/// stream ends is dropped.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    /// The beginning of a character: at most three bytes between two pushes.
    held: Vec<u8>,
}

impl Detokenizer {
    /// The text that became certain with this token; special tokens have none, unless it `is_shown`.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, is_shown: bool) -> String {
        if tokenizer.is_special(id) && !is_shown {
            return String::new();
        }
        self.held.extend_from_slice(tokenizer.token_bytes(id));
        let incomplete_bytes = incomplete_tail_bytes(&self.held);
        let certain_bytes = self.held.len() - incomplete_bytes;
        let text = String::from_utf8_lossy(&self.held[..certain_bytes]).into_owned();
        self.held.drain(..certain_bytes);
        debug_assert!(self.held.len() <= 3, "no character has more than four bytes");
        text
    }
}

/// How many bytes at the end are the beginning of a character that may still be completed.
fn incomplete_tail_bytes(bytes: &[u8]) -> usize {
    let tail = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(tail) {
        Err(error) if error.error_len().is_none() => tail.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizer::test_support::byte_level_tokenizer;

    fn run(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        ids.iter().map(|&id| detokenizer.push(tokenizer, id, false)).collect()
    }

    /// The ids 0..=255 of the test tokenizer are the bytes.
    #[track_caller]
    fn check(bytes: &[u8], expected: &[&str]) {
        let ids: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
        assert_eq!(run(&byte_level_tokenizer(), &ids), expected);
    }

    #[test]
    fn holds_back_the_beginning_of_a_character() {
        check(b"ab", &["a", "b"]);
        check("é".as_bytes(), &["", "é"]);
        check("😀!".as_bytes(), &["", "", "", "😀", "!"]);
        // Cut off at the end: dropped.
        check(&[b'a', 0xF0, 0x9F], &["a", "", ""]);
    }

    #[test]
    fn invalid_bytes_do_not_stall_the_stream() {
        check(&[0xFF, b'a'], &["\u{FFFD}", "a"]);
        check(&[0x80], &["\u{FFFD}"]);
        check(&[0xF0, 0x9F, b'a', b'b'], &["", "", "\u{FFFD}a", "b"]);
        check(&[0xE2, 0xE2, 0x82, 0xAC], &["", "\u{FFFD}", "", "€"]);
        // A surrogate is invalid from its second byte on.
        check(&[0xED, 0xA0, b'x'], &["", "\u{FFFD}\u{FFFD}", "x"]);
    }

    #[test]
    fn characters_over_tokens_of_several_bytes() {
        let tokenizer = byte_level_tokenizer();
        let text = "a é😀x ab日本😀😀x";
        let ids = tokenizer.encode(text, false).unwrap();
        assert!(ids.len() < text.len(), "the merges of the test tokenizer are in use");
        let pieces = run(&tokenizer, &ids);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
    }

    #[test]
    fn special_tokens_have_no_text() {
        let tokenizer = byte_level_tokenizer();
        let ids = tokenizer.encode("a<|end|>b<think é>", false).unwrap();
        assert_eq!(run(&tokenizer, &ids), ["a", "", "b", "<think é>"]);
    }

    /// Any bytes give the lossy text of all of them, less what is incomplete at the end.
    #[test]
    fn agrees_with_decoding_everything_at_once() {
        let tokenizer = byte_level_tokenizer();
        let alphabet = [b'a', 0x80, 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0xFF];
        for number in 0..8u32.pow(5) {
            let ids: Vec<u32> = (0..5)
                .map(|place| u32::from(alphabet[(number >> (3 * place)) as usize & 7]))
                .collect();
            let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
            let whole = String::from_utf8_lossy(&bytes);
            let got = run(&tokenizer, &ids).concat();
            let rest = whole.strip_prefix(&got).expect("the stream is a prefix of the whole");
            assert!(rest.is_empty() || rest == "\u{FFFD}", "{bytes:x?}");
        }
    }
}
