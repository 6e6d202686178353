//! Watching the program: logs on standard error, figures at `/metrics`.
//!
//! Logs are text for eyes or one JSON object a line. Figures of every crate are registered in one [`Registry`], read by
//! `GET /metrics`; those of the process come from `/proc` when they are asked for.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Exit;
use crate::traces::Traces;

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One object a line.
    Json,
}

/// What is logged, from its text.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    // openraft tells each step of each election at info; what matters of it our own crates say. Of a group that has stopped
    // it calls it an error that somebody still asks, or that a heartbeat is answered: who asked is told, and asks another.
    let quiet = if text.contains("openraft") { "" } else { "openraft=error,openraft::raft=off,openraft::core::heartbeat=off," };
    EnvFilter::try_new(format!("{quiet}{text}")).map_err(|e| format!("not understood ({e}); write it like info or info,storage=debug"))
}

/// Starts logging to standard error, and to the collector of traces; once per process.
pub fn start_logging(format: LogFormat, filter: &str, traces: Option<&Traces>) -> Result<(), Exit> {
    let filter = self::filter(filter).map_err(|why| Exit::Usage(format!("the log filter '{filter}' is {why}")))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_span_events(FmtSpan::NONE);
    let registry = tracing_subscriber::registry().with(filter).with(traces.map(Traces::layer));
    let started = match format {
        LogFormat::Text => registry.with(layer.with_ansi(console::colors_enabled_stderr())).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    started.map_err(|e| Exit::Failed(format!("could not start logging: {e}")))
}

/// A registry that has what every alluvium process has: `alluvium_build_info` and `process_*`.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("alluvium_build", "The running program", build);
    registry.register_collector(Box::new(Process));
    registry
}

/// The route `/metrics`.
pub fn router(registry: Registry) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(Arc::new(registry))
}

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> impl IntoResponse {
    let mut text = String::new();
    // Writing into a string does not fail; a collector that does leaves a text that the reader refuses.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.contains("application/openmetrics-text") {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
    } else {
        ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], prometheus_text(&text))
    }
}

/// OpenMetrics as Prometheus' older text: there a counter's name ends with `_total` in its `# TYPE` line too, an info is
/// a gauge, and there is neither unit nor end mark.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.filter(|(named, _)| *named == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {words}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Figures of this process, read from `/proc` at each scrape; absent where there is no `/proc`.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(bytes) = resident_bytes() {
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory in use", bytes as i64)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let metric = encoder.encode_descriptor("process_cpu_seconds", "CPU time used", None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // The listing itself holds one.
            gauge(&mut encoder, "process_open_fds", "Open files and sockets", entries.count().saturating_sub(1) as i64)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Linux counts CPU time for programs in hundredths of a second, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of all threads, those that ended included.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold spaces.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_prometheus_text() {
        let mut registry = registry();
        let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
        counter.inc_by(3);
        registry.register("alluvium_lines", "Lines", counter);
        let mut open = String::new();
        prometheus_client::encoding::text::encode(&mut open, &registry).unwrap();
        let text = prometheus_text(&open);
        for line in [
            "# TYPE alluvium_lines_total counter",
            "alluvium_lines_total 3",
            "# HELP alluvium_build_info The running program.",
            "# TYPE alluvium_build_info gauge",
            "# TYPE process_cpu_seconds_total counter",
            "# TYPE process_resident_memory_bytes gauge",
            "# TYPE process_open_fds gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line:?} in\n{text}");
        }
        assert!(!text.contains("# EOF"));
    }
}
