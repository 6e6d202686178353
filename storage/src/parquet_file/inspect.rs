//! What one Parquet file holds and whether its checksums are right, for people who look at a data directory.
//!
//! Reads the file on its own, without trusting any manifest: every page against the file's own table of checksums. If a
//! manifest in a folder above names the file, the whole file is compared with that too, footer and indexes included.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::pages;
use super::read::{corrupt, guarded};
use crate::disk::{Disk, ReadAt};
use crate::manifest::{self, FileMeta, Manifest};
use crate::{Error, Result};

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// xxh3-64 of all its bytes.
    pub checksum: u64,
    /// What the manifest above it says of it: `None` if there is none or it does not name the file.
    pub named: Option<FileMeta>,
    /// Rows in it.
    pub rows: u64,
    /// Row groups.
    pub row_groups: u64,
    /// Pages, each with a checksum that is right.
    pub pages: u64,
    /// Oldest and newest row; `None` without rows.
    pub times: Option<(i64, i64)>,
    /// What the writer noted in the footer: `alluvium.database`, `alluvium.table`, …
    pub notes: Vec<(String, String)>,
    /// Its columns in order.
    pub columns: Vec<ColumnReport>,
}

/// What one column of a file is and takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnReport {
    /// Its name.
    pub name: String,
    /// Its Parquet type.
    pub kind: String,
    /// The encodings of its pages.
    pub encodings: String,
    /// How they are compressed.
    pub compression: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes before compression.
    pub uncompressed_bytes: u64,
    /// Rows without a value.
    pub nulls: u64,
}

/// Reads the file and checks it; the error names what is damaged.
pub fn inspect(disk: &dyn Disk, path: &Path) -> Result<FileReport> {
    let raw = Raw::open(disk, path)?;
    let bytes = raw.len;
    let metadata = guarded(path, bytes, || {
        let parsed = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).parse_and_finish(&raw);
        parsed.map_err(|e| format!("the footer does not parse: {e}"))
    })?;
    let notes: Vec<(String, String)> = (metadata.file_metadata().key_value_metadata().into_iter().flatten())
        .map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default()))
        .collect();
    let table_at = notes.iter().find(|(key, _)| key == pages::KEY).and_then(|(_, at)| at.parse::<u64>().ok());
    let table_at = table_at.filter(|&at| at <= bytes);
    let table_at = table_at.ok_or_else(|| corrupt(path, bytes, "the footer does not say where the page checksums are"))?;
    let table = pages::decode(&raw.read(table_at, (bytes - table_at) as usize)?).map_err(|why| why.in_file(path, table_at))?;
    for page in &table {
        if page.offset + u64::from(page.len) > table_at || xxh3_64(&raw.read(page.offset, page.len as usize)?) != page.sum {
            return Err(corrupt(path, page.offset, format!("the checksum of a page of {} bytes does not match", page.len)));
        }
    }
    let checksum = raw.checksum()?;
    let named = named_above(disk, path)?;
    if let Some(meta) = &named
        && (meta.bytes, meta.checksum) != (bytes, checksum)
    {
        return Err(corrupt(path, table_at, "its checksum is not the one that the manifest gives"));
    }
    Ok(FileReport {
        path: path.to_owned(),
        bytes,
        checksum,
        named,
        rows: metadata.file_metadata().num_rows() as u64,
        row_groups: metadata.num_row_groups() as u64,
        pages: table.len() as u64,
        times: times(&metadata),
        notes,
        columns: columns(&metadata),
    })
}

fn times(metadata: &ParquetMetaData) -> Option<(i64, i64)> {
    let leaf = metadata.file_metadata().schema_descr().columns().iter().position(|c| c.name() == model::schema::TIME_COLUMN)?;
    let spans = metadata.row_groups().iter().filter_map(|group| match group.column(leaf).statistics() {
        Some(Statistics::Int64(s)) => Some((*s.min_opt()?, *s.max_opt()?)),
        _ => None,
    });
    spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

fn columns(metadata: &ParquetMetaData) -> Vec<ColumnReport> {
    let leaves = metadata.file_metadata().schema_descr().columns();
    let report = |(leaf, column): (usize, &parquet::schema::types::ColumnDescPtr)| {
        let chunks = || metadata.row_groups().iter().map(move |group| group.column(leaf));
        let mut encodings: Vec<String> = chunks().flat_map(|c| c.encodings()).map(|e| e.to_string()).collect();
        encodings.sort();
        encodings.dedup();
        let logical = column.logical_type_ref().map(|kind| format!(" {kind:?}")).unwrap_or_default();
        ColumnReport {
            name: column.name().to_owned(),
            kind: format!("{}{logical}", column.physical_type()),
            encodings: encodings.join(" "),
            compression: chunks().next().map(|c| c.compression().to_string()).unwrap_or_default(),
            bytes: chunks().map(|c| c.compressed_size() as u64).sum(),
            uncompressed_bytes: chunks().map(|c| c.uncompressed_size() as u64).sum(),
            nulls: chunks().filter_map(|c| c.statistics()?.null_count_opt()).sum(),
        }
    };
    leaves.iter().enumerate().map(report).collect()
}

/// What the nearest manifest in a folder above says of the file.
fn named_above(disk: &dyn Disk, path: &Path) -> Result<Option<FileMeta>> {
    for dir in path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
        // Unreadable folders above are not this file's damage.
        let names = disk.list(dir).unwrap_or_default();
        if names.iter().any(|name| name.file_name().is_some_and(|n| n == manifest::FILE)) {
            let named = Manifest::load(disk, dir)?.unwrap_or_default();
            let relative = path.strip_prefix(dir).ok().and_then(Path::to_str);
            return Ok(relative.and_then(|relative| named.files.get(relative).cloned()));
        }
    }
    Ok(None)
}

/// A file as it is, unchecked.
struct Raw {
    path: Arc<Path>,
    file: Arc<dyn ReadAt>,
    len: u64,
}

impl Raw {
    fn open(disk: &dyn Disk, path: &Path) -> Result<Raw> {
        let file = disk.open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file.len().map_err(|e| Error::io("read the length of", path, e))?;
        Ok(Raw { path: path.into(), file, len })
    }

    fn read(&self, at: u64, len: usize) -> Result<Bytes> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io("read", &*self.path, e))?;
        Ok(bytes.into())
    }

    fn checksum(&self) -> Result<u64> {
        const CHUNK: u64 = 1 << 20;
        let mut hash = Xxh3::new();
        for at in (0..self.len).step_by(CHUNK as usize) {
            hash.update(&self.read(at, CHUNK.min(self.len - at) as usize)?);
        }
        Ok(hash.digest())
    }
}

impl Length for Raw {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Raw {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> std::result::Result<Self::T, ParquetError> {
        Ok(Cursor::new(self.get_bytes(start, self.len.saturating_sub(start) as usize)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of a file of {}", self.len)));
        }
        self.read(start, length).map_err(|e| ParquetError::General(e.to_string()))
    }
}
