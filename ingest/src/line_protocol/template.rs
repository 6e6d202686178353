//! The fast path: lines that look like lines before them.
//!
//! A line is taken here if its series text is known byte for byte, its fields are known columns spelled without escapes,
//! each value is plainly of its column's type, and nothing else is unusual. Then its tags are not looked at, each field's
//! name is compared with the one that followed last time, and numbers are read eight bytes at a time. Anything else,
//! good or bad, is left untouched for the general parser: nothing is stored before the whole line has been read.

use model::schema::ColumnType;

use super::columns::PlainCell;
use super::numbers::{self, low_bytes, word};
use super::tables::{Key, Table};
use super::{ParseOptions, Parser, Timestamp};

/// The series of a line, looked up before its turn.
pub(super) struct Ahead {
    /// Where the line starts.
    start: usize,
    /// The space behind its series text.
    series_end: usize,
    series: usize,
}

impl Parser {
    /// Takes the line that starts at `start` and gives where it ends (its newline or the end of the text), or leaves it.
    #[inline]
    pub(super) fn take_known(&mut self, text: &str, start: usize, line_number: usize, options: &ParseOptions<'_>) -> Option<usize> {
        let bytes = text.as_bytes();
        let Ahead { series_end, series, .. } = match self.ahead.take() {
            Some(ahead) if ahead.start == start => ahead,
            _ => self.look_ahead(bytes, start)?,
        };
        let table_number = self.series.table(series);
        let part = self.part_of(series, table_number, options);
        let table = self.tables.get(table_number);

        self.plain.clear();
        let mut at = series_end + 1;
        let mut before = Key::NONE;
        let mut fresh = 0;
        loop {
            let (column, value_at) = known_field(table, text, at, before)?;
            before = column;
            let key = &table.keys[column as usize];
            fresh += usize::from(part.is_none_or(|part| !table.parts[part].has(column as usize)));
            let (bits, end) = plain_value(bytes, value_at, key.kind)?;
            self.plain.push(PlainCell { column, bits });
            at = end;
            match bytes.get(at) {
                Some(b',') => at += 1,
                _ => break,
            }
        }

        let mut time = Timestamp(options.arrival.0.saturating_add(line_number as i64));
        if bytes.get(at) == Some(&b' ') {
            let (digits, written) = numbers::digits(bytes, at + 1, 0);
            if digits == 0 || digits > 19 {
                return None;
            }
            at += 1 + digits;
            time = options.precision.instant(i64::try_from(written).ok()?)?;
        }
        let end = match bytes.get(at) {
            None | Some(b'\n') => at,
            Some(b'\r') if matches!(bytes.get(at + 1), None | Some(b'\n')) => at + 1,
            _ => return None,
        };
        if end - start > options.limits.line_bytes || options.cutoff.is_some_and(|cutoff| time < cutoff) {
            return None;
        }
        self.cells = self.cells.checked_sub(table.cells_of_row(part, fresh))?;
        // The next series comes from memory while this row is appended.
        self.ahead = self.look_ahead(bytes, end + 1);
        self.append_known(text, series, table_number, time, options);
        Some(end)
    }

    /// The known series of the line that starts at `start`.
    #[inline]
    fn look_ahead(&self, bytes: &[u8], start: usize) -> Option<Ahead> {
        // A newline first: no space of this line. Behind a backslash the space is a letter; an empty series text is a blank.
        let series_end = start + memchr::memchr2(b' ', b'\n', bytes.get(start..)?)?;
        if series_end == start || bytes[series_end] == b'\n' || bytes[series_end - 1] == b'\\' {
            return None;
        }
        let series = self.series.find(&bytes[start..=series_end])?;
        Some(Ahead { start, series_end, series })
    }

    /// Appends the cells just read as a row.
    #[inline]
    fn append_known(&mut self, text: &str, series: usize, table: usize, time: Timestamp, options: &ParseOptions<'_>) {
        let (part, number) = self.place_of(series, table, options);
        let Table { parts, columns, .. } = self.tables.get(table);
        let part = &mut parts[part];
        for &PlainCell { column, bits } in &self.plain {
            let place = part.place(columns, column as usize);
            part.builder.put_plain(place, bits, text);
        }
        part.builder.end_row(number, time.0);
    }
}

/// The column of the field whose name starts at `at`, and where its value starts.
#[inline]
fn known_field(table: &mut Table, text: &str, at: usize, before: u32) -> Option<(u32, usize)> {
    let bytes = text.as_bytes();
    let expected = if before == Key::NONE { table.first } else { table.keys[before as usize].next };
    if let Some(key) = table.keys.get(expected as usize)
        && key.matches(bytes, at)
    {
        return Some((expected, at + key.len as usize));
    }
    let (found, value_at) = look_up(table, text, at)?;
    match before {
        Key::NONE => table.first = found,
        before => table.keys[before as usize].next = found,
    }
    Some((found, value_at))
}

/// A field that did not follow last time, found by its name.
#[cold]
fn look_up(table: &Table, text: &str, at: usize) -> Option<(u32, usize)> {
    let end = at + text.as_bytes()[at..].iter().position(|b| matches!(b, b'=' | b',' | b' ' | b'\\' | b'\n'))?;
    let column = table.column(&text[at..end])?;
    let key = &table.keys[column];
    (key.len as usize == end - at + 1 && text.as_bytes()[end] == b'=').then_some((column as u32, end + 1))
}

/// The value at `at` as bits, and where it ends; only where it is spelled as a value of this type.
#[inline]
fn plain_value(bytes: &[u8], at: usize, kind: ColumnType) -> Option<(u64, usize)> {
    match kind {
        ColumnType::F64 => {
            let (value, end) = numbers::plain_float(bytes, at)?;
            Some((value.to_bits(), end))
        }
        ColumnType::I64 => {
            let (value, end) = numbers::plain_integer(bytes, at)?;
            Some((value as u64, end))
        }
        ColumnType::U64 => {
            let (count, value) = numbers::digits(bytes, at, 0);
            ((1..=19).contains(&count) && bytes.get(at + count) == Some(&b'u')).then_some((value, at + count + 1))
        }
        ColumnType::Bool => {
            let token = word(bytes, at);
            let is = |name: &[u8]| token & low_bytes(name.len()) == word(name, 0);
            let (value, len) = match token as u8 {
                b't' if is(b"true") => (1, 4),
                b'f' if is(b"false") => (0, 5),
                b'T' if is(b"TRUE") || is(b"True") => (1, 4),
                b'F' if is(b"FALSE") || is(b"False") => (0, 5),
                b't' | b'T' => (1, 1),
                b'f' | b'F' => (0, 1),
                _ => return None,
            };
            Some((value, at + len))
        }
        ColumnType::Str => {
            if bytes.get(at) != Some(&b'"') {
                return None;
            }
            let len = bytes[at + 1..].iter().position(|b| matches!(b, b'"' | b'\\' | b'\n'))?;
            let start = at + 1;
            (bytes[start + len] == b'"').then_some(((start as u64) << 32 | len as u64, start + len + 1))
        }
    }
}
