//! `alluvium simulate`: a fleet of devices that writes and can check what it wrote.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use simulator::{Fleet, FleetOptions, KindName, Ledger, Progress, Report, SendError, SendOptions, Verdict};

use crate::client;
use crate::config::Span;
use crate::exit::Exit;
use crate::print::thousands;
use crate::tls;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium simulate --devices 10000 --points 5000000 --verify\n  \
    alluvium simulate --kinds phone,watch,car --duration 60s --rate 20000 --late 5 --duplicate 2 --offline 10\n  \
    alluvium simulate --points 1000 --seed 7 --out points.lp")]
pub(super) struct SimulateArgs {
    /// Devices, spread evenly over the kinds
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    devices: u32,

    /// Kinds of device: phone, watch, car, fridge, tv; each writes a table of its name
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', default_value = "phone,watch", value_parser = kind)]
    kinds: Vec<KindName>,

    /// Lines to write, duplicates included [default: 100000 unless --duration is given]
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    points: Option<u64>,

    /// How long to make points, in real time; what devices still hold back then follows
    #[arg(long, value_name = "DURATION")]
    duration: Option<Span>,

    /// Simulated time between two reports of a device
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    interval: Span,

    /// Lines per second [default: as fast as they are acknowledged]
    #[arg(long, value_name = "POINTS_PER_S", value_parser = rate)]
    rate: Option<f64>,

    /// Same seed, same bytes
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Simulated start: RFC 3339 or nanoseconds since 1970
    #[arg(long, value_name = "TIME", default_value = "2026-01-01T00:00:00Z", value_parser = start)]
    start: i64,

    /// Lines per request; with --rate those of a tenth of a second at most
    #[arg(long, value_name = "LINES", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,

    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    connections: u32,

    /// Compress request bodies
    #[arg(long)]
    gzip: bool,

    /// Lines in a hundred that arrive late
    #[arg(long, value_name = "PCT", default_value_t = 0.0, value_parser = percent)]
    late: f64,

    /// Lines in a hundred that are sent a second time
    #[arg(long, value_name = "PCT", default_value_t = 0.0, value_parser = percent)]
    duplicate: f64,

    /// Devices in a hundred that go silent and then send what they buffered
    #[arg(long, value_name = "PCT", default_value_t = 0.0, value_parser = percent)]
    offline: f64,

    /// Servers, used in turn
    #[arg(long, env = "ALLUVIUM_URL", value_name = "URL,...", value_delimiter = ',', default_value = "http://127.0.0.1:2558")]
    url: Vec<String>,

    /// The database; --verify expects nothing else in the tables
    #[arg(long, env = "ALLUVIUM_DB", value_name = "NAME", default_value = "default")]
    db: String,

    /// Access token, where the server wants one
    #[arg(long, env = "ALLUVIUM_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Authorities that may vouch for https servers, PEM [default: the system's]
    #[arg(long, env = "ALLUVIUM_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Write the lines to a file (- for standard output) instead of sending them
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["verify", "report", "rate", "gzip"])]
    out: Option<PathBuf>,

    /// Read everything back at the end and compare
    #[arg(long)]
    verify: bool,

    /// Write the figures of the run to a file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Give up when nothing was answered for so long
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    patience: Span,
}

const DEFAULT_POINTS: u64 = 100_000;

fn kind(text: &str) -> Result<KindName, String> {
    KindName::ALL.into_iter().find(|k| k.table() == text).ok_or_else(|| "no such kind: phone, watch, car, fridge, tv".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r: &f64| r.is_finite() && *r > 0.0).ok_or_else(|| "a rate is a number above 0".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p: &f64| (0.0..=100.0).contains(p)).ok_or_else(|| "a share is a number from 0 to 100".to_owned())
}

fn start(text: &str) -> Result<i64, String> {
    if let Ok(ns) = text.parse::<i64>() {
        return Ok(ns);
    }
    let wrong = || "write it like 2026-01-01T00:00:00Z, or as nanoseconds since 1970".to_owned();
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| wrong())?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| wrong())?;
    i64::try_from(since.as_nanos()).map_err(|_| wrong())
}

pub(super) async fn run(args: SimulateArgs) -> anyhow::Result<()> {
    let fleet = FleetOptions {
        devices: args.devices,
        kinds: args.kinds.clone(),
        points: args.points.or(args.duration.is_none().then_some(DEFAULT_POINTS)),
        interval_ns: i64::try_from(args.interval.0.as_nanos()).context("the interval is too long")?,
        start_ns: args.start,
        seed: args.seed,
        late_pct: args.late,
        duplicate_pct: args.duplicate,
        offline_pct: args.offline,
    };
    if let Some(out) = &args.out {
        return write_lines(fleet, out, args.duration);
    }
    let send = SendOptions {
        urls: args.url.clone(),
        database: args.db.clone(),
        token: args.token.clone(),
        tls: trusted(&args.url, args.ca_file.as_deref())?,
        batch_lines: args.batch as usize,
        connections: args.connections as usize,
        gzip: args.gzip,
        rate: args.rate,
        duration: args.duration.map(|d| d.0),
        patience: args.patience.0,
    };
    let (mut report, mut played) = play(fleet, send).await?;
    if args.verify {
        report.verdict = Some(played.verify().await?);
    }
    let verdict = report.verdict;
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    let mut out = io::stdout();
    writeln!(out, "{}", summary(&report))?;
    if let Some(verdict) = &verdict {
        writeln!(out, "{}", verdict_line(verdict))?;
    }
    if let Some(refusal) = &report.first_refusal {
        writeln!(io::stderr(), "first refusal: {refusal}")?;
    }
    if verdict.is_some_and(|v| !v.holds()) {
        return Err(Exit::Failed("what was read back is not what was acknowledged: see the line above".to_owned()).into());
    }
    match report.refused + report.unknown {
        0 => Ok(()),
        not_stored => Err(Exit::Partly(format!("{} lines were refused or have no answer", thousands(not_stored))).into()),
    }
}

/// Whom connections trust, where there are any over TLS.
pub(super) fn trusted(urls: &[String], ca_file: Option<&Path>) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
    let any = urls.iter().any(|url| url.starts_with("https:"));
    Ok(any.then(|| tls::trust(ca_file)).transpose().map_err(client::Error::from)?)
}

/// A run that can be checked.
pub(super) struct Played {
    send: SendOptions,
    kinds: Vec<KindName>,
    ledger: Ledger,
    progress: Arc<Progress>,
}

/// Runs the fleet with a progress line.
pub(super) async fn play(fleet: FleetOptions, send: SendOptions) -> anyhow::Result<(Report, Played)> {
    let progress = Arc::new(Progress::default());
    let kinds = fleet.kinds.clone();
    let bar = bar_of_lines(fleet.points, "writing");
    let watching = watch(
        bar.clone(),
        progress.clone(),
        |p| p.answered.load(Relaxed),
        |p| format!("· {} refused, {} sent again", thousands(p.refused.load(Relaxed)), thousands(p.retries.load(Relaxed))),
    );
    let done = simulator::run(fleet, send.clone(), progress.clone()).await;
    watching.abort();
    bar.finish_and_clear();
    let (report, ledger) = done.map_err(failure)?;
    Ok((report, Played { send, kinds, ledger, progress }))
}

impl Played {
    /// Reads everything back with a progress line, and compares.
    pub(super) async fn verify(&mut self) -> anyhow::Result<Verdict> {
        let bar = bar_of_lines(Some(self.ledger.len() as u64), "reading back");
        let watching = watch(bar.clone(), self.progress.clone(), |p| p.checked.load(Relaxed), |_| String::new());
        let verdict = simulator::verify(&self.send, &self.kinds, &mut self.ledger, &self.progress).await;
        watching.abort();
        bar.finish_and_clear();
        verdict.map_err(failure)
    }
}

fn failure(error: SendError) -> anyhow::Error {
    match error {
        SendError::Unreachable { .. } | SendError::Untrusted { .. } | SendError::TookNothing { .. } => {
            Exit::Unreachable(error.to_string()).into()
        }
        SendError::BadUrl { .. } | SendError::OutOfTime => Exit::Usage(error.to_string()).into(),
        SendError::ReadBack(_) => error.into(),
    }
}

fn bar_of_lines(lines: Option<u64>, what: &'static str) -> ProgressBar {
    let (bar, style) = match lines {
        Some(lines) => (ProgressBar::new(lines), "{prefix} {wide_bar} {human_pos}/{human_len} lines · {rate} · {eta} left {msg}"),
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {human_pos} lines · {rate} · {elapsed} {msg}"),
    };
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be drawn is no reason to stop.
        let _ = write!(out, "{}/s", thousands(state.per_sec() as u64));
    };
    let style = ProgressStyle::with_template(style).expect("the template is constant").with_key("rate", rate);
    bar.with_prefix(what).with_style(style)
}

fn watch(
    bar: ProgressBar,
    progress: Arc<Progress>,
    position: fn(&Progress) -> u64,
    message: fn(&Progress) -> String,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            bar.set_position(position(&progress));
            bar.set_message(message(&progress));
        }
    })
}

pub(super) fn summary(report: &Report) -> String {
    format!(
        "acknowledged {} · refused {} · unknown {} · {} points/s · p50 {:.1} ms · p99 {:.1} ms",
        thousands(report.acknowledged),
        thousands(report.refused),
        thousands(report.unknown),
        thousands(report.points_per_second as u64),
        report.p50_us as f64 / 1000.0,
        report.p99_us as f64 / 1000.0,
    )
}

pub(super) fn verdict_line(verdict: &Verdict) -> String {
    format!(
        "lost {} · invented {} · altered {} · doubled {}",
        thousands(verdict.lost),
        thousands(verdict.invented),
        thousands(verdict.altered),
        thousands(verdict.doubled)
    )
}

/// Bytes of lines gathered before they are written.
const CHUNK_BYTES: usize = 1 << 20;

fn write_lines(options: FleetOptions, out: &Path, duration: Option<Span>) -> anyhow::Result<()> {
    let name = out.display().to_string();
    let mut sink: Box<dyn Write> = if out == Path::new("-") {
        Box::new(io::stdout().lock())
    } else {
        Box::new(BufWriter::new(std::fs::File::create(out).with_context(|| format!("could not create {name}"))?))
    };
    let started = std::time::Instant::now();
    let mut fleet = Fleet::new(options);
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + 4096);
    loop {
        if duration.is_some_and(|d| started.elapsed() >= d.0) {
            fleet.finish();
        }
        let more = fleet.next_line(&mut chunk).is_some();
        if chunk.len() >= CHUNK_BYTES || !more {
            sink.write_all(&chunk).with_context(|| format!("could not write {name}"))?;
            chunk.clear();
        }
        if !more {
            sink.flush().with_context(|| format!("could not write {name}"))?;
            return if fleet.ran_out_of_time() { Err(failure(SendError::OutOfTime)) } else { Ok(()) };
        }
    }
}
