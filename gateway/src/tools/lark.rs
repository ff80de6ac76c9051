//! Texts and regular expressions as Lark writes them.

use serde_json::json;

/// A text as Lark writes it.
pub fn literal(text: &str) -> String {
    json!(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A regular expression as Lark writes it. The whole text must match, so anchors say nothing.
pub fn regex_literal(regex: &str) -> String {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let regex = match regex.strip_suffix('$') {
        Some(inner) if !ends_escaped(inner) => inner,
        _ => regex,
    };
    let mut literal = String::from("/");
    let mut is_escaped = false;
    for character in regex.chars() {
        match character {
            '/' if !is_escaped => literal.push_str("\\/"),
            '\n' if is_escaped => literal.push('n'),
            '\n' => literal.push_str("\\n"),
            other => literal.push(other),
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    literal + "/"
}

/// Whether what follows is escaped.
fn ends_escaped(text: &str) -> bool {
    text.chars().rev().take_while(|character| *character == '\\').count() % 2 == 1
}

/// A text as a part of a regular expression.
pub fn escaped(text: &str) -> String {
    text.chars().map(escaped_for_regex).collect()
}

fn escaped_for_regex(character: char) -> String {
    match character {
        '<' | '>' | '_' => character.to_string(),
        other if other.is_ascii_punctuation() => format!("\\{other}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_literals() {
        for (text, expected) in [("a\"\n", r#""a\"\n""#), ("\u{7f}é", "\"\\u007fé\"")] {
            assert_eq!(literal(text), expected);
        }
        for (regex, expected) in [
            ("^a/b$", r"/a\/b/"),
            (r"a\/b", r"/a\/b/"),
            (r"a\$", r"/a\$/"),
            ("a\nb", r"/a\nb/"),
            (r"a\\$", r"/a\\/"),
        ] {
            assert_eq!(regex_literal(regex), expected);
        }
        assert_eq!(escaped("<|a_b|>｜"), r"<\|a_b\|>｜");
    }
}
