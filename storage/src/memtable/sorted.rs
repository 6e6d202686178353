//! The rows of a captured table in order of (series key, time), each identity once.
//!
//! Sorting costs a few nanoseconds a row: series are sorted once by key, rows are dealt out to their series by counting,
//! and only a series whose rows did not come in order of time is sorted. Values are gathered when a batch is asked for, and
//! only those of the columns that were asked for.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, PrimitiveArray, RecordBatch, RecordBatchOptions, StringViewArray, StringViewBuilder, TimestampNanosecondArray,
    UInt32Array, new_null_array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::compute::take;
use arrow::datatypes::{ArrowPrimitiveType, Float64Type, Int64Type, SchemaRef, UInt64Type};
use model::point::KeyTags;
use model::{ColumnId, ColumnKind, ColumnType, FieldColumn, Values};

use super::TableRows;
use super::chunk::RowAddress;
use super::series;
use crate::Result;
use crate::batch_bytes::batch_rows;
use crate::scan::{KeyFilter, Rows, ScanColumn, ScanRequest, schema_of};

/// Which rows of a captured table, in order.
#[derive(Debug)]
pub(crate) struct Sorted {
    table: Arc<TableRows>,
    /// Rows in order of (series key, time, arrival).
    rows: Vec<RowAddress>,
    times: Vec<i64>,
    /// The series that have rows, in order of key, and where in `rows` each ends.
    runs: Vec<(u32, u32)>,
    /// Where in `rows` the versions of each identity end; `None`: each identity has one.
    identities: Option<Vec<u32>>,
}

impl TableRows {
    /// The rows that a request wants, in order.
    pub(crate) fn sorted(self: &Arc<TableRows>, request: &ScanRequest) -> Sorted {
        let mut sorted = self.dealt(request);
        sorted.settle();
        sorted
    }

    /// The newest row of each series that a request wants, all its versions; the request's times are ignored.
    pub(crate) fn newest(self: &Arc<TableRows>, request: &ScanRequest) -> Sorted {
        let mut sorted = self.dealt(&ScanRequest { times: i64::MIN..=i64::MAX, ..request.clone() });
        sorted.settle();
        sorted.keep_newest();
        sorted
    }

    /// Whether any row may be wanted, told from times alone.
    pub(crate) fn may_match(&self, request: &ScanRequest) -> bool {
        let (min, max) = self.times();
        min <= *request.times.end() && *request.times.start() <= max
    }

    /// About how many bytes the order of the rows that a request wants takes, told without looking at them: as if all series
    /// had as many rows, and each wanted value of a tag were one series.
    pub(crate) fn order_bytes(&self, request: &ScanRequest) -> usize {
        /// A row's place, its time, and where its identity ends.
        const ROW_BYTES: usize = 16;
        let wanted = request.tags.iter().map(|tag| tag.values.len()).min();
        let rows = wanted.map_or(self.rows, |wanted| (self.rows / self.series.max(1)).saturating_mul(wanted).min(self.rows));
        rows * ROW_BYTES
    }

    /// Rows dealt out to their series, the series in order of key, a series' rows in order of arrival.
    fn dealt(self: &Arc<TableRows>, request: &ScanRequest) -> Sorted {
        let filter = KeyFilter::new(request);
        // Rows of each series; of those that are not wanted, none is counted.
        let wanted: Option<Vec<bool>> =
            (!filter.is_empty()).then(|| (0..self.series).map(|i| filter.matches(series::key(&self.keys, i as u32))).collect());
        let mut counts = vec![0u32; self.series];
        for chunk in &self.chunks {
            if chunk.min_time() > *request.times.end() || chunk.max_time() < *request.times.start() {
                continue;
            }
            if request.times.contains(&chunk.min_time()) && request.times.contains(&chunk.max_time()) {
                chunk.series().iter().for_each(|&s| counts[s as usize] += 1);
            } else {
                for (&series, time) in chunk.series().iter().zip(chunk.times()) {
                    counts[series as usize] += u32::from(request.times.contains(time));
                }
            }
        }
        if let Some(wanted) = &wanted {
            counts.iter_mut().zip(wanted).for_each(|(count, &wanted)| *count *= u32::from(wanted));
        }
        let order = self.by_key(&counts);
        let mut runs = Vec::with_capacity(order.len());
        // From here on: where the next row of each series goes.
        let mut next = counts;
        let mut end = 0;
        for &series in &order {
            let start = end;
            end += next[series as usize];
            next[series as usize] = start;
            runs.push((series, end));
        }
        let mut rows = vec![RowAddress::new(0, 0); end as usize];
        let mut times = vec![0i64; end as usize];
        for (c, chunk) in self.chunks.iter().enumerate() {
            if end == 0 || chunk.min_time() > *request.times.end() || chunk.max_time() < *request.times.start() {
                continue;
            }
            for (row, (&series, &time)) in chunk.series().iter().zip(chunk.times()).enumerate() {
                let series = series as usize;
                if request.times.contains(&time) && wanted.as_ref().is_none_or(|w| w[series]) {
                    let place = next[series] as usize;
                    rows[place] = RowAddress::new(c, row);
                    times[place] = time;
                    next[series] += 1;
                }
            }
        }
        Sorted { table: self.clone(), rows, times, runs, identities: None }
    }

    /// The series that have a count, in order of key.
    fn by_key(&self, counts: &[u32]) -> Vec<u32> {
        let with_rows = (0..self.series as u32).filter(|&s| counts[s as usize] > 0);
        // Keys begin alike (`device-…`): what they share is skipped, the next 8 bytes decide nearly always.
        let mut shared: Option<&[u8]> = None;
        let mut all: Vec<(u64, u32)> = with_rows.map(|s| (0, s)).collect();
        for &(_, s) in &all {
            let key = series::key(&self.keys, s);
            let so_far = shared.unwrap_or(key);
            let same = so_far.iter().zip(key).take_while(|(a, b)| a == b).count();
            shared = Some(&so_far[..same]);
        }
        let skip = shared.map_or(0, <[u8]>::len);
        for (prefix, s) in &mut all {
            let rest = &series::key(&self.keys, *s)[skip..];
            let mut bytes = [0; 8];
            let n = rest.len().min(8);
            bytes[..n].copy_from_slice(&rest[..n]);
            *prefix = u64::from_be_bytes(bytes);
        }
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| series::key(&self.keys, a.1).cmp(series::key(&self.keys, b.1))));
        all.into_iter().map(|(_, s)| s).collect()
    }
}

impl Sorted {
    /// Sorts each series by time, rows of one time by arrival, and finds the rows that stand more than once.
    fn settle(&mut self) {
        let mut twice = false;
        let mut start = 0;
        let mut order: Vec<(i64, RowAddress)> = Vec::new();
        for &(_, end) in &self.runs {
            let range = start..end as usize;
            start = end as usize;
            let times = &mut self.times[range.clone()];
            if times.windows(2).all(|w| w[0] < w[1]) {
                continue;
            }
            let rows = &mut self.rows[range];
            order.clear();
            order.extend(times.iter().copied().zip(rows.iter().copied()));
            order.sort_by_key(|(time, _)| *time);
            for (i, (time, row)) in order.iter().enumerate() {
                (times[i], rows[i]) = (*time, *row);
            }
            twice |= times.windows(2).any(|w| w[0] == w[1]);
        }
        if twice {
            let mut ends = Vec::with_capacity(self.rows.len());
            let mut start = 0;
            for &(_, end) in &self.runs {
                let times = &self.times[start..end as usize];
                ends.extend((1..times.len()).filter(|&i| times[i] != times[i - 1]).map(|i| (start + i) as u32));
                ends.push(end);
                start = end as usize;
            }
            self.identities = Some(ends);
        }
    }

    /// Leaves of each series only its last identity.
    fn keep_newest(&mut self) {
        let (mut rows, mut times, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for run in &mut self.runs {
            let end = run.1 as usize;
            let newest = self.times[end - 1];
            let first = (start..end).rev().take_while(|&i| self.times[i] == newest).last().expect("a run has rows");
            rows.extend_from_slice(&self.rows[first..end]);
            times.extend_from_slice(&self.times[first..end]);
            ends.push(rows.len() as u32);
            start = end;
            run.1 = rows.len() as u32;
        }
        self.identities = (rows.len() > ends.len()).then_some(ends);
        (self.rows, self.times) = (rows, times);
    }

    /// How many rows there are, each identity counted once.
    pub(crate) fn len(&self) -> usize {
        self.identities.as_ref().map_or(self.rows.len(), Vec::len)
    }

    /// The smallest and the largest series key; `None` without rows.
    pub(crate) fn keys(&self) -> Option<(&[u8], &[u8])> {
        let (first, last) = (self.runs.first()?, self.runs.last()?);
        Some((series::key(&self.table.keys, first.0), series::key(&self.table.keys, last.0)))
    }

    /// The request's columns of the rows.
    pub(crate) fn read(self, request: &ScanRequest) -> Rows {
        let schema = schema_of(&request.table, &request.projection);
        let columns = request.projection.iter().map(|c| self.column(request, *c)).collect();
        let row_bytes = self.table.bytes / self.table.rows.max(1);
        let batch_rows = batch_rows(row_bytes as u64, request.batch_rows);
        Box::new(SortedRows { sorted: self, schema, columns, batch_rows, at: 0, run: 0 })
    }

    fn column(&self, request: &ScanRequest, column: ScanColumn) -> Source {
        let ScanColumn::Column(id) = column else { return Source::Time };
        match request.table.column_by_id(id).expect("a request names columns of its own table").kind {
            ColumnKind::Field(kind) => Source::Field(id, kind),
            ColumnKind::Tag { position } => {
                let values = self.runs.iter().map(|&(s, _)| {
                    KeyTags::new(series::key(&self.table.keys, s)).nth(position as usize).and_then(|tag| tag.expect("keys are whole"))
                });
                Source::Tag(StringViewArray::from_iter(values))
            }
        }
    }
}

/// What an output column is made from.
#[derive(Debug)]
enum Source {
    Time,
    /// The tag's value in each run.
    Tag(StringViewArray),
    Field(ColumnId, ColumnType),
}

/// The batches of one read.
struct SortedRows {
    sorted: Sorted,
    schema: SchemaRef,
    columns: Vec<Source>,
    batch_rows: usize,
    /// The next identity.
    at: usize,
    /// The run that it lies in.
    run: usize,
}

/// Which version of each output row a column is taken from.
enum Picked<'a> {
    /// Each identity has one version.
    Only(&'a [RowAddress]),
    Best(Vec<RowAddress>),
}

impl SortedRows {
    /// Where in `rows` the versions of identity `i` lie.
    fn versions(&self, i: usize) -> std::ops::Range<usize> {
        match &self.sorted.identities {
            None => i..i + 1,
            Some(ends) => (if i == 0 { 0 } else { ends[i - 1] as usize })..ends[i] as usize,
        }
    }

    fn batch(&mut self, end: usize) -> RecordBatch {
        let (start, rows) = (self.at, end - self.at);
        let runs = self.run_of_each(start, end);
        let columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|column| match column {
                Source::Time => {
                    let times: Vec<i64> = match &self.sorted.identities {
                        None => self.sorted.times[start..end].to_vec(),
                        Some(_) => (start..end).map(|i| self.sorted.times[self.versions(i).start]).collect(),
                    };
                    Arc::new(TimestampNanosecondArray::new(times.into(), None)) as ArrayRef
                }
                Source::Tag(values) => take(values, &runs, None).expect("every run has a value"),
                Source::Field(id, kind) => self.field(*id, *kind, start, end),
            })
            .collect();
        self.at = end;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).expect("columns are as the schema says")
    }

    /// The run that each identity lies in.
    fn run_of_each(&mut self, start: usize, end: usize) -> UInt32Array {
        if !self.columns.iter().any(|c| matches!(c, Source::Tag(_))) {
            return UInt32Array::from(Vec::<u32>::new());
        }
        let mut runs = Vec::with_capacity(end - start);
        let mut i = start;
        while i < end {
            let run_end = self.sorted.runs[self.run].1;
            // The identity after the run's last.
            let until = match &self.sorted.identities {
                None => run_end as usize,
                Some(ends) => i + ends[i..].partition_point(|&e| e <= run_end),
            };
            let stop = until.min(end);
            runs.resize(runs.len() + stop - i, self.run as u32);
            i = stop;
            if stop == until {
                self.run += 1;
            }
        }
        UInt32Array::new(runs.into(), None)
    }

    fn field(&self, id: ColumnId, kind: ColumnType, start: usize, end: usize) -> ArrayRef {
        let chunks = &self.sorted.table.chunks;
        let parts: Vec<Option<&FieldColumn>> = chunks.iter().map(|c| c.column(id)).collect();
        // Devices mostly send all their fields: then nothing is asked row by row.
        let whole = (chunks.iter().zip(&parts)).all(|(c, part)| part.is_some_and(|p| p.valid.is_none() && p.values.len() == c.rows()));
        let picked = match &self.sorted.identities {
            None => Picked::Only(&self.sorted.rows[start..end]),
            Some(_) if whole => Picked::Best((start..end).map(|i| self.sorted.rows[self.versions(i).end - 1]).collect()),
            Some(_) => Picked::Best(
                (start..end)
                    .map(|i| {
                        let versions = &self.sorted.rows[self.versions(i)];
                        let newest = *versions.last().expect("an identity has a version");
                        versions.iter().rev().copied().find(|&row| has_value(&parts, row)).unwrap_or(newest)
                    })
                    .collect(),
            ),
        };
        let rows = match &picked {
            Picked::Only(rows) => rows,
            Picked::Best(rows) => rows.as_slice(),
        };
        let nulls = if whole { None } else { validity(&parts, rows) };
        match kind {
            ColumnType::F64 => primitive::<Float64Type>(&parts, rows, nulls, |v| match v {
                Values::F64(v) => v,
                _ => unreachable!("a column keeps its type"),
            }),
            ColumnType::I64 => primitive::<Int64Type>(&parts, rows, nulls, |v| match v {
                Values::I64(v) => v,
                _ => unreachable!("a column keeps its type"),
            }),
            ColumnType::U64 => primitive::<UInt64Type>(&parts, rows, nulls, |v| match v {
                Values::U64(v) => v,
                _ => unreachable!("a column keeps its type"),
            }),
            ColumnType::Bool => {
                let bits = BooleanBuffer::collect_bool(rows.len(), |i| match parts[rows[i].chunk()].map(|c| &c.values) {
                    Some(Values::Bool(bits)) => rows[i].row() < bits.len() && bits.get(rows[i].row()),
                    _ => false,
                });
                Arc::new(BooleanArray::new(bits, nulls))
            }
            ColumnType::Str => {
                let mut out = StringViewBuilder::with_capacity(rows.len());
                for &row in rows {
                    match parts[row.chunk()] {
                        Some(FieldColumn { values: Values::Str(texts), .. }) if whole || has_value(&parts, row) => {
                            out.append_value(texts.get(row.row()))
                        }
                        _ => out.append_null(),
                    }
                }
                Arc::new(out.finish())
            }
        }
    }
}

#[inline]
fn has_value(parts: &[Option<&FieldColumn>], row: RowAddress) -> bool {
    parts[row.chunk()].is_some_and(|c| row.row() < c.values.len() && c.is_valid(row.row()))
}

/// Which of the rows have a value; `None` where all have.
fn validity(parts: &[Option<&FieldColumn>], rows: &[RowAddress]) -> Option<NullBuffer> {
    let nulls = NullBuffer::new(BooleanBuffer::collect_bool(rows.len(), |i| has_value(parts, rows[i])));
    (nulls.null_count() > 0).then_some(nulls)
}

fn primitive<T: ArrowPrimitiveType>(
    parts: &[Option<&FieldColumn>],
    rows: &[RowAddress],
    nulls: Option<NullBuffer>,
    slice: impl Fn(&Values) -> &Vec<T::Native>,
) -> ArrayRef {
    if parts.iter().all(Option::is_none) {
        return new_null_array(&T::DATA_TYPE, rows.len());
    }
    let slices: Vec<&[T::Native]> = parts.iter().map(|c| c.map_or(&[] as &[T::Native], |c| slice(&c.values).as_slice())).collect();
    let values: Vec<T::Native> = rows.iter().map(|r| slices[r.chunk()].get(r.row()).copied().unwrap_or_default()).collect();
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls))
}

impl Iterator for SortedRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.sorted.len() - self.at;
        (left > 0).then(|| Ok(self.batch(self.at + left.min(self.batch_rows))))
    }
}
