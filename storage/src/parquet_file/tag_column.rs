//! Encodes one tag of one row group, run by run.
//!
//! Rows come sorted by their tags, so that a tag's value stands for a whole run of rows. The Parquet library looks at the
//! text of every row three times (is it the smallest, the largest, in the dictionary?), which was a quarter of a flush.
//! Here a text is looked at where it changes, and the run is written as what it is: Parquet's own run-length encoding.
//!
//! ```text
//! chunk      = | dictionary page: text length u32, text … (PLAIN) | data page (version 1) × n |
//! data page  = | length u32 | runs of 0 (no tag) and 1 | width of an index u8 | runs of indexes into the dictionary |
//! run        = | rows << 1 as varint | value in as many bytes as its width needs |
//! ```
//!
//! Page bodies are compressed as the file's other columns are. What the page index says of a page is a bound: long texts
//! are cut ([`BOUND_BYTES`]).

use arrow::array::{Array, StringViewArray};
use bytes::Bytes;
use hashbrown::HashTable;
use parquet::basic::{BoundaryOrder, Compression, Encoding, PageType, Type};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use xxhash_rust::xxh3::xxh3_64;

use super::encoding::PAGE_ROWS;

type Result<T> = std::result::Result<T, ParquetError>;

/// Bytes of a smallest or largest text that the page index and the footer keep.
const BOUND_BYTES: usize = 64;
/// Rows that lack the tag.
const ABSENT: u32 = u32::MAX;

/// A tag's values of the row group at hand.
pub(super) struct TagColumn {
    descr: ColumnDescPtr,
    compression: Compression,
    /// The texts as the dictionary page has them, and where each lies in it.
    dictionary: Vec<u8>,
    spans: Vec<(u32, u32)>,
    by_text: HashTable<u32>,
    page: PageRuns,
    pages: Vec<DataPage>,
    /// Bytes of the pages' bodies.
    page_bytes: usize,
}

/// The page at hand: a text's number or [`ABSENT`], and for how many rows.
#[derive(Default)]
struct PageRuns {
    runs: Vec<(u32, u32)>,
    rows: u32,
}

/// A page whose rows are complete.
struct DataPage {
    body: Bytes,
    body_bytes: usize,
    rows: u32,
    absent: u32,
    text_bytes: i64,
    /// Numbers of the smallest and the largest text; `None` where every row lacks the tag.
    bounds: Option<(u32, u32)>,
}

impl TagColumn {
    /// An empty one for a column of a file's schema.
    pub(super) fn new(descr: ColumnDescPtr, compression: Compression) -> TagColumn {
        TagColumn {
            descr,
            compression,
            dictionary: Vec::new(),
            spans: Vec::new(),
            by_text: HashTable::new(),
            page: PageRuns::default(),
            pages: Vec::new(),
            page_bytes: 0,
        }
    }

    /// Bytes of the texts, which one page holds.
    pub(super) fn dictionary_bytes(&self) -> usize {
        self.dictionary.len()
    }

    /// Bytes that it holds until it is closed.
    pub(super) fn memory_bytes(&self) -> usize {
        self.dictionary.len() + self.page_bytes + self.page.runs.len() * size_of::<(u32, u32)>()
    }

    /// Appends rows.
    pub(super) fn append(&mut self, rows: &StringViewArray) -> Result<()> {
        let (views, nulls) = (rows.views(), rows.nulls());
        let absent = |row: usize| nulls.is_some_and(|nulls| nulls.is_null(row));
        let mut start = 0;
        while start < rows.len() {
            let mut end = start + 1;
            let code = if absent(start) {
                while end < rows.len() && absent(end) {
                    end += 1;
                }
                ABSENT
            } else {
                // Equal views are equal texts; unequal ones are looked up, and are seldom equal.
                while end < rows.len() && views[end] == views[start] && !absent(end) {
                    end += 1;
                }
                self.number(rows.value(start))
            };
            self.run(code, end - start)?;
            start = end;
        }
        Ok(())
    }

    /// The number of a text in the dictionary, a new one if need be.
    fn number(&mut self, text: &str) -> u32 {
        let hash = xxh3_64(text.as_bytes());
        let TagColumn { dictionary, spans, by_text, .. } = self;
        let of = |spans: &[(u32, u32)], number: u32| {
            let (start, end) = spans[number as usize];
            start as usize..end as usize
        };
        if let Some(&number) = by_text.find(hash, |&n| dictionary[of(spans, n)] == *text.as_bytes()) {
            return number;
        }
        let number = spans.len() as u32;
        dictionary.extend_from_slice(&(text.len() as u32).to_le_bytes());
        let start = dictionary.len() as u32;
        dictionary.extend_from_slice(text.as_bytes());
        spans.push((start, dictionary.len() as u32));
        by_text.insert_unique(hash, number, |&n| xxh3_64(&dictionary[of(spans, n)]));
        number
    }

    fn text(&self, number: u32) -> &[u8] {
        let (start, end) = self.spans[number as usize];
        &self.dictionary[start as usize..end as usize]
    }

    fn run(&mut self, code: u32, rows: usize) -> Result<()> {
        let mut left = rows;
        while left > 0 {
            let n = left.min(PAGE_ROWS - self.page.rows as usize) as u32;
            match self.page.runs.last_mut() {
                Some((last, rows)) if *last == code => *rows += n,
                _ => self.page.runs.push((code, n)),
            }
            self.page.rows += n;
            left -= n as usize;
            if self.page.rows as usize == PAGE_ROWS {
                self.end_page()?;
            }
        }
        Ok(())
    }

    fn end_page(&mut self) -> Result<()> {
        let PageRuns { runs, rows } = std::mem::take(&mut self.page);
        let mut absent = 0;
        let mut text_bytes = 0;
        let mut bounds: Option<(u32, u32)> = None;
        for &(code, rows) in &runs {
            if code == ABSENT {
                absent += rows;
                continue;
            }
            let text = self.text(code);
            text_bytes += i64::from(rows) * text.len() as i64;
            let (min, max) = bounds.unwrap_or((code, code));
            bounds = Some((if text < self.text(min) { code } else { min }, if text > self.text(max) { code } else { max }));
        }
        let body = body_of(&runs, rows, self.spans.len());
        let body_bytes = body.len();
        let body = self.compressed(body)?;
        self.page_bytes += body.len();
        self.pages.push(DataPage { body, body_bytes, rows, absent, text_bytes, bounds });
        Ok(())
    }

    fn compressed(&self, body: Vec<u8>) -> Result<Bytes> {
        match self.compression {
            Compression::UNCOMPRESSED => Ok(body.into()),
            Compression::ZSTD(level) => Ok(zstd::bulk::compress(&body, level.compression_level())?.into()),
            other => Err(ParquetError::NYI(format!("tags compressed by {other}"))),
        }
    }

    /// The chunk's bytes, what the footer says of it, and the size of each of its pages, in order.
    pub(super) fn close(mut self) -> Result<(Bytes, ColumnCloseResult, Vec<u32>)> {
        if self.page.rows > 0 {
            self.end_page()?;
        }
        let mut sink = TrackedWrite::new(Vec::new());
        let mut writer = SerializedPageWriter::new(&mut sink);
        let mut sizes = Vec::with_capacity(1 + self.pages.len());
        let mut uncompressed = 0;
        let mut write = |page: Page, body_bytes: usize| -> Result<u64> {
            let spec = writer.write_page(CompressedPage::new(page, body_bytes))?;
            sizes.push(u32::try_from(spec.bytes_written).map_err(|_| ParquetError::General("a page of 4 GiB".to_owned()))?);
            uncompressed += spec.uncompressed_size as i64;
            Ok(spec.offset)
        };
        let dictionary = Page::DictionaryPage {
            buf: self.compressed(self.dictionary.clone())?,
            num_values: self.spans.len() as u32,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        let dictionary_offset = write(dictionary, self.dictionary.len())?;

        let mut offsets = OffsetIndexBuilder::new();
        let mut column_index = ColumnIndexBuilder::new(Type::BYTE_ARRAY);
        let (mut rows, mut absent, mut text_bytes) = (0, 0, 0);
        let mut bounds: Option<(Vec<u8>, Vec<u8>)> = None;
        // Of the last page with texts: both have to ascend from page to page for a reader to search by either.
        let mut before: Option<(Vec<u8>, Vec<u8>)> = None;
        let mut ascending = true;
        let mut first_offset = None;
        let mut page_offsets = Vec::with_capacity(self.pages.len());
        for page in &self.pages {
            let data = Page::DataPage {
                buf: page.body.clone(),
                num_values: page.rows,
                encoding: Encoding::RLE_DICTIONARY,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            let offset = write(data, page.body_bytes)?;
            first_offset.get_or_insert(offset);
            page_offsets.push(offset);
            offsets.append_row_count(i64::from(page.rows));
            offsets.append_unencoded_byte_array_data_bytes(Some(page.text_bytes));
            match page.bounds {
                None => column_index.append(true, Vec::new(), Vec::new(), i64::from(page.absent)),
                Some((min, max)) => {
                    let (min, max) = (lower_bound(self.text(min)), upper_bound(self.text(max)));
                    column_index.append(false, min.clone(), max.clone(), i64::from(page.absent));
                    ascending &= before.is_none_or(|(min_before, max_before)| min_before <= min && max_before <= max);
                    before = Some((min.clone(), max.clone()));
                    bounds = Some(match bounds {
                        None => (min, max),
                        Some((all_min, all_max)) => (all_min.min(min), all_max.max(max)),
                    });
                }
            }
            rows += u64::from(page.rows);
            absent += u64::from(page.absent);
            text_bytes += page.text_bytes;
        }
        for (offset, size) in page_offsets.iter().zip(&sizes[1..]) {
            offsets.append_offset_and_size(*offset as i64, *size as i32);
        }
        column_index.set_boundary_order(if ascending { BoundaryOrder::ASCENDING } else { BoundaryOrder::UNORDERED });

        let (min, max) = bounds.unzip();
        // They may be cut: bounds, not values.
        let statistics = ValueStatistics::new(min.map(ByteArray::from), max.map(ByteArray::from), None, Some(absent), false)
            .with_min_is_exact(false)
            .with_max_is_exact(false);
        let bytes_written = sizes.iter().map(|&size| u64::from(size)).sum();
        let stats = |page_type, encoding, count: usize| PageEncodingStats { page_type, encoding, count: count as i32 };
        let metadata = ColumnChunkMetaData::builder(self.descr.clone())
            .set_compression(self.compression)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY])
            .set_page_encoding_stats(vec![
                stats(PageType::DICTIONARY_PAGE, Encoding::PLAIN, 1),
                stats(PageType::DATA_PAGE, Encoding::RLE_DICTIONARY, self.pages.len()),
            ])
            .set_total_compressed_size(bytes_written as i64)
            .set_total_uncompressed_size(uncompressed)
            .set_num_values(rows as i64)
            .set_dictionary_page_offset(Some(dictionary_offset as i64))
            .set_data_page_offset(first_offset.unwrap_or(0) as i64)
            .set_unencoded_byte_array_data_bytes(Some(text_bytes))
            .set_statistics(Statistics::ByteArray(statistics))
            .build()?;
        let close = ColumnCloseResult {
            bytes_written,
            rows_written: rows,
            metadata,
            bloom_filter: None,
            column_index: Some(column_index.build()?),
            offset_index: Some(offsets.build()),
        };
        Ok((sink.into_inner()?.into(), close, sizes))
    }
}

/// A data page's body, uncompressed.
fn body_of(runs: &[(u32, u32)], rows: u32, texts: usize) -> Vec<u8> {
    let mut body = vec![0; 4];
    let mut levels = Runs::new(1);
    let mut indexes = Runs::new(u32::BITS - (texts.max(2) as u32 - 1).leading_zeros());
    for &(code, rows) in runs {
        levels.push(u32::from(code != ABSENT), rows);
        if code != ABSENT {
            indexes.push(code, rows);
        }
    }
    debug_assert_eq!(runs.iter().map(|run| run.1).sum::<u32>(), rows);
    levels.end(&mut body);
    let length = (body.len() - 4) as u32;
    body[..4].copy_from_slice(&length.to_le_bytes());
    body.push(indexes.width as u8);
    indexes.end(&mut body);
    body
}

/// Joins neighbours and writes them as Parquet's runs.
struct Runs {
    width: u32,
    bytes: Vec<u8>,
    open: (u32, u32),
}

impl Runs {
    fn new(width: u32) -> Runs {
        Runs { width, bytes: Vec::new(), open: (0, 0) }
    }

    fn push(&mut self, value: u32, rows: u32) {
        if self.open.0 == value {
            self.open.1 += rows;
        } else {
            self.write();
            self.open = (value, rows);
        }
    }

    fn write(&mut self) {
        let (value, rows) = self.open;
        if rows == 0 {
            return;
        }
        let mut head = rows << 1;
        while head >= 0x80 {
            self.bytes.push(head as u8 | 0x80);
            head >>= 7;
        }
        self.bytes.push(head as u8);
        self.bytes.extend_from_slice(&value.to_le_bytes()[..self.width.div_ceil(8) as usize]);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.write();
        out.extend_from_slice(&self.bytes);
    }
}

/// The text, or the start of a long one: not above it.
fn lower_bound(text: &[u8]) -> Vec<u8> {
    start_of(text).to_vec()
}

/// The text, or something short above a long one; the whole text where there is nothing.
fn upper_bound(text: &[u8]) -> Vec<u8> {
    let start = start_of(text);
    if start.len() == text.len() {
        return text.to_vec();
    }
    // The last ASCII letter that has a next one is raised, and what follows it is left out: still text.
    match start.iter().rposition(|&b| b < 0x7f) {
        Some(last) => {
            let mut bound = start[..=last].to_vec();
            bound[last] += 1;
            bound
        }
        None => text.to_vec(),
    }
}

/// The first bytes of a text, whole characters.
fn start_of(text: &[u8]) -> &[u8] {
    let mut end = text.len().min(BOUND_BYTES);
    while end > 0 && end < text.len() && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use parquet::arrow::ArrowSchemaConverter;
    use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
    use parquet::basic::ZstdLevel;
    use parquet::file::metadata::PageIndexPolicy;
    use parquet::file::page_index::column_index::ColumnIndexMetaData;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use proptest::prelude::*;

    use super::*;

    /// A file with this one column, in one row group.
    fn file(batches: &[Vec<Option<String>>], compression: Compression) -> Bytes {
        let schema = Arc::new(Schema::new(vec![Field::new("tag", DataType::Utf8View, true)]));
        let parquet_schema = ArrowSchemaConverter::new().convert(&schema).unwrap();
        let mut tag = TagColumn::new(parquet_schema.column(0), compression);
        batches.iter().for_each(|rows| tag.append(&StringViewArray::from_iter(rows.iter().map(Option::as_deref))).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut writer = SerializedFileWriter::new(Vec::new(), parquet_schema.root_schema_ptr(), properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let (bytes, close, sizes) = tag.close().unwrap();
        assert_eq!(sizes.iter().map(|&s| s as usize).sum::<usize>(), bytes.len());
        group.append_column(&bytes, close).unwrap();
        group.close().unwrap();
        writer.into_inner().unwrap().into()
    }

    fn read(file: &Bytes) -> Vec<Option<String>> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
        batches.iter().flat_map(|b| b.column(0).as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>()).collect()
    }

    /// Every page's bounds hold its texts, its count of absent ones is right, and the pages are in the order that is claimed.
    fn check_index(file: &Bytes, rows: &[Option<String>]) {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options).unwrap();
        let metadata = reader.metadata();
        let ColumnIndexMetaData::BYTE_ARRAY(index) = &metadata.column_index().unwrap()[0][0] else { panic!("texts") };
        let starts: Vec<usize> =
            metadata.offset_index().unwrap()[0][0].page_locations().iter().map(|p| p.first_row_index as usize).collect();
        for (page, &start) in starts.iter().enumerate() {
            let rows = &rows[start..starts.get(page + 1).copied().unwrap_or(rows.len())];
            assert_eq!(index.null_count(page), Some(rows.iter().filter(|r| r.is_none()).count() as i64));
            for text in rows.iter().flatten() {
                assert!(index.min_value(page).unwrap() <= text.as_bytes() && text.as_bytes() <= index.max_value(page).unwrap());
            }
        }
        let with_texts = || (0..starts.len()).filter(|&page| !index.is_null_page(page));
        let ascend = |bounds: Vec<&[u8]>| bounds.windows(2).all(|w| w[0] <= w[1]);
        let both = ascend(with_texts().map(|p| index.min_value(p).unwrap()).collect())
            && ascend(with_texts().map(|p| index.max_value(p).unwrap()).collect());
        let order = metadata.column_index().unwrap()[0][0].get_boundary_order();
        assert_eq!(order, Some(if both { BoundaryOrder::ASCENDING } else { BoundaryOrder::UNORDERED }));
        let statistics = metadata.row_group(0).column(0).statistics().unwrap();
        for text in rows.iter().flatten() {
            assert!(statistics.min_bytes_opt().unwrap() <= text.as_bytes() && text.as_bytes() <= statistics.max_bytes_opt().unwrap());
        }
    }

    fn compression() -> impl Strategy<Value = Compression> {
        prop::sample::select(vec![Compression::UNCOMPRESSED, Compression::ZSTD(ZstdLevel::default())])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_was_appended_is_read_by_the_library(
            runs in prop::collection::vec((prop::option::of("[a-cé]{0,3}|[x-z]{70}|é{40}|~{80}"), 1..40_000usize), 1..8),
            at in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
            compression in compression(),
        ) {
            let rows: Vec<Option<String>> = runs.iter().flat_map(|(text, n)| std::iter::repeat_n(text.clone(), *n)).collect();
            let mut cuts: Vec<usize> = at.iter().map(|at| at.index(rows.len())).chain([0, rows.len()]).collect();
            cuts.sort_unstable();
            let batches: Vec<_> = cuts.windows(2).map(|w| rows[w[0]..w[1]].to_vec()).collect();
            let file = file(&batches, compression);
            prop_assert_eq!(&read(&file), &rows);
            check_index(&file, &rows);
        }
    }

    #[test]
    fn pages_whose_largest_texts_alone_ascend_are_not_in_order() {
        let page = |first: &str, last: &str| [vec![Some(first.to_owned()); PAGE_ROWS - 1], vec![Some(last.to_owned())]].concat();
        for second in [page("a", "d"), page("c", "d"), page("c", "b"), vec![None; PAGE_ROWS]] {
            let rows = [page("b", "c"), second, page("d", "e")].concat();
            check_index(&file(std::slice::from_ref(&rows), Compression::UNCOMPRESSED), &rows);
        }
    }

    #[test]
    fn a_row_group_of_different_texts_is_read_back() {
        let rows: Vec<Option<String>> = (0..100_000).map(|i| Some(format!("device-{i:06}"))).collect();
        for compression in [Compression::UNCOMPRESSED, Compression::ZSTD(ZstdLevel::default())] {
            let file = file(&[rows[..70_000].to_vec(), rows[70_000..].to_vec()], compression);
            assert_eq!(read(&file), rows);
            check_index(&file, &rows);
        }
    }
}
