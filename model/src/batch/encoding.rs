//! A batch as bytes, and back; drawn in the parent's header. Never panics on foreign bytes.

use super::{Bitmap, FieldColumn, MAX_ROWS, PointBatch, Strings, Values};
use crate::error::DecodeError;
use crate::ids::{ColumnId, TableId};
use crate::schema::ColumnType;

impl PointBatch {
    /// About how many bytes [`encode`](PointBatch::encode) will write: never fewer than it does.
    pub fn encoded_len_bound(&self) -> usize {
        let columns: usize = self
            .columns
            .iter()
            .map(|c| {
                let values = match &c.values {
                    Values::Bool(v) => v.words().len() * 8,
                    Values::Str(v) => v.bytes.len() + v.ends.len() * 4 + 4,
                    v => v.len() * 8 + 9,
                };
                4 + values + c.valid.as_ref().map_or(0, |v| v.words().len() * 8)
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
                put_fixed(out, valid.words(), u64::to_le_bytes);
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
                Values::Bool(v) => put_fixed(out, v.words(), u64::to_le_bytes),
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
