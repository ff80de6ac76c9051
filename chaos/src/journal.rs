//! The lines of the processes' logs that tell what happened to a request, with the time they came.

use parking_lot::Mutex;
use tokio::time::Instant;

/// Notes kept at most; later ones are counted only, and the report says so.
const NOTES_MAX: usize = 100_000;

/// What a log line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A gateway has found that a request's worker failed, and given it to another one.
    GivenElsewhere,
    /// The other worker's first token has come.
    WentOn,
    /// A decode worker has found that a request's prefill worker, or the way to it, failed, and
    /// computes the prompt itself.
    PrefillLost,
    /// A process has a defect.
    Panic,
}

/// How each piece of news reads in a log.
const PHRASES: [(&str, News); 4] = [
    ("given to another worker", News::GivenElsewhere),
    (" migrated ", News::WentOn),
    ("prefill failed, computing here", News::PrefillLost),
    ("panicked at", News::Panic),
];

/// A line of note.
#[derive(Clone, Debug)]
pub struct Note {
    /// When it came.
    pub at: Instant,
    /// Whose log it is in.
    pub process: String,
    /// What it tells.
    pub news: News,
    /// The request it is about; empty where it names none.
    pub request_id: String,
    /// All of it.
    pub line: String,
}

/// Collects notes of all processes.
#[derive(Default)]
pub struct Journal {
    notes: Mutex<Vec<Note>>,
}

impl Journal {
    /// Takes a line of a process' log, and remembers it if it is of note.
    pub fn hear(&self, process: &str, line: &str) {
        let Some((_, news)) = PHRASES.iter().find(|(phrase, _)| line.contains(phrase)) else {
            return;
        };
        let mut notes = self.notes.lock();
        if notes.len() < NOTES_MAX {
            let request_id = field(line, "request_id").unwrap_or_default().to_string();
            let (at, process, line) = (Instant::now(), process.to_string(), line.to_string());
            notes.push(Note { at, process, news: *news, request_id, line });
        }
    }

    /// Takes out all notes.
    pub fn take(&self) -> Vec<Note> {
        std::mem::take(&mut self.notes.lock())
    }
}

/// The value of `name=value` or `name="value"` in a line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = line;
    loop {
        let at = rest.find(name)?;
        let before = rest[..at].chars().next_back();
        rest = &rest[at + name.len()..];
        if let (None | Some(' '), Some(value)) = (before, rest.strip_prefix('=')) {
            return match value.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next(),
                None => value.split(' ').next(),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_note() {
        #[track_caller]
        fn check(line: &str, expected: Option<(News, &str)>) {
            let journal = Journal::default();
            journal.hear("gateway-0", line);
            let notes = journal.take();
            let found = notes.first().map(|note| (note.news, note.request_id.as_str()));
            assert_eq!(found, expected, "{line}");
        }
        let time = "2026-11-23T01:20:00.123456Z";
        check(&format!("{time}  INFO gateway: listening"), None);
        check(
            &format!("{time}  INFO gateway: given to another worker request_id=a-1 to=decode-0"),
            Some((News::GivenElsewhere, "a-1")),
        );
        check(
            &format!("{time}  INFO gateway: migrated request_id=\"a-1\" took_ms=12"),
            Some((News::WentOn, "a-1")),
        );
        check(
            &format!(
                "{time}  WARN d: prefill failed, computing here my_request_id=x request_id=b error=e"
            ),
            Some((News::PrefillLost, "b")),
        );
        check("thread 'main' panicked at src/main.rs:1:1:", Some((News::Panic, "")));
    }
}
