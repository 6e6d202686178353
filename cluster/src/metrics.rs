//! What an operator watches of agreement, its logs, and upkeep.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// This crate's metrics, of all shards together; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) group_parts: Histogram,
    pub(crate) group_bytes: Histogram,
    pub(crate) propose_seconds: Histogram,
    pub(crate) waiting_bytes: Gauge,
    pub(crate) refused: Counter,
    pub(crate) applied_rows: Counter,
    pub(crate) flush_seconds: Histogram,
    pub(crate) flush_rows: Counter,
    pub(crate) flush_bytes: Counter,
    pub(crate) flush_failures: Counter,
    pub(crate) compaction_seconds: Histogram,
    pub(crate) compaction_rows: Counter,
    pub(crate) compaction_bytes: Counter,
    pub(crate) compaction_failures: Counter,
    logs: storage::wal::Metrics,
}

impl Metrics {
    /// All at nothing, but for those of the logs, which their disk's syncer counts.
    pub(crate) fn new(logs: storage::wal::Metrics) -> Metrics {
        let seconds = || Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
        Metrics {
            group_parts: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            group_bytes: Histogram::new(exponential_buckets(64.0, 4.0, 8)),
            propose_seconds: seconds(),
            waiting_bytes: Gauge::default(),
            refused: Counter::default(),
            applied_rows: Counter::default(),
            flush_seconds: seconds(),
            flush_rows: Counter::default(),
            flush_bytes: Counter::default(),
            flush_failures: Counter::default(),
            compaction_seconds: seconds(),
            compaction_rows: Counter::default(),
            compaction_bytes: Counter::default(),
            compaction_failures: Counter::default(),
            logs,
        }
    }

    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.logs.register(registry);
        let r = registry;
        r.register("alluvium_group_parts", "Requests' parts committed as one log entry", self.group_parts.clone());
        r.register_with_unit("alluvium_group", "Bytes of log entries of writes", Unit::Bytes, self.group_bytes.clone());
        r.register_with_unit(
            "alluvium_propose",
            "From a write's arrival at its shard to its being applied",
            Unit::Seconds,
            self.propose_seconds.clone(),
        );
        r.register_with_unit("alluvium_waiting", "Bytes of writes not yet applied", Unit::Bytes, self.waiting_bytes.clone());
        r.register("alluvium_writes_refused", "Writes refused because a queue or memory was full", self.refused.clone());
        r.register("alluvium_applied_rows", "Rows of writes applied by this node's replicas", self.applied_rows.clone());
        r.register_with_unit("alluvium_flush", "Memtables to files", Unit::Seconds, self.flush_seconds.clone());
        r.register("alluvium_flush_rows", "Rows that flushes wrote to files", self.flush_rows.clone());
        r.register("alluvium_flush_written_bytes", "Bytes that flushes wrote to files", self.flush_bytes.clone());
        r.register("alluvium_flush_failures", "Flushes that failed", self.flush_failures.clone());
        r.register_with_unit("alluvium_compaction", "Files to fewer files", Unit::Seconds, self.compaction_seconds.clone());
        r.register("alluvium_compaction_rows", "Rows that compactions wrote to files", self.compaction_rows.clone());
        r.register("alluvium_compaction_written_bytes", "Bytes that compactions wrote to files", self.compaction_bytes.clone());
        r.register("alluvium_compaction_failures", "Compactions that failed", self.compaction_failures.clone());
    }
}
