//! Figures about requests and connections, for `/metrics`.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::activity::Activity;
use super::routes;

/// What paths are called that nobody answers: all of them are one, so that clients cannot make labels up.
const OTHER: &str = "other";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    route: &'static str,
    /// 0 where the client went away before there was an answer.
    code: u16,
}

/// What the listener counts; clones share their figures.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Figures>);

#[derive(Debug)]
struct Figures {
    requests: Family<AnswerLabels, Counter>,
    seconds: Family<RouteLabel, Histogram, fn() -> Histogram>,
    connections: Gauge,
}

impl Default for Figures {
    fn default() -> Figures {
        // 50 µs to 52 s.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(50e-6, 4.0, 11));
        Figures { requests: Family::default(), seconds: Family::new_with_constructor(seconds), connections: Gauge::default() }
    }
}

impl Metrics {
    /// Puts the figures into a registry under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("alluvium_http_requests", "Requests by route and status", self.0.requests.clone());
        registry.register_with_unit(
            "alluvium_http_request_duration",
            "From a request's head to the end of its answer",
            Unit::Seconds,
            self.0.seconds.clone(),
        );
        registry.register("alluvium_http_connections", "Open connections", self.0.connections.clone());
    }

    pub(super) fn opened(&self) {
        self.0.connections.inc();
    }

    pub(super) fn closed(&self) {
        self.0.connections.dec();
    }

    /// Counts a request from now until the result is dropped.
    pub(super) fn begin(&self, path: &str, activity: Arc<Activity>) -> InFlight {
        let route = routes::find(path).map_or(OTHER, |(route, _)| route);
        InFlight { metrics: self.clone(), activity, route, code: 0, started: Instant::now() }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct InFlight {
    metrics: Metrics,
    activity: Arc<Activity>,
    route: &'static str,
    code: u16,
    started: Instant,
}

impl InFlight {
    /// The answer's status is known.
    pub(super) fn answered(&mut self, code: u16) {
        self.code = code;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.ended();
        let Figures { requests, seconds, .. } = &*self.metrics.0;
        requests.get_or_create(&AnswerLabels { route: self.route, code: self.code }).inc();
        seconds.get_or_create(&RouteLabel { route: self.route }).observe(self.started.elapsed().as_secs_f64());
    }
}
