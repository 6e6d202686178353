//! What is counted about queries. The program owns the registry and `/metrics`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Figures over all queries of this node.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// From admission to the last row.
    pub(crate) duration: Histogram,
    /// Queries under way.
    pub(crate) running: Gauge,
    /// Queries that ended with an error.
    pub(crate) failed: Counter,
    /// Queries that were not begun: too many, too large, not allowed.
    pub(crate) refused: Counter,
    /// Rows read from shards.
    pub(crate) rows_scanned: Counter,
    /// Rows answered.
    pub(crate) rows_answered: Counter,
    /// Queries begun a second time, because a node was lost, a shard had moved or a schema was newer.
    pub(crate) begun_anew: Counter,
    /// Plans found ready made.
    pub(crate) plans_reused: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            duration: Histogram::new(exponential_buckets(0.000_25, 2.0, 20)),
            running: Gauge::default(),
            failed: Counter::default(),
            refused: Counter::default(),
            rows_scanned: Counter::default(),
            rows_answered: Counter::default(),
            begun_anew: Counter::default(),
            plans_reused: Counter::default(),
        }
    }
}

impl Metrics {
    /// Puts the figures into the program's registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("alluvium_query_duration_seconds", "Time from admission to the last row", self.duration.clone());
        registry.register("alluvium_queries_running", "Queries under way", self.running.clone());
        registry.register("alluvium_queries_failed", "Queries that ended with an error", self.failed.clone());
        registry.register("alluvium_queries_refused", "Queries that were not begun", self.refused.clone());
        registry.register("alluvium_query_rows_scanned", "Rows that queries read from shards", self.rows_scanned.clone());
        registry.register("alluvium_query_rows_answered", "Rows that queries answered", self.rows_answered.clone());
        registry.register(
            "alluvium_queries_begun_anew",
            "Queries begun a second time after a node or shard was not where it was",
            self.begun_anew.clone(),
        );
        registry.register("alluvium_query_plans_reused", "Queries that found their plan ready made", self.plans_reused.clone());
    }
}
