//! Server-sent events, read as they come.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

/// A longer line or event is refused.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// An event of more than [`EVENT_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// Takes a stream in pieces of any size and gives its events' data.
#[derive(Default)]
pub struct SseParser {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Data of an event whose end has not come.
    event: Vec<u8>,
    has_data: bool,
    /// The last line ended with `\r`, and a `\n` now would belong to it.
    after_cr: bool,
}

impl SseParser {
    /// Reads a piece; `on_event` gets the data of each event that it completes.
    pub fn feed<E: From<TooLong>>(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                return Ok(append(&mut self.line, bytes)?);
            };
            self.after_cr = bytes[end] == b'\r';
            let (rest_of_line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.line.is_empty() {
                self.end_line(rest_of_line, &mut on_event)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                append(&mut line, rest_of_line)?;
                self.end_line(&line, &mut on_event)?;
                line.clear();
                self.line = line;
            }
        }
        Ok(())
    }

    /// The stream has ended. The specification drops an event without its blank line; a last event
    /// is taken here, because it is complete to most clients.
    pub fn finish<E: From<TooLong>>(
        &mut self,
        mut on_event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let line = std::mem::take(&mut self.line);
        self.end_line(&line, &mut on_event)?;
        self.end_line(b"", &mut on_event)
    }

    fn end_line<E: From<TooLong>>(
        &mut self,
        line: &[u8],
        on_event: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let event = std::mem::take(&mut self.event);
                on_event(&event)?;
                self.event = event;
                self.event.clear();
            }
            return Ok(());
        }
        let Some(data) = line.strip_prefix(b"data:").or(line.strip_prefix(b"error:")) else {
            return Ok(());
        };
        if self.has_data {
            append(&mut self.event, b"\n")?;
        }
        self.has_data = true;
        Ok(append(&mut self.event, data.strip_prefix(b" ").unwrap_or(data))?)
    }
}

fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> Result<(), TooLong> {
    if buffer.len() + bytes.len() > EVENT_BYTES_MAX {
        return Err(TooLong);
    }
    buffer.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        let mut take = |data: &[u8]| {
            events.push(String::from_utf8(data.to_vec()).unwrap());
            Ok::<_, TooLong>(())
        };
        for piece in pieces {
            parser.feed(piece, &mut take).unwrap();
        }
        parser.finish(take).unwrap();
        events
    }

    #[test]
    fn reads_events_wherever_they_are_cut() {
        #[track_caller]
        fn check(stream: &str, expected: &[&str]) {
            let bytes = stream.as_bytes();
            for first in 0..=bytes.len() {
                for second in first..=bytes.len() {
                    let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                    assert_eq!(events(&pieces), expected, "{stream:?} cut at {first}, {second}");
                }
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(events(&single), expected, "{stream:?} byte by byte");
        }
        check("", &[]);
        check("data: a\n\n", &["a"]);
        check("data:a\n\ndata:  b\n\n", &["a", " b"]);
        check("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check("data: a\r\rdata: b\r\r", &["a", "b"]);
        check(": ping\n\ndata: a\n: ping\n\n", &["a"]);
        check("event: x\nid: 1\nretry: 2\ndata: a\n\n", &["a"]);
        check("data: a\ndata: b\n\n", &["a\nb"]);
        check("data\n\ndatum: x\n\n", &[]);
        check("data:\n\n", &[""]);
        check("\n\n\ndata: é\n\n\n", &["é"]);
        check("error: {}\n\n", &["{}"]);
        check("data: a\n\ndata: [DONE]", &["a", "[DONE]"]);
        check("data: a\n\ndata: [DONE]\n", &["a", "[DONE]"]);
    }

    #[test]
    fn refuses_endless_events() {
        let lines = |line: &[u8], count: usize| {
            let mut parser = SseParser::default();
            (0..count).try_for_each(|_| parser.feed(line, |_| Ok::<_, TooLong>(())))
        };
        assert_eq!(lines(&[b'x'; 1024], 1024), Ok(()));
        assert_eq!(lines(&[b'x'; 1024], 1025), Err(TooLong));
        assert_eq!(lines(b"data: 0123456789\n", 100_000), Err(TooLong));
        assert_eq!(lines(b"data: 0123456789\n\n", 100_000), Ok(()));
    }
}
