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
    /// Where its column stands in the builder, or [`Key::NOWHERE`].
    pub(super) place: u32,
}

impl Key {
    /// No column.
    pub(super) const NONE: u32 = u32::MAX;
    /// Not in the builder.
    pub(super) const NOWHERE: u32 = u32::MAX;

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
        Key { words, len, kind, next, place: Key::NOWHERE }
    }

    /// Whether `name=` stands at `at`.
    #[inline]
    pub(super) fn matches(&self, bytes: &[u8], at: usize) -> bool {
        let len = self.len as usize;
        let same = |i: usize| (word(bytes, at + 8 * i) ^ self.words[i]) & low_bytes(len - 8 * i) == 0;
        len > 0 && same(0) && (len <= 8 || (same(1) && (len <= 16 || same(2))))
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
    pub(super) builder: Builder,
}

impl Table {
    fn new(schema: Arc<TableSchema>) -> Table {
        let mut table = Table { schema, columns: Vec::new(), keys: Vec::new(), first: 0, by_name: HashMap::new(), builder: Builder::new() };
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

    /// Where column `i`, a field, stands in the builder.
    #[inline]
    pub(super) fn place(&mut self, i: usize) -> usize {
        match self.keys[i].place {
            Key::NOWHERE => self.new_place(i),
            place => place as usize,
        }
    }

    #[cold]
    fn new_place(&mut self, i: usize) -> usize {
        let Column { id, kind: ColumnKind::Field(kind), .. } = self.columns[i] else { unreachable!("only fields have values") };
        let place = self.builder.add_column(id, kind);
        self.keys[i].place = place as u32;
        place
    }

    /// How many values, absent ones too, one more row will add if `fresh` of its columns are not in the builder yet.
    #[inline]
    pub(super) fn cells_of_row(&self, fresh: usize) -> usize {
        self.builder.columns() + fresh * (self.builder.rows() + 1)
    }

    /// Moves the rows out.
    pub(super) fn take(&mut self) -> Option<ParsedBatch> {
        self.keys.iter_mut().for_each(|k| k.place = Key::NOWHERE);
        self.builder.take(self.schema.id, self.schema.version)
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
