//! Figures of the shards that this node holds, read at each scrape: how far each is, and who leads it.

use std::sync::Arc;

use cluster::Cluster;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// `alluvium_shard_*`, by shard: there are never more of them than a node can hold.
pub struct ShardFigures {
    cluster: Arc<Cluster>,
}

impl ShardFigures {
    /// Of the replicas of this node.
    pub fn new(cluster: Arc<Cluster>) -> ShardFigures {
        ShardFigures { cluster }
    }
}

impl std::fmt::Debug for ShardFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShardFigures")
    }
}

impl Collector for ShardFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let this = &self.cluster.this_node().name;
        let all = self.cluster.shard_status();
        let held: Vec<_> = all.iter().filter_map(|status| Some((status, status.applied?.0))).collect();
        if held.is_empty() {
            return Ok(());
        }
        let mut applied =
            encoder.encode_descriptor("alluvium_shard_applied_index", "Last log entry applied by this node", None, MetricType::Gauge)?;
        for (status, index) in &held {
            applied.encode_family(&[("shard", status.shard.0.to_string())])?.encode_gauge(&i64::try_from(*index).unwrap_or(i64::MAX))?;
        }
        let mut leads = encoder.encode_descriptor("alluvium_shard_leader", "1 where this node leads the shard", None, MetricType::Gauge)?;
        for (status, _) in &held {
            let is_leader = i64::from(status.leader.as_ref() == Some(this));
            leads.encode_family(&[("shard", status.shard.0.to_string())])?.encode_gauge(&is_leader)?;
        }
        let mut wal = encoder.encode_descriptor("alluvium_shard_wal_bytes", "Log segments in use", None, MetricType::Gauge)?;
        for (status, _) in &held {
            let bytes = i64::try_from(status.wal_bytes).unwrap_or(i64::MAX);
            wal.encode_family(&[("shard", status.shard.0.to_string())])?.encode_gauge(&bytes)?;
        }
        Ok(())
    }
}
