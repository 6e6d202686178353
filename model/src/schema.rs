//! What columns a table has, and what happens when two schemas meet: the first kind and type of a name win for ever.
//!
//! Tables and columns have ids that are never reused; a record in the log names them by id, so renaming or dropping
//! one can never give old bytes a new meaning. Who agrees on a schema is not decided here (`cluster::metadata`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ColumnId, DatabaseId, TableId};

/// The tag by which points are routed to shards where a database does not name another.
pub const DEFAULT_ROUTING_TAG: &str = "device_id";
/// The database of requests that name none.
pub const DEFAULT_DATABASE: &str = "default";
/// Names that SQL keeps for itself.
const RESERVED: [&str; 2] = ["system", "information_schema"];
/// Columns that a table may have; limit `max_columns_per_table`, fixed.
pub const MAX_COLUMNS_PER_TABLE: usize = 1_000;
/// Tables that a database may have; limit `max_tables_per_database`, fixed.
pub const MAX_TABLES_PER_DATABASE: usize = 10_000;
/// Databases that there may be; limit `max_databases`, fixed.
pub const MAX_DATABASES: usize = 10_000;
/// Bytes of a database's, table's or column's name.
pub const MAX_NAME_BYTES: usize = 255;
/// Name of the column that every table has and that no tag or field may take.
pub const TIME_COLUMN: &str = "time";

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ColumnType {
    /// 64-bit float.
    F64 = 1,
    /// Signed 64-bit integer.
    I64 = 2,
    /// Unsigned 64-bit integer.
    U64 = 3,
    /// Boolean.
    Bool = 4,
    /// UTF-8 text.
    Str = 5,
}

impl ColumnType {
    /// The word that error messages and `system.columns` use, InfluxDB's.
    pub fn name(self) -> &'static str {
        match self {
            ColumnType::F64 => "float",
            ColumnType::I64 => "integer",
            ColumnType::U64 => "unsigned",
            ColumnType::Bool => "boolean",
            ColumnType::Str => "string",
        }
    }

    /// The type with this number in an encoding.
    pub fn from_u8(number: u8) -> Option<ColumnType> {
        Some(match number {
            1 => ColumnType::F64,
            2 => ColumnType::I64,
            3 => ColumnType::U64,
            4 => ColumnType::Bool,
            5 => ColumnType::Str,
            _ => return None,
        })
    }
}

/// What a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    /// A label that names the series; its place in a [`SeriesKey`](crate::SeriesKey). The routing tag has position 0,
    /// the others 1, 2, … in the order in which the table got them.
    Tag {
        /// The place in the key.
        position: u16,
    },
    /// A measured value.
    Field(ColumnType),
}

impl ColumnKind {
    /// The word for it in messages: `tag` or the field's type.
    pub fn name(self) -> &'static str {
        match self {
            ColumnKind::Tag { .. } => "tag",
            ColumnKind::Field(kind) => kind.name(),
        }
    }
}

/// One tag or field column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its number, never reused in its table.
    pub id: ColumnId,
    /// Its name as written, case kept.
    pub name: Arc<str>,
    /// Tag or field.
    pub kind: ColumnKind,
}

/// A column that a table is asked to have: what a writer knows before the table has agreed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NewColumn {
    /// Its name.
    pub name: Arc<str>,
    /// `None` asks for a tag, otherwise for a field of this type.
    pub field: Option<ColumnType>,
}

/// Why a table cannot have a column.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum SchemaError {
    /// The name is taken by another kind or type.
    #[error("column '{column}' of table '{table}' is type {existing}, not {asked}")]
    Conflict {
        /// The table.
        table: Arc<str>,
        /// The column.
        column: Arc<str>,
        /// What it is: `tag` or a type's name.
        existing: String,
        /// What it was asked to be.
        asked: String,
    },
    /// The table has as many columns as it may.
    #[error("table '{table}' would have more than {limit} columns (limit max_columns_per_table, fixed)")]
    TooManyColumns {
        /// The table.
        table: Arc<str>,
        /// The limit.
        limit: usize,
    },
    /// The database has as many tables as it may.
    #[error("database '{database}' would have more than {limit} tables (limit max_tables_per_database, fixed)")]
    TooManyTables {
        /// The database.
        database: Arc<str>,
        /// The limit.
        limit: usize,
    },
    /// There are as many databases as there may be.
    #[error("there would be more than {limit} databases (limit max_databases, fixed)")]
    TooManyDatabases {
        /// The limit.
        limit: usize,
    },
    /// A name that may not be used.
    #[error("{what} name '{name}' {why}")]
    BadName {
        /// `database`, `table` or `column`.
        what: String,
        /// The name, cut to 64 bytes.
        name: String,
        /// What is wrong with it, and the limit's setting where it is a limit.
        why: String,
    },
}

/// The columns of one table, in the order in which it got them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "TableParts", into = "TableParts")]
pub struct TableSchema {
    /// Its number.
    pub id: TableId,
    /// The database it is in.
    pub database: DatabaseId,
    /// Its name, line protocol's first word.
    pub name: Arc<str>,
    /// Grows by one with each change.
    pub version: u32,
    columns: Vec<Column>,
    by_name: HashMap<Arc<str>, usize>,
    next_column: u16,
    next_tag: u16,
}

#[derive(Clone, Serialize, Deserialize)]
struct TableParts {
    id: TableId,
    database: DatabaseId,
    name: Arc<str>,
    version: u32,
    columns: Vec<Column>,
    next_column: u16,
    next_tag: u16,
}

impl From<TableParts> for TableSchema {
    fn from(p: TableParts) -> TableSchema {
        let by_name = p.columns.iter().enumerate().map(|(i, c)| (c.name.clone(), i)).collect();
        TableSchema {
            id: p.id,
            database: p.database,
            name: p.name,
            version: p.version,
            columns: p.columns,
            by_name,
            next_column: p.next_column,
            next_tag: p.next_tag,
        }
    }
}

impl From<TableSchema> for TableParts {
    fn from(t: TableSchema) -> TableParts {
        TableParts {
            id: t.id,
            database: t.database,
            name: t.name,
            version: t.version,
            columns: t.columns,
            next_column: t.next_column,
            next_tag: t.next_tag,
        }
    }
}

impl TableSchema {
    /// A table without columns (but for `time`, which every table has and no schema lists).
    pub fn new(id: TableId, database: DatabaseId, name: Arc<str>) -> TableSchema {
        TableSchema { id, database, name, version: 1, columns: Vec::new(), by_name: HashMap::new(), next_column: 1, next_tag: 1 }
    }

    /// All columns, oldest first.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.by_name.get(name).map(|&i| &self.columns[i])
    }

    /// The column with this id.
    pub fn column_by_id(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|c| c.id == id)
    }

    /// Tag columns by position in the series key: the order that rows of a file are sorted in.
    pub fn tags(&self) -> Vec<&Column> {
        let mut tags: Vec<&Column> = self.columns.iter().filter(|c| matches!(c.kind, ColumnKind::Tag { .. })).collect();
        tags.sort_by_key(|c| match c.kind {
            ColumnKind::Tag { position } => position,
            ColumnKind::Field(_) => unreachable!("filtered above"),
        });
        tags
    }

    /// Field columns, oldest first.
    pub fn fields(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| matches!(c.kind, ColumnKind::Field(_)))
    }

    /// Adds a column, or finds that it is there; `true` if it was added. The first kind and type win.
    pub fn add(&mut self, new: &NewColumn, routing_tag: &str, limit: usize) -> Result<bool, SchemaError> {
        if let Some(existing) = self.column(&new.name) {
            let same = match (existing.kind, new.field) {
                (ColumnKind::Tag { .. }, None) => true,
                (ColumnKind::Field(is), Some(asked)) => is == asked,
                _ => false,
            };
            return if same { Ok(false) } else { Err(self.conflict(existing, new.field)) };
        }
        check_name("column", &new.name)?;
        if &*new.name == TIME_COLUMN {
            return Err(bad_name("column", &new.name, "is every table's time and cannot be a tag or field".to_owned()));
        }
        if self.columns.len() >= limit || self.next_column == u16::MAX {
            return Err(SchemaError::TooManyColumns { table: self.name.clone(), limit });
        }
        let (id, kind) = match new.field {
            None if &*new.name == routing_tag => (ColumnId(0), ColumnKind::Tag { position: 0 }),
            None => {
                let position = self.next_tag;
                self.next_tag += 1;
                (self.take_id(), ColumnKind::Tag { position })
            }
            Some(field) => (self.take_id(), ColumnKind::Field(field)),
        };
        self.by_name.insert(new.name.clone(), self.columns.len());
        self.columns.push(Column { id, name: new.name.clone(), kind });
        self.version += 1;
        Ok(true)
    }

    /// The error for a column that is asked to be something else than it is.
    pub fn conflict(&self, existing: &Column, asked: Option<ColumnType>) -> SchemaError {
        SchemaError::Conflict {
            table: self.name.clone(),
            column: existing.name.clone(),
            existing: existing.kind.name().to_owned(),
            asked: asked.map_or("tag", ColumnType::name).to_owned(),
        }
    }

    fn take_id(&mut self) -> ColumnId {
        let id = ColumnId(self.next_column);
        self.next_column += 1;
        id
    }
}

/// One database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSchema {
    /// Its number.
    pub id: DatabaseId,
    /// Its name.
    pub name: Arc<str>,
    /// The tag by which its points are routed; fixed when it is created.
    pub routing_tag: Arc<str>,
    /// How long rows are kept, in nanoseconds; `None` keeps them for ever.
    pub retention_ns: Option<i64>,
    /// Its tables by name.
    pub tables: BTreeMap<Arc<str>, Arc<TableSchema>>,
}

/// All databases as agreed at one point of the metadata group's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Grows with each change.
    pub version: u64,
    /// Databases by name.
    pub databases: BTreeMap<Arc<str>, Arc<DatabaseSchema>>,
    /// The number that the next new table gets: they only grow, so that one who does not know a table knows why.
    #[serde(default)]
    pub next_table: u32,
    /// Where each table is, by its number.
    #[serde(skip)]
    pub index: TableIndex,
}

/// The names of each table and its database by its number: made when first asked for, and by each copy of a catalog anew.
///
/// Who changes a catalog in place empties it. A name that it gives is looked at before it is believed, and a table that it does not
/// have is looked for: it makes answers fast and never other ones.
#[derive(Default)]
pub struct TableIndex {
    names: OnceLock<HashMap<TableId, Names>>,
}

/// A database's name and a table's.
type Names = (Arc<str>, Arc<str>);

impl Clone for TableIndex {
    fn clone(&self) -> TableIndex {
        TableIndex::default()
    }
}

impl PartialEq for TableIndex {
    fn eq(&self, _: &TableIndex) -> bool {
        true
    }
}

impl Eq for TableIndex {}

impl fmt::Debug for TableIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableIndex").finish_non_exhaustive()
    }
}

impl Catalog {
    /// The database of this name.
    pub fn database(&self, name: &str) -> Option<&Arc<DatabaseSchema>> {
        self.databases.get(name)
    }

    /// Whether a table was there and is no more. One that is not there may also be too new for this catalog.
    pub fn has_forgotten(&self, id: TableId) -> bool {
        id.0 < self.next_table && self.table(id).is_none()
    }

    /// The database and table of this table id.
    pub fn table(&self, id: TableId) -> Option<(&Arc<DatabaseSchema>, &Arc<TableSchema>)> {
        let names = self.index.names.get_or_init(|| self.tables().map(|(d, t)| (t.id, (d.name.clone(), t.name.clone()))).collect());
        let named = names.get(&id).and_then(|(database, table)| {
            let database = self.databases.get(database)?;
            database.tables.get(table).filter(|t| t.id == id).map(|t| (database, t))
        });
        named.or_else(|| self.tables().find(|(_, t)| t.id == id))
    }

    fn tables(&self) -> impl Iterator<Item = (&Arc<DatabaseSchema>, &Arc<TableSchema>)> {
        self.databases.values().flat_map(|d| d.tables.values().map(move |t| (d, t)))
    }
}

/// Whether no database may have this name, however it is written: SQL means something else by it.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// Refuses names that no table, column or database may have: empty, too long, with control characters.
pub fn check_name(what: &str, name: &str) -> Result<(), SchemaError> {
    let why = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("is longer than {MAX_NAME_BYTES} bytes (limit max_name_bytes, fixed)")
    } else if name.chars().any(|c| c.is_control()) {
        "has a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(bad_name(what, name, why))
}

fn bad_name(what: &str, name: &str, why: String) -> SchemaError {
    let mut cut = name.len().min(64);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    SchemaError::BadName { what: what.to_owned(), name: name[..cut].to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TableSchema {
        TableSchema::new(TableId(1), DatabaseId(1), "phone".into())
    }

    fn field(name: &str, kind: ColumnType) -> NewColumn {
        NewColumn { name: name.into(), field: Some(kind) }
    }

    fn tag(name: &str) -> NewColumn {
        NewColumn { name: name.into(), field: None }
    }

    #[test]
    fn first_type_wins() {
        let mut t = table();
        assert_eq!(t.add(&field("v", ColumnType::F64), "device_id", 10), Ok(true));
        assert_eq!(t.add(&field("v", ColumnType::F64), "device_id", 10), Ok(false));
        let error = t.add(&field("v", ColumnType::I64), "device_id", 10).unwrap_err();
        assert_eq!(error.to_string(), "column 'v' of table 'phone' is type float, not integer");
        assert!(t.add(&tag("v"), "device_id", 10).is_err());
    }

    #[test]
    fn routing_tag_has_position_0_even_when_it_comes_late() {
        let mut t = table();
        for new in [tag("region"), field("v", ColumnType::F64), tag("device_id"), tag("model")] {
            t.add(&new, "device_id", 10).unwrap();
        }
        let names: Vec<&str> = t.tags().iter().map(|c| &*c.name).collect();
        assert_eq!(names, ["device_id", "region", "model"]);
        assert_eq!(t.column("device_id").unwrap().id, ColumnId(0));
    }

    #[test]
    fn names_and_limits_are_refused_by_name() {
        let mut t = table();
        t.add(&tag("a"), "device_id", 1).unwrap();
        assert!(t.add(&tag("b"), "device_id", 1).unwrap_err().to_string().contains("max_columns_per_table"));
        for bad in ["", "time", "a\nb", &"x".repeat(256)] {
            assert!(table().add(&tag(bad), "device_id", 10).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_schema_survives_its_text_form() {
        let mut t = table();
        t.add(&tag("device_id"), "device_id", 10).unwrap();
        t.add(&field("v", ColumnType::Str), "device_id", 10).unwrap();
        let text = serde_json_like(&t);
        assert_eq!(text, t);
    }

    /// A catalog of these databases, each with tables of these numbers.
    fn catalog(databases: &[(&str, &[u32])]) -> Catalog {
        let database = |&(name, tables): &(&str, &[u32])| {
            let id = DatabaseId(name.len() as u32);
            let named = |&n: &u32| (Arc::from(format!("t{n}")), Arc::new(TableSchema::new(TableId(n), id, format!("t{n}").into())));
            let tables = tables.iter().map(named).collect();
            let database = DatabaseSchema { id, name: name.into(), routing_tag: DEFAULT_ROUTING_TAG.into(), retention_ns: None, tables };
            (Arc::from(name), Arc::new(database))
        };
        Catalog { version: 1, databases: databases.iter().map(database).collect(), next_table: 100, ..Catalog::default() }
    }

    #[test]
    fn a_table_is_found_by_its_number_whatever_became_of_the_catalog_since() {
        fn names(catalog: &Catalog, id: u32) -> Option<(&str, &str)> {
            catalog.table(TableId(id)).map(|(database, table)| (&*database.name, &*table.name))
        }
        let mut one = catalog(&[("a", &[1, 2]), ("bb", &[3])]);
        assert_eq!([1, 2, 3, 4].map(|id| names(&one, id)), [Some(("a", "t1")), Some(("a", "t2")), Some(("bb", "t3")), None]);
        // Changed in place: a table is gone, another has its name, and one is new.
        one.databases = catalog(&[("a", &[2, 4]), ("bb", &[])]).databases;
        Arc::make_mut(one.databases.get_mut("a").unwrap()).tables.insert("t1".into(), Arc::new(table_of(9)));
        for catalog in [&one, &one.clone()] {
            assert_eq!([1, 2, 3, 4].map(|id| names(catalog, id)), [None, Some(("a", "t2")), None, Some(("a", "t4"))]);
            assert_eq!(names(catalog, 9), Some(("a", "t1")));
            assert!(catalog.has_forgotten(TableId(1)) && !catalog.has_forgotten(TableId(9)) && !catalog.has_forgotten(TableId(100)));
        }
        assert_eq!(one, one.clone());
    }

    fn table_of(id: u32) -> TableSchema {
        TableSchema::new(TableId(id), DatabaseId(1), "t1".into())
    }

    // serde_json is not a dependency of this crate: the two conversions that serde runs are called by hand.
    fn serde_json_like(t: &TableSchema) -> TableSchema {
        TableSchema::from(TableParts::from(t.clone()))
    }
}
