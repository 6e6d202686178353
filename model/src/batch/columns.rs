//! The columns of a batch: values of one type, one a row, and which rows have one.

use crate::ids::ColumnId;
use crate::schema::ColumnType;

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

    pub(super) fn from_words(words: Vec<u64>, len: usize) -> Bitmap {
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
