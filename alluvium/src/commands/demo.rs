//! `alluvium demo`: the whole product in half a minute.
//!
//! A node in a temporary directory (or the one at `--url`), phones and watches that write over HTTP like any device, three
//! questions in SQL with their answers, then every point is read back and compared with what was acknowledged. What is
//! seen is what a stranger gets: nothing here knows more about the node than its address.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use simulator::{FleetOptions, KindName, SendOptions};

use super::rows::Format;
use super::simulate::{play, summary, trusted, verdict_line};
use super::sql::{Look, ask};
use crate::client::{Client, ServerArgs};
use crate::config::{self, Loaded};
use crate::exit::Exit;
use crate::node::Node;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium demo\n  alluvium demo --once\n  alluvium demo --url http://127.0.0.1:2558")]
pub(super) struct DemoArgs {
    /// End after the questions instead of staying for yours
    #[arg(long)]
    once: bool,

    /// Use a running server and a database of its own there, instead of a node in a temporary directory
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Access token, where the server wants one
    #[arg(long, env = "ALLUVIUM_TOKEN", value_name = "TOKEN", hide_env_values = true, requires = "url")]
    token: Option<String>,

    /// Authorities that may vouch for an https server, PEM [default: the system's]
    #[arg(long, env = "ALLUVIUM_CA_FILE", value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
}

const DEVICES: u32 = 400;
const POINTS: u64 = 120_000;
const POINTS_PER_SECOND: f64 = 30_000.0;
/// Simulated time between two reports: with the figures above the fleet lives through two days.
const INTERVAL: Duration = Duration::from_secs(576);

const QUESTIONS: [(&str, &str); 3] = [
    (
        "How much has arrived?",
        "SELECT 'phone' AS kind, count(*) AS points, count(DISTINCT device_id) AS devices, min(time) AS first, max(time) AS last FROM phone\n\
         UNION ALL\n\
         SELECT 'watch', count(*), count(DISTINCT device_id), min(time), max(time) FROM watch",
    ),
    (
        "How do hearts beat through the day?",
        "SELECT time_bucket(INTERVAL '6 hours', time) AS span, round(avg(heart_rate), 1) AS heart_rate, max(steps) AS most_steps\n\
         FROM watch GROUP BY span ORDER BY span",
    ),
    (
        "Which phones need charging right now?",
        "SELECT device_id, model, region, battery_pct, time FROM latest(phone) ORDER BY battery_pct LIMIT 5",
    ),
];

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    // From the start: a signal must not leave the temporary directory behind.
    let mut signals = super::ToldToEnd::listen()?;
    let mut err = std::io::stderr();
    let (node, server) = match args.url {
        Some(url) => {
            let db = format!("demo_{:08x}", now_ns() as u32);
            writeln!(err, "alluvium demo · {url} · database {db}")?;
            (None, ServerArgs { url, db, token: args.token, ca_file: args.ca_file })
        }
        None => {
            let (node, folder) = tokio::select! {
                own = own_node() => own?,
                _ = signals.next() => return Err(Exit::Interrupted.into()),
            };
            let url = node.ready().url.clone();
            writeln!(err, "alluvium demo · a node at {url}, its data in {}", folder.path().display())?;
            (Some((node, folder)), ServerArgs { url, db: "demo".to_owned(), token: None, ca_file: None })
        }
    };
    let shown = tokio::select! {
        shown = show(&server) => shown,
        _ = signals.next() => Err(Exit::Interrupted.into()),
    };
    let stays = node.is_some() && !args.once;
    if shown.is_ok() && stays {
        writeln!(err, "\nThe node stays for your own questions; Ctrl-C ends it and removes its data:")?;
        writeln!(err, "  alluvium sql --url {} --db {}", server.url, server.db)?;
        writeln!(err, "  curl '{}/sql?db={}&format=table' -d 'SELECT * FROM latest(watch) LIMIT 3'", server.url, server.db)?;
        signals.next().await;
    }
    if let Some((node, _folder)) = node {
        node.stop().await;
    }
    shown
}

/// A node of its own on a free port; its folder is removed when it is dropped.
async fn own_node() -> anyhow::Result<(Node, tempfile::TempDir)> {
    let folder = tempfile::Builder::new().prefix("alluvium-demo-").tempdir()?;
    let data_dir = folder.path().join("data");
    let argv = ["alluvium", "serve", "--listen", "127.0.0.1:0", "--data-dir", &data_dir.to_string_lossy(), "--log", "warn"];
    let argv: Vec<_> = argv.into_iter().map(Into::into).collect();
    let loaded: Loaded = config::load(&super::command_line(), &argv, &["serve"], None)?;
    crate::telemetry::start_logging(loaded.settings.log_format, &loaded.settings.log, None)?;
    Ok((Node::start(&loaded).await?, folder))
}

async fn show(server: &ServerArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let interval_ns = INTERVAL.as_nanos() as i64;
    let simulated_ns = interval_ns * (POINTS / u64::from(DEVICES)) as i64;
    let fleet = FleetOptions {
        devices: DEVICES,
        kinds: vec![KindName::Phone, KindName::Watch],
        points: Some(POINTS),
        interval_ns,
        start_ns: now_ns() - simulated_ns,
        seed: 1,
        late_pct: 2.0,
        duplicate_pct: 1.0,
        offline_pct: 5.0,
    };
    let send = SendOptions {
        urls: vec![server.url.clone()],
        database: server.db.clone(),
        token: server.token.clone(),
        tls: trusted(std::slice::from_ref(&server.url), server.ca_file.as_deref())?,
        batch_lines: 500,
        connections: 2,
        gzip: false,
        rate: Some(POINTS_PER_SECOND),
        duration: None,
        patience: Duration::from_secs(30),
    };
    writeln!(out, "\n{DEVICES} phones and watches write over HTTP, some late, some twice, some after hours offline:")?;
    let client = Client::new(server)?;
    let (report, mut check) = play(fleet, send).await?;
    writeln!(out, "{}", summary(&report))?;
    for (question, sql) in QUESTIONS {
        writeln!(out, "\n{question}\n\n{sql};")?;
        let answered = ask(&client, sql, Look { format: Format::Table, expanded: false }, &mut out).await?;
        writeln!(out, "{answered}")?;
    }
    writeln!(out, "\nIs everything there that was acknowledged, and nothing else?")?;
    let verdict = check.verify().await?;
    writeln!(out, "{}", verdict_line(&verdict))?;
    if !verdict.holds() {
        return Err(Exit::Failed("what was read back is not what was acknowledged".to_owned()).into());
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the command line is where the time of day comes from")]
fn now_ns() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}
