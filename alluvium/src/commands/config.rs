//! `alluvium config show|default|check`: the settings in effect with their origin, a default file, a check.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::{self, Loaded, Settings};
use crate::exit::Exit;

#[derive(Args, Debug)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print every setting with its value and where that came from; takes the flags of serve
    Show(Box<ShowArgs>),
    /// Print a file with every setting at its default, commented out
    Default,
    /// Check a file of settings without starting anything
    Check(CheckArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium config show\n  ALLUVIUM_SHARDS=4 alluvium config show --listen 127.0.0.1:0 --format json")]
struct ShowArgs {
    /// File of settings [default: ./alluvium.toml, then /etc/alluvium/alluvium.toml, where they exist]
    #[arg(long, env = "ALLUVIUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// As lines of alluvium.toml, or as JSON
    #[arg(long, value_name = "toml|json", default_value = "toml")]
    format: ShowFormat,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShowFormat {
    Toml,
    Json,
}

#[derive(Args, Debug)]
struct CheckArgs {
    /// The file [default: ./alluvium.toml, then /etc/alluvium/alluvium.toml]
    file: Option<PathBuf>,

    /// The same, as it is given to serve
    #[arg(long, env = "ALLUVIUM_CONFIG", value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &ConfigArgs, argv: &[OsString]) -> anyhow::Result<()> {
    match &args.what {
        What::Show(args) => show(args, argv),
        What::Default => Ok(write!(std::io::stdout(), "{}", config::default_file())?),
        What::Check(args) => check(args),
    }
}

fn show(args: &ShowArgs, argv: &[OsString]) -> anyhow::Result<()> {
    let loaded = config::load(&super::command_line(), argv, &["config", "show"], args.config.as_deref())?;
    let text = match args.format {
        ShowFormat::Toml => as_toml(&loaded),
        ShowFormat::Json => as_json(&loaded)?,
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Lines of a valid `alluvium.toml`, the origins as comments in one column.
fn as_toml(loaded: &Loaded) -> String {
    let lines: Vec<String> = loaded.effective.iter().map(|s| format!("{} = {}", s.key, config::toml_value(&s.value))).collect();
    let widest = lines.iter().map(String::len).max().unwrap_or(0);
    loaded.effective.iter().zip(lines).map(|(setting, line)| format!("{line:widest$}  # {}\n", setting.origin)).collect()
}

fn as_json(loaded: &Loaded) -> anyhow::Result<String> {
    let settings: Vec<_> =
        loaded.effective.iter().map(|s| serde_json::json!({"key": s.key, "value": s.value, "origin": s.origin.to_string()})).collect();
    Ok(serde_json::to_string_pretty(&settings)? + "\n")
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let argv = ["alluvium".into(), "serve".into()];
    let loaded = config::load(&super::command_line(), &argv, &["serve"], args.file.as_deref().or(args.config.as_deref()))?;
    let Some(file) = loaded.file else {
        return Err(Exit::Usage(format!("no file to check: name one, or make one of {}", config::DEFAULT_FILES.join(", "))).into());
    };
    let set = loaded.effective.iter().filter(|s| matches!(s.origin, config::Origin::File(_))).count();
    writeln!(std::io::stderr(), "{} is fine: it sets {set} of {} settings", file.display(), loaded.effective.len())?;
    Ok(())
}
