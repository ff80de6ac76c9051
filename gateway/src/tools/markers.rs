//! Looking for markup in text of which only the beginning is here.

/// What the beginning of a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// The marker.
    Whole,
    /// Perhaps the marker, once more has come.
    Partial,
    /// Something else.
    No,
}

/// Whether `text` begins with `marker`. At the end of all text nothing is partial.
pub fn prefix(text: &str, marker: &str, is_end: bool) -> Prefix {
    if text.starts_with(marker) {
        Prefix::Whole
    } else if !is_end && marker.starts_with(text) {
        Prefix::Partial
    } else {
        Prefix::No
    }
}

/// The first of some markers in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// It begins at this byte and has this index.
    Found(usize, usize),
    /// There is none, nor may one begin before this byte.
    NoneBefore(usize),
}

/// Looks for the first of `markers`, none of which begins with another. Looks at each place once,
/// however many markers there are behind it.
pub fn search(text: &str, markers: &[&str], is_end: bool) -> Search {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let rest = &bytes[at..];
        for (index, marker) in markers.iter().enumerate() {
            let marker = marker.as_bytes();
            if marker[0] != *byte {
                continue;
            }
            if rest.starts_with(marker) {
                return Search::Found(at, index);
            }
            if !is_end && marker.starts_with(rest) {
                return Search::NoneBefore(at);
            }
        }
    }
    Search::NoneBefore(text.len())
}

/// Bytes of the whitespace that a text begins with.
pub fn leading_space_bytes(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_markers_and_what_may_become_one() {
        #[track_caller]
        fn check(text: &str, expected: Search) {
            assert_eq!(search(text, &["<a>", "</a>", "｜b"], false), expected, "{text}");
        }
        check("x<a>y</a>", Search::Found(1, 0));
        check("x</a>", Search::Found(1, 1));
        check("x<", Search::NoneBefore(1));
        check("x</", Search::NoneBefore(1));
        check("x</a", Search::NoneBefore(1));
        check("x<<", Search::NoneBefore(2));
        check("x</b", Search::NoneBefore(4));
        check("é｜", Search::NoneBefore(2));
        check("é｜b", Search::Found(2, 2));
        check("", Search::NoneBefore(0));
        assert_eq!(search("x<", &["<a>"], true), Search::NoneBefore(2));
        assert_eq!(prefix("<a", "<a>", false), Prefix::Partial);
        assert_eq!(prefix("<a", "<a>", true), Prefix::No);
        assert_eq!(prefix("<a>b", "<a>", false), Prefix::Whole);
    }
}
