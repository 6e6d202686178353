//! Applied points that are not yet in a file.
//!
//! One writer appends; a reader [captures](Memtable::capture) everything that is there in constant time and reads on,
//! in order of (series key, time), while the writer goes on. What a reader holds never changes: the writer copies the small
//! chunk at the end or begins a new one. Rows are kept as they came; that a row stands twice is settled when it is read:
//! the later one wins, field by field.
//!
//! ```text
//! memtable ── table ── series keys   in blocks; a series' number is its place
//!                  └── chunks        columns of up to 8,192 rows: series number, time, fields
//! ```
//!
//! It does not know the log, files or retries. Its bytes are counted, and bounded by whoever seals it.

mod chunk;
mod series;
mod sorted;

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use model::{PointBatch, TableId, Timestamp};

use self::chunk::{CHUNK_ROWS, COPY_ROWS, Chunk};
use self::series::{KeyBlock, SeriesIndex};
pub(crate) use self::sorted::Sorted;

/// Bytes that a table, however small, is counted with.
const TABLE_BYTES: usize = 1024;
/// Bytes that a series is counted with besides its key.
const SERIES_BYTES: usize = 24;

/// What a reader holds: every table's rows as of one moment.
pub(crate) type Captured = Arc<HashMap<TableId, Arc<TableRows>>>;

/// The rows of all tables since the last seal.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    tables: Captured,
    /// Finds a series' number; the writer's own.
    series: HashMap<TableId, SeriesIndex>,
    /// Batch series to table series, kept to be reused.
    numbers: Vec<u32>,
    rows: usize,
    bytes: usize,
}

/// The rows of one table, in order of arrival.
#[derive(Clone, Debug)]
pub(crate) struct TableRows {
    chunks: Vec<Arc<Chunk>>,
    keys: Vec<Arc<KeyBlock>>,
    series: usize,
    rows: usize,
    bytes: usize,
    /// The highest schema version by which a row's columns were looked up.
    schema_version: u32,
}

impl Memtable {
    /// Appends a batch's rows.
    pub(crate) fn insert(&mut self, batch: &PointBatch) {
        let tables = Arc::make_mut(&mut self.tables);
        let table = tables.entry(batch.table).or_insert_with(|| {
            self.bytes += TABLE_BYTES;
            Arc::new(TableRows::new())
        });
        let table = Arc::make_mut(table);
        let before = table.bytes;
        let index = self.series.entry(batch.table).or_default();
        self.numbers.clear();
        self.numbers.extend((0..batch.series()).map(|i| table.number(index, batch.key(i))));
        table.append(batch, &self.numbers);
        self.rows += batch.rows();
        self.bytes += table.bytes - before;
    }

    /// Forgets a table's rows.
    pub(crate) fn drop_table(&mut self, table: TableId) {
        if self.tables.contains_key(&table)
            && let Some(gone) = Arc::make_mut(&mut self.tables).remove(&table)
        {
            self.series.remove(&table);
            self.rows -= gone.rows;
            self.bytes -= gone.bytes;
        }
    }

    /// Tables that have rows.
    pub(crate) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Everything that is there now.
    pub(crate) fn capture(&self) -> Captured {
        self.tables.clone()
    }

    /// Rows of all tables, counted as often as they were written.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// About how many bytes of memory the rows take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl TableRows {
    fn new() -> TableRows {
        TableRows { chunks: Vec::new(), keys: Vec::new(), series: 0, rows: 0, bytes: TABLE_BYTES, schema_version: 0 }
    }

    /// The number of the series with this key, a new one if need be.
    fn number(&mut self, index: &mut SeriesIndex, key: &[u8]) -> u32 {
        let (number, new) = index.find_or_add(&mut self.keys, key);
        if new {
            self.series += 1;
            self.bytes += key.len() + SERIES_BYTES;
        }
        number
    }

    fn append(&mut self, batch: &PointBatch, numbers: &[u32]) {
        self.schema_version = self.schema_version.max(batch.schema_version);
        let mut start = 0;
        while start < batch.rows() {
            let chunk = self.open_chunk();
            let end = batch.rows().min(start + CHUNK_ROWS - chunk.rows());
            let before = chunk.bytes();
            chunk.append(batch, numbers, start, end);
            self.bytes += chunk.bytes() - before;
            self.rows += end - start;
            start = end;
        }
    }

    /// The chunk at the end, if it has room and can be written to, otherwise a new one.
    fn open_chunk(&mut self) -> &mut Chunk {
        let usable = self.chunks.last_mut().is_some_and(|last| {
            // A reader holds the chunk: a small one is copied, a large one stays as it is.
            last.rows() < CHUNK_ROWS && (last.rows() < COPY_ROWS || Arc::get_mut(last).is_some())
        });
        if !usable {
            let next = match self.chunks.last() {
                Some(full) if full.rows() == CHUNK_ROWS => Chunk::after(full),
                _ => Chunk::default(),
            };
            self.chunks.push(Arc::new(next));
        }
        Arc::make_mut(self.chunks.last_mut().expect("there is one"))
    }

    /// Rows, counted as often as they were written.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// About how many bytes of memory they take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The highest schema version by which a row's columns were looked up.
    pub(crate) fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// The oldest and the newest time.
    pub(crate) fn times(&self) -> (i64, i64) {
        self.chunks.iter().fold((i64::MAX, i64::MIN), |(min, max), c| (min.min(c.min_time()), max.max(c.max_time())))
    }

    /// How many rows each UTC day has, counted as often as they were written.
    pub(crate) fn days(&self) -> BTreeMap<i32, u64> {
        let mut days = BTreeMap::new();
        for chunk in &self.chunks {
            let first = Timestamp(chunk.min_time()).day();
            if first == Timestamp(chunk.max_time()).day() {
                *days.entry(first).or_default() += chunk.rows() as u64;
            } else {
                chunk.times().iter().for_each(|&t| *days.entry(Timestamp(t).day()).or_default() += 1);
            }
        }
        days
    }
}

#[cfg(test)]
mod tests;
