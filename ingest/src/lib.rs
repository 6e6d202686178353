//! Points in: takes lines of devices, answers when they are safe.
//!
//! | file | answers |
//! |---|---|
//! | [`http`] | the write endpoints and what clients ask around them; the only file that knows status codes |
//! | [`request`] | what a write request asks for: dialect, database, precision |
//! | [`body`] | reads a body whole, inflating it, within its limits |
//! | [`admission`] | how many bytes may be in flight; beyond, refuse at once |
//! | [`line_protocol`] | text to batches, plus the lines refused and why |
//! | `parsers` | parsers that wait for the next body |
//! | [`write`] | the journey: parse, agree on schema, route, propose, gather |
//! | `route` | batches to one part per shard |
//! | [`answer`] | the words of errors, as each kind of client expects them |
//! | [`refused`] | the last refused lines, for `system.refused_lines` |
//! | [`influx_compat`] | the few InfluxQL statements that clients send |
//!
//! `ingest` does not know that files exist, nor how points are asked for.

pub mod admission;
pub mod answer;
pub mod body;
pub mod error;
pub mod http;
pub mod influx_compat;
pub mod line_protocol;
pub mod metrics;
mod parsers;
pub mod refused;
pub mod request;
pub mod request_id;
mod route;
pub mod write;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cluster::{Clock, Cluster};

use crate::admission::Admission;
pub use crate::error::Error;
use crate::influx_compat::TagValues;
pub use crate::metrics::Metrics;
use crate::parsers::Parsers;
use crate::refused::{RefusedLines, RefusedRow};
pub use crate::request_id::{RequestId, RequestIds};
use crate::write::Written;

/// How points are taken.
#[derive(Clone)]
pub struct IngestOptions {
    /// Whether a write to an unknown database creates it.
    pub auto_create_databases: bool,
    /// Bytes that a body may have, before and after inflation.
    pub max_body_bytes: u64,
    /// Bytes that a line may have.
    pub max_line_bytes: usize,
    /// Bytes of all bodies that are being worked on; beyond it writes are refused at once.
    pub max_in_flight_bytes: u64,
    /// The time of day, for points that bring none.
    pub clock: Clock,
    /// This process's number among all that ever write here; take it at random.
    pub origin: u128,
}

/// This node's way in for points.
pub struct Ingest {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) options: IngestOptions,
    pub(crate) admission: Admission,
    pub(crate) metrics: Metrics,
    pub(crate) request_ids: RequestIds,
    pub(crate) next_sequence: AtomicU64,
    pub(crate) draining: AtomicBool,
    pub(crate) started: Instant,
    pub(crate) tag_values: OnceLock<TagValues>,
    pub(crate) parsers: Parsers,
    refused: RefusedLines,
}

impl Ingest {
    /// Writes into `cluster`.
    pub fn new(cluster: Arc<Cluster>, options: IngestOptions) -> Arc<Ingest> {
        let admission = Admission::new(options.max_in_flight_bytes);
        Arc::new(Ingest {
            cluster,
            metrics: Metrics::new(admission.clone()),
            admission,
            request_ids: RequestIds::new(options.origin as u64),
            next_sequence: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            tag_values: OnceLock::new(),
            parsers: Parsers::default(),
            refused: RefusedLines::default(),
            options,
        })
    }

    /// An id that no other request gets.
    pub fn next_request_id(&self) -> RequestId {
        self.request_ids.next()
    }

    /// Tells who can read a tag's values (`SHOW TAG VALUES`); once.
    pub fn ask_tag_values(&self, tag_values: TagValues) {
        assert!(self.tag_values.set(tag_values).is_ok(), "tag values are wired once");
    }

    /// Takes no more writes: `/ready` and new writes are answered 503 from here on, those under way are finished.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Figures for `/metrics`.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The bound on bodies in flight, and how much of it is taken.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The last refused lines, oldest first.
    pub fn refused_lines(&self) -> Vec<RefusedRow> {
        self.refused.snapshot()
    }

    pub(crate) fn keep_refused(&self, database: &str, written: &Written, id: RequestId) {
        let database: Arc<str> = database.into();
        self.refused.keep(written.refused.iter().map(|line| RefusedRow {
            time: written.arrived,
            database: database.clone(),
            line_number: line.line_number as u64,
            line: line.original_line.as_str().into(),
            reason: line.reason.as_str().into(),
            request_id: id.as_str().into(),
        }));
    }
}
