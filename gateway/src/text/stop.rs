//! Stop strings in a stream of text.

/// Watches a stream for stop strings and holds back what may turn out to be the beginning of one.
///
/// The stream stops where the first stop string is *complete*; of several that end at that byte the
/// longest is cut off. So the result does not depend on how the text was split.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// The longest suffix of the text so far that begins a stop string.
    held: String,
    stopped: bool,
}

/// What a [`StopMatcher`] made of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Text that can be sent now.
    pub emit: String,
    /// A stop string was found; nothing will be emitted any more.
    pub stopped: bool,
}

impl StopMatcher {
    /// `stop` must not contain empty strings; those are ignored.
    pub fn new(stop: Vec<String>) -> StopMatcher {
        let patterns = stop.iter().filter(|text| !text.is_empty()).map(|text| Pattern::new(text));
        StopMatcher { patterns: patterns.collect(), held: String::new(), stopped: false }
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, text: &str) -> Matched {
        if self.stopped {
            return Matched { emit: String::new(), stopped: true };
        }
        let text_start = self.held.len();
        self.held.push_str(text);
        for end in text_start..self.held.len() {
            let byte = self.held.as_bytes()[end];
            if let Some(stop_bytes) = self.longest_match_at(byte) {
                self.stopped = true;
                let mut emit = std::mem::take(&mut self.held);
                emit.truncate(end + 1 - stop_bytes);
                return Matched { emit, stopped: true };
            }
        }
        let begun = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - begun);
        Matched { emit: std::mem::replace(&mut self.held, held), stopped: false }
    }

    /// The text that was held back when the stream ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn longest_match_at(&mut self, byte: u8) -> Option<usize> {
        let mut longest = None;
        for pattern in &mut self.patterns {
            if pattern.advance(byte) {
                longest = longest.max(Some(pattern.bytes.len()));
            }
        }
        longest
    }
}

/// One stop string under the Knuth-Morris-Pratt algorithm: constant time per byte, however long and
/// repetitive the string is.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each number of matched bytes, the longest shorter match that is still alive.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the text ends with.
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        let bytes = text.as_bytes().to_vec();
        let mut pattern = Pattern { fallback: vec![0; bytes.len() + 1], bytes, matched: 0 };
        // The pattern is searched in itself, which only reads entries that are already there.
        for index in 1..pattern.bytes.len() {
            pattern.advance(pattern.bytes[index]);
            pattern.fallback[index + 1] = pattern.matched;
        }
        pattern.matched = 0;
        pattern
    }

    /// Whether the pattern is complete with this byte.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<'a>(stop: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let mut matcher = StopMatcher::new(stop.iter().map(|text| text.to_string()).collect());
        let mut out = String::new();
        for piece in pieces {
            let matched = matcher.push(piece);
            out.push_str(&matched.emit);
            if matched.stopped {
                assert_eq!(matcher.push("more").emit, "");
                assert_eq!(matcher.finish(), "");
                return (out, true);
            }
        }
        out.push_str(&matcher.finish());
        (out, false)
    }

    /// However the text is split into three pieces or into characters, the result is the same.
    #[track_caller]
    fn check(stop: &[&str], text: &str, expected: &str, stopped: bool) {
        let expected = (expected.to_owned(), stopped);
        let boundaries: Vec<_> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
        for (index, &first) in boundaries.iter().enumerate() {
            for &second in &boundaries[index..] {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(run(stop, pieces), expected, "{pieces:?}");
            }
        }
        assert_eq!(run(stop, text.split("")), expected);
    }

    #[test]
    fn stops_wherever_the_text_is_split() {
        check(&[], "abc", "abc", false);
        check(&["x"], "abc", "abc", false);
        check(&["c"], "abcd", "ab", true);
        check(&["END"], "some ENENDxyz", "some EN", true);
        check(&["END"], "some EN", "some EN", false);
        check(&["aab"], "aaaabx", "aa", true);
        check(&["abab", "bb"], "aabaabbab", "aabaa", true);
        // The one that is complete first wins, and of those that end together the longest.
        check(&["abcd", "bc"], "xabcd", "xa", true);
        check(&["bc", "abc"], "xabcd", "x", true);
        check(&["\n\n", "###"], "one\ntwo\n\nthree", "one\ntwo", true);
        check(&["é€", "😀!"], "aé😀é€b", "aé😀", true);
        check(&["😀!"], "é😀😀!b", "é😀", true);
    }

    #[test]
    fn holds_back_no_more_than_needed() {
        let mut matcher = StopMatcher::new(vec!["STOP".into()]);
        let mut emits = |text: &str| matcher.push(text).emit;
        assert_eq!(emits("a ST"), "a ");
        assert_eq!(emits("a"), "STa");
        assert_eq!(emits("STO"), "");
        assert_eq!(emits("STO"), "STO");
        assert_eq!(matcher.finish(), "STO");
    }
}
