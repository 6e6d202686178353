//! A scan as bytes, for the node that runs it.
//!
//! The table and its columns go by number, with the version of the schema that the question was planned with: the node
//! looks them up in its own catalog, and asks for a new plan where that knows tags which the planner did not, because
//! the order of the rows would be another. Filters that change while the query runs keep their link to the step
//! that changes them, as long as that is on the same node.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension};
use datafusion_proto::protobuf::PhysicalExprNode;
use model::{ColumnId, ColumnKind, Epoch, NodeId, ShardId, TableId};
use prost::Message;
use serde::{Deserialize, Serialize};
use storage::scan::Sweep;
use storage::{ScanColumn, ScanRequest, TagFilter};

use crate::error::Error;
use crate::scope::Scope;
use crate::shard_scan::{ScanParts, ShardScanExec};
use crate::sweep::Wanted;
use crate::table::{Which, schema_of};

/// A scan without its changing filters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Leaf {
    name: String,
    table: TableId,
    /// Of the planner's schema.
    schema_version: u32,
    /// How many tags the planner's schema has: they make the rows' order.
    tag_columns: usize,
    latest: bool,
    /// `None`: the time.
    columns: Vec<Option<ColumnId>>,
    times: (i64, i64),
    tags: Vec<(ColumnId, Vec<Option<String>>)>,
    batch_rows: usize,
    shards: Vec<ShardId>,
    /// Of the shards' ranges, as the planner knew them; absent from an older program's scan.
    #[serde(default)]
    versions: BTreeMap<ShardId, Epoch>,
    partitions: usize,
    nodes: BTreeMap<ShardId, NodeId>,
    limit: Option<usize>,
    ordered: bool,
    newest_first: Option<bool>,
}

impl Leaf {
    pub(crate) fn of(parts: &ScanParts) -> Leaf {
        let request = &parts.request;
        Leaf {
            name: parts.name.clone(),
            table: request.table.id,
            schema_version: request.table.version,
            tag_columns: request.table.tags().len(),
            latest: parts.which == Which::Latest,
            columns: request.projection.iter().map(|c| if let ScanColumn::Column(id) = c { Some(*id) } else { None }).collect(),
            times: (*request.times.start(), *request.times.end()),
            tags: request.tags.iter().map(|t| (t.column, t.values.clone())).collect(),
            batch_rows: request.batch_rows,
            shards: parts.shards.clone(),
            versions: parts.shards.iter().filter_map(|shard| Some((*shard, *parts.versions.get(shard)?))).collect(),
            partitions: parts.partitions,
            nodes: parts.nodes.clone(),
            limit: parts.limit,
            ordered: parts.ordered,
            newest_first: parts.sweep.map(|sweep| sweep == Sweep::Newest),
        }
    }

    /// The same scan of one shard, which is on the node that gets it.
    pub(crate) fn of_one(parts: &ScanParts, shard: ShardId, node: NodeId) -> Leaf {
        // Changing filters stay behind, so there is nothing to stop a sweep early.
        let versions = parts.versions.get(&shard).map(|version| (shard, *version)).into_iter().collect();
        Leaf { shards: vec![shard], versions, partitions: 1, nodes: [(shard, node)].into(), newest_first: None, ..Leaf::of(parts) }
    }

    /// The scan, looked up in this node's catalog.
    pub(crate) fn parts(self, scope: &Scope, wanted: Wanted) -> std::result::Result<ScanParts, Error> {
        let catalog = scope.cluster.catalog();
        let table = catalog.databases.values().flat_map(|d| d.tables.values()).find(|t| t.id == self.table);
        let stale = |why: &str| Error::StaleSchema {
            message: format!("table {} was planned with schema version {}, {why}", self.name, self.schema_version),
        };
        let mut table = table.ok_or_else(|| stale("and is not known here"))?.clone();
        if table.version < self.schema_version {
            return Err(stale(&format!("the reading node knows version {} only", table.version)));
        }
        if table.tags().len() != self.tag_columns {
            return Err(stale(&format!("the reading node knows more tags in version {}", table.version)));
        }
        // A field that only the reading node knows is not asked for; that no row has it is for the shard to say.
        if table.version > self.schema_version {
            Arc::make_mut(&mut table).version = self.schema_version;
        }
        let projection: Vec<ScanColumn> = self.columns.into_iter().map(|c| c.map_or(ScanColumn::Time, ScanColumn::Column)).collect();
        let schema = schema_of(&table, &projection)
            .ok_or_else(|| Error::Engine { message: format!("a peer asks for columns that table {} lacks", self.name) })?;
        let is_tag = |id: &ColumnId| table.column_by_id(*id).is_some_and(|column| matches!(column.kind, ColumnKind::Tag { .. }));
        if !self.tags.iter().all(|(column, _)| is_tag(column)) {
            return Err(Error::Engine { message: format!("a peer asks for tags that table {} lacks", self.name) });
        }
        if self.partitions < self.shards.len() {
            return Err(Error::Engine { message: "a peer's scan has more shards than partitions".to_owned() });
        }
        Ok(ScanParts {
            name: self.name,
            which: if self.latest { Which::Latest } else { Which::Every },
            request: ScanRequest {
                table,
                projection,
                times: self.times.0..=self.times.1,
                tags: self.tags.into_iter().map(|(column, values)| TagFilter { column, values }).collect(),
                batch_rows: self.batch_rows,
            },
            schema,
            shards: self.shards,
            versions: self.versions,
            partitions: self.partitions,
            nodes: self.nodes,
            rows: Vec::new(),
            limit: self.limit,
            ordered: self.ordered,
            sweep: self.newest_first.map(|newest| if newest { Sweep::Newest } else { Sweep::Oldest }),
            wanted,
        })
    }
}

/// A scan as it stands in a plan's bytes.
#[derive(Clone, PartialEq, Message)]
struct LeafProto {
    #[prost(bytes, tag = "1")]
    leaf: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    wanted: Vec<PhysicalExprNode>,
}

/// Our own steps in a plan's bytes.
#[derive(Debug)]
pub(crate) struct Codec {
    pub(crate) scope: Arc<Scope>,
}

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        _inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let unreadable = |e: &dyn std::fmt::Display| DataFusionError::Internal(format!("a scan in a peer's plan cannot be read: {e}"));
        let proto = LeafProto::decode(bytes).map_err(|e| unreadable(&e))?;
        let leaf: Leaf = serde_json::from_slice(&proto.leaf).map_err(|e| unreadable(&e))?;
        let parts = leaf.parts(&self.scope, Wanted::default()).map_err(|e| self.scope.fail(e))?;
        let schema: &Schema = &parts.schema;
        let decode = PhysicalPlanDecodeContext::new(context, self);
        let wanted = proto.wanted.iter().map(|filter| converter.proto_to_physical_expr(filter, schema, &decode));
        let wanted = Wanted::new(wanted.collect::<Result<Vec<_>>>()?);
        Ok(Arc::new(ShardScanExec::of(ScanParts { wanted, ..parts }, self.scope.cluster.clone())))
    }

    fn try_encode(&self, step: Arc<dyn ExecutionPlan>, bytes: &mut Vec<u8>, converter: &dyn PhysicalProtoConverterExtension) -> Result<()> {
        let Some(scan) = step.downcast_ref::<ShardScanExec>() else {
            return Err(DataFusionError::NotImplemented(format!("{} cannot be sent to another node", step.name())));
        };
        let leaf = serde_json::to_vec(&Leaf::of(scan.parts())).expect("writing to memory");
        let wanted = scan.parts().wanted.filters().iter().map(|filter| converter.physical_expr_to_proto(filter, self));
        LeafProto { leaf, wanted: wanted.collect::<Result<_>>()? }.encode(bytes).expect("a vector grows");
        Ok(())
    }
}
