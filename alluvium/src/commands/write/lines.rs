//! Cuts line protocol into batches at the borders of lines.
//!
//! A newline inside a quoted string belongs to its line. Nothing else is understood here: whether a line is right is
//! the server's to say.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

const READ_BYTES: usize = 256 << 10;
/// A batch is sent at this size even when it has fewer lines than asked.
const MOST_BATCH_BYTES: usize = 8 << 20;
/// A line beyond this is taken to end at its first newline: it has a quote too many, and must not swallow the file.
const LONGEST_LINE_BYTES: usize = 1 << 20;

/// Lines on their way together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) text: Bytes,
    /// Lines with something to store: no blank ones, no comments.
    pub(super) lines: u64,
    /// The number of its first line in its input; newlines in strings count.
    pub(super) first_line: u64,
}

/// The batches of one input.
pub(super) struct Batches {
    input: Box<dyn Read + Send>,
    most_lines: usize,
    /// Read and not yet given out; starts at the border of a line.
    text: Vec<u8>,
    ended: bool,
    next_line: u64,
    /// Lines of the batch that is being read, a line whose end is not here yet included.
    gathered: Arc<AtomicU64>,
}

impl Batches {
    /// `gathered` tells at any time how many lines were read that are in no batch yet.
    pub(super) fn new(input: Box<dyn Read + Send>, most_lines: usize, gathered: Arc<AtomicU64>) -> Batches {
        Batches { input, most_lines, text: Vec::new(), ended: false, next_line: 1, gathered }
    }

    /// The next batch that has lines; `None` at the end.
    pub(super) fn next_batch(&mut self) -> io::Result<Option<Batch>> {
        let mut end = 0;
        let mut lines = 0;
        loop {
            while lines < self.most_lines as u64 && end < MOST_BATCH_BYTES {
                let Some(length) = line_length(&self.text[end..], self.ended) else { break };
                if is_point(&self.text[end..end + length]) {
                    lines += 1;
                }
                end += length;
            }
            let full = lines == self.most_lines as u64 || end >= MOST_BATCH_BYTES;
            if full && lines == 0 {
                // Nothing but comments: they are not worth a request.
                self.take(end);
                end = 0;
                continue;
            }
            if full || self.ended {
                break;
            }
            self.gathered.store(lines + u64::from(is_point(&self.text[end..])), Relaxed);
            let filled = self.text.len();
            self.text.resize(filled + READ_BYTES, 0);
            let read = self.input.read(&mut self.text[filled..])?;
            self.text.truncate(filled + read);
            self.ended = read == 0;
        }
        self.gathered.store(0, Relaxed);
        let first_line = self.next_line;
        let text = self.take(end);
        Ok((lines > 0).then_some(Batch { text, lines, first_line }))
    }

    /// Takes out the first `end` bytes and counts their lines.
    fn take(&mut self, end: usize) -> Bytes {
        let rest = self.text.split_off(end);
        let text = std::mem::replace(&mut self.text, rest);
        self.next_line += text.iter().filter(|byte| **byte == b'\n').count() as u64;
        Bytes::from(text)
    }
}

fn is_point(line: &[u8]) -> bool {
    let start = line.trim_ascii_start();
    !start.is_empty() && start[0] != b'#'
}

/// Length of the first line with its newline; `None` if its end is not here yet.
fn line_length(text: &[u8], ended: bool) -> Option<usize> {
    if text.is_empty() {
        return None;
    }
    match quoted_line_length(text) {
        Some(length) if length <= LONGEST_LINE_BYTES => Some(length),
        None if !ended && text.len() <= LONGEST_LINE_BYTES => None,
        _ => Some(text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |p| p + 1)),
    }
}

fn quoted_line_length(text: &[u8]) -> Option<usize> {
    #[derive(PartialEq)]
    enum Part {
        Before,
        Comment,
        Key,
        Fields,
        Text,
        Time,
    }
    let mut part = Part::Before;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        match (&part, byte) {
            (Part::Text, b'\\') => at += 1,
            (Part::Text, b'"') => part = Part::Fields,
            (Part::Text, _) => {}
            (_, b'\n') => return Some(at + 1),
            (Part::Before, b' ' | b'\t' | b'\r') => {}
            (Part::Before, b'#') => part = Part::Comment,
            (Part::Before | Part::Key | Part::Fields, b'\\') => {
                if part == Part::Before {
                    part = Part::Key;
                }
                // An escape protects the next byte, but never a newline: outside of strings that always ends the line.
                if text.get(at + 1).is_some_and(|next| *next != b'\n') {
                    at += 1;
                }
            }
            (Part::Before, _) => part = Part::Key,
            // Several spaces may stand before the fields.
            (Part::Key, b' ') if text.get(at + 1) != Some(&b' ') => part = Part::Fields,
            (Part::Fields, b'=') if text.get(at + 1) == Some(&b'"') => {
                at += 1;
                part = Part::Text;
            }
            (Part::Fields, b' ') => part = Part::Time,
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(text: &str, most_lines: usize) -> Vec<(String, u64, u64)> {
        let mut batches = Batches::new(Box::new(io::Cursor::new(text.as_bytes().to_vec())), most_lines, Arc::default());
        std::iter::from_fn(|| batches.next_batch().unwrap())
            .map(|b| (String::from_utf8(b.text.to_vec()).unwrap(), b.lines, b.first_line))
            .collect()
    }

    #[test]
    fn batches_end_at_lines_and_lose_no_byte() {
        let text = "a v=1 1\n# note\n\nb v=2 2\nc v=3 3";
        let cut = batches(text, 2);
        assert_eq!(cut, [("a v=1 1\n# note\n\nb v=2 2\n".to_owned(), 2, 1), ("c v=3 3".to_owned(), 1, 5)]);
        assert_eq!(batches("", 2), []);
        assert_eq!(batches("\n# only notes\n", 2), []);
    }

    #[test]
    fn a_newline_in_a_string_belongs_to_its_line() {
        for line in [
            "a s=\"x\ny\",v=1 1\n",
            "a s=\"q\\\"\n\" 1\n",
            "a s=\"back\\\\\"\n",
            "a,tag=\"letter v=1\n",
            "\"table v=1\n",
            "a\\ b,t=c\\,d s=\"\n\n\"\n",
            "a  s=\"\n\"\n",
        ] {
            let two = format!("{line}z v=1\n");
            let lines: Vec<String> = batches(&two, 1).into_iter().map(|b| b.0).collect();
            assert_eq!(lines, [line, "z v=1\n"]);
        }
    }

    #[test]
    fn a_quote_too_many_does_not_swallow_the_file() {
        let mut text = "a s=\"unfinished\n".to_owned();
        for _ in 0..50_000 {
            text.push_str("b,device_id=x v=1.25 1780000000000000000\n");
        }
        let cut = batches(&text, 5_000);
        assert_eq!(cut.iter().map(|b| b.1).sum::<u64>(), 50_001);
        assert_eq!(cut.iter().map(|b| b.0.len()).sum::<usize>(), text.len());
        assert!(cut.len() > 10);
    }

    #[test]
    fn line_numbers_go_on_from_batch_to_batch() {
        let firsts: Vec<u64> = batches("a s=\"1\n2\"\nb v=1\n\n\nc v=1\n", 1).into_iter().map(|b| b.2).collect();
        assert_eq!(firsts, [1, 3, 4]);
    }
}
