//! The view: what was captured together, and how a question finds its sources in it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use model::{ColumnKind, ColumnType, Epoch, LogIndex, TableId};

use super::{KeyFilter, Rows, ScanColumn, ScanRequest, within};
use crate::last_rows::{self, LastRows};
use crate::manifest::FileMeta;
use crate::memtable::{Captured, Sorted, TableRows};
use crate::merge::{layout, merge};
use crate::parquet_file::ParquetFiles;
use crate::range::HashRange;
use crate::{Error, Result};

/// The live files of each table in their order of writes. A file stays on disk while somebody holds its `Arc`.
pub(crate) type LiveFiles = Arc<HashMap<TableId, Vec<Arc<FileMeta>>>>;

/// A memtable as a view holds it.
#[derive(Clone)]
pub(crate) struct InMemory {
    pub(crate) tables: Captured,
    /// The version of the shard's range under which its rows were written.
    pub(crate) range_version: Epoch,
}

/// Memtable and files of one shard as of one log index; files stay on disk until it is dropped.
#[derive(Clone)]
pub struct View {
    pub(crate) applied: Option<LogIndex>,
    /// The index that the files reach.
    pub(crate) flushed: Option<LogIndex>,
    pub(crate) files: LiveFiles,
    /// Sealed memtables, oldest first, then the active one.
    pub(crate) memtables: Vec<InMemory>,
    /// Rows outside are other shards'.
    pub(crate) range: HashRange,
    pub(crate) cutoffs: Arc<BTreeMap<u32, i64>>,
    pub(crate) last_rows: LastRows,
    pub(crate) parquet: Arc<ParquetFiles>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: usize = self.files.values().map(Vec::len).sum();
        f.debug_struct("View").field("applied", &self.applied).field("files", &files).field("memtables", &self.memtables.len()).finish()
    }
}

/// Something that has rows for a request.
struct Part {
    source: Source,
    /// `Some`: it is from before a split, and only rows in this range are the shard's.
    within: Option<HashRange>,
}

enum Source {
    File(Arc<FileMeta>),
    Memory(Sorted),
}

impl Part {
    fn keys(&self) -> (&[u8], &[u8]) {
        match &self.source {
            Source::File(file) => (&file.min_key, &file.max_key),
            Source::Memory(rows) => rows.keys().expect("only sources with rows are asked"),
        }
    }

    /// Its rows; laid out for a merge if it is from before a split.
    fn read(self, parquet: &ParquetFiles, request: &ScanRequest) -> Result<Rows> {
        let rows: Rows = match self.source {
            Source::File(file) => {
                let rows = parquet.open(&file)?.scan(request)?;
                Box::new(Pinned { rows, _file: file })
            }
            Source::Memory(rows) => rows.read(request),
        };
        Ok(match self.within {
            Some(range) => within(range, &request.table, rows),
            None => rows,
        })
    }
}

/// A file's rows; the file stays on disk until they are dropped.
struct Pinned {
    rows: Rows,
    _file: Arc<FileMeta>,
}

impl Iterator for Pinned {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

impl View {
    /// The version of the shard's range that it shows.
    pub fn range_version(&self) -> Epoch {
        self.range.version
    }

    /// The shard's range, if what was written under this version may hold rows of others.
    fn within(&self, version: Epoch) -> Option<HashRange> {
        self.range.is_narrower_than(version).then_some(self.range)
    }

    /// The last entry that the view shows.
    pub fn applied(&self) -> Option<LogIndex> {
        self.applied
    }

    /// Reads the request's rows.
    pub fn scan(&self, request: &ScanRequest) -> Result<Rows> {
        let request = self.visible(request)?;
        if request.times.is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let groups = overlapping(self.parts(&request));
        let parquet = self.parquet.clone();
        let mut groups = groups.into_iter();
        let mut current: Option<Rows> = None;
        let mut failed = false;
        // A group is opened when the one before it has ended: open files and memory are those of one group.
        Ok(Box::new(std::iter::from_fn(move || {
            while !failed {
                if let Some(batch) = current.as_mut().and_then(Iterator::next) {
                    failed = batch.is_err();
                    return Some(batch);
                }
                match read_group(groups.next()?, &parquet, &request) {
                    Ok(rows) => current = Some(rows),
                    Err(error) => {
                        failed = true;
                        return Some(Err(error));
                    }
                }
            }
            None
        })))
    }

    /// The newest row of each series that passes the tag filters (`request.times` is ignored), whole rows only; `None`
    /// where only the files can tell (DESIGN rule 11).
    pub fn latest(&self, request: &ScanRequest) -> Result<Option<Vec<RecordBatch>>> {
        let request = self.visible(&ScanRequest { times: i64::MIN..=i64::MAX, ..request.clone() })?;
        let whole = for_merge(&request);
        let mut sources: Vec<Rows> = Vec::new();
        match self.last_rows.get(&request.table.id) {
            Some(known) => sources.push(known.read(&whole)),
            None if self.files.get(&request.table.id).is_none_or(Vec::is_empty) => {}
            None => return Ok(None),
        }
        for memtable in &self.memtables {
            if let Some(rows) = memtable.tables.get(&request.table.id) {
                let part = Part { source: Source::Memory(rows.newest(&whole)), within: self.within(memtable.range_version) };
                sources.push(part.read(&self.parquet, &whole)?);
            }
        }
        let merged = merge(&whole.table, &whole.projection, sources, whole.batch_rows);
        let newest = last_rows::last_of_each_series(&whole.table, merged);
        let cutoff = *request.times.start();
        newest.map(|batch| project(&last_rows::not_before(&batch?, cutoff), &whole, &request)).collect::<Result<_>>().map(Some)
    }

    /// An upper bound of the rows that [`scan`](View::scan) would give, from statistics alone.
    pub fn estimate(&self, request: &ScanRequest) -> u64 {
        let Ok(request) = self.visible(request) else { return u64::MAX };
        let files: u64 = self.files_for(&request).map(|f| f.rows).sum();
        let in_memory = self.in_memory(request.table.id);
        files + in_memory.filter(|rows| rows.may_match(&request)).map(|rows| rows.rows() as u64).sum::<u64>()
    }

    /// About how many bytes [`scan`](View::scan) holds besides the batches that it has given, from statistics alone: the order
    /// of what is in memory, and a batch of each source of the largest group that is merged. Nothing for a request that a
    /// scan refuses.
    pub fn scan_bytes(&self, request: &ScanRequest) -> usize {
        let Ok(request) = self.visible(request) else { return 0 };
        let width = row_bytes(&for_merge(&request));
        let mut files: Vec<&Arc<FileMeta>> = self.files_for(&request).collect();
        files.sort_by(|a, b| a.min_key.cmp(&b.min_key));
        let batch = |rows: usize| rows.min(request.batch_rows).saturating_mul(width);
        let (mut largest, mut group, mut reach): (usize, usize, &[u8]) = (0, 0, &[]);
        for file in files {
            if *file.min_key > *reach {
                group = 0;
            }
            group += batch(file.rows as usize);
            reach = reach.max(&file.max_key);
            largest = largest.max(group);
        }
        let in_memory = self.in_memory(request.table.id).filter(|rows| rows.may_match(&request));
        largest + in_memory.map(|rows| rows.order_bytes(&request) + batch(rows.rows())).sum::<usize>()
    }

    /// About how many bytes [`latest`](View::latest) holds and gives.
    pub fn latest_bytes(&self, request: &ScanRequest) -> usize {
        let known = self.last_rows.get(&request.table.id).map_or(0, |known| known.bytes());
        // What it reads and what it gives.
        2 * known + self.in_memory(request.table.id).map(|rows| rows.order_bytes(request)).sum::<usize>()
    }

    /// The request without the rows that retention hides. Refused if rows may have columns that its schema does not know: of
    /// a tag, it would take two series for one; of a field, `SELECT *` would lack what was acknowledged before it was asked.
    pub(super) fn visible(&self, request: &ScanRequest) -> Result<ScanRequest> {
        let table = &request.table;
        let in_files = self.files.get(&table.id).into_iter().flatten().map(|f| f.schema_version);
        let in_memory = self.in_memory(table.id).map(|rows| rows.schema_version());
        let newest = in_files.chain(in_memory).max().unwrap_or(0);
        if newest > table.version {
            return Err(Error::StaleSchema { table: table.name.clone(), asked: table.version, newest });
        }
        let mut request = request.clone();
        if let Some(&cutoff) = self.cutoffs.get(&table.database.0) {
            request.times = cutoff.max(*request.times.start())..=*request.times.end();
        }
        Ok(request)
    }

    /// A table's rows in each memtable.
    pub(super) fn in_memory(&self, table: TableId) -> impl Iterator<Item = &Arc<TableRows>> {
        self.memtables.iter().filter_map(move |memtable| memtable.tables.get(&table))
    }

    pub(super) fn files_for<'a>(&'a self, request: &'a ScanRequest) -> impl Iterator<Item = &'a Arc<FileMeta>> {
        let filter = KeyFilter::new(request);
        self.files.get(&request.table.id).into_iter().flatten().filter(move |file| {
            file.min_time <= *request.times.end()
                && *request.times.start() <= file.max_time
                && filter.may_lie_in(&file.min_key, &file.max_key)
        })
    }

    /// Everything that may have rows for the request, in order of writes.
    fn parts(&self, request: &ScanRequest) -> Vec<Part> {
        let file = |file: &Arc<FileMeta>| Part { source: Source::File(file.clone()), within: self.within(file.range_version) };
        let mut parts: Vec<Part> = self.files_for(request).map(file).collect();
        for memtable in &self.memtables {
            if let Some(rows) = memtable.tables.get(&request.table.id).filter(|rows| rows.may_match(request)) {
                let sorted = rows.sorted(request);
                if sorted.len() > 0 {
                    parts.push(Part { source: Source::Memory(sorted), within: self.within(memtable.range_version) });
                }
            }
        }
        parts
    }
}

/// Groups of parts whose ranges of series keys overlap, in order of key; the parts of a group in order of writes.
fn overlapping(parts: Vec<Part>) -> Vec<Vec<Part>> {
    let mut by_key: Vec<(usize, Part)> = parts.into_iter().enumerate().collect();
    by_key.sort_by(|(_, a), (_, b)| a.keys().0.cmp(b.keys().0));
    let mut groups: Vec<Vec<(usize, Part)>> = Vec::new();
    let mut reach: Vec<u8> = Vec::new();
    for (order, part) in by_key {
        let (min, max) = part.keys();
        let apart = groups.is_empty() || min > reach.as_slice();
        if apart || max > reach.as_slice() {
            reach = max.to_vec();
        }
        if apart {
            groups.push(Vec::new());
        }
        groups.last_mut().expect("pushed above").push((order, part));
    }
    groups
        .into_iter()
        .map(|mut group| {
            group.sort_by_key(|(order, _)| *order);
            group.into_iter().map(|(_, part)| part).collect()
        })
        .collect()
}

fn read_group(mut group: Vec<Part>, parquet: &ParquetFiles, request: &ScanRequest) -> Result<Rows> {
    if group.len() == 1 && group[0].within.is_none() {
        return group.swap_remove(0).read(parquet, request);
    }
    let whole = for_merge(request);
    let sources = group.into_iter().map(|part| part.read(parquet, &whole)).collect::<Result<Vec<Rows>>>()?;
    let request = request.clone();
    let rows = merge(&whole.table, &whole.projection, sources, request.batch_rows);
    Ok(Box::new(rows.map(move |batch| project(&batch?, &whole, &request))))
}

/// About how many bytes a row of these columns takes.
fn row_bytes(request: &ScanRequest) -> usize {
    const NUMBER_BYTES: usize = 8;
    const TEXT_BYTES: usize = 32;
    let bytes = |column: &ScanColumn| match column {
        ScanColumn::Time => NUMBER_BYTES,
        ScanColumn::Column(id) => match request.table.column_by_id(*id).map(|column| column.kind) {
            Some(ColumnKind::Field(kind)) if kind != ColumnType::Str => NUMBER_BYTES,
            _ => TEXT_BYTES,
        },
    };
    request.projection.iter().map(bytes).sum()
}

/// The request with the columns that merging needs: time, all tags, and of the fields those that were asked for.
fn for_merge(request: &ScanRequest) -> ScanRequest {
    let mut fields = Vec::new();
    for column in &request.projection {
        if let ScanColumn::Column(id) = *column
            && request.table.fields().any(|c| c.id == id)
            && !fields.contains(&id)
        {
            fields.push(id);
        }
    }
    ScanRequest { projection: layout(&request.table, fields), ..request.clone() }
}

/// The columns that were asked for, of a batch that has those which merging needed.
fn project(batch: &RecordBatch, whole: &ScanRequest, request: &ScanRequest) -> Result<RecordBatch> {
    let places: Vec<usize> = (request.projection.iter())
        .map(|asked| whole.projection.iter().position(|c| c == asked).expect("merging needs all that was asked for"))
        .collect();
    Ok(batch.project(&places).expect("the places are in the batch"))
}
