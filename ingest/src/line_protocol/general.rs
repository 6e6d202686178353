//! The whole grammar, one line at a time, as it is written in the interface; slow and sure.
//!
//! [`line_end`] finds where a line ends, well formed or not; [`Line::read`] takes one line apart into pieces of its text.
//! Nothing here knows tables or columns. The fast path (`template.rs`) may answer only what this would answer.
//!
//! ```text
//! line   = [blanks] table *("," tag "=" value) 1*" " field *("," field) [1*" " time] [blanks] [CR]
//! field  = name "=" ( float | integer "i" | unsigned "u" | boolean | string )
//! string = '"' *( any but '"' and '\' | '\"' | '\\' | '\' ) '"'
//! ```
//!
//! Names and tag values: `\,` `\=` `\ ` stand for the byte after the backslash (in a table's name only `\,` and `\ `), any
//! other backslash for itself. Outside of a string a newline always ends the line, even behind a backslash.

use super::numbers::{self, NumberError};

/// Where the line that starts at `start` ends: the place of its newline, or the end of the body.
///
/// Newlines inside a string do not end a line. A string starts at a quote right behind an unescaped `=` after the line's
/// first unescaped space; if it never ends, neither does its line. Comments end at their first newline.
pub(super) fn line_end(body: &[u8], start: usize) -> usize {
    let rest = &body[start..];
    let first_newline = |from: usize| memchr::memchr(b'\n', &rest[from..]).map_or(rest.len(), |p| from + p);
    let mut at = rest.iter().take_while(|b| is_blank(**b)).count();
    if rest.get(at) == Some(&b'#') {
        return start + first_newline(at);
    }
    let newline = first_newline(at);
    // The series part: up to the first unescaped space.
    loop {
        match memchr::memchr(b' ', &rest[at..newline]) {
            None => return start + newline,
            Some(p) => {
                at += p + 1;
                if p == 0 || rest[at - 2] != b'\\' {
                    break;
                }
            }
        }
    }
    // The fields: look for `="` or the newline, whichever comes first.
    let mut newline = newline;
    loop {
        match memchr::memchr(b'"', &rest[at..newline]) {
            None => return start + newline,
            Some(p) => {
                let quote = at + p;
                at = quote + 1;
                if rest[quote - 1] == b'=' && rest[quote - 2] != b'\\' {
                    match string_end(rest, at) {
                        None => return body.len(),
                        Some(end) => at = end + 1,
                    }
                    if at > newline {
                        newline = first_newline(at);
                    }
                }
            }
        }
    }
}

/// The place of the quote that ends the string whose text starts at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += if matches!(bytes.get(at + 1), Some(b'"' | b'\\')) { 2 } else { 1 };
    }
}

/// What separates nothing: it may stand before and after a line.
pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// A piece of a line, or of the text that escapes were taken out of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    start: u32,
    end: u32,
    unescaped: bool,
}

/// A field's value; a string is a piece.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    F64(f64),
    I64(i64),
    U64(u64),
    Bool(bool),
    Str(Piece),
}

/// What is wrong with a line, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Bytes of the line before the place.
    pub(super) at: usize,
    /// What is wrong, for people.
    pub(super) reason: String,
}

fn fault<T>(at: usize, reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { at, reason: reason.into() })
}

/// One line taken apart; reused from line to line.
#[derive(Default)]
pub(super) struct Line {
    pub(super) table: Piece,
    pub(super) tags: Vec<(Piece, Piece)>,
    pub(super) fields: Vec<(Piece, Value)>,
    pub(super) time: Option<i64>,
    /// Bytes of the line up to the space that ends the series part.
    pub(super) series_len: usize,
    text: String,
}

/// Which part of a line a name or tag value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Table,
    TagName,
    TagValue,
    FieldName,
}

impl Line {
    /// The text of a piece of `line`, the one that was read last.
    pub(super) fn text<'a>(&'a self, line: &'a str, piece: Piece) -> &'a str {
        let from = if piece.unescaped { &self.text } else { line };
        &from[piece.start as usize..piece.end as usize]
    }

    /// Takes `line` apart. It starts with its table and ends with its last letter: no blanks around it, no newline.
    pub(super) fn read(&mut self, line: &str) -> Result<(), Fault> {
        self.tags.clear();
        self.fields.clear();
        self.text.clear();
        self.time = None;
        let bytes = line.as_bytes();

        let (table, mut at) = self.name(line, 0, Part::Table)?;
        self.table = table;
        while bytes.get(at) == Some(&b',') {
            let (name, end) = self.name(line, at + 1, Part::TagName)?;
            let (value, end) = self.name(line, end + 1, Part::TagValue)?;
            self.tags.push((name, value));
            at = end;
        }
        self.series_len = at;

        at = skip_spaces(bytes, at);
        if at == bytes.len() {
            return fault(at, "no field: expected ' field=value'");
        }
        loop {
            let (name, end) = self.name(line, at, Part::FieldName)?;
            let (value, end) = self.value(line, end + 1)?;
            self.fields.push((name, value));
            at = end;
            match bytes.get(at) {
                Some(b',') => at += 1,
                Some(b' ') => break,
                None => return Ok(()),
                Some(_) => return fault(at, "unexpected text after a string: expected ',' or a space"),
            }
        }

        at = skip_spaces(bytes, at);
        if at == bytes.len() {
            return Ok(());
        }
        let end = bytes[at..].iter().position(|&b| b == b' ').map_or(bytes.len(), |p| at + p);
        match numbers::integer(&bytes[at..end]) {
            Ok(time) => self.time = Some(time),
            Err(NumberError::Malformed) => return fault(at, format!("invalid time '{}': expected an integer", shown(&line[at..end]))),
            Err(NumberError::OutOfRange) => return fault(at, format!("time '{}' is out of range", shown(&line[at..end]))),
        }
        let after = skip_spaces(bytes, end);
        if after < bytes.len() {
            return fault(after, "unexpected text after the time");
        }
        Ok(())
    }

    /// Reads a name or tag value from `start` up to what ends it; gives it and where it ends.
    fn name(&mut self, line: &str, start: usize, part: Part) -> Result<(Piece, usize), Fault> {
        let bytes = line.as_bytes();
        let mut at = start;
        let mut copied = None;
        let mut from = start;
        let stop = loop {
            match bytes.get(at) {
                None => break None,
                Some(b'\\') => match bytes.get(at + 1) {
                    None => return fault(at, "unfinished escape: the line ends with a backslash"),
                    Some(&next) if next == b',' || next == b' ' || (next == b'=' && part != Part::Table) => {
                        copied.get_or_insert(self.text.len());
                        self.text.push_str(&line[from..at]);
                        from = at + 1;
                        at += 2;
                    }
                    Some(_) => at += 1,
                },
                Some(&stop) if stop == b',' || stop == b' ' || (stop == b'=' && part != Part::Table) => break Some(stop),
                Some(_) => at += 1,
            }
        };
        let empty = at == start;
        match (part, stop) {
            (Part::Table, _) if empty => return fault(at, "empty table name"),
            (Part::TagName, _) if empty => return fault(at, "empty tag name"),
            (Part::TagName, Some(b'=')) => {}
            (Part::TagName, _) => return fault(at, format!("tag '{}' has no value: expected '='", shown(&line[start..at]))),
            (Part::TagValue, _) if empty => return fault(at, "empty tag value"),
            (Part::TagValue, Some(b'=')) => return fault(at, "unescaped '=' in a tag value: write '\\='"),
            (Part::FieldName, _) if empty => return fault(at, "empty field name"),
            (Part::FieldName, Some(b'=')) => {}
            (Part::FieldName, _) => return fault(at, format!("field '{}' has no value: expected '='", shown(&line[start..at]))),
            (Part::Table | Part::TagValue, _) => {}
        }
        Ok((self.piece(line, copied, from, at), at))
    }

    /// The piece that ends at `end`: the line's own bytes, or what was copied since `copied` and the bytes from `from`.
    fn piece(&mut self, line: &str, copied: Option<usize>, from: usize, end: usize) -> Piece {
        match copied {
            None => Piece { start: from as u32, end: end as u32, unescaped: false },
            Some(start) => {
                self.text.push_str(&line[from..end]);
                Piece { start: start as u32, end: self.text.len() as u32, unescaped: true }
            }
        }
    }

    /// Reads a field's value from `start`; gives it and where it ends.
    fn value(&mut self, line: &str, start: usize) -> Result<(Value, usize), Fault> {
        let bytes = line.as_bytes();
        if bytes.get(start) == Some(&b'"') {
            return self.string(line, start + 1);
        }
        let end = bytes[start..].iter().position(|&b| b == b',' || b == b' ').map_or(bytes.len(), |p| start + p);
        let token = &bytes[start..end];
        let (what, read) = match token {
            [] => return fault(start, "empty field value"),
            [digits @ .., b'i'] => ("integer", numbers::integer(digits).map(Value::I64)),
            [digits @ .., b'u'] => ("unsigned integer", numbers::unsigned(digits).map(Value::U64)),
            b"t" | b"T" | b"true" | b"True" | b"TRUE" => ("", Ok(Value::Bool(true))),
            b"f" | b"F" | b"false" | b"False" | b"FALSE" => ("", Ok(Value::Bool(false))),
            [b'-' | b'.' | b'+' | b'0'..=b'9', ..] => ("float", numbers::float(token).map(Value::F64)),
            _ => return fault(start, format!("invalid field value '{}'", shown(&line[start..end]))),
        };
        match read {
            Ok(value) => Ok((value, end)),
            Err(NumberError::Malformed) => fault(start, format!("invalid {what} '{}'", shown(&line[start..end]))),
            Err(NumberError::OutOfRange) => fault(start, format!("{what} '{}' is out of range", shown(&line[start..end]))),
        }
    }

    /// Reads a string whose text starts at `start`; gives it and the place behind its closing quote.
    fn string(&mut self, line: &str, start: usize) -> Result<(Value, usize), Fault> {
        let bytes = line.as_bytes();
        let mut copied = None;
        let mut from = start;
        let mut at = start;
        loop {
            match memchr::memchr2(b'"', b'\\', &bytes[at..]) {
                None => return fault(start - 1, "unfinished string: no closing quote"),
                Some(p) => at += p,
            }
            if bytes[at] == b'"' {
                return Ok((Value::Str(self.piece(line, copied, from, at)), at + 1));
            }
            match bytes.get(at + 1) {
                Some(b'"' | b'\\') => {
                    copied.get_or_insert(self.text.len());
                    self.text.push_str(&line[from..at]);
                    from = at + 1;
                    at += 2;
                }
                _ => at += 1,
            }
        }
    }
}

fn skip_spaces(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().take_while(|&&b| b == b' ').count()
}

/// The start of a text, short enough for a message.
fn shown(text: &str) -> &str {
    let mut end = text.len().min(64);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
