//! Tables and columns that well-formed lines of a body use and that the schema does not have yet.
//!
//! To the lines behind, a wanted column is as good as a real one: the first type wins. A line that is refused after all
//! takes back what it alone wanted.

use std::sync::Arc;

use hashbrown::HashMap;
use model::ColumnType;
use model::schema::NewColumn;

/// A column that some line wants.
pub(super) struct WantedColumn {
    pub(super) column: NewColumn,
    /// The last line that named it.
    pub(super) named_by: u64,
}

/// The columns wanted of one table.
pub(super) struct WantedTable {
    pub(super) name: Arc<str>,
    columns: Vec<WantedColumn>,
    by_name: HashMap<Arc<str>, u32>,
    /// Whether the schema lacks the table itself.
    pub(super) is_new: bool,
}

impl WantedTable {
    /// The wanted column of this name.
    pub(super) fn column(&mut self, name: &str) -> Option<&mut WantedColumn> {
        let i = *self.by_name.get(name)?;
        Some(&mut self.columns[i as usize])
    }

    /// How many columns are wanted.
    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// Wants one more column.
    pub(super) fn add(&mut self, name: &str, field: Option<ColumnType>, named_by: u64) {
        let name: Arc<str> = name.into();
        self.by_name.insert(name.clone(), self.columns.len() as u32);
        self.columns.push(WantedColumn { column: NewColumn { name, field }, named_by });
    }
}

/// All that is wanted of one database.
#[derive(Default)]
pub(super) struct Wanted {
    tables: Vec<WantedTable>,
    by_name: HashMap<Arc<str>, u32>,
    new_tables: usize,
}

impl Wanted {
    /// How many tables are wanted that the schema lacks.
    pub(super) fn new_tables(&self) -> usize {
        self.new_tables
    }

    /// The number of the table of this name, if it is wanted.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|&i| i as usize)
    }

    /// Starts to want columns of a table.
    pub(super) fn add(&mut self, name: &str, is_new: bool) -> usize {
        let name: Arc<str> = name.into();
        self.by_name.insert(name.clone(), self.tables.len() as u32);
        self.tables.push(WantedTable { name, columns: Vec::new(), by_name: HashMap::new(), is_new });
        self.new_tables += usize::from(is_new);
        self.tables.len() - 1
    }

    /// The table with this number.
    pub(super) fn get(&mut self, i: usize) -> &mut WantedTable {
        &mut self.tables[i]
    }

    /// Takes back what was added to table `i` beyond its first `len` columns, and the table where nothing is left of it.
    pub(super) fn take_back(&mut self, i: usize, len: usize) {
        let table = &mut self.tables[i];
        for column in table.columns.drain(len..) {
            table.by_name.remove(&column.column.name);
        }
        if len == 0 {
            debug_assert_eq!(i + 1, self.tables.len(), "only the line at hand wanted something of this table");
            let table = self.tables.pop().expect("it is the last");
            self.by_name.remove(&table.name);
            self.new_tables -= usize::from(table.is_new);
        }
    }

    /// Gives everything wanted, in the order in which lines wanted it, and wants nothing any more.
    pub(super) fn take(&mut self) -> Vec<(Arc<str>, Vec<NewColumn>)> {
        self.by_name.clear();
        self.new_tables = 0;
        self.tables.drain(..).map(|t| (t.name, t.columns.into_iter().map(|c| c.column).collect())).collect()
    }
}
