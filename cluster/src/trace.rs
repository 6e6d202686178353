//! The trace that a request belongs to, carried along its task and on to other nodes as W3C's `traceparent`.
//!
//! Requests of several traces that travel in one message are told under the first one's.

use std::future::Future;

use http::HeaderValue;
use tracing::Instrument;

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

/// Answers a peer's request as part of the trace that it names.
pub(crate) async fn continued<F: Future>(traceparent: Option<HeaderValue>, path: &str, answer: F) -> F::Output {
    let Some(trace) = traceparent.as_ref().and_then(number) else { return answer.await };
    let span = tracing::info_span!("peer request", path, trace_id = trace);
    within(traceparent, answer).instrument(span).await
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
}
