//! Line protocol: the text of a body to [`PointBatch`]es, plus the lines refused and why.
//!
//! [`Parser::parse`] promises: every line of the body is either a row of exactly one batch, or refused with its number and
//! reason, or empty or a comment; or the schema has to grow first, and then [`Parsed::needs`] says by what. One bad line
//! harms no other. The answer depends on the body and the options alone, not on what the parser has seen before.
//!
//! Two ways lead to it: `template.rs` reads the lines that look like lines before them, in place and without looking at
//! their tags; `general.rs` knows the whole grammar and takes every other line. Both agree on every input.
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
mod series;
mod tables;
mod template;
#[cfg(test)]
mod tests;
mod wanted;

use std::sync::Arc;

use model::batch::MAX_ROWS;
use model::point::write_key_component;
use model::schema::{MAX_NAME_BYTES, NewColumn, SchemaError, TIME_COLUMN, check_name};
use model::{ColumnKind, ColumnType, DatabaseSchema, PointBatch, Timestamp, routing_hash};

pub use self::precision::Precision;

use self::columns::{Cell, PlainCell};
use self::general::{Line, Value, is_blank, line_end};
use self::series::Series;
use self::tables::{Key, Tables};
use self::template::Ahead;
use self::wanted::Wanted;

/// Refused lines that are told one by one; of the others only the count is kept.
pub const MAX_REFUSED_TOLD: usize = 1_000;
/// Bytes of a refused line that are told.
pub const MAX_ORIGINAL_LINE_BYTES: usize = 1_024;
/// Bytes of one body: offsets into it are 32 bits wide. The door refuses long before.
pub const MAX_BODY_BYTES: usize = 1 << 30;

/// Values, absent ones too, that the batches of one body may hold (1 GiB), and their share by the body's size: a dense
/// body has one for every four bytes or more, a sparse one of this share still fits in a small multiple of its text.
const MAX_CELLS: usize = 1 << 27;
const FREE_CELLS: usize = 1 << 20;
const CELLS_PER_BYTE: usize = 16;
/// A line shorter than this is rare enough that its row may cost an allocation.
const SHORT_LINE_BYTES: usize = 16;

/// What a body may not exceed; each with the setting that its error names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineLimits {
    /// Bytes of one line; setting `max_line_bytes`.
    pub line_bytes: usize,
    /// Columns of one table; setting `max_columns_per_table`.
    pub columns_per_table: usize,
    /// Tables of one database; setting `max_tables_per_database`.
    pub tables_per_database: usize,
}

impl Default for LineLimits {
    fn default() -> LineLimits {
        LineLimits {
            line_bytes: 1 << 20,
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
}

/// What a body says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The rows, a batch a table (more only beyond 2^24 rows). Empty where `needs` is not.
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

/// The rows of one table, and where its series belong.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedBatch {
    /// The rows.
    pub batch: PointBatch,
    /// [`routing_hash`] of each series of the batch.
    pub hashes: Vec<u64>,
}

/// A line that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLine {
    /// Its number, from 1; newlines inside strings count.
    pub line_number: usize,
    /// Its text, at most [`MAX_ORIGINAL_LINE_BYTES`] bytes of it; what is not UTF-8 is replaced.
    pub original_line: String,
    /// Why, in one sentence.
    pub reason: String,
    /// What kind of reason.
    pub kind: RefusedKind,
}

/// Why a line was not taken, as far as answers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// It is not line protocol.
    Parse,
    /// A column is of another kind or type.
    TypeConflict,
    /// A limit was exceeded.
    Limit,
    /// It is older than what the database keeps.
    Retention,
}

/// Why a line cannot be taken.
struct Refusal {
    kind: RefusedKind,
    reason: String,
}

impl Refusal {
    fn limit(reason: String) -> Refusal {
        Refusal { kind: RefusedKind::Limit, reason }
    }

    fn parse(reason: String) -> Refusal {
        Refusal { kind: RefusedKind::Parse, reason }
    }
}

impl From<SchemaError> for Refusal {
    fn from(error: SchemaError) -> Refusal {
        let kind = match error {
            SchemaError::Conflict { .. } => RefusedKind::TypeConflict,
            SchemaError::TooManyColumns { .. } | SchemaError::TooManyTables { .. } => RefusedKind::Limit,
            SchemaError::BadName { .. } => RefusedKind::Parse,
        };
        Refusal { kind, reason: error.to_string() }
    }
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

/// What became of a line whose columns were looked up.
enum Bound {
    /// The table has them all.
    Ready(usize),
    /// Some are wanted.
    Waiting,
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
        while at < body.len() {
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
        self.cells = MAX_CELLS.min(FREE_CELLS + CELLS_PER_BYTE * body_bytes);
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
        if let Some(batch) = self.tables.get(table).take() {
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

    /// Takes one line without blanks around it; `column` bytes of the physical line stand before it.
    fn take(&mut self, line: &str, column: usize, line_number: usize, options: &ParseOptions<'_>) -> Result<(), Refusal> {
        self.line.read(line).map_err(|f| Refusal::parse(format!("{} at column {}", f.reason, column + f.at + 1)))?;
        let time = match self.line.time {
            None => Timestamp(options.arrival.0.saturating_add(line_number as i64)),
            Some(written) => options
                .precision
                .instant(written)
                .ok_or_else(|| Refusal::parse(format!("time {written} is out of range of nanoseconds in 64 bits")))?,
        };
        if options.cutoff.is_some_and(|cutoff| time < cutoff) {
            return Err(Refusal { kind: RefusedKind::Retention, reason: "point is older than the retention of its database".to_owned() });
        }
        match self.bind(line, options)? {
            Bound::Waiting => Ok(()),
            Bound::Ready(table) => {
                self.take_cells(table)?;
                self.append(line, table, time);
                Ok(())
            }
        }
    }

    /// Looks up the columns of the line just read; wants those that the table lacks.
    fn bind(&mut self, line: &str, options: &ParseOptions<'_>) -> Result<Bound, Refusal> {
        self.serial += 1;
        self.bound.clear();
        self.tags.clear();
        let name = self.line.text(line, self.line.table.expect("a line that was read has a table"));
        let known = self.tables.find(name);
        let mut wanted = self.wanted.find(name);
        let wanted_before = wanted.map_or(0, |w| self.wanted.get(w).len());
        let bound = self.bind_columns(line, known, &mut wanted, options);
        match (&bound, wanted) {
            (Err(_), Some(wanted)) => self.wanted.take_back(wanted, wanted_before),
            (Ok(true), _) => return Ok(Bound::Waiting),
            _ => {}
        }
        bound.map(|_| Bound::Ready(known.expect("a table that is not known is wanted")))
    }

    /// Whether some columns are wanted. What is wanted by a line that is refused is for the caller to take back.
    fn bind_columns(
        &mut self,
        line: &str,
        known: Option<usize>,
        wanted: &mut Option<usize>,
        options: &ParseOptions<'_>,
    ) -> Result<bool, Refusal> {
        let mut waiting = false;
        let table_name = self.line.text(line, self.line.table.expect("a line that was read has a table"));
        let serial = self.serial;
        let tags = self.line.tags.iter().map(|&(name, _)| (name, None));
        let fields = self.line.fields.iter().map(|(name, value)| (*name, Some(value.kind())));
        for (place, (name, field)) in tags.chain(fields).enumerate() {
            let name = self.line.text(line, name);
            let place_of_field = || (place - self.line.tags.len()) as u32;
            let conflict = |existing: &str| SchemaError::Conflict {
                table: table_name.into(),
                column: name.into(),
                existing: existing.to_owned(),
                asked: field.map_or("tag", ColumnType::name).to_owned(),
            };
            let twice = || Refusal::parse(format!("tag '{name}' stands twice"));
            if let Some(known) = known
                && let Some(i) = self.tables.get(known).column(name)
            {
                let column = &mut self.tables.get(known).columns[i];
                match (column.kind, field) {
                    (ColumnKind::Tag { .. }, None) if column.named_by == serial => return Err(twice()),
                    (ColumnKind::Tag { position }, None) => self.tags.push((position, place as u32)),
                    (ColumnKind::Field(is), Some(asked)) if is == asked => self.bound.push((i as u32, place_of_field())),
                    (kind, _) => return Err(conflict(kind.name()).into()),
                }
                column.named_by = serial;
                continue;
            }
            if let Some(wanted) = *wanted
                && let Some(column) = self.wanted.get(wanted).column(name)
            {
                if column.column.field != field {
                    return Err(conflict(column.column.field.map_or("tag", ColumnType::name)).into());
                }
                if field.is_none() && column.named_by == serial {
                    return Err(twice());
                }
                column.named_by = serial;
                waiting = true;
                continue;
            }
            // Nobody knows this column yet.
            checked_name("column", name)?;
            if name == TIME_COLUMN {
                return Err(Refusal::parse("'time' is every table's time and cannot be a tag or field".to_owned()));
            }
            let wanted = match *wanted {
                Some(wanted) => wanted,
                None => {
                    if known.is_none() {
                        checked_name("table", table_name)?;
                        let limit = options.limits.tables_per_database;
                        if self.tables.in_schema() + self.wanted.new_tables() >= limit {
                            let database = options.schema.map_or_else(|| "".into(), |s| s.name.clone());
                            return Err(SchemaError::TooManyTables { database, limit }.into());
                        }
                    }
                    *wanted.insert(self.wanted.add(table_name, known.is_none()))
                }
            };
            let limit = options.limits.columns_per_table;
            let existing = known.map_or(0, |k| self.tables.get(k).columns.len());
            if existing + self.wanted.get(wanted).len() >= limit {
                return Err(SchemaError::TooManyColumns { table: table_name.into(), limit }.into());
            }
            self.wanted.get(wanted).add(name, field, serial);
            waiting = true;
        }
        Ok(waiting)
    }

    /// Takes the row's share of what the body's batches may hold: a column stands in every row of its batch, so few bytes
    /// of text with many different fields could otherwise fill any memory.
    fn take_cells(&mut self, table: usize) -> Result<(), Refusal> {
        let table = self.tables.get(table);
        let fresh = self.bound.iter().filter(|(column, _)| table.keys[*column as usize].place == Key::NOWHERE).count();
        match self.cells.checked_sub(table.cells_of_row(fresh)) {
            Some(left) => self.cells = left,
            None => {
                let reason = "the body spreads few values over too many rows and columns: send fewer lines at a time";
                return Err(Refusal::limit(reason.to_owned()));
            }
        }
        Ok(())
    }

    /// Appends the line just bound to its table's rows.
    fn append(&mut self, line: &str, table: usize, time: Timestamp) {
        let series_text = &line.as_bytes()[..=self.line.series_len];
        let series = match self.series.find(series_text) {
            Some(series) => series,
            None => {
                self.key.clear();
                self.tags.sort_unstable();
                let mut position = 0;
                for &(tag, place) in &self.tags {
                    self.key.resize(self.key.len() + usize::from(tag - position), 0);
                    let (_, value) = self.line.tags[place as usize];
                    write_key_component(&mut self.key, self.line.text(line, value).as_bytes());
                    position = tag + 1;
                }
                let hash = routing_hash(self.tables.get(table).schema.database, &self.key);
                self.series.add(series_text, table, &self.key, hash)
            }
        };
        let number = self.series_number(series, table);
        let table = self.tables.get(table);
        for &(column, place) in &self.bound {
            let (_, value) = self.line.fields[place as usize];
            let cell = match value {
                Value::F64(v) => Cell::F64(v),
                Value::I64(v) => Cell::I64(v),
                Value::U64(v) => Cell::U64(v),
                Value::Bool(v) => Cell::Bool(v),
                Value::Str(piece) => Cell::Str(self.line.text(line, piece)),
            };
            let place = table.place(column as usize);
            table.builder.put(place, cell);
        }
        table.builder.end_row(number, time.0);
    }

    /// The number of a series in its table's batch at hand; opens the batch where this is its first row.
    #[inline]
    fn series_number(&mut self, series: usize, table: usize) -> u32 {
        if self.tables.get(table).builder.rows() == MAX_ROWS {
            self.start_over();
        }
        if let Some(number) = self.series.number(series, self.body) {
            return number;
        }
        let builder = &mut self.tables.get(table).builder;
        if builder.rows() == 0 {
            builder.expect_rows(self.most_rows);
            self.touched.push(table as u32);
        }
        let (key, hash) = self.series.key_and_hash(series);
        let number = builder.push_series(key, hash);
        self.series.set_number(series, self.body, number);
        number
    }

    /// Ends a batch in the middle of a body; series get new numbers in the next.
    #[cold]
    fn start_over(&mut self) {
        for i in std::mem::take(&mut self.touched) {
            self.end_batch(i as usize);
        }
        self.body += 1;
    }
}

/// Refuses a name that no table or column may have.
fn checked_name(what: &str, name: &str) -> Result<(), Refusal> {
    check_name(what, name).map_err(|error| {
        let kind = if name.len() > MAX_NAME_BYTES { RefusedKind::Limit } else { RefusedKind::Parse };
        Refusal { kind, reason: error.to_string() }
    })
}

impl Value {
    fn kind(&self) -> ColumnType {
        match self {
            Value::F64(_) => ColumnType::F64,
            Value::I64(_) => ColumnType::I64,
            Value::U64(_) => ColumnType::U64,
            Value::Bool(_) => ColumnType::Bool,
            Value::Str(_) => ColumnType::Str,
        }
    }
}
