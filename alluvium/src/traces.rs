//! Traces: each request's span, sent to whoever collects them, under the trace that its client has begun.
//!
//! Where `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) is set, spans that the log filter lets through are sent there
//! by OTLP over gRPC, in batches, beside the work; what the collector does not take in time is dropped, never waited for.
//! The other `OTEL_…` variables have the meaning that OpenTelemetry gives them.

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::registry::LookupSpan;

use crate::exit::Exit;

/// Any of them says that there is a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
const SERVICE: &str = "alluvium";

/// Traces on their way; what is still here is sent by [`end`](Traces::end).
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Sends to the collector of the environment, if there is one. Must be called inside the runtime that sends.
    pub fn to_collector() -> Result<Option<Traces>, Exit> {
        if !ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
            return Ok(None);
        }
        let wrong = |e: &dyn std::fmt::Display| Exit::Usage(format!("traces cannot be sent ({}): {e}", ENDPOINTS[0]));
        let exporter = SpanExporter::builder().with_tonic().build().map_err(|e| wrong(&e))?;
        // OTEL_SERVICE_NAME wins over this.
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder().build(),
            None => Resource::builder().with_service_name(SERVICE).build(),
        };
        Ok(Some(Traces { provider: SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build() }))
    }

    /// What turns spans into traces.
    pub fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> OpenTelemetryLayer<S, Tracer> {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer(SERVICE))
    }

    /// Sends what is left; waits for it a few seconds at most.
    pub fn end(self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}
