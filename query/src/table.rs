//! A table as DataFusion sees it: its columns, and how a scan of it is cut at the shards.
//!
//! Filters are only ever taken as hints ([`crate::prune`]): the filter stays above the scan, so that what is pruned
//! wrongly small costs rows nowhere but in `prune`, and what is not understood costs time only.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use model::{DatabaseSchema, TableSchema};
use storage::scan::arrow_schema;
use storage::{ScanColumn, ScanRequest};

use crate::engine::Shortcuts;
use crate::prune::{self, Bounds};
use crate::scope::Scope;
use crate::shard_scan::ShardScanExec;

/// Which rows of a table are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All of them.
    Every,
    /// The newest of each series: `latest(TABLE)`.
    Latest,
}

/// One table of one database.
#[derive(Debug)]
pub(crate) struct Table {
    database: Arc<DatabaseSchema>,
    table: Arc<TableSchema>,
    which: Which,
    schema: SchemaRef,
}

impl Table {
    pub(crate) fn new(database: Arc<DatabaseSchema>, table: Arc<TableSchema>, which: Which) -> Table {
        let schema = arrow_schema(&table);
        Table { database, table, which, schema }
    }

    /// What the filters leave of the table.
    fn bounds(&self, scope: &Scope, filters: &[Expr]) -> Bounds {
        match scope.shortcuts {
            Shortcuts::Off => Bounds::all(),
            Shortcuts::On => Bounds::of(filters, &self.table),
        }
    }
}

/// All columns of a table in the order of [`arrow_schema`].
fn columns(table: &TableSchema) -> Vec<ScanColumn> {
    let tags = table.tags().into_iter().map(|c| ScanColumn::Column(c.id));
    let fields = table.fields().map(|c| ScanColumn::Column(c.id));
    std::iter::once(ScanColumn::Time).chain(tags).chain(fields).collect()
}

/// The Arrow schema of some columns of a table, if it has them.
pub(crate) fn schema_of(table: &TableSchema, projection: &[ScanColumn]) -> Option<SchemaRef> {
    let columns = columns(table);
    let places: Option<Vec<usize>> = projection.iter().map(|asked| columns.iter().position(|c| c == asked)).collect();
    Some(Arc::new(arrow_schema(table).project(&places?).expect("the places are in the schema")))
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let taken = filters.iter().map(|f| match prune::understands(f, &self.table) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        });
        Ok(taken.collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let scope = Scope::of(state.config())?;
        let bounds = self.bounds(&scope, filters);
        let all = scope.map.ranges.iter().map(|range| range.shard).collect();
        let shards = bounds.shards(&self.database, &self.table, &scope.map, all);
        let columns = columns(&self.table);
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..columns.len()).collect());
        let schema = Arc::new(self.schema.project(&projection)?);
        if shards.is_empty() {
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let request = ScanRequest {
            table: self.table.clone(),
            projection: projection.iter().map(|&i| columns[i]).collect(),
            times: match self.which {
                Which::Every => bounds.times(),
                // The newest row is the newest of all: a filter on time applies to it afterwards.
                Which::Latest => i64::MIN..=i64::MAX,
            },
            tags: bounds.tags(),
            batch_rows: state.config().batch_size(),
        };
        let name = format!("{}.{}", self.database.name, self.table.name);
        let scan = ShardScanExec::plan(&scope, name, self.which, request, schema, shards).await?;
        let limit = limit.filter(|_| filters.is_empty());
        Ok(Arc::new(scan.with_limit(limit)))
    }
}
