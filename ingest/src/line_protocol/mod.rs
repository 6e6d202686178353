//! Line protocol: the text of a body to [`PointBatch`]es, plus the lines refused and why.
//!
//! [`Parser::parse`] promises: every line of the body is either a row of exactly one batch, or refused with its number and
//! reason, or empty or a comment; or the schema has to grow first, and then [`Parsed::needs`] says by what. One bad line
//! harms no other. The answer depends on the body and the options alone, not on what the parser has seen before.
//!
//! Two ways lead to it: `template.rs` reads the lines that look like lines before them, in place and without looking at
//! their tags; `general.rs` knows the whole grammar and takes every other line apart for `row.rs`. Both agree on every
//! input. The grammar, sentence by sentence, is in `docs/line-protocol.md`.
//!
//! It has no clock, does no IO, and agrees on nothing: that is its caller's business.

#[cfg(test)]
mod agreement;
mod columns;
mod general;
mod numbers;
#[cfg(test)]
mod oracle;
mod precision;
mod refused;
mod row;
mod series;
mod tables;
mod template;
#[cfg(test)]
mod tests;
mod wanted;

use std::sync::Arc;

use cluster::ShardMap;
use model::schema::NewColumn;
use model::{DatabaseSchema, PointBatch, Timestamp};

pub use self::precision::Precision;
pub use self::refused::{MAX_ORIGINAL_LINE_BYTES, RefusedKind, RefusedLine};

use crate::admission::Admitted;
use crate::error::Error;

use self::columns::PlainCell;
use self::general::{Line, is_blank, line_end};
use self::refused::Refusal;
use self::series::Series;
use self::tables::Tables;
use self::template::Ahead;
use self::wanted::Wanted;

/// Refused lines that are told one by one; of the others only the count is kept.
pub const MAX_REFUSED_TOLD: usize = 1_000;
/// Bytes of one body: offsets into it are 32 bits wide. The door refuses long before.
pub const MAX_BODY_BYTES: usize = 1 << 30;

/// Values, absent ones too, that the batches of one body may hold (1 GiB), and their share by the body's size: a dense
/// body has one for every four bytes or more, a sparse one of this share still fits in a large multiple of its text.
const MAX_CELLS: usize = 1 << 27;
/// Of these so many are free (8 MiB); the bytes of all others count among what is in flight.
const FREE_CELLS: usize = 1 << 20;
const CELLS_PER_BYTE: usize = 16;
const CELL_BYTES: usize = 8;
/// Values whose bytes are asked for at a time.
const CELLS_AT_ONCE: usize = 1 << 16;
/// A line shorter than this is rare enough that its row may cost an allocation.
const SHORT_LINE_BYTES: usize = 16;

/// Bytes of one series key, absent tags not counted; limit `max_series_key_bytes`, fixed. A key stands whole in every record
/// of the log, and in memory, that has its series.
pub const MAX_SERIES_KEY_BYTES: usize = 1 << 20;
/// Bytes of one line where nothing else is set.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// What a body may not exceed; each with the name that its error tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineLimits {
    /// Bytes of one line; setting `max_line_bytes`.
    pub line_bytes: usize,
    /// Columns of one table; limit `max_columns_per_table`.
    pub columns_per_table: usize,
    /// Tables of one database; limit `max_tables_per_database`.
    pub tables_per_database: usize,
}

impl Default for LineLimits {
    fn default() -> LineLimits {
        LineLimits {
            line_bytes: MAX_LINE_BYTES,
            columns_per_table: model::schema::MAX_COLUMNS_PER_TABLE,
            tables_per_database: model::schema::MAX_TABLES_PER_DATABASE,
        }
    }
}

/// All that a body's meaning depends on besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct ParseOptions<'a> {
    /// The unit of written times.
    pub precision: Precision,
    /// When the body arrived; a line without time gets this plus its line number in nanoseconds.
    pub arrival: Timestamp,
    /// The database as this node knows it, or `None` if there is no such database yet.
    pub schema: Option<&'a Arc<DatabaseSchema>>,
    /// Lines before this instant are refused.
    pub cutoff: Option<Timestamp>,
    /// What a body may not exceed.
    pub limits: LineLimits,
    /// To which shard each device belongs, so that rows need not be told apart later; with `None` all go together.
    pub map: Option<&'a ShardMap>,
}

impl ParseOptions<'_> {
    /// The position of the shard that a routing hash belongs to.
    #[inline]
    fn owner(&self, hash: u64) -> u32 {
        self.map.map_or(0, |map| map.position(hash) as u32)
    }
}

/// What a body says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The rows, a batch a table and shard (more only beyond 2^24 rows). Empty where `needs` is not.
    pub batches: Vec<ParsedBatch>,
    /// Rows of all batches.
    pub rows: usize,
    /// The first [`MAX_REFUSED_TOLD`] lines that were refused, in order.
    pub refused: Vec<RefusedLine>,
    /// How many lines were refused.
    pub refused_lines: usize,
    /// Tables and columns that well-formed lines use and the schema lacks. If there are any: agree on them, then parse
    /// the body again with the new schema.
    pub needs: Vec<(Arc<str>, Vec<NewColumn>)>,
}

/// The rows of one table that go to one shard, and where its series belong.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedBatch {
    /// The rows.
    pub batch: PointBatch,
    /// [`routing_hash`](model::routing_hash) of each series of the batch.
    pub hashes: Vec<u64>,
}

/// Reads bodies; keeps between them what makes the next one cheap, within bounds.
///
/// It remembers one database: turning to another forgets what was remembered, so keep parsers by database.
#[derive(Default)]
pub struct Parser {
    tables: Tables,
    series: Series,
    wanted: Wanted,
    line: Line,
    /// Numbers bodies, to tell this one's marks from older ones.
    body: u64,
    /// Numbers lines over all bodies, likewise.
    serial: u64,
    /// Tables with rows in this body, in order of their first.
    touched: Vec<u32>,
    /// The fields of the line at hand: column of the table, place in the line.
    bound: Vec<(u32, u32)>,
    /// The tags of the line at hand: position in the key, place in the line.
    tags: Vec<(u16, u32)>,
    key: Vec<u8>,
    /// How many more values, absent ones too, the batches of this body may hold.
    cells: usize,
    /// How many more may be asked for after these.
    cells_to_ask_for: usize,
    /// This body's share of what may be in flight, where that is bounded, and the refusal once it could not grow.
    admitted: Option<Admitted>,
    refusal: Option<Error>,
    /// Rows that this body can have at most, roughly.
    most_rows: usize,
    /// The values of the line at hand on the fast path.
    plain: Vec<PlainCell>,
    /// The series of the next line, looked up early.
    ahead: Option<Ahead>,
    parsed: Parsed,
    /// Whether every line goes the general way.
    general_only: bool,
}

impl Parser {
    /// A parser that remembers nothing yet.
    pub fn new() -> Parser {
        Parser::default()
    }

    /// A parser that reads every line the general way: slow, and the measure of the other.
    pub fn without_fast_path() -> Parser {
        Parser { general_only: true, ..Parser::default() }
    }

    /// Reads a body whose values count in its share of what may be in flight. An error: they do not fit.
    ///
    /// # Panics
    ///
    /// If the body is larger than [`MAX_BODY_BYTES`].
    pub fn parse_admitted(&mut self, body: &[u8], options: &ParseOptions<'_>, admitted: &mut Admitted) -> Result<Parsed, Error> {
        // An earlier parse of the same body has left its values.
        admitted.give_back_beyond(body.len() as u64);
        self.admitted = Some(admitted.take());
        let parsed = self.parse(body, options);
        *admitted = self.admitted.take().expect("it was put there");
        match self.refusal.take() {
            Some(refusal) => Err(refusal),
            None => Ok(parsed),
        }
    }

    /// Reads a body.
    ///
    /// # Panics
    ///
    /// If the body is larger than [`MAX_BODY_BYTES`].
    pub fn parse(&mut self, body: &[u8], options: &ParseOptions<'_>) -> Parsed {
        assert!(body.len() <= MAX_BODY_BYTES, "a body of {} bytes should have been refused at the door", body.len());
        self.begin(body.len(), options);
        let text = std::str::from_utf8(body).ok();
        let known = text.filter(|_| !self.general_only);
        let mut at = 0;
        let mut line_number = 1;
        while at < body.len() && self.refusal.is_none() {
            if let Some(text) = known
                && let Some(end) = self.take_known(text, at, line_number, options)
            {
                line_number += 1;
                at = end + 1;
                continue;
            }
            let end = line_end(body, at);
            self.line(body, text, at, end, line_number, options);
            line_number += 1 + memchr::memchr_iter(b'\n', &body[at..end]).count();
            at = end + 1;
        }
        self.finish()
    }

    fn begin(&mut self, body_bytes: usize, options: &ParseOptions<'_>) {
        if !self.tables.turn_to(options.schema) {
            self.series.clear();
        }
        self.ahead = None;
        self.body += 1;
        self.cells = FREE_CELLS;
        self.cells_to_ask_for = MAX_CELLS.min(FREE_CELLS + CELLS_PER_BYTE * body_bytes) - FREE_CELLS;
        self.most_rows = body_bytes / SHORT_LINE_BYTES + 1;
    }

    fn finish(&mut self) -> Parsed {
        for i in std::mem::take(&mut self.touched) {
            self.end_batch(i as usize);
        }
        self.series.bound();
        let mut parsed = std::mem::take(&mut self.parsed);
        parsed.needs = self.wanted.take();
        if !parsed.needs.is_empty() {
            parsed.batches.clear();
            parsed.rows = 0;
        }
        parsed
    }

    /// Moves a table's rows out.
    fn end_batch(&mut self, table: usize) {
        for batch in self.tables.get(table).take() {
            self.parsed.rows += batch.batch.rows();
            self.parsed.batches.push(batch);
        }
    }

    /// Reads the line `start..end` of the body the general way, whatever it is.
    fn line(&mut self, body: &[u8], text: Option<&str>, start: usize, end: usize, line_number: usize, options: &ParseOptions<'_>) {
        let raw = &body[start..end];
        let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
        let blanks = raw.iter().take_while(|&&b| is_blank(b)).count();
        if matches!(raw.get(blanks), None | Some(b'#')) {
            return;
        }
        let trailing = raw.iter().rev().take_while(|&&b| is_blank(b)).count();
        let trimmed = start + blanks..start + raw.len() - trailing;
        let taken = if raw.len() > options.limits.line_bytes {
            let limit = options.limits.line_bytes;
            Err(Refusal::limit(format!("line of {} bytes is longer than {limit} bytes (setting max_line_bytes)", raw.len())))
        } else {
            match text.map_or_else(|| std::str::from_utf8(&body[trimmed.clone()]), |text| Ok(&text[trimmed.clone()])) {
                Ok(line) => self.take(line, blanks, line_number, options),
                Err(error) => Err(Refusal::parse(format!("invalid UTF-8 at column {}", blanks + error.valid_up_to() + 1))),
            }
        };
        if let Err(refusal) = taken {
            self.refuse(raw, line_number, refusal);
        }
    }

    fn refuse(&mut self, raw: &[u8], line_number: usize, refusal: Refusal) {
        self.parsed.refused_lines += 1;
        if self.parsed.refused.len() == MAX_REFUSED_TOLD {
            return;
        }
        let mut cut = raw.len().min(MAX_ORIGINAL_LINE_BYTES);
        while cut < raw.len() && cut > 0 && raw[cut] & 0xc0 == 0x80 {
            cut -= 1;
        }
        let original_line = String::from_utf8_lossy(&raw[..cut]).into_owned();
        let Refusal { kind, reason } = refusal;
        self.parsed.refused.push(RefusedLine { line_number, original_line, reason, kind });
    }
}
