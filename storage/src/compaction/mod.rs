//! Files become fewer, richer files: what is merged and when is [`plan`]'s choice, here it is done.
//!
//! Inputs are read in the order of writes and merged by the same function as a scan, so the last write wins, field by field.
//! Memory is bounded in bytes, however large a row is: two batches of 4 MiB and a page of each column for each input, and 256
//! MiB for the row groups of all outputs. Rows older than the retention
//! cutoff are left out. Outputs are verified and durable before they are given; a failed run leaves nothing behind.

pub mod plan;

use std::sync::Arc;
use std::time::Instant;

use model::{TableSchema, Timestamp};

pub use self::plan::{Eagerness, Plan, Step, plan};
use crate::Result;
use crate::flush::ByDay;
use crate::manifest::{FileMeta, ManifestEdit};
use crate::merge;
use crate::parquet_file::{Effort, NewFile, ParquetFiles};
use crate::range::HashRange;
use crate::scan::{Rows, ScanRequest, within};

/// Rows of the batches that are merged: large enough for columns to pay, small enough for the cache.
const BATCH_ROWS: usize = 8 * 1024;
/// Days whose files are written at the same time when a `late/` file is cut; with more it is read several times.
const DAYS_AT_ONCE: usize = 32;

/// Runs a plan and gives the edit to propose. `database` and `table` are its table's, `cutoff` the first instant that its
/// database keeps, `range` the shard's: rows outside of it are left out too.
pub fn compact(
    files: &Arc<ParquetFiles>,
    plan: &Plan,
    database: Arc<str>,
    table: &Arc<TableSchema>,
    cutoff: Timestamp,
    range: HashRange,
) -> Result<ManifestEdit> {
    let start = Instant::now();
    let mut outputs = Vec::new();
    let written = write(files, plan, database, table, (cutoff, range), &mut outputs).and_then(|()| files.sync_folders(&outputs));
    if let Err(error) = written {
        files.remove(outputs.iter().map(|f| f.path.as_str()));
        return Err(error);
    }
    let (rows, bytes) = outputs.iter().fold((0, 0), |(rows, bytes), f| (rows + f.rows, bytes + f.bytes));
    let (step, inputs, elapsed) = (plan.step, plan.inputs.len(), start.elapsed());
    tracing::info!(table = %plan.table, ?step, inputs, outputs = outputs.len(), rows, bytes, ?elapsed, "compacted");
    let inputs = plan.inputs.iter().map(|f| f.path.clone()).collect();
    Ok(ManifestEdit::Compact { inputs, outputs, replica: files.replica() })
}

fn write(
    files: &Arc<ParquetFiles>,
    plan: &Plan,
    database: Arc<str>,
    table: &Arc<TableSchema>,
    kept: (Timestamp, HashRange),
    outputs: &mut Vec<FileMeta>,
) -> Result<()> {
    let ((from, to), range_version) = (plan.span(), kept.1.version);
    let new = NewFile { database, table: table.clone(), day: None, level: plan.level(), from, to, range_version, effort: Effort::Rich };
    match plan.step {
        Step::Expire => Ok(()),
        Step::Merge(day) => merge_into(files, plan, new, &[day], i64::MIN..=i64::MAX, kept, outputs),
        Step::MergeLate => merge_into(files, plan, new, &[], i64::MIN..=i64::MAX, kept, outputs),
        Step::Cut => plan.days().chunks(DAYS_AT_ONCE).try_for_each(|days| {
            let first = i64::from(days[0]).saturating_mul(Timestamp::DAY);
            let last = i64::from(days[days.len() - 1]).saturating_mul(Timestamp::DAY).saturating_add(Timestamp::DAY - 1);
            merge_into(files, plan, new.clone(), days, first..=last, kept, outputs)
        }),
    }
}

/// Merges the inputs' rows of these times into a file for each of `days`, and one `late/` file for all others.
fn merge_into(
    files: &Arc<ParquetFiles>,
    plan: &Plan,
    new: NewFile,
    days: &[i32],
    times: std::ops::RangeInclusive<i64>,
    (cutoff, range): (Timestamp, HashRange),
    outputs: &mut Vec<FileMeta>,
) -> Result<()> {
    let table = new.table.clone();
    let layout = merge::whole_layout(&table);
    let request = ScanRequest {
        table: table.clone(),
        projection: layout.clone(),
        times: cutoff.0.max(*times.start())..=*times.end(),
        tags: Vec::new(),
        batch_rows: BATCH_ROWS,
    };
    // All are opened before the first row is read, so that none can be removed under the merge.
    let sources = plan.inputs.iter().map(|meta| {
        let rows = files.open(meta)?.scan(&request)?;
        Ok(if range.is_narrower_than(meta.range_version) { within(range, &table, rows) } else { rows })
    });
    let sources = sources.collect::<Result<Vec<Rows>>>()?;
    let mut out = ByDay::with_days(files, new, days);
    for batch in merge::merge(&table, &layout, sources, BATCH_ROWS) {
        out.write(&batch?)?;
    }
    out.finish(outputs)
}
