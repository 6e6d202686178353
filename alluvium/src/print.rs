//! Rows as a table for eyes.
//!
//! A table fits the terminal: wide cells are cut with `…`, and when even that is not enough the columns in the middle are
//! left out, which the table shows. Bytes from the server never reach the terminal as control characters. Everything
//! that a program reads (csv, json, parquet, …) is made by the server and passes through untouched.

use std::io::{self, Write};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use console::{measure_text_width, truncate_str};

/// Rows that are kept for drawing; the others are counted only.
pub const MOST_ROWS_DRAWN: usize = 1_000;
/// A column is not cut below this: a time still shows its milliseconds, an id most of itself.
const NARROWEST: usize = 24;
const NULL: &str = "NULL";

/// Rows gathered for drawing.
#[derive(Debug)]
pub struct Sheet {
    names: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    total: u64,
    keep: usize,
}

impl Sheet {
    /// An empty sheet that keeps the first `keep` rows.
    pub fn new(schema: &SchemaRef, keep: usize) -> Sheet {
        let names = schema.fields().iter().map(|f| printable(f.name())).collect();
        let right = schema.fields().iter().map(|f| f.data_type().is_numeric() || matches!(f.data_type(), DataType::Boolean)).collect();
        Sheet { names, right, rows: Vec::new(), total: 0, keep }
    }

    /// A sheet of plain words, for the commands' own tables.
    pub fn of_words(names: &[&str], rows: Vec<Vec<String>>) -> Sheet {
        let right =
            (0..names.len()).map(|i| !rows.is_empty() && rows.iter().all(|r| r[i].parse::<f64>().is_ok() || r[i] == NULL)).collect();
        let total = rows.len() as u64;
        Sheet { names: names.iter().map(|n| (*n).to_owned()).collect(), right, rows, total, keep: usize::MAX }
    }

    /// Adds rows.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        self.total += batch.num_rows() as u64;
        let room = self.keep.saturating_sub(self.rows.len()).min(batch.num_rows());
        if room == 0 {
            return Ok(());
        }
        let options = FormatOptions::new()
            .with_null(NULL)
            .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"))
            .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.f%:z"));
        let formatters = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options)).collect::<Result<Vec<_>, _>>()?;
        for row in 0..room {
            self.rows.push(formatters.iter().map(|f| printable(&f.value(row).to_string())).collect());
        }
        Ok(())
    }

    /// Rows pushed, drawn or not.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Draws the table at most `width` wide (`None`: as wide as it gets).
    pub fn draw(&self, out: &mut impl Write, width: Option<usize>) -> io::Result<()> {
        if self.names.is_empty() {
            return Ok(());
        }
        let natural: Vec<usize> = (0..self.names.len())
            .map(|i| self.rows.iter().map(|r| measure_text_width(&r[i])).chain([measure_text_width(&self.names[i])]).max().unwrap_or(0))
            .collect();
        let columns = fit(&natural, width);
        let rule = |left: &str, middle: &str, right: &str| {
            let parts: Vec<String> = columns.iter().map(|c| "─".repeat(c.width + 2)).collect();
            format!("{left}{}{right}\n", parts.join(middle))
        };
        out.write_all(rule("┌", "┬", "┐").as_bytes())?;
        self.line(out, &columns, |i| &self.names[i])?;
        out.write_all(rule("├", "┼", "┤").as_bytes())?;
        for row in &self.rows {
            self.line(out, &columns, |i| &row[i])?;
        }
        out.write_all(rule("└", "┴", "┘").as_bytes())?;
        self.rest(out)
    }

    /// Draws each row as a block of `name value` lines.
    pub fn draw_expanded(&self, out: &mut impl Write) -> io::Result<()> {
        let widest = self.names.iter().map(|n| measure_text_width(n)).max().unwrap_or(0);
        for (number, row) in self.rows.iter().enumerate() {
            writeln!(out, "─── row {} ───", number + 1)?;
            for (name, cell) in self.names.iter().zip(row) {
                writeln!(out, "{}{name}  {cell}", " ".repeat(widest - measure_text_width(name)))?;
            }
        }
        self.rest(out)
    }

    fn rest(&self, out: &mut impl Write) -> io::Result<()> {
        match self.total - self.rows.len() as u64 {
            0 => Ok(()),
            more => writeln!(out, "… {} more rows; --format csv prints all, LIMIT asks for fewer", thousands(more)),
        }
    }

    fn line<'a>(&'a self, out: &mut impl Write, columns: &[Shown], cell: impl Fn(usize) -> &'a String) -> io::Result<()> {
        let mut text = String::from("│");
        for shown in columns {
            let Some(index) = shown.column else {
                text.push_str(" … │");
                continue;
            };
            let cell = truncate_str(cell(index), shown.width, "…");
            let pad = " ".repeat(shown.width.saturating_sub(measure_text_width(&cell)));
            let (before, after) = if self.right[index] { (pad.as_str(), "") } else { ("", pad.as_str()) };
            text.push_str(&format!(" {before}{cell}{after} │"));
        }
        text.push('\n');
        out.write_all(text.as_bytes())
    }
}

/// A column as drawn; `None` stands for those left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    column: Option<usize>,
    width: usize,
}

/// Cuts the widest columns until the table fits, then leaves out columns in the middle.
fn fit(natural: &[usize], width: Option<usize>) -> Vec<Shown> {
    let all = |widths: &[usize]| widths.iter().enumerate().map(|(i, w)| Shown { column: Some(i), width: *w }).collect::<Vec<_>>();
    let Some(room) = width else { return all(natural) };
    let frame = |columns: usize| 3 * columns + 1;
    let mut widths = natural.to_vec();
    while frame(widths.len()) + widths.iter().sum::<usize>() > room {
        let widest = widths.iter().copied().max().unwrap_or(0);
        if widest <= NARROWEST {
            break;
        }
        let second = widths.iter().copied().filter(|w| *w < widest).max().unwrap_or(0).max(NARROWEST);
        let sharing = widths.iter().filter(|w| **w == widest).count();
        let over = frame(widths.len()) + widths.iter().sum::<usize>() - room;
        let cut = (over.div_ceil(sharing)).min(widest - second).max(1);
        widths.iter_mut().filter(|w| **w == widest).for_each(|w| *w -= cut);
    }
    let mut shown = all(&widths);
    let mut cut_at = None;
    while shown.len() > 2 && shown.iter().map(|s| s.width + 3).sum::<usize>() + 1 + if cut_at.is_some() { 4 } else { 0 } > room {
        let middle = shown.len() / 2;
        shown.remove(middle);
        cut_at = Some(middle);
    }
    if let Some(middle) = cut_at {
        shown.insert(middle, Shown { column: None, width: 1 });
    }
    shown
}

/// Text without anything that a terminal would obey.
pub fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// `61520` as `61,520`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How wide standard output is, if it is a terminal.
pub fn terminal_width() -> Option<usize> {
    let term = console::Term::stdout();
    term.is_term().then(|| usize::from(term.size().1).max(20))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, StringViewArray, TimestampNanosecondArray};

    use super::*;

    fn sheet() -> Sheet {
        let batch = RecordBatch::try_from_iter([
            ("time", Arc::new(TimestampNanosecondArray::from(vec![0, 1_500_000_000])) as ArrayRef),
            ("device_id", Arc::new(StringViewArray::from(vec![Some("phone-1"), None]))),
            ("level", Arc::new(Float64Array::from(vec![71.5, 8.0]))),
        ])
        .unwrap();
        let mut sheet = Sheet::new(&batch.schema(), 10);
        sheet.push(&batch).unwrap();
        sheet
    }

    fn drawn(sheet: &Sheet, width: Option<usize>) -> String {
        let mut out = Vec::new();
        sheet.draw(&mut out, width).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_drawn_with_boxes() {
        let expected = "\
┌──────────────────────────┬───────────┬───────┐
│ time                     │ device_id │ level │
├──────────────────────────┼───────────┼───────┤
│ 1970-01-01T00:00:00Z     │ phone-1   │  71.5 │
│ 1970-01-01T00:00:01.500Z │ NULL      │   8.0 │
└──────────────────────────┴───────────┴───────┘
";
        assert_eq!(drawn(&sheet(), None), expected);
    }

    #[test]
    fn every_line_fits_the_width() {
        let mut wide = sheet();
        wide.rows[0][1] = "x".repeat(200);
        for width in 45..120 {
            for line in drawn(&wide, Some(width)).lines() {
                assert!(measure_text_width(line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn columns_in_the_middle_give_way_when_cutting_cells_is_not_enough() {
        let shown = fit(&[30; 10], Some(90));
        assert_eq!(shown.first().unwrap().column, Some(0));
        assert_eq!(shown.last().unwrap().column, Some(9));
        assert_eq!(shown.iter().filter(|s| s.column.is_none()).count(), 1);
        assert!(shown.iter().map(|s| s.width + 3).sum::<usize>() < 90);
    }

    #[test]
    fn rows_beyond_the_kept_ones_are_counted_and_said() {
        let rows = sheet();
        let small = Sheet { rows: rows.rows[..1].to_vec(), ..rows };
        assert!(drawn(&small, None).contains("… 1 more rows"));
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\\nc");
    }

    #[test]
    fn numbers_have_separators() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (61520, "61,520"), (1234567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
