//! The tables that the lines of one database have named: what the schema says of them, and their rows of the body.

use std::sync::Arc;

use hashbrown::HashMap;
use model::{ColumnId, ColumnKind, ColumnType, DatabaseSchema, TableSchema};

use super::ParsedBatch;
use super::columns::Builder;
use super::numbers::{low_bytes, word};

/// Tables that a parser keeps between bodies; beyond, it forgets them all.
const MAX_TABLES_KEPT: usize = 16_384;

/// A tag or field column as the schema has it.
pub(super) struct Column {
    pub(super) id: ColumnId,
    pub(super) kind: ColumnKind,
    /// The last line that named it: tells a tag that stands twice.
    pub(super) named_by: u64,
}

/// How the fast path knows a field: the bytes `name=`, and which field followed last time.
pub(super) struct Key {
    words: [u64; 3],
    /// Bytes of `name=`; 0 where the fast path cannot know it: a tag, a name with escapes or a very long one.
    pub(super) len: u8,
    /// Its type.
    pub(super) kind: ColumnType,
    /// The column of the field that followed it last time.
    pub(super) next: u32,
}

impl Key {
    /// No column.
    pub(super) const NONE: u32 = u32::MAX;

    fn new(column: &model::Column, next: u32) -> Key {
        let mut words = [0; 3];
        let (mut len, mut kind) = (0, ColumnType::F64);
        let name = column.name.as_bytes();
        if let ColumnKind::Field(field) = column.kind
            && name.len() < 24
            && !name.iter().any(|b| matches!(b, b',' | b'=' | b' ' | b'\\' | b'\n'))
        {
            let text = [name, b"="].concat();
            words = [word(&text, 0), word(&text, 8), word(&text, 16)];
            (len, kind) = (text.len() as u8, field);
        }
        Key { words, len, kind, next }
    }

    /// Whether `name=` stands at `at`.
    #[inline]
    pub(super) fn matches(&self, bytes: &[u8], at: usize) -> bool {
        let len = self.len as usize;
        let same = |i: usize| (word(bytes, at + 8 * i) ^ self.words[i]) & low_bytes(len - 8 * i) == 0;
        len > 0 && same(0) && (len <= 8 || (same(1) && (len <= 16 || same(2))))
    }
}

/// A table's rows of the body at hand that go to one shard.
pub(super) struct Part {
    /// The shard's position in the map.
    owner: u32,
    /// Where each of the table's columns stands in the builder, or [`Part::NOWHERE`].
    places: Vec<u32>,
    pub(super) builder: Builder,
}

impl Part {
    /// Not in the builder.
    const NOWHERE: u32 = u32::MAX;

    /// Where column `i`, a field, stands in the builder.
    #[inline]
    pub(super) fn place(&mut self, columns: &[Column], i: usize) -> usize {
        match self.places[i] {
            Part::NOWHERE => self.new_place(columns, i),
            place => place as usize,
        }
    }

    #[cold]
    fn new_place(&mut self, columns: &[Column], i: usize) -> usize {
        let Column { id, kind: ColumnKind::Field(kind), .. } = columns[i] else { unreachable!("only fields have values") };
        let place = self.builder.add_column(id, kind);
        self.places[i] = place as u32;
        place
    }

    /// Whether column `i` has values in the builder.
    #[inline]
    pub(super) fn has(&self, i: usize) -> bool {
        self.places[i] != Part::NOWHERE
    }
}

/// One table.
pub(super) struct Table {
    pub(super) schema: Arc<TableSchema>,
    pub(super) columns: Vec<Column>,
    /// What the fast path compares; one for each of `columns`.
    pub(super) keys: Vec<Key>,
    /// The first field of the last line.
    pub(super) first: u32,
    by_name: HashMap<Arc<str>, u32>,
    /// The rows of the body at hand, shard by shard; behind the first `used` are parts that wait to be used again.
    pub(super) parts: Vec<Part>,
    used: usize,
}

impl Table {
    fn new(schema: Arc<TableSchema>) -> Table {
        let (columns, keys, by_name) = (Vec::new(), Vec::new(), HashMap::new());
        let mut table = Table { schema, columns, keys, first: 0, by_name, parts: Vec::new(), used: 0 };
        table.bind();
        table
    }

    fn bind(&mut self) {
        self.columns.clear();
        self.keys.clear();
        self.by_name.clear();
        for (i, column) in self.schema.columns().iter().enumerate() {
            let (id, kind) = (column.id, column.kind);
            self.by_name.insert(column.name.clone(), i as u32);
            self.keys.push(Key::new(column, i as u32 + 1));
            self.columns.push(Column { id, kind, named_by: 0 });
        }
    }

    /// The column of this name.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|&i| i as usize)
    }

    /// The rows that go to `owner`, if there are any yet.
    #[inline]
    pub(super) fn part_of(&self, owner: u32) -> Option<usize> {
        self.parts[..self.used].iter().position(|part| part.owner == owner)
    }

    /// Begins the rows that go to `owner`; the body may have `most_rows`. Gives them, and whether they are the table's first.
    pub(super) fn begin_part(&mut self, owner: u32, most_rows: usize) -> (usize, bool) {
        if self.used == self.parts.len() {
            self.parts.push(Part { owner, places: Vec::new(), builder: Builder::new() });
        }
        let part = &mut self.parts[self.used];
        part.owner = owner;
        part.places.clear();
        part.places.resize(self.columns.len(), Part::NOWHERE);
        part.builder.expect_rows(most_rows);
        self.used += 1;
        (self.used - 1, self.used == 1)
    }

    /// How many values, absent ones too, one more row of a part (`None`: one that has not begun) will add if `fresh` of its
    /// columns are not in it yet.
    #[inline]
    pub(super) fn cells_of_row(&self, part: Option<usize>, fresh: usize) -> usize {
        part.map_or(fresh, |part| {
            let builder = &self.parts[part].builder;
            builder.columns() + fresh * (builder.rows() + 1)
        })
    }

    /// Moves the rows out, a batch a part.
    pub(super) fn take(&mut self) -> impl Iterator<Item = ParsedBatch> {
        let (table, version) = (self.schema.id, self.schema.version);
        let used = std::mem::take(&mut self.used);
        self.parts[..used].iter_mut().filter_map(move |part| part.builder.take(table, version))
    }
}

/// All tables of one database that lines have named.
#[derive(Default)]
pub(super) struct Tables {
    schema: Option<Arc<DatabaseSchema>>,
    all: Vec<Table>,
    by_name: HashMap<Arc<str>, u32>,
}

impl Tables {
    /// Turns to `schema`. `false` if numbers given before mean nothing any more, because the database is another or a
    /// table was dropped.
    pub(super) fn turn_to(&mut self, schema: Option<&Arc<DatabaseSchema>>) -> bool {
        let kept = match (&self.schema, schema) {
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return true,
            (Some(old), Some(new)) if old.id == new.id && self.all.len() <= MAX_TABLES_KEPT => {
                self.all.iter_mut().all(|table| match new.tables.get(&table.schema.name) {
                    Some(now) if now.id == table.schema.id => {
                        if !Arc::ptr_eq(now, &table.schema) {
                            table.schema = now.clone();
                            table.bind();
                        }
                        true
                    }
                    _ => false,
                })
            }
            _ => false,
        };
        if !kept {
            self.all.clear();
            self.by_name.clear();
        }
        self.schema = schema.cloned();
        kept
    }

    /// The table of this name, if the schema has it.
    pub(super) fn find(&mut self, name: &str) -> Option<usize> {
        if let Some(&i) = self.by_name.get(name) {
            return Some(i as usize);
        }
        let schema = self.schema.as_ref()?.tables.get(name)?;
        self.by_name.insert(schema.name.clone(), self.all.len() as u32);
        self.all.push(Table::new(schema.clone()));
        Some(self.all.len() - 1)
    }

    /// How many tables the schema has.
    pub(super) fn in_schema(&self) -> usize {
        self.schema.as_ref().map_or(0, |s| s.tables.len())
    }

    /// The table with this number.
    #[inline]
    pub(super) fn get(&mut self, i: usize) -> &mut Table {
        &mut self.all[i]
    }
}
