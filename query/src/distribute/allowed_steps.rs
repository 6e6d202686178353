//! May a peer have this step run? Only what reads our shards and computes: every other step is refused.
//!
//! A plan from a peer is data from outside (an older or newer program, a stolen secret): a step that reads or writes files,
//! or that is not known here, never runs.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;

const ALLOWED: [&str; 39] = [
    "AggregateExec",
    "BoundedWindowAggExec",
    "BroadcastExec",
    "BufferExec",
    "ChildrenIsolatorUnionExec",
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "CrossJoinExec",
    "DistributedLeafExec",
    "EmptyExec",
    "FilterExec",
    "GlobalLimitExec",
    "HashJoinExec",
    "InterleaveExec",
    "LazyMemoryExec",
    "LocalLimitExec",
    "NestedLoopJoinExec",
    "NetworkBroadcastExec",
    "NetworkCoalesceExec",
    "NetworkShuffleExec",
    "PartialSortExec",
    "PartitionedTopKExec",
    "PiecewiseMergeJoin",
    "PiecewiseMergeJoinExec",
    "PlaceholderRowExec",
    "ProjectionExec",
    "RecursiveQueryExec",
    "RepartitionExec",
    "SamplerExec",
    "ScalarSubqueryExec",
    "ShardScanExec",
    "SortExec",
    "SortMergeJoinExec",
    "SortPreservingMergeExec",
    "UnionExec",
    "UnnestExec",
    "WindowAggExec",
    "WorkTableExec",
];

/// Refuses a plan with any other step in it.
pub(crate) fn check(plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    plan.apply(|step| {
        // `SortExec(TopK)` is a SortExec.
        let name = step.name().split('(').next().unwrap_or_default();
        // Rows that came with the plan.
        let rows = step.downcast_ref::<DataSourceExec>().is_some_and(|s| s.data_source().downcast_ref::<MemorySourceConfig>().is_some());
        match ALLOWED.contains(&name) || rows {
            true => Ok(TreeNodeRecursion::Continue),
            false => Err(DataFusionError::Plan(format!("a peer may not have {name} run here"))),
        }
    })
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::Schema;
    use datafusion::datasource::physical_plan::{FileScanConfigBuilder, JsonSource};
    use datafusion::execution::object_store::ObjectStoreUrl;
    use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
    use datafusion::physical_plan::empty::EmptyExec;

    use super::*;

    #[test]
    fn a_step_that_reads_files_is_refused_wherever_it_stands() {
        let schema = Arc::new(Schema::empty());
        let source = Arc::new(JsonSource::new(schema.clone()));
        let files = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source).build();
        let files: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(files);
        assert!(check(&files).is_err());
        let below: Arc<dyn ExecutionPlan> = Arc::new(CoalescePartitionsExec::new(files));
        assert!(check(&below).unwrap_err().to_string().contains("DataSourceExec"));
        let fine: Arc<dyn ExecutionPlan> = Arc::new(CoalescePartitionsExec::new(Arc::new(EmptyExec::new(schema))));
        assert!(check(&fine).is_ok());
    }
}
