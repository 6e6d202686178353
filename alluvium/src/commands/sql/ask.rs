//! Asks one question and prints its answer.
//!
//! A table is drawn here, from an Arrow stream; every other format is made by the server and passed through as it comes.
//! An answer that breaks off is an error, also when rows were printed before.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Format;
use crate::client::Client;
use crate::print::{MOST_ROWS_DRAWN, Sheet, terminal_width, thousands};

/// Rows that a table outside of a terminal holds; more are for the other formats.
const MOST_ROWS_PIPED: usize = 100_000;

/// How an answer is to be printed.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Look {
    pub(in crate::commands) format: Format,
    /// Each row as a block of lines.
    pub(in crate::commands) expanded: bool,
}

/// What is told about an answer, on standard error.
#[derive(Debug)]
pub(in crate::commands) struct Answered {
    /// Rows, counted here or told by the server.
    rows: Option<u64>,
    took: Duration,
    told: Told,
    /// How many shards there are, where that is known.
    all_shards: Option<u64>,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rows {
            Some(1) => write!(f, "1 row · ")?,
            Some(rows) => write!(f, "{} rows · ", thousands(rows))?,
            None => {}
        }
        let ms = self.took.as_secs_f64() * 1e3;
        match ms {
            ms if ms < 100.0 => write!(f, "{ms:.1} ms")?,
            ms if ms < 10_000.0 => write!(f, "{ms:.0} ms")?,
            ms => write!(f, "{:.1} s", ms / 1e3)?,
        }
        if let Some(rows) = self.told.scanned_rows.filter(|_| self.told.shards != Some(0)) {
            write!(f, " · scanned {} row{}", thousands(rows), if rows == 1 { "" } else { "s" })?;
        }
        match (self.told.shards, self.all_shards) {
            (Some(0), _) => {}
            (Some(shards), Some(all)) => write!(f, " · {shards} of {all} shards")?,
            (Some(1), None) => write!(f, " · 1 shard")?,
            (Some(shards), None) => write!(f, " · {shards} shards")?,
            (None, _) => {}
        }
        if let Some(shards) = &self.told.missing {
            write!(f, " · NOT WHOLE: shards {shards} could not be read")?;
        }
        Ok(())
    }
}

/// Asks `sql` and prints the rows to `out`.
pub(in crate::commands) async fn ask(client: &Client, sql: &str, look: Look, out: &mut impl Write) -> anyhow::Result<Answered> {
    let started = Instant::now();
    let format = if look.format == Format::Table { Format::Arrow } else { look.format };
    let answer = client.sql(sql, format.name()).await?;
    let (parts, mut body) = answer.into_parts();
    let mut told = Told::default();
    told.hear(&parts.headers);
    let mut rows = None;
    if look.format == Format::Table {
        let keep = if terminal_width().is_some() { MOST_ROWS_DRAWN } else { MOST_ROWS_PIPED };
        let sheet = read_sheet(&mut body, keep, &mut told).await?;
        if let Some(sheet) = sheet {
            if look.expanded {
                sheet.draw_expanded(out)?
            } else {
                sheet.draw(out, terminal_width())?
            }
            rows = Some(sheet.total());
        }
    } else {
        let mut last = b'\n';
        while let Some(chunk) = next_chunk(&mut body, &mut told).await? {
            out.write_all(&chunk)?;
            last = chunk.last().copied().unwrap_or(last);
        }
        // JSON has no newline at its end; neither a prompt nor another answer should stand behind it. Files stay as they are.
        if last != b'\n' && look.format == Format::Json {
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(Answered { rows: rows.or(told.rows), took: started.elapsed(), told, all_shards: None })
}

/// Asks for few rows, for the program's own use.
pub(super) async fn rows_of(client: &Client, sql: &str) -> anyhow::Result<Vec<RecordBatch>> {
    let mut body = client.sql(sql, Format::Arrow.name()).await?.into_body();
    let mut batches = Vec::new();
    read_batches(&mut body, &mut Told::default(), |batch| {
        batches.push(batch);
        Ok(())
    })
    .await?;
    Ok(batches)
}

async fn read_sheet(body: &mut Incoming, keep: usize, told: &mut Told) -> anyhow::Result<Option<Sheet>> {
    let mut sheet = None;
    let schema = read_batches(body, told, |batch| {
        let sheet = sheet.get_or_insert_with(|| Sheet::new(&batch.schema(), keep));
        Ok(sheet.push(&batch)?)
    })
    .await?;
    // An answer without rows still has columns to show.
    Ok(sheet.or_else(|| schema.map(|schema| Sheet::new(&schema, keep))))
}

async fn read_batches(
    body: &mut Incoming,
    told: &mut Told,
    mut each: impl FnMut(RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<Option<arrow::datatypes::SchemaRef>> {
    let mut decoder = StreamDecoder::new();
    let mut began = false;
    while let Some(chunk) = next_chunk(body, told).await? {
        began = true;
        let mut buffer = Buffer::from(chunk);
        while !buffer.is_empty() {
            if let Some(batch) = decoder.decode(&mut buffer).context("the answer is no Arrow stream")? {
                each(batch)?;
            }
        }
    }
    if began {
        decoder.finish().context("the answer broke off")?;
    }
    Ok(decoder.schema())
}

async fn next_chunk(body: &mut Incoming, told: &mut Told) -> anyhow::Result<Option<bytes::Bytes>> {
    while let Some(frame) = body.frame().await {
        match frame.context("the answer broke off")?.into_data() {
            Ok(data) => return Ok(Some(data)),
            Err(frame) => {
                if let Some(trailers) = frame.trailers_ref() {
                    told.hear(trailers);
                }
            }
        }
    }
    Ok(None)
}

/// What the server says about its work, in headers or, of a long answer, after the rows.
#[derive(Debug, Default)]
struct Told {
    rows: Option<u64>,
    scanned_rows: Option<u64>,
    shards: Option<u64>,
    missing: Option<String>,
}

impl Told {
    fn hear(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name).and_then(|text| text.parse().ok());
        self.rows = number("alluvium-rows").or(self.rows);
        self.scanned_rows = number("alluvium-rows-scanned").or(self.scanned_rows);
        self.shards = number("alluvium-shards").or(self.shards);
        self.missing = text("alluvium-partial").map(str::to_owned).or(self.missing.take());
    }
}

impl Answered {
    /// Tells of how many shards those that were read are.
    pub(super) fn of_shards(self, all_shards: Option<u64>) -> Answered {
        Answered { all_shards, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_tells_rows_time_and_what_was_scanned() {
        let answered = |rows, us, scanned_rows, shards, all_shards| {
            let told = Told { scanned_rows, shards, ..Told::default() };
            Answered { rows, took: Duration::from_micros(us), told, all_shards }.to_string()
        };
        let all = answered(Some(3), 4_700, Some(61_520), Some(2), Some(2));
        assert_eq!(all, "3 rows · 4.7 ms · scanned 61,520 rows · 2 of 2 shards");
        assert_eq!(answered(Some(1), 250_000, Some(0), Some(0), Some(2)), "1 row · 250 ms");
        assert_eq!(answered(None, 12_000_000, None, Some(1), None), "12.0 s · 1 shard");
    }
}
