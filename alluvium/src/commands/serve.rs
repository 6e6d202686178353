//! `alluvium serve`: a node until SIGTERM or Ctrl-C.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::config::{self, Settings};
use crate::exit::Exit;
use crate::node::Node;
use crate::telemetry;

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

pub(super) fn run(args: &ServeArgs, argv: &[OsString]) -> anyhow::Result<()> {
    let loaded = config::load(&super::command_line(), argv, &["serve"], args.config.as_deref())?;
    telemetry::start_logging(loaded.settings.log_format, &loaded.settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("alluvium").enable_all().build()?;
    runtime.block_on(serve(&loaded))
}

async fn serve(loaded: &config::Loaded) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let node = tokio::select! {
        node = Node::start(loaded) => node?,
        // Nothing was promised yet: there is nothing to drain.
        _ = signals.next() => return Ok(()),
    };
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

/// SIGTERM and SIGINT: the first one drains, a second one ends at once.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
