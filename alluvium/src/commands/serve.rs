//! `alluvium serve`: a node until SIGTERM or Ctrl-C.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::config::{self, Settings};
use crate::exit::Exit;
use crate::node::{Node, Ready};
use crate::telemetry::{self, LogFormat};
use crate::traces::Traces;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium serve\n  alluvium serve --data-dir /var/lib/alluvium --listen 127.0.0.1:0 --log debug\n  \
    alluvium config show        what is in effect, and why")]
pub(super) struct ServeArgs {
    /// File of settings [default: ./alluvium.toml, then /etc/alluvium/alluvium.toml, where they exist]
    #[arg(long, env = "ALLUVIUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

/// Set by `cluster dev` for its nodes: the process that they end with.
pub(super) const PARENT: &str = "ALLUVIUM_DEV_PARENT";

pub(super) fn run(args: &ServeArgs, argv: &[OsString]) -> anyhow::Result<()> {
    end_with_parent()?;
    crate::huge_pages::give_up();
    let loaded = config::load(&super::command_line(), argv, &["serve"], args.config.as_deref())?;
    let give_way = || storage::urgency::Urgency::OneAtATime.take();
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("alluvium").on_thread_start(give_way).enable_all().build()?;
    let traces = {
        let _inside = runtime.enter();
        Traces::to_collector()?
    };
    telemetry::start_logging(loaded.settings.log_format, &loaded.settings.log, traces.as_ref())?;
    let served = runtime.block_on(serve(&loaded));
    if let Some(traces) = traces {
        traces.end();
    }
    // Whatever still runs has had its time: a disk that hangs must not keep the process.
    runtime.shutdown_background();
    served
}

/// Where `cluster dev` started this node, it ends when that does, however that ends.
fn end_with_parent() -> anyhow::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let Some(parent) = std::env::var(PARENT).ok().and_then(|pid| pid.parse::<i32>().ok()) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before this was asked for.
    anyhow::ensure!(getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent), "the 'cluster dev' that started this node is gone");
    Ok(())
}

async fn serve(loaded: &config::Loaded) -> anyhow::Result<()> {
    // The first one drains, a second one ends at once.
    let mut signals = super::ToldToEnd::listen()?;
    let node = tokio::select! {
        node = Node::start(loaded) => node?,
        // Nothing was promised yet: there is nothing to drain.
        _ = signals.next() => return Ok(()),
    };
    announce(&loaded.settings, node.ready());
    tokio::select! {
        why = node.failed() => {
            node.abandon();
            Err(Exit::Failed(why).into())
        }
        signal = signals.next() => {
            tracing::info!(signal, "stopping: requests under way are answered first");
            tokio::select! {
                () = node.stop() => Ok(()),
                _ = signals.next() => Err(Exit::Interrupted.into()),
            }
        }
    }
}

/// Says on standard error that the node is ready; not a log line, so that no filter hides it.
fn announce(settings: &Settings, ready: &Ready) {
    let Ready { url, needs_token, shards, is_new, free_bytes, took, .. } = ready;
    let mut err = io::stderr().lock();
    // Nobody may be reading; the node runs all the same.
    let _ = match settings.log_format {
        LogFormat::Json => {
            let line = serde_json::json!({
                "level": "INFO", "message": "ready", "http": url, "node_id": settings.node_id,
                "data_dir": settings.data_dir, "shards": shards, "pid": std::process::id(),
            });
            writeln!(err, "{line}")
        }
        LogFormat::Text => {
            let age = if *is_new { "new" } else { "opened" };
            let auth = if *needs_token { "on: requests need an access token" } else { "off (loopback only)" };
            let free = free_bytes.map(|bytes| format!("; {:.1} GB free", bytes as f64 / 1e9)).unwrap_or_default();
            writeln!(
                err,
                "alluvium {} · node {} · {shards} shards\n  data  {} ({age}{free})\n  http  {url}  line protocol, SQL, /metrics\n  \
                 auth  {auth}\nready on {url} in {:.0} ms · try: alluvium simulate --url {url} · Ctrl-C stops cleanly",
                env!("CARGO_PKG_VERSION"),
                settings.node_id,
                settings.data_dir.display(),
                took.as_secs_f64() * 1e3,
            )
        }
    };
}
