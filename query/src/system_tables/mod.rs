//! The `system` schema: what the node knows about itself, as tables, in every database.
//!
//! Rows are made when a query names the table; who may see one database only sees nothing of the others here either. `devices` is a question over the database's own tables in disguise.

mod columns;
mod devices;

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::{DataFusionError, Result};

use crate::engine::Inner;
use crate::scope::Scope;

/// All of them.
pub(crate) const NAMES: [&str; 11] =
    ["nodes", "shards", "files", "databases", "tables", "columns", "queries", "moves", "refused_lines", "settings", "devices"];

/// The system table of this name.
pub(crate) fn table(name: &str, scope: &Scope, engine: &Inner) -> Result<Option<Arc<dyn TableProvider>>> {
    let columns = match name {
        "nodes" => columns::nodes(&(engine.sources.nodes)()),
        "shards" => columns::shards(&engine.cluster.shard_status()),
        "files" => {
            let mut files = engine.cluster.files();
            files.retain(|(_, file)| scope.only.is_none() || scope.catalog.table(file.table).is_some());
            columns::files(&files, &scope.catalog)
        }
        "databases" => columns::databases(&scope.catalog),
        "tables" => columns::tables(&scope.catalog),
        "columns" => columns::columns(&scope.catalog),
        "queries" => {
            let mut queries = engine.running.seen();
            queries.retain(|query| scope.sees(&query.database));
            columns::queries(&queries)
        }
        "moves" => columns::moves(),
        "refused_lines" => {
            let mut lines = (engine.sources.refused_lines)();
            lines.retain(|line| scope.sees(&line.database));
            columns::refused_lines(&lines)
        }
        // They are the whole node's.
        "settings" if scope.only.is_some() => columns::settings(&[]),
        "settings" => columns::settings(&(engine.sources.settings)()),
        "devices" => return devices::view(scope).map(Some),
        _ => return Ok(None),
    };
    rows(columns).map(|t| Some(Arc::new(t) as Arc<dyn TableProvider>))
}

/// A table of columns that are at hand.
fn rows(columns: Vec<(&'static str, ArrayRef)>) -> Result<MemTable> {
    let fields: Vec<Field> = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(DataFusionError::from)?;
    MemTable::try_new(schema, vec![vec![batch]])
}
