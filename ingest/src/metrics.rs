//! Figures about writing, for `/metrics`.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::admission::Admission;

/// What this crate counts; clones share their figures.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Lines that hold a point or were meant to.
    pub(crate) lines: Counter,
    /// Lines that were refused for what they say.
    pub(crate) refused_lines: Counter,
    /// Bytes of line protocol, inflated.
    pub(crate) bytes: Counter,
    /// Requests that were turned away because too much was in flight.
    pub(crate) overloaded: Counter,
    /// From the whole body to the known outcome.
    pub(crate) write_seconds: Histogram,
    admission: Admission,
}

impl Metrics {
    pub(crate) fn new(admission: Admission) -> Metrics {
        Metrics {
            lines: Counter::default(),
            refused_lines: Counter::default(),
            bytes: Counter::default(),
            overloaded: Counter::default(),
            // 50 µs to 26 s: a sync of a fast disk at the one end, a stalled shard at the other.
            write_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 20)),
            admission,
        }
    }

    /// Puts the figures into a registry under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("alluvium_ingest_lines", "Lines of line protocol that were looked at", self.lines.clone());
        registry.register("alluvium_ingest_refused_lines", "Lines that can never be accepted", self.refused_lines.clone());
        registry.register_with_unit("alluvium_ingest", "Line protocol, inflated", Unit::Bytes, self.bytes.clone());
        registry.register("alluvium_ingest_overloaded_requests", "Writes refused because too much was in flight", self.overloaded.clone());
        registry.register_with_unit(
            "alluvium_ingest_write_duration",
            "From the whole body to the known outcome",
            Unit::Seconds,
            self.write_seconds.clone(),
        );
        registry.register_collector(Box::new(InFlight(self.admission.clone())));
    }

    pub(crate) fn observe(&self, took: Duration) {
        self.write_seconds.observe(took.as_secs_f64());
    }
}

/// Read at each scrape, so that no write pays for a gauge.
#[derive(Debug)]
struct InFlight(Admission);

impl Collector for InFlight {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(self.0.in_flight() as i64);
        let metric = encoder.encode_descriptor(
            "alluvium_ingest_in_flight",
            "Bodies being worked on",
            Some(&Unit::Bytes),
            prometheus_client::encoding::EncodeMetric::metric_type(&gauge),
        )?;
        gauge.encode(metric)
    }
}
