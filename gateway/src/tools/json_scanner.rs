//! Finds the end of a JSON value without reading it. Lenient: only strings and brackets count.

/// Where one value is in its text.
#[derive(Debug, Clone, Default)]
pub struct JsonScanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    in_scalar: bool,
}

/// What a scan came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    More,
    /// The value ended.
    Done,
    /// Markup stands where JSON cannot have it.
    Broken,
}

impl JsonScanner {
    /// Goes on by as many bytes as belong to the value, which begins without space.
    pub fn feed(&mut self, text: &str) -> (usize, Scan) {
        for (at, byte) in text.bytes().enumerate() {
            if self.in_string {
                if self.end_of_string(byte) {
                    return (at + 1, Scan::Done);
                }
                continue;
            }
            match byte {
                b'<' if self.depth > 0 => return (at, Scan::Broken),
                b',' | b'}' | b']' | b'<' | b' ' | b'\t' | b'\n' | b'\r' if self.depth == 0 => {
                    return (at, if self.in_scalar { Scan::Done } else { Scan::Broken });
                }
                b'{' | b'[' if self.in_scalar => return (at, Scan::Done),
                b'"' if self.in_scalar => return (at, Scan::Done),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, Scan::Done);
                    }
                }
                b'"' => self.in_string = true,
                _ => self.in_scalar = self.depth == 0,
            }
        }
        (text.len(), Scan::More)
    }

    /// Within a string; whether the value ends with this byte.
    fn end_of_string(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => {
                self.in_string = false;
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// The text of a JSON string, of which only the beginning may be there. `inner` is without quotes.
pub fn unescape(inner: &str) -> String {
    let whole = |inner: &str| serde_json::from_str::<String>(&format!("\"{inner}\"")).ok();
    if let Some(text) = whole(inner) {
        return text;
    }
    // An escape may be cut off: two of them make one character.
    let tail = inner.len().saturating_sub(12);
    let cuts = (tail..inner.len()).rev().filter(|at| inner.is_char_boundary(*at));
    let mut cuts = cuts.filter(|at| inner[*at..].starts_with('\\'));
    cuts.find_map(|at| whole(&inner[..at])).unwrap_or_else(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_end() {
        #[track_caller]
        fn check(text: &str, expected: (usize, Scan)) {
            assert_eq!(JsonScanner::default().feed(text), expected, "{text}");
            let mut scanner = JsonScanner::default();
            let (mut at, mut scan) = (0, Scan::More);
            while at < text.len() && scan == Scan::More {
                let next = at + text[at..].chars().next().unwrap().len_utf8();
                let (bytes, now) = scanner.feed(&text[at..next]);
                (at, scan) = (at + bytes, now);
            }
            assert_eq!((at, scan), expected, "{text}");
        }
        check(r#"{"a": "}\"é", "b": [1, {}]} x"#, (28, Scan::Done));
        check(r#"{"a": [1"#, (8, Scan::More));
        check(r#""a\\" x"#, (5, Scan::Done));
        check("12, 3", (2, Scan::Done));
        check("null}", (4, Scan::Done));
        check(r#"{"a": 1 </x>"#, (8, Scan::Broken));
        check(r#"{"a": "</x>"}"#, (13, Scan::Done));
        check("]", (0, Scan::Broken));
    }

    #[test]
    fn unescapes_beginnings() {
        for (inner, text) in [
            (r#"{\"a\": 1}"#, "{\"a\": 1}"),
            (r#"é\u00e9\"#, "éé"),
            (r"a\ud83d\ude0", "a"),
            (r"a\u00", "a"),
            ("a\nb", "a\nb"),
        ] {
            assert_eq!(unescape(inner), text);
        }
    }
}
