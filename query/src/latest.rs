//! `latest(TABLE)`: the newest row of each series.
//!
//! The shard's last rows answer it where they are sure (DESIGN rule 11); elsewhere it is computed from the scan, which is
//! in order of series and time, as the last row of each run. Both must give the same rows.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use datafusion::arrow::compute::kernels::partition::partition;
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::Expr;
use storage::scan::Rows;
use storage::{ScanColumn, ScanRequest, View};

use crate::engine::Shortcuts;
use crate::error::Error;
use crate::scope::Scope;
use crate::table::{Table, Which};

/// The table function.
#[derive(Debug)]
pub(crate) struct Latest;

impl TableFunctionImpl for Latest {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let [Expr::Column(name)] = args.exprs() else {
            return plan_err!("latest() takes the name of one table: latest(phone)");
        };
        let scope = Scope::of(args.session().config())?;
        let database = name.relation.as_ref().map_or(&*scope.database, |r| r.table());
        let found = scope.catalog.database(database).and_then(|d| Some((d, d.tables.get(&*name.name)?)));
        let Some((database, table)) = found else {
            return Err(Error::sql(format!("table '{database}.{}' not found", name.name)).inside());
        };
        Ok(Arc::new(Table::new(database.clone(), table.clone(), Which::Latest)))
    }
}

/// The newest row of each series of one shard.
pub(crate) fn rows(view: &View, shortcuts: Shortcuts, request: &ScanRequest) -> storage::Result<Rows> {
    if shortcuts == Shortcuts::On
        && let Some(batches) = view.latest(request)?
    {
        return Ok(Box::new(batches.into_iter().map(Ok)));
    }
    let asked = request.projection.clone();
    let mut request = request.clone();
    request.times = i64::MIN..=i64::MAX;
    let tags: Vec<ScanColumn> = request.table.tags().into_iter().map(|c| ScanColumn::Column(c.id)).collect();
    for tag in &tags {
        if !request.projection.contains(tag) {
            request.projection.push(*tag);
        }
    }
    let key = tags.iter().filter_map(|t| request.projection.iter().position(|p| p == t)).collect();
    let rows = view.scan(&request)?;
    Ok(Box::new(LastOfRuns { rows, key, asked: asked.len(), held: None, ended: false }))
}

/// Keeps the last row of each run of equal keys; the last run's is held back until it is known to have ended.
struct LastOfRuns {
    rows: Rows,
    key: Vec<usize>,
    /// How many columns were asked for: they come first, the others were only needed to tell series apart.
    asked: usize,
    held: Option<RecordBatch>,
    ended: bool,
}

impl LastOfRuns {
    fn step(&mut self, batch: RecordBatch) -> storage::Result<RecordBatch> {
        let batch = match self.held.take() {
            Some(held) => concat_batches(&batch.schema(), [&held, &batch]).expect("batches of one scan have one schema"),
            None => batch,
        };
        let key: Vec<ArrayRef> = self.key.iter().map(|&i| batch.column(i).clone()).collect();
        // A table without tags is one series.
        let mut last: Vec<u32> = match key.is_empty() {
            true => vec![batch.num_rows() as u32 - 1],
            false => partition(&key).expect("tags can be compared").ranges().iter().map(|r| r.end as u32 - 1).collect(),
        };
        let open = last.pop().expect("the batch has a row");
        self.held = Some(take_record_batch(&batch, &UInt32Array::from(vec![open])).expect("the row is in the batch"));
        Ok(take_record_batch(&batch, &UInt32Array::from(last)).expect("the rows are in the batch"))
    }

    fn cut(&self, batch: RecordBatch) -> RecordBatch {
        let asked: Vec<usize> = (0..self.asked).collect();
        batch.project(&asked).expect("the asked columns come first")
    }
}

impl Iterator for LastOfRuns {
    type Item = storage::Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.rows.next() {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => match self.step(batch) {
                    Ok(done) if done.num_rows() == 0 => {}
                    Ok(done) => return Some(Ok(self.cut(done))),
                    Err(e) => return Some(Err(e)),
                },
                Some(Err(e)) => {
                    self.ended = true;
                    self.held = None;
                    return Some(Err(e));
                }
                None => self.ended = true,
            }
        }
        self.held.take().map(|held| Ok(self.cut(held)))
    }
}
