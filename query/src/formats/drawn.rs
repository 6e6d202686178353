//! A table drawn with lines, for people:
//!
//! ```text
//! ┌───────────┬─────────┐
//! │ device_id │ celsius │
//! ├───────────┼─────────┤
//! │ pump-17   │    71.5 │
//! └───────────┴─────────┘
//! ```
//!
//! Columns are as wide as the first rows need; a wider value further down pushes its line out rather than being cut,
//! so that a table of any length can be drawn without being held.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

use super::text::TIME_FORMAT;
use super::{Encoder, cannot};
use crate::Result;

/// Rows that are held to find the columns' widths.
const MEASURED_ROWS: usize = 1_000;

pub(super) struct Table {
    names: Vec<String>,
    right: Vec<bool>,
    widths: Vec<usize>,
    /// Rows that wait until the widths are known.
    held: Vec<Vec<String>>,
    begun: bool,
}

impl Table {
    pub(super) fn new(schema: &SchemaRef) -> Table {
        let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
        let right = schema.fields().iter().map(|f| f.data_type().is_numeric() && !matches!(f.data_type(), DataType::Null)).collect();
        Table { widths: names.iter().map(|n| width(n)).collect(), names, right, held: Vec::new(), begun: false }
    }

    fn begin(&mut self, out: &mut String) {
        for line in self.held.iter().flat_map(|row| row.iter().enumerate()).flat_map(|(i, cell)| cell.lines().map(move |l| (i, l))) {
            self.widths[line.0] = self.widths[line.0].max(width(line.1));
        }
        self.begun = true;
        self.rule(out, ['┌', '┬', '┐']);
        let names = self.names.clone();
        self.line(out, &names);
        self.rule(out, ['├', '┼', '┤']);
        for row in std::mem::take(&mut self.held) {
            self.line(out, &row);
        }
    }

    fn rule(&self, out: &mut String, [left, middle, right]: [char; 3]) {
        out.push(left);
        for (i, width) in self.widths.iter().enumerate() {
            if i > 0 {
                out.push(middle);
            }
            out.extend(std::iter::repeat_n('─', width + 2));
        }
        out.push(right);
        out.push('\n');
    }

    /// One row; a value with line breaks takes several lines.
    fn line(&self, out: &mut String, row: &[String]) {
        let height = row.iter().map(|cell| cell.lines().count()).max().unwrap_or(1).max(1);
        for at in 0..height {
            out.push('│');
            for ((cell, width_wanted), right) in row.iter().zip(&self.widths).zip(&self.right) {
                let text = cell.lines().nth(at).unwrap_or("");
                let gap = width_wanted.saturating_sub(width(text));
                let (before, after) = if *right { (gap, 0) } else { (0, gap) };
                out.push(' ');
                out.extend(std::iter::repeat_n(' ', before));
                out.push_str(text);
                out.extend(std::iter::repeat_n(' ', after));
                out.push_str(" │");
            }
            out.push('\n');
        }
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

impl Encoder for Table {
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        let options = FormatOptions::default().with_timestamp_format(Some(TIME_FORMAT));
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c, &options))
            .collect::<Result<_, ArrowError>>()
            .map_err(|e| cannot("a table", &e))?;
        let mut out = String::new();
        for i in 0..batch.num_rows() {
            let row: Vec<String> = columns.iter().map(|c| c.value(i).to_string()).collect();
            if self.begun {
                self.line(&mut out, &row);
            } else {
                self.held.push(row);
                if self.held.len() == MEASURED_ROWS {
                    self.begin(&mut out);
                }
            }
        }
        Ok(out.into_bytes())
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        let mut out = String::new();
        if !self.begun {
            self.begin(&mut out);
        }
        self.rule(&mut out, ['└', '┴', '┘']);
        Ok(out.into_bytes())
    }
}
