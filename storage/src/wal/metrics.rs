//! What the logs of one disk count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Counters of all logs that share a [`Syncer`](super::Syncer). Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) sync_duration: Histogram,
    pub(super) syncs: Counter,
    pub(super) appended_bytes: Counter,
    pub(super) appended_records: Counter,
    pub(super) segments_created: Counter,
    pub(super) segments_recycled: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            // 50 µs, a device with a cache, to 1.6 s, a device in trouble.
            sync_duration: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            syncs: Counter::default(),
            appended_bytes: Counter::default(),
            appended_records: Counter::default(),
            segments_created: Counter::default(),
            segments_recycled: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit("alluvium_wal_sync_duration", "Time of one sync of one log", Unit::Seconds, self.sync_duration.clone());
        registry.register("alluvium_wal_syncs", "Syncs of logs", self.syncs.clone());
        registry.register_with_unit(
            "alluvium_wal_appended",
            "Bytes appended to logs, with headers",
            Unit::Bytes,
            self.appended_bytes.clone(),
        );
        registry.register("alluvium_wal_appended_records", "Records appended to logs", self.appended_records.clone());
        registry.register("alluvium_wal_segments_created", "Segments written with zeros", self.segments_created.clone());
        registry.register("alluvium_wal_segments_recycled", "Used segments that became new ones", self.segments_recycled.clone());
    }
}
