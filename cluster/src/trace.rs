//! The trace that a request belongs to, carried along its task and on to other nodes as W3C's `traceparent`: from the client's
//! request through whoever routes it to the shard's leader, and with the log's entries to the followers that sync them.
//!
//! Requests of several traces that travel in one message, or become one entry, are told under the first one's.

use std::future::Future;

use http::{HeaderMap, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header that names a trace.
pub const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    static TRACE: HeaderValue;
}

/// Does some work as part of a trace, if there is one.
pub async fn within<F: Future>(traceparent: Option<HeaderValue>, work: F) -> F::Output {
    match traceparent {
        Some(trace) => TRACE.scope(trace, work).await,
        None => work.await,
    }
}

/// The trace that this task works for.
pub fn current() -> Option<HeaderValue> {
    TRACE.try_with(HeaderValue::clone).ok()
}

/// The trace's number in a `traceparent`: `version-trace-parent-flags`.
pub fn number(traceparent: &HeaderValue) -> Option<&str> {
    let mut parts = traceparent.to_str().ok()?.split('-');
    let trace = parts.nth(1)?;
    (trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()) && parts.next().is_some()).then_some(trace)
}

/// Puts a span under a trace's; gives the `traceparent` under which what the span causes is told: the span's own where
/// spans are sent to a collector, else the one given.
pub fn continue_at(span: &Span, traceparent: Option<HeaderValue>) -> Option<HeaderValue> {
    let traceparent = traceparent?;
    let headers = HeaderMap::from_iter([(http::HeaderName::from_static(TRACEPARENT), traceparent.clone())]);
    // A span that nobody sends has no parent to set.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(&headers)));
    let context = span.context();
    let own = context.span().span_context().clone();
    if !own.is_valid() {
        return Some(traceparent);
    }
    let text = format!("00-{}-{}-{:02x}", own.trace_id(), own.span_id(), own.trace_flags().to_u8());
    Some(HeaderValue::try_from(text).unwrap_or(traceparent))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// Answers a peer's request as part of the trace that it names.
pub(crate) async fn continued<F: Future>(traceparent: Option<HeaderValue>, path: &str, answer: F) -> F::Output {
    let Some(trace) = traceparent.as_ref().and_then(number) else { return answer.await };
    let span = tracing::info_span!("peer request", path, trace_id = trace);
    let traceparent = continue_at(&span, traceparent);
    within(traceparent, answer).instrument(span).await
}

/// The time from an entry's way into this node's log until it is synced: until the span is let go.
pub(crate) fn log_sync(traceparent: &HeaderValue, group: &str, index: u64) -> Span {
    let span = tracing::info_span!("log sync", group, index, trace_id = number(traceparent));
    continue_at(&span, Some(traceparent.clone()));
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trace_goes_along_with_the_work_and_no_further() {
        let trace = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(within(Some(trace.clone()), async { current() }).await, Some(trace.clone()));
        assert_eq!(within(None, async { current() }).await, None);
        assert_eq!(current(), None);
        assert_eq!(number(&trace), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for bad in ["", "00-4bf9-00-01", "00-4bf92f3577b34da6a3ce929d0e0e4736", "00-zbf92f3577b34da6a3ce929d0e0e4736-0-1"] {
            assert_eq!(number(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }

    #[test]
    fn without_a_collector_what_a_span_causes_is_told_under_what_the_client_said() {
        let trace = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(continue_at(&Span::none(), Some(trace.clone())), Some(trace));
        assert_eq!(continue_at(&Span::none(), None), None);
    }
}
