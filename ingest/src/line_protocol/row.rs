//! From a line taken apart to a row of its table: time, columns, series, values.
//!
//! Nothing is stored or wanted of a line before all of it has been found good.

use model::batch::MAX_ROWS;
use model::point::write_key_component;
use model::schema::{SchemaError, TIME_COLUMN};
use model::{ColumnKind, ColumnType, Timestamp, routing_hash};

use super::columns::Cell;
use super::general::Value;
use super::refused::{Refusal, RefusedKind, checked_name};
use super::tables::Table;
use super::{CELL_BYTES, CELLS_AT_ONCE, MAX_SERIES_KEY_BYTES, ParseOptions, Parser};

/// What became of a line whose columns were looked up.
enum Bound {
    /// The table has them all.
    Ready(usize),
    /// Some are wanted.
    Waiting,
}

/// The table of the line at hand: its number among those that the schema has, and among those that lack columns.
struct LineTable {
    known: Option<usize>,
    wanted: Option<usize>,
}

impl Parser {
    /// Takes one line without blanks around it; `column` bytes of the physical line stand before it.
    pub(super) fn take(&mut self, line: &str, column: usize, line_number: usize, options: &ParseOptions<'_>) -> Result<(), Refusal> {
        self.line.read(line).map_err(|f| Refusal::parse(format!("{} at column {}", f.reason, column + f.at + 1)))?;
        self.check_key(line)?;
        let time = match self.line.time {
            None => Timestamp(options.arrival.0.saturating_add(line_number as i64)),
            Some(written) => options
                .precision
                .instant(written)
                .ok_or_else(|| Refusal::parse(format!("time {written} is out of range of nanoseconds in 64 bits")))?,
        };
        if let Some(cutoff) = options.cutoff.filter(|cutoff| time < *cutoff) {
            let reason =
                format!("point is older than the retention of its database, which has dropped all before {} (ns since 1970)", cutoff.0);
            return Err(Refusal { kind: RefusedKind::Retention, reason });
        }
        match self.bind(line, options)? {
            Bound::Waiting => Ok(()),
            Bound::Ready(table) => {
                let series = self.series_of(line, table);
                self.take_cells(series, table, options)?;
                self.append(line, series, table, time, options);
                Ok(())
            }
        }
    }

    /// Looks up the columns of the line just read; wants those that the table lacks.
    fn bind(&mut self, line: &str, options: &ParseOptions<'_>) -> Result<Bound, Refusal> {
        self.serial += 1;
        self.bound.clear();
        self.tags.clear();
        let name = self.line.text(line, self.line.table);
        let mut table = LineTable { known: self.tables.find(name), wanted: self.wanted.find(name) };
        let wanted_before = table.wanted.map_or(0, |w| self.wanted.get(w).len());
        let mut waiting = false;
        for place in 0..self.line.tags.len() + self.line.fields.len() {
            match self.bind_column(line, place, &mut table, options) {
                Ok(known) => waiting |= !known,
                Err(refusal) => {
                    if let Some(wanted) = table.wanted {
                        self.wanted.take_back(wanted, wanted_before);
                    }
                    return Err(refusal);
                }
            }
        }
        match table.known {
            Some(known) if !waiting => Ok(Bound::Ready(known)),
            _ => Ok(Bound::Waiting),
        }
    }

    /// Looks up one column of the line: first the tags, then the fields. Whether the schema has it; if not, it is wanted.
    fn bind_column(&mut self, line: &str, place: usize, table: &mut LineTable, options: &ParseOptions<'_>) -> Result<bool, Refusal> {
        let tags = self.line.tags.len();
        let (name, field) = match self.line.tags.get(place) {
            Some(&(name, _)) => (name, None),
            None => {
                let (name, value) = &self.line.fields[place - tags];
                (*name, Some(value.kind()))
            }
        };
        let name = self.line.text(line, name);
        let conflict = |existing: &str| SchemaError::Conflict {
            table: self.line.text(line, self.line.table).into(),
            column: name.into(),
            existing: existing.to_owned(),
            asked: field.map_or("tag", ColumnType::name).to_owned(),
        };
        let twice = || Refusal::parse(format!("tag '{name}' stands twice"));
        if let Some(known) = table.known
            && let known = self.tables.get(known)
            && let Some(i) = known.column(name)
        {
            let column = &mut known.columns[i];
            match (column.kind, field) {
                (ColumnKind::Tag { .. }, None) if column.named_by == self.serial => return Err(twice()),
                (ColumnKind::Tag { position }, None) => self.tags.push((position, place as u32)),
                (ColumnKind::Field(is), Some(asked)) if is == asked => self.bound.push((i as u32, (place - tags) as u32)),
                (kind, _) => return Err(conflict(kind.name()).into()),
            }
            column.named_by = self.serial;
            return Ok(true);
        }
        if let Some(wanted) = table.wanted
            && let Some(column) = self.wanted.get(wanted).column(name)
        {
            if column.column.field != field {
                return Err(conflict(column.column.field.map_or("tag", ColumnType::name)).into());
            }
            if field.is_none() && column.named_by == self.serial {
                return Err(twice());
            }
            column.named_by = self.serial;
            return Ok(false);
        }
        // A copy: the line's text cannot be held while the tables change. New columns are rare.
        let name = name.to_owned();
        self.want(line, &name, field, table, options)?;
        Ok(false)
    }

    /// Wants a column that nobody knows yet, and its table where that is new too.
    fn want(
        &mut self,
        line: &str,
        name: &str,
        field: Option<ColumnType>,
        table: &mut LineTable,
        options: &ParseOptions<'_>,
    ) -> Result<(), Refusal> {
        checked_name("column", name)?;
        if name == TIME_COLUMN {
            return Err(Refusal::parse("'time' is every table's time and cannot be a tag or field".to_owned()));
        }
        let table_name = self.line.text(line, self.line.table);
        let wanted = match table.wanted {
            Some(wanted) => wanted,
            None => {
                if table.known.is_none() {
                    checked_name("table", table_name)?;
                    let limit = options.limits.tables_per_database;
                    if self.tables.in_schema() + self.wanted.new_tables() >= limit {
                        let database = options.schema.map_or_else(|| "".into(), |s| s.name.clone());
                        return Err(SchemaError::TooManyTables { database, limit }.into());
                    }
                }
                *table.wanted.insert(self.wanted.add(table_name, table.known.is_none()))
            }
        };
        let limit = options.limits.columns_per_table;
        let existing = table.known.map_or(0, |k| self.tables.get(k).columns.len());
        if existing + self.wanted.get(wanted).len() >= limit {
            return Err(SchemaError::TooManyColumns { table: table_name.into(), limit }.into());
        }
        self.wanted.get(wanted).add(name, field, self.serial);
        Ok(())
    }

    /// Takes the row's share of what the body's batches may hold: a column stands in every row of its batch, so few bytes
    /// of text with many different fields could otherwise fill any memory.
    fn take_cells(&mut self, series: usize, table: usize, options: &ParseOptions<'_>) -> Result<(), Refusal> {
        let part = self.part_of(series, table, options);
        let table = self.tables.get(table);
        let fresh = self.bound.iter().filter(|(column, _)| part.is_none_or(|p| !table.parts[p].has(*column as usize))).count();
        let cells = table.cells_of_row(part, fresh);
        if cells > self.cells {
            self.ask_for_cells(cells - self.cells);
        }
        match self.cells.checked_sub(cells) {
            Some(left) => self.cells = left,
            None => {
                let reason = "the body spreads few values over too many rows and columns: send fewer lines at a time";
                return Err(Refusal::limit(reason.to_owned()));
            }
        }
        Ok(())
    }

    /// Asks for room for `lacking` more values, or some more than that.
    #[cold]
    fn ask_for_cells(&mut self, lacking: usize) {
        let more = lacking.max(CELLS_AT_ONCE).min(self.cells_to_ask_for);
        let held = self.admitted.as_mut().map_or(Ok(()), |admitted| admitted.hold_more((more * CELL_BYTES) as u64));
        match held {
            Ok(()) => {
                self.cells += more;
                self.cells_to_ask_for -= more;
            }
            Err(refusal) => self.refusal = Some(refusal),
        }
    }

    /// Refuses a line whose series key is too long, whatever its table has: each tag takes three bytes more than its value, and
    /// each NUL in it a second one.
    fn check_key(&self, line: &str) -> Result<(), Refusal> {
        // A tag takes four bytes of text at least.
        if self.line.series_len <= MAX_SERIES_KEY_BYTES / 2 {
            return Ok(());
        }
        let values = self.line.tags.iter().map(|&(_, value)| self.line.text(line, value).as_bytes());
        let bytes: usize = values.map(|value| value.len() + memchr::memchr_iter(0, value).count() + 3).sum();
        match bytes <= MAX_SERIES_KEY_BYTES {
            true => Ok(()),
            false => Err(Refusal::limit(format!(
                "series key of {bytes} bytes is longer than {MAX_SERIES_KEY_BYTES} bytes (limit max_series_key_bytes, fixed)"
            ))),
        }
    }

    /// The series of the line just bound.
    fn series_of(&mut self, line: &str, table: usize) -> usize {
        let series_text = &line.as_bytes()[..=self.line.series_len];
        if let Some(series) = self.series.find(series_text) {
            return series;
        }
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

    /// Appends the line just bound to its table's rows.
    fn append(&mut self, line: &str, series: usize, table: usize, time: Timestamp, options: &ParseOptions<'_>) {
        let (part, number) = self.place_of(series, table, options);
        let Table { parts, columns, .. } = self.tables.get(table);
        let part = &mut parts[part];
        for &(column, place) in &self.bound {
            let (_, value) = self.line.fields[place as usize];
            let cell = match value {
                Value::F64(v) => Cell::F64(v),
                Value::I64(v) => Cell::I64(v),
                Value::U64(v) => Cell::U64(v),
                Value::Bool(v) => Cell::Bool(v),
                Value::Str(piece) => Cell::Str(self.line.text(line, piece)),
            };
            let place = part.place(columns, column as usize);
            part.builder.put(place, cell);
        }
        part.builder.end_row(number, time.0);
    }

    /// The part of its table's rows that a series belongs to, if it has begun.
    #[inline]
    pub(super) fn part_of(&mut self, series: usize, table: usize, options: &ParseOptions<'_>) -> Option<usize> {
        match self.series.place(series, self.body) {
            Some((part, _)) => Some(part),
            None => self.tables.get(table).part_of(options.owner(self.series.routing_hash(series))),
        }
    }

    /// A series' part of its table's rows and its number there; begins the part where this is its first row.
    #[inline]
    pub(super) fn place_of(&mut self, series: usize, table: usize, options: &ParseOptions<'_>) -> (usize, u32) {
        if let Some(place) = self.series.place(series, self.body)
            && self.tables.get(table).parts[place.0].builder.rows() < MAX_ROWS
        {
            return place;
        }
        self.new_place(series, table, options)
    }

    fn new_place(&mut self, series: usize, table: usize, options: &ParseOptions<'_>) -> (usize, u32) {
        let owner = options.owner(self.series.routing_hash(series));
        let full = |table: &Table| table.part_of(owner).is_some_and(|part| table.parts[part].builder.rows() == MAX_ROWS);
        if full(self.tables.get(table)) {
            self.start_over();
        }
        let rows = self.tables.get(table);
        let part = rows.part_of(owner).unwrap_or_else(|| {
            let (part, first) = rows.begin_part(owner, self.most_rows);
            if first {
                self.touched.push(table as u32);
            }
            part
        });
        let (key, hash) = self.series.key_and_hash(series);
        let place = (part, rows.parts[part].builder.push_series(key, hash));
        self.series.set_place(series, self.body, place);
        place
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
