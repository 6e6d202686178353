//! The command line: one file per command, with its flags, its work and its printing.
//!
//! Data goes to standard output, everything else to standard error. Without a subcommand the program serves.

mod cluster;
mod completions;
mod config;
mod demo;
mod doctor;
mod inspect;
mod rows;
mod serve;
mod simulate;
mod sql;
mod token;
mod write;

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

use crate::client;
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  alluvium                                    a node in ./alluvium-data on http://127.0.0.1:2558
  alluvium demo                               see all of it in half a minute
  curl http://127.0.0.1:2558/write?db=home --data-binary 'phone,device_id=p1 battery=71.5'
  alluvium sql --db home 'SELECT * FROM phone'
  alluvium write --db home points.lp          send files of line protocol
  alluvium simulate --points 1000000 --verify
  alluvium cluster dev                        3 ingest, 3 storage and 3 query nodes on this machine

Exit codes: 0 done, 1 failed or damage found, 2 wrong usage, 3 server not reachable, 4 done in part, 130 interrupted.";

/// A sharded time-series database for device telemetry: line protocol in, SQL and Parquet out.
#[derive(Debug, Parser)]
#[command(name = "alluvium", version, after_help = EXAMPLES, max_term_width = 110, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node (the default)
    Serve(Box<serve::ServeArgs>),
    /// See all of it in half a minute: devices write, SQL answers, every point is checked
    Demo(demo::DemoArgs),
    /// Run one query, or open the shell when none is given
    Sql(sql::SqlArgs),
    /// Send line protocol from files or standard input
    Write(write::WriteArgs),
    /// Play a fleet of devices that writes and can check what it wrote
    Simulate(simulate::SimulateArgs),
    /// Start a whole cluster on this machine, look at and change a running one
    Cluster(cluster::ClusterArgs),
    /// Print what a file of a data directory holds and whether its checksums are right
    Inspect(inspect::InspectArgs),
    /// Check every checksum of a stopped data directory; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Make, list, revoke access tokens; get in again without one
    Token(token::TokenArgs),
    /// Show the settings in effect, print a default file, check a file
    Config(config::ConfigArgs),
    /// Print the completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs the command of the arguments; the first one is the program's name.
pub fn run(mut argv: Vec<OsString>) -> ExitCode {
    if serves_by_default(argv.get(1).map(OsString::as_os_str)) {
        argv.insert(1.min(argv.len()), "serve".into());
    }
    let cli = match Cli::try_parse_from(&argv) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only when nobody listens any more.
            let _ = match variable_behind(&error, &argv) {
                Some((flag, variable)) => {
                    let text = error.render().to_string().replace(&format!("'{flag}'"), &format!("the environment variable {variable}"));
                    write!(std::io::stderr(), "{text}")
                }
                None => error.print(),
            };
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args, &argv),
        Command::Demo(args) => client_runtime().and_then(|r| r.block_on(demo::run(args))),
        Command::Sql(args) => sql::run(args),
        Command::Write(args) => client_runtime().and_then(|runtime| {
            let done = runtime.block_on(write::run(args));
            // A read of a terminal or a pipe may never return, and nobody waits for it any more.
            runtime.shutdown_background();
            done
        }),
        Command::Simulate(args) => client_runtime().and_then(|r| r.block_on(interruptible(simulate::run(args)))),
        Command::Cluster(args) => cluster::run(args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Token(args) => token::run(args),
        Command::Config(args) => config::run(&args, &argv),
        Command::Completions(args) => completions::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// The whole command line, for completion scripts and for reading settings.
fn command_line() -> clap::Command {
    Cli::command()
}

/// What clap calls the flag of a wrong value, and the variable that the value came from: clap blames the flag either way.
fn variable_behind(error: &clap::Error, argv: &[OsString]) -> Option<(String, String)> {
    if !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
        return None;
    }
    let ContextValue::String(flag) = error.get(ContextKind::InvalidArg)? else { return None };
    let name = flag.strip_prefix("--")?.split([' ', '=']).next()?;
    let given = |word: &OsString| word.to_string_lossy().strip_prefix("--").is_some_and(|rest| rest.split('=').next() == Some(name));
    if argv.iter().any(given) {
        return None;
    }
    let mut commands = vec![command_line()];
    while let Some(command) = commands.pop() {
        let variable = command.get_arguments().find(|arg| arg.get_long() == Some(name)).and_then(clap::Arg::get_env);
        if let Some(variable) = variable.filter(|variable| std::env::var_os(variable).is_some()) {
            return Some((flag.clone(), variable.to_string_lossy().into_owned()));
        }
        commands.extend(command.get_subcommands().cloned());
    }
    None
}

fn serves_by_default(first: Option<&OsStr>) -> bool {
    match first.map(|word| word.to_string_lossy()) {
        None => true,
        Some(word) => word.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&word.as_ref()),
    }
}

fn client_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Ctrl-C and SIGTERM, listened to from now on: neither ends the process by itself any more.
struct ToldToEnd {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl ToldToEnd {
    fn listen() -> anyhow::Result<ToldToEnd> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(ToldToEnd { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns with the signal's name when one comes.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs to the end or until Ctrl-C, which drops the work: its connections close, and the server cancels what they asked.
async fn interruptible<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => Err(Exit::Interrupted.into()),
    }
}

/// Prints why a command failed and gives its exit code.
fn report(error: &anyhow::Error) -> ExitCode {
    let Some(code) = exit_code(error) else { return ExitCode::SUCCESS };
    // Standard error may be closed too; then there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{} {}", console::style("error:").for_stderr().red().bold(), told(error));
    ExitCode::from(code)
}

/// An error with its causes, but for those that it has told already.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for words in error.chain().map(ToString::to_string) {
        match text.is_empty() {
            true => text = words,
            false if !text.contains(&words) => text = format!("{text}: {words}"),
            false => {}
        }
    }
    text
}

/// `None` where the reader of standard output went away, which is no failure.
fn exit_code(error: &anyhow::Error) -> Option<u8> {
    for cause in error.chain() {
        if let Some(exit) = cause.downcast_ref::<Exit>() {
            return Some(exit.code());
        }
        match cause.downcast_ref::<client::Error>() {
            Some(client::Error::Unreachable { .. } | client::Error::Untrusted { .. }) => return Some(3),
            Some(client::Error::BadAddress { .. } | client::Error::Tls(_)) => return Some(2),
            _ => {}
        }
        if cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return None;
        }
    }
    Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_exit_code() {
        let unreachable = client::Error::Unreachable { url: String::new(), why: String::new() };
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        for (error, code) in [
            (anyhow::anyhow!("something"), Some(1)),
            (anyhow::Error::from(Exit::Partly(String::new())).context("more"), Some(4)),
            (anyhow::Error::from(unreachable), Some(3)),
            (anyhow::Error::from(gone).context("could not print"), None),
        ] {
            assert_eq!(exit_code(&error), code, "{error:#}");
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = || std::io::Error::other("no room");
        assert_eq!(told(&anyhow::Error::from(cause()).context("could not write x")), "could not write x: no room");
        assert_eq!(
            told(&anyhow::Error::from(cause()).context("could not write x: no room\n  take y")),
            "could not write x: no room\n  take y"
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        command_line().debug_assert();
    }

    #[test]
    fn flags_without_a_command_belong_to_serve() {
        for (word, serves) in [(None, true), (Some("--listen"), true), (Some("--help"), false), (Some("-V"), false), (Some("sql"), false)] {
            assert_eq!(serves_by_default(word.map(OsStr::new)), serves, "{word:?}");
        }
    }
}
