//! Points of one table on their way together, as columns, and their byte encoding.
//!
//! A [`PointBatch`] is what the parser makes, what a log record carries, what the memtable takes. Rows are in order of
//! arrival; where one row (series and time) stands twice, the later one wins field by field. Encoding is plain
//! little-endian columns with narrow integers where they fit: it is written once per batch and read once per replica,
//! so it is made for copying, not for size; files are where bytes are saved.
//!
//! ```text
//! batch    = | table u32 | schema_version u32 | rows u32 | series u32 | columns u16 | row_series_width u8 | time_width u8 |
//!            | key_bytes u32 | key_end u32 × series | keys …                  series keys, see SeriesKey
//!            | row_series u8/u16/u32 × rows                                   absent (width 0) where row i is of series i
//!            | time_min i64 | time - time_min u32/u64 × rows
//!            | column × columns
//! column   = | id u16 | type u8 | flags u8 | validity u64 × ceil(rows/64) |   validity only with flag 1 (some rows lack it)
//!            | values …
//! values   = F64: f64 × rows
//!            I64, U64: | width u8 | min u64 | value - min u8/u16/u32/u64 × rows |
//!            Bool: u64 × ceil(rows/64)
//!            Str: | bytes u32 | end u32 × rows | text … |
//! ```

use std::collections::HashMap;

use crate::error::DecodeError;
use crate::ids::{ColumnId, TableId};
use crate::schema::ColumnType;

/// Rows that one batch may have; a larger request becomes several.
pub const MAX_ROWS: usize = 1 << 24;

/// One bit per row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    /// `len` bits, all `value`.
    pub fn filled(len: usize, value: bool) -> Bitmap {
        let mut bitmap = Bitmap::default();
        bitmap.extend(len, value);
        bitmap
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no bit.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bit of row `i`.
    #[inline]
    pub fn get(&self, i: usize) -> bool {
        debug_assert!(i < self.len);
        self.words[i / 64] >> (i % 64) & 1 == 1
    }

    /// Appends one bit.
    #[inline]
    pub fn push(&mut self, value: bool) {
        if self.len.is_multiple_of(64) {
            self.words.push(0);
        }
        if value {
            let last = self.words.len() - 1;
            self.words[last] |= 1 << (self.len % 64);
        }
        self.len += 1;
    }

    /// Sets the bit of row `i`.
    #[inline]
    pub fn set(&mut self, i: usize, value: bool) {
        debug_assert!(i < self.len);
        let mask = 1 << (i % 64);
        if value {
            self.words[i / 64] |= mask;
        } else {
            self.words[i / 64] &= !mask;
        }
    }

    /// Appends `n` bits, all `value`.
    pub fn extend(&mut self, n: usize, value: bool) {
        let mut left = n;
        while left > 0 && !self.len.is_multiple_of(64) {
            self.push(value);
            left -= 1;
        }
        self.words.resize(self.words.len() + left.div_ceil(64), if value { u64::MAX } else { 0 });
        self.len += left;
        self.clear_spare();
    }

    /// Appends the bits `start..end` of another bitmap.
    pub fn extend_range(&mut self, from: &Bitmap, start: usize, end: usize) {
        debug_assert!(start <= end && end <= from.len);
        let mut at = start;
        while at < end {
            // As many bits as this bitmap's last word has room for, taken from the two words that they lie in.
            let room = 64 - self.len % 64;
            let n = room.min(end - at);
            let (word, shift) = (at / 64, at % 64);
            let mut bits = from.words[word] >> shift;
            if shift + n > 64 {
                bits |= from.words[word + 1] << (64 - shift);
            }
            if n < 64 {
                bits &= (1 << n) - 1;
            }
            if room == 64 {
                self.words.push(bits);
            } else {
                let last = self.words.len() - 1;
                self.words[last] |= bits << (64 - room);
            }
            self.len += n;
            at += n;
        }
    }

    /// Number of bits that are set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The bits as words, lowest bit first; bits past [`len`](Bitmap::len) are 0.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Forgets all bits, keeps the memory.
    pub fn clear(&mut self) {
        self.words.clear();
        self.len = 0;
    }

    fn from_words(words: Vec<u64>, len: usize) -> Bitmap {
        let mut bitmap = Bitmap { words, len };
        bitmap.clear_spare();
        bitmap
    }

    fn clear_spare(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }
}

/// Texts one after the other, and where each ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    /// All texts without gaps; UTF-8.
    pub bytes: Vec<u8>,
    /// Where in `bytes` each text ends.
    pub ends: Vec<u32>,
}

impl Strings {
    /// The text of row `i`.
    pub fn get(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        std::str::from_utf8(&self.bytes[start..self.ends[i] as usize]).expect("texts are checked when they enter")
    }

    /// Appends a text.
    pub fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.ends.push(self.bytes.len() as u32);
    }
}

/// The values of one field column; a row without a value has 0, false or the empty text in its place.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed integers.
    I64(Vec<i64>),
    /// Unsigned integers.
    U64(Vec<u64>),
    /// Booleans.
    Bool(Bitmap),
    /// Texts.
    Str(Strings),
}

impl Values {
    /// No values of this type yet.
    pub fn new(kind: ColumnType) -> Values {
        Values::with_room(kind, 0)
    }

    /// No values of this type yet, and room for `rows`.
    pub fn with_room(kind: ColumnType, rows: usize) -> Values {
        match kind {
            ColumnType::F64 => Values::F64(Vec::with_capacity(rows)),
            ColumnType::I64 => Values::I64(Vec::with_capacity(rows)),
            ColumnType::U64 => Values::U64(Vec::with_capacity(rows)),
            ColumnType::Bool => Values::Bool(Bitmap { words: Vec::with_capacity(rows.div_ceil(64)), len: 0 }),
            ColumnType::Str => Values::Str(Strings { bytes: Vec::new(), ends: Vec::with_capacity(rows) }),
        }
    }

    /// Their type.
    pub fn kind(&self) -> ColumnType {
        match self {
            Values::F64(_) => ColumnType::F64,
            Values::I64(_) => ColumnType::I64,
            Values::U64(_) => ColumnType::U64,
            Values::Bool(_) => ColumnType::Bool,
            Values::Str(_) => ColumnType::Str,
        }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Values::F64(v) => v.len(),
            Values::I64(v) => v.len(),
            Values::U64(v) => v.len(),
            Values::Bool(v) => v.len(),
            Values::Str(v) => v.ends.len(),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `n` placeholders.
    pub fn extend_empty(&mut self, n: usize) {
        match self {
            Values::F64(v) => v.resize(v.len() + n, 0.0),
            Values::I64(v) => v.resize(v.len() + n, 0),
            Values::U64(v) => v.resize(v.len() + n, 0),
            Values::Bool(v) => v.extend(n, false),
            Values::Str(v) => {
                let end = v.bytes.len() as u32;
                v.ends.resize(v.ends.len() + n, end);
            }
        }
    }

    /// Appends the rows `start..end` of `from`. Both have the same type.
    pub fn extend_range(&mut self, from: &Values, start: usize, end: usize) {
        match (self, from) {
            (Values::F64(to), Values::F64(from)) => to.extend_from_slice(&from[start..end]),
            (Values::I64(to), Values::I64(from)) => to.extend_from_slice(&from[start..end]),
            (Values::U64(to), Values::U64(from)) => to.extend_from_slice(&from[start..end]),
            (Values::Bool(to), Values::Bool(from)) => to.extend_range(from, start, end),
            (Values::Str(to), Values::Str(from)) if start < end => {
                let first = if start == 0 { 0 } else { from.ends[start - 1] };
                let base = to.bytes.len() as u32;
                to.bytes.extend_from_slice(&from.bytes[first as usize..from.ends[end - 1] as usize]);
                to.ends.extend(from.ends[start..end].iter().map(|end| end - first + base));
            }
            (Values::Str(_), Values::Str(_)) => {}
            _ => unreachable!("a column keeps its type"),
        }
    }

    /// Appends the rows of `from` that `rows` lists. Both have the same type.
    pub fn extend_from(&mut self, from: &Values, rows: &[u32]) {
        match (self, from) {
            (Values::F64(to), Values::F64(from)) => to.extend(rows.iter().map(|&r| from[r as usize])),
            (Values::I64(to), Values::I64(from)) => to.extend(rows.iter().map(|&r| from[r as usize])),
            (Values::U64(to), Values::U64(from)) => to.extend(rows.iter().map(|&r| from[r as usize])),
            (Values::Bool(to), Values::Bool(from)) => rows.iter().for_each(|&r| to.push(from.get(r as usize))),
            (Values::Str(to), Values::Str(from)) => {
                for &row in rows {
                    let row = row as usize;
                    let start = if row == 0 { 0 } else { from.ends[row - 1] as usize };
                    to.bytes.extend_from_slice(&from.bytes[start..from.ends[row] as usize]);
                    to.ends.push(to.bytes.len() as u32);
                }
            }
            _ => unreachable!("a column keeps its type"),
        }
    }
}

/// One field of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldColumn {
    /// Which column of the table.
    pub id: ColumnId,
    /// One value per row.
    pub values: Values,
    /// Which rows have a value; `None` where all have.
    pub valid: Option<Bitmap>,
}

impl FieldColumn {
    /// Whether row `i` has a value.
    #[inline]
    pub fn is_valid(&self, i: usize) -> bool {
        self.valid.as_ref().is_none_or(|v| v.get(i))
    }
}

/// Points of one table on their way together.
#[derive(Clone, Debug, PartialEq)]
pub struct PointBatch {
    /// The table.
    pub table: TableId,
    /// The table's schema version that the columns were looked up in.
    pub schema_version: u32,
    /// The distinct series' keys one after the other ([`SeriesKey`](crate::SeriesKey)).
    pub keys: Vec<u8>,
    /// Where in `keys` each series' key ends.
    pub key_ends: Vec<u32>,
    /// Which series each row is of.
    pub row_series: Vec<u32>,
    /// Each row's time, nanoseconds since 1970.
    pub times: Vec<i64>,
    /// The fields, each id once. A field that no row has is left out.
    pub columns: Vec<FieldColumn>,
}

impl PointBatch {
    /// A batch without rows.
    pub fn new(table: TableId, schema_version: u32) -> PointBatch {
        PointBatch {
            table,
            schema_version,
            keys: Vec::new(),
            key_ends: Vec::new(),
            row_series: Vec::new(),
            times: Vec::new(),
            columns: Vec::new(),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.times.len()
    }

    /// Number of distinct series.
    pub fn series(&self) -> usize {
        self.key_ends.len()
    }

    /// The key of series `i`.
    #[inline]
    pub fn key(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.key_ends[i - 1] as usize };
        &self.keys[start..self.key_ends[i] as usize]
    }

    /// Adds a series and gives its number in this batch. The caller sees to it that no key stands twice.
    pub fn push_series(&mut self, key: &[u8]) -> u32 {
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len() as u32);
        (self.key_ends.len() - 1) as u32
    }

    /// The rows `start..end` as a batch of their own, with the series that they use.
    pub fn slice(&self, start: usize, end: usize) -> PointBatch {
        let mut part = PointBatch::new(self.table, self.schema_version);
        let mut renumbered = vec![u32::MAX; self.series()];
        for &series in &self.row_series[start..end] {
            let number = &mut renumbered[series as usize];
            if *number == u32::MAX {
                *number = part.push_series(self.key(series as usize));
            }
            part.row_series.push(*number);
        }
        let rows: Vec<u32> = (start as u32..end as u32).collect();
        self.fill(part, &rows).expect("a slice has rows")
    }

    /// The batch cut by the owner of each series (`owners[series]`): one part per owner that has rows, with the series that
    /// it uses renumbered; rows stay in order. One pass over the rows, however many owners there are.
    pub fn split(&self, owners: &[u32]) -> Vec<(u32, PointBatch)> {
        debug_assert_eq!(owners.len(), self.series());
        const UNSEEN: u32 = u32::MAX;
        let mut parts: Vec<(u32, PointBatch, Vec<u32>)> = Vec::new();
        let mut place_of_owner = HashMap::new();
        let mut places = vec![(UNSEEN, UNSEEN); self.series()];
        for (row, &series) in self.row_series.iter().enumerate() {
            let (place, number) = &mut places[series as usize];
            if *place == UNSEEN {
                let owner = owners[series as usize];
                *place = *place_of_owner.entry(owner).or_insert_with(|| {
                    parts.push((owner, PointBatch::new(self.table, self.schema_version), Vec::new()));
                    parts.len() as u32 - 1
                });
                *number = parts[*place as usize].1.push_series(self.key(series as usize));
            }
            let (_, part, rows) = &mut parts[*place as usize];
            part.row_series.push(*number);
            rows.push(row as u32);
        }
        parts.into_iter().filter_map(|(owner, part, rows)| self.fill(part, &rows).map(|part| (owner, part))).collect()
    }

    fn fill(&self, mut part: PointBatch, rows: &[u32]) -> Option<PointBatch> {
        if rows.is_empty() {
            return None;
        }
        part.times = rows.iter().map(|&r| self.times[r as usize]).collect();
        for column in &self.columns {
            let valid = column.valid.as_ref().map(|v| {
                let mut bits = Bitmap::default();
                rows.iter().for_each(|&r| bits.push(v.get(r as usize)));
                bits
            });
            let present = valid.as_ref().map_or(rows.len(), Bitmap::count);
            if present == 0 {
                continue;
            }
            let mut values = Values::new(column.values.kind());
            values.extend_from(&column.values, rows);
            part.columns.push(FieldColumn { id: column.id, values, valid: valid.filter(|_| present < rows.len()) });
        }
        Some(part)
    }

    /// About how many bytes [`encode`](PointBatch::encode) will write: never fewer than it does.
    pub fn encoded_len_bound(&self) -> usize {
        let columns: usize = self
            .columns
            .iter()
            .map(|c| {
                let values = match &c.values {
                    Values::Bool(v) => v.words.len() * 8,
                    Values::Str(v) => v.bytes.len() + v.ends.len() * 4 + 4,
                    v => v.len() * 8 + 9,
                };
                4 + values + c.valid.as_ref().map_or(0, |v| v.words.len() * 8)
            })
            .sum();
        32 + self.keys.len() + self.key_ends.len() * 4 + self.rows() * 12 + columns
    }

    /// Appends the encoding drawn in the module's header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let rows = self.rows();
        debug_assert!(rows > 0 && rows <= MAX_ROWS && self.row_series.len() == rows);
        out.reserve(self.encoded_len_bound());
        let identity = self.series() == rows && self.row_series.iter().enumerate().all(|(i, &s)| s as usize == i);
        let series_width: u8 = match self.series() {
            _ if identity => 0,
            n if n <= 1 << 8 => 1,
            n if n <= 1 << 16 => 2,
            _ => 4,
        };
        let (min, max) = self.times.iter().fold((i64::MAX, i64::MIN), |(lo, hi), &t| (lo.min(t), hi.max(t)));
        let time_width: u8 = if max.wrapping_sub(min) as u64 <= u64::from(u32::MAX) { 4 } else { 8 };
        put_u32(out, self.table.0);
        put_u32(out, self.schema_version);
        put_u32(out, rows as u32);
        put_u32(out, self.series() as u32);
        out.extend_from_slice(&(self.columns.len() as u16).to_le_bytes());
        out.push(series_width);
        out.push(time_width);
        put_u32(out, self.keys.len() as u32);
        put_fixed(out, &self.key_ends, |e| e.to_le_bytes());
        out.extend_from_slice(&self.keys);
        match series_width {
            0 => {}
            1 => put_fixed(out, &self.row_series, |s| [s as u8]),
            2 => put_fixed(out, &self.row_series, |s| (s as u16).to_le_bytes()),
            _ => put_fixed(out, &self.row_series, |s| s.to_le_bytes()),
        }
        out.extend_from_slice(&min.to_le_bytes());
        if time_width == 4 {
            put_fixed(out, &self.times, |t| (t.wrapping_sub(min) as u32).to_le_bytes());
        } else {
            put_fixed(out, &self.times, |t| (t.wrapping_sub(min) as u64).to_le_bytes());
        }
        for column in &self.columns {
            debug_assert_eq!(column.values.len(), rows);
            out.extend_from_slice(&column.id.0.to_le_bytes());
            out.push(column.values.kind() as u8);
            out.push(u8::from(column.valid.is_some()));
            if let Some(valid) = &column.valid {
                debug_assert_eq!(valid.len(), rows);
                put_fixed(out, &valid.words, u64::to_le_bytes);
            }
            match &column.values {
                Values::F64(v) => put_fixed(out, v, f64::to_le_bytes),
                Values::I64(v) => {
                    let min = v.iter().copied().min().unwrap_or(0);
                    let max = v.iter().copied().max().unwrap_or(0);
                    put_narrow(out, min as u64, max.wrapping_sub(min) as u64, v, |x| x.wrapping_sub(min) as u64);
                }
                Values::U64(v) => {
                    let min = v.iter().copied().min().unwrap_or(0);
                    let max = v.iter().copied().max().unwrap_or(0);
                    put_narrow(out, min, max - min, v, |x| x - min);
                }
                Values::Bool(v) => put_fixed(out, &v.words, u64::to_le_bytes),
                Values::Str(v) => {
                    put_u32(out, v.bytes.len() as u32);
                    put_fixed(out, &v.ends, |e| e.to_le_bytes());
                    out.extend_from_slice(&v.bytes);
                }
            }
        }
    }

    /// Reads one batch from the start of `bytes`; gives it and how many bytes it took. Never panics on foreign bytes.
    pub fn decode(bytes: &[u8]) -> Result<(PointBatch, usize), DecodeError> {
        let mut r = Reader { bytes, at: 0 };
        let table = TableId(r.u32("table")?);
        let schema_version = r.u32("schema version")?;
        let rows = r.u32("rows")? as usize;
        let series = r.u32("series")? as usize;
        let columns = r.u16("columns")? as usize;
        let series_width = r.u8("series width")?;
        let time_width = r.u8("time width")?;
        if rows == 0 || rows > MAX_ROWS || series == 0 || series > rows {
            return Err(r.fail("row count"));
        }
        let key_bytes = r.u32("key bytes")? as usize;
        let key_ends = r.u32s(series, "key ends")?;
        let keys = r.take(key_bytes, "keys")?.to_vec();
        if key_ends.windows(2).any(|w| w[0] > w[1]) || key_ends.last() != Some(&(key_bytes as u32)) {
            return Err(r.fail("key ends"));
        }
        let row_series: Vec<u32> = match series_width {
            0 if series == rows => (0..rows as u32).collect(),
            1 => r.take(rows, "row series")?.iter().map(|&b| u32::from(b)).collect(),
            2 => r.take(rows * 2, "row series")?.chunks_exact(2).map(|c| u32::from(u16::from_le_bytes([c[0], c[1]]))).collect(),
            4 => r.u32s(rows, "row series")?,
            _ => return Err(r.fail("series width")),
        };
        if row_series.iter().any(|&s| s as usize >= series) {
            return Err(r.fail("row series"));
        }
        let min = r.u64("time")? as i64;
        let times: Vec<i64> = match time_width {
            4 => r.take(rows * 4, "times")?.chunks_exact(4).map(|c| min.wrapping_add(i64::from(le_u32(c)))).collect(),
            8 => r.take(rows * 8, "times")?.chunks_exact(8).map(|c| min.wrapping_add(le_u64(c) as i64)).collect(),
            _ => return Err(r.fail("time width")),
        };
        let mut batch =
            PointBatch { table, schema_version, keys, key_ends, row_series, times, columns: Vec::with_capacity(columns.min(1024)) };
        for _ in 0..columns {
            let column = r.column(rows)?;
            batch.columns.push(column);
        }
        Ok((batch, r.at))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn fail(&self, what: &'static str) -> DecodeError {
        DecodeError { what, at: self.at }
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end)).ok_or(self.fail(what))?;
        self.at += n;
        Ok(taken)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        let b = self.take(2, what)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(le_u32(self.take(4, what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(le_u64(self.take(8, what)?))
    }

    fn u32s(&mut self, n: usize, what: &'static str) -> Result<Vec<u32>, DecodeError> {
        let bytes = self.take(n.checked_mul(4).ok_or(self.fail(what))?, what)?;
        Ok(bytes.chunks_exact(4).map(le_u32).collect())
    }

    fn bitmap(&mut self, rows: usize, what: &'static str) -> Result<Bitmap, DecodeError> {
        let words = self.take(rows.div_ceil(64) * 8, what)?.chunks_exact(8).map(le_u64).collect();
        Ok(Bitmap::from_words(words, rows))
    }

    fn narrow(&mut self, rows: usize) -> Result<Vec<u64>, DecodeError> {
        let width = self.u8("integer width")? as usize;
        let min = self.u64("integer minimum")?;
        let bytes = self.take(rows * width.min(8), "integers")?;
        Ok(match width {
            1 => bytes.iter().map(|&b| min.wrapping_add(u64::from(b))).collect(),
            2 => bytes.chunks_exact(2).map(|c| min.wrapping_add(u64::from(u16::from_le_bytes([c[0], c[1]])))).collect(),
            4 => bytes.chunks_exact(4).map(|c| min.wrapping_add(u64::from(le_u32(c)))).collect(),
            8 => bytes.chunks_exact(8).map(|c| min.wrapping_add(le_u64(c))).collect(),
            _ => return Err(self.fail("integer width")),
        })
    }

    fn column(&mut self, rows: usize) -> Result<FieldColumn, DecodeError> {
        let id = ColumnId(self.u16("column id")?);
        let kind = self.u8("column type")?;
        let kind = ColumnType::from_u8(kind).ok_or(self.fail("column type"))?;
        let valid = match self.u8("column flags")? {
            0 => None,
            1 => Some(self.bitmap(rows, "validity")?),
            _ => return Err(self.fail("column flags")),
        };
        let values = match kind {
            ColumnType::F64 => {
                let bytes = self.take(rows * 8, "floats")?;
                Values::F64(bytes.chunks_exact(8).map(|c| f64::from_bits(le_u64(c))).collect())
            }
            ColumnType::I64 => Values::I64(self.narrow(rows)?.into_iter().map(|v| v as i64).collect()),
            ColumnType::U64 => Values::U64(self.narrow(rows)?),
            ColumnType::Bool => Values::Bool(self.bitmap(rows, "booleans")?),
            ColumnType::Str => {
                let total = self.u32("text bytes")? as usize;
                let ends = self.u32s(rows, "text ends")?;
                let bytes = self.take(total, "text")?;
                let text = std::str::from_utf8(bytes).map_err(|_| self.fail("text"))?;
                let whole = ends.windows(2).all(|w| w[0] <= w[1]) && ends.last() == Some(&(total as u32));
                if !whole || !ends.iter().all(|&e| text.is_char_boundary(e as usize)) {
                    return Err(self.fail("text ends"));
                }
                Values::Str(Strings { bytes: bytes.to_vec(), ends })
            }
        };
        Ok(FieldColumn { id, values, valid })
    }
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends each value as `N` bytes. Room is made once, so that the loop is nothing but stores.
#[inline]
fn put_fixed<T: Copy, const N: usize>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    let start = out.len();
    out.resize(start + values.len() * N, 0);
    let (room, _) = out[start..].as_chunks_mut::<N>();
    room.iter_mut().zip(values).for_each(|(room, &value)| *room = bytes(value));
}

fn put_narrow<T: Copy>(out: &mut Vec<u8>, min: u64, span: u64, values: &[T], above: impl Fn(T) -> u64) {
    let width: u8 = match span {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    out.push(width);
    out.extend_from_slice(&min.to_le_bytes());
    match width {
        1 => put_fixed(out, values, |v| [above(v) as u8]),
        2 => put_fixed(out, values, |v| (above(v) as u16).to_le_bytes()),
        4 => put_fixed(out, values, |v| (above(v) as u32).to_le_bytes()),
        _ => put_fixed(out, values, |v| above(v).to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::point::SeriesKey;

    fn any_values(rows: usize) -> impl Strategy<Value = Values> {
        prop_oneof![
            prop::collection::vec(-1e300f64..1e300, rows).prop_map(Values::F64),
            prop::collection::vec(any::<i64>(), rows).prop_map(Values::I64),
            prop::collection::vec(-100i64..100, rows).prop_map(Values::I64),
            prop::collection::vec(any::<u64>(), rows).prop_map(Values::U64),
            prop::collection::vec(0u64..70_000, rows).prop_map(Values::U64),
            prop::collection::vec(any::<bool>(), rows).prop_map(|bits| {
                let mut bitmap = Bitmap::default();
                bits.into_iter().for_each(|b| bitmap.push(b));
                Values::Bool(bitmap)
            }),
            prop::collection::vec("[aé\u{0}]{0,6}", rows).prop_map(|texts| {
                let mut strings = Strings::default();
                texts.iter().for_each(|t| strings.push(t));
                Values::Str(strings)
            }),
        ]
    }

    fn any_batch() -> impl Strategy<Value = PointBatch> {
        (1usize..200, 1usize..40).prop_flat_map(|(rows, series)| {
            let series = series.min(rows);
            let columns = prop::collection::vec((any_values(rows), prop::option::of(prop::collection::vec(any::<bool>(), rows))), 0..5);
            let times = prop_oneof![prop::collection::vec(any::<i64>(), rows), prop::collection::vec(0i64..1_000_000, rows)];
            (times, prop::collection::vec(0..series as u32, rows), columns).prop_map(move |(times, mut row_series, columns)| {
                let mut batch = PointBatch::new(TableId(3), 9);
                if series == rows {
                    row_series = (0..rows as u32).collect();
                }
                for s in 0..series {
                    batch.push_series(SeriesKey::new([Some(format!("device-{s}").as_str())]).as_bytes());
                }
                batch.times = times;
                batch.row_series = row_series;
                for (i, (values, valid)) in columns.into_iter().enumerate() {
                    let valid = valid.map(|bits| {
                        let mut bitmap = Bitmap::default();
                        bits.into_iter().for_each(|b| bitmap.push(b));
                        bitmap
                    });
                    batch.columns.push(FieldColumn { id: ColumnId(i as u16 + 1), values, valid });
                }
                batch
            })
        })
    }

    proptest! {
        #[test]
        fn decode_gives_back_what_was_encoded(batch in any_batch(), tail in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            prop_assert!(bytes.len() <= batch.encoded_len_bound());
            let len = bytes.len();
            bytes.extend(tail);
            prop_assert_eq!(PointBatch::decode(&bytes), Ok((batch, len)));
        }

        #[test]
        fn a_range_appended_equals_its_rows_appended(
            values in (1usize..200).prop_flat_map(any_values),
            before in 0usize..70,
            cut in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let (a, b) = (cut.0.index(values.len() + 1), cut.1.index(values.len() + 1));
            let (start, end) = (a.min(b), a.max(b));
            let mut by_range = Values::new(values.kind());
            by_range.extend_empty(before);
            let mut by_row = by_range.clone();
            by_range.extend_range(&values, start, end);
            by_row.extend_from(&values, &(start as u32..end as u32).collect::<Vec<_>>());
            prop_assert_eq!(by_range, by_row);
        }

        #[test]
        fn a_cut_batch_is_an_error(batch in any_batch(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(PointBatch::decode(&bytes).is_err());
        }

        #[test]
        fn damaged_bytes_never_panic(batch in any_batch(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = PointBatch::decode(&bytes);
        }

        #[test]
        fn parts_hold_every_row_once(batch in any_batch()) {
            let owners: Vec<u32> = (0..batch.series() as u32).map(|s| s % 3).collect();
            let parts = batch.split(&owners);
            prop_assert_eq!(parts.iter().map(|(_, part)| part.rows()).sum::<usize>(), batch.rows());
            for (owner, part) in &parts {
                let of_owner = |row: &usize| owners[batch.row_series[*row] as usize] == *owner;
                for (new, old) in (0..batch.rows()).filter(of_owner).enumerate() {
                    prop_assert_eq!(part.times[new], batch.times[old]);
                    prop_assert_eq!(part.key(part.row_series[new] as usize), batch.key(batch.row_series[old] as usize));
                }
                let mut bytes = Vec::new();
                part.encode(&mut bytes);
                let (decoded, _) = PointBatch::decode(&bytes).unwrap();
                prop_assert_eq!(&decoded, part);
            }
            let whole = batch.slice(0, batch.rows());
            prop_assert_eq!(&whole.times, &batch.times);
        }
    }
}
