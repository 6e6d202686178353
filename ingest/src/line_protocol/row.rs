//! From a line taken apart to a row of its table: time, columns, series, values.
//!
//! Nothing is stored, wanted or remembered of a line before all of it has been found good.

use model::batch::MAX_ROWS;
use model::point::write_key_component;
use model::schema::{SchemaError, TIME_COLUMN};
use model::{ColumnKind, ColumnType, Timestamp, routing_hash};

use super::columns::Cell;
use super::general::Value;
use super::refused::{Refusal, RefusedKind, checked_name};
use super::tables::Key;
use super::{ParseOptions, Parser};

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
    pub(super) fn series_number(&mut self, series: usize, table: usize) -> u32 {
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
