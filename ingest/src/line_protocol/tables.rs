//! The tables that the lines of one database have named: what the schema says of them, and their rows of the body.

use std::sync::Arc;

use hashbrown::HashMap;
use model::{ColumnId, ColumnKind, DatabaseSchema, TableSchema};

use super::columns::Builder;

/// Tables that a parser keeps between bodies; beyond, it forgets them all.
const MAX_TABLES_KEPT: usize = 16_384;

/// A tag or field column as the schema has it.
pub(super) struct Column {
    pub(super) id: ColumnId,
    pub(super) kind: ColumnKind,
    pub(super) name: Arc<str>,
    /// Where it stands in the builder, or [`Column::NOWHERE`].
    pub(super) place: u32,
    /// The last line that named it: tells a tag that stands twice.
    pub(super) named_by: u64,
}

impl Column {
    pub(super) const NOWHERE: u32 = u32::MAX;
}

/// One table.
pub(super) struct Table {
    pub(super) schema: Arc<TableSchema>,
    pub(super) columns: Vec<Column>,
    by_name: HashMap<Arc<str>, u32>,
    pub(super) builder: Builder,
}

impl Table {
    fn new(schema: Arc<TableSchema>) -> Table {
        let mut table = Table { schema, columns: Vec::new(), by_name: HashMap::new(), builder: Builder::new() };
        table.bind();
        table
    }

    fn bind(&mut self) {
        self.columns.clear();
        self.by_name.clear();
        for (i, column) in self.schema.columns().iter().enumerate() {
            let (id, kind, name) = (column.id, column.kind, column.name.clone());
            self.by_name.insert(name.clone(), i as u32);
            self.columns.push(Column { id, kind, name, place: Column::NOWHERE, named_by: 0 });
        }
    }

    /// The column of this name.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|&i| i as usize)
    }

    /// Where column `i`, a field, stands in the builder.
    #[inline]
    pub(super) fn place(&mut self, i: usize) -> usize {
        let column = &mut self.columns[i];
        if column.place == Column::NOWHERE {
            let ColumnKind::Field(kind) = column.kind else { unreachable!("only fields have values") };
            column.place = self.builder.add_column(column.id, kind) as u32;
        }
        column.place as usize
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
