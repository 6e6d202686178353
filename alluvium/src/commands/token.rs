//! `alluvium token create|list|revoke|reset`: who may use a server.
//!
//! The secret of a new token is printed once, alone on standard output, and kept nowhere. `reset` is for those who have
//! lost the last admin token: it needs the data directory of a stopped node instead of a token.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use cluster::Permission;
use http::Method;
use model::Timestamp;
use serde::Deserialize;
use storage::disk::DirLock;

use super::rows::{self, Format};
use crate::client::{Client, ServerArgs, whole};
use crate::exit::Exit;
use crate::print::printable;
use crate::tokens;

const PATH: &str = "/api/v3/configure/token";

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium token create admin --can admin        the first one: from now on everybody needs one\n  \
    export ALLUVIUM_TOKEN=$(alluvium token create admin --can admin)\n  \
    alluvium token create gate --can write --db home\n  \
    alluvium token list\n  \
    alluvium token revoke gate\n  \
    alluvium token reset --data-dir ./alluvium-data    the last admin token is lost; the node is stopped")]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a token and print its secret, once
    Create(CreateArgs),
    /// List tokens; secrets are kept nowhere
    List(ListArgs),
    /// Make a token good for nothing, at once
    Revoke(RevokeArgs),
    /// Make a new admin token for a stopped node, where the last one is lost
    Reset(ResetArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// What to call it
    name: String,

    /// What it may do: read, write, admin
    #[arg(long, value_name = "PERMISSION,...", value_delimiter = ',', required = true)]
    can: Vec<Permission>,

    /// The only database that it may do that with [default: all]
    #[arg(long = "db", value_name = "NAME")]
    database: Option<String>,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// How tokens are printed [default: table on a terminal, csv otherwise]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
struct RevokeArgs {
    /// Its name
    name: String,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
struct ResetArgs {
    /// The data directory of a node that is not running
    #[arg(long, env = "ALLUVIUM_DATA_DIR", value_name = "DIR", default_value = "./alluvium-data")]
    data_dir: PathBuf,

    /// What the token is called; one of this name is replaced
    #[arg(long, value_name = "NAME", default_value = "admin")]
    name: String,
}

/// Where the server is: tokens belong to no database, so there is none to name.
#[derive(Args, Debug)]
struct Asked {
    /// The server
    #[arg(long, env = "ALLUVIUM_URL", value_name = "URL", default_value = "http://127.0.0.1:2558")]
    url: String,

    /// An admin token, where there is one already
    #[arg(long, env = "ALLUVIUM_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Authorities that may vouch for an https server, PEM [default: the system's]
    #[arg(long, env = "ALLUVIUM_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Asked {
    fn client(self) -> anyhow::Result<Client> {
        Ok(Client::new(&ServerArgs { url: self.url, db: String::new(), token: self.token, ca_file: self.ca_file })?)
    }
}

/// A token as the server shows it.
#[derive(Deserialize)]
struct Shown {
    name: String,
    permissions: Vec<Permission>,
    database: Option<String>,
    created: String,
    token: Option<String>,
}

impl Shown {
    fn permissions(&self) -> String {
        let names: Vec<&str> = self.permissions.iter().map(|p| p.name()).collect();
        names.join(",")
    }
}

pub(super) fn run(args: TokenArgs) -> anyhow::Result<()> {
    match args.what {
        What::Reset(args) => reset(&args),
        What::Create(args) => super::client_runtime()?.block_on(create(args)),
        What::List(args) => super::client_runtime()?.block_on(list(args)),
        What::Revoke(args) => super::client_runtime()?.block_on(revoke(args)),
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let asked = serde_json::json!({"name": args.name, "permissions": args.can, "database": args.database});
    let headers = [("content-type", "application/json")];
    let answer = client.send(Method::POST, PATH, &[], &headers, asked.to_string()).await?;
    let made: Shown = serde_json::from_slice(&whole(answer).await?)?;
    let with = made.database.as_deref().map_or("all databases".to_owned(), |name| format!("database {name}"));
    let mut err = std::io::stderr();
    writeln!(err, "token {} ({}; {}); its secret is shown this once:", printable(&made.name), made.permissions(), printable(&with))?;
    Ok(writeln!(std::io::stdout(), "{}", made.token.unwrap_or_default())?)
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let answer = whole(client.send(Method::GET, PATH, &[], &[], "").await?).await?;
    let mut out = std::io::stdout();
    let format = Format::or_usual(args.format);
    if format == Format::Json {
        out.write_all(&answer)?;
        return Ok(writeln!(out)?);
    }
    let tokens: Vec<Shown> = serde_json::from_slice(&answer)?;
    let row = |t: &Shown| serde_json::json!({"name": t.name, "permissions": t.permissions(), "database": t.database, "created": t.created});
    rows::print(&mut out, format, &["name", "permissions", "database", "created"], &tokens.iter().map(row).collect::<Vec<_>>())
}

async fn revoke(args: RevokeArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    client.send(Method::DELETE, PATH, &[("name", &args.name)], &[], "").await?;
    Ok(writeln!(std::io::stderr(), "token {} is good for nothing any more", printable(&args.name))?)
}

fn reset(args: &ResetArgs) -> anyhow::Result<()> {
    let dir = &args.data_dir;
    if !dir.join("meta").is_dir() {
        let why = format!("{} is no data directory of alluvium; --data-dir DIR names one", dir.display());
        return Err(Exit::Failed(why).into());
    }
    let _stopped = DirLock::take(dir)?;
    let secret = tokens::leave_reset(dir, &args.name, now())?;
    writeln!(
        std::io::stderr(),
        "the next start of this node makes an admin token {} with this secret, shown this once; other tokens stay as they are:",
        printable(&args.name)
    )?;
    Ok(writeln!(std::io::stdout(), "{secret}")?)
}

#[expect(clippy::disallowed_methods, reason = "the command line is where the time of day comes from")]
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
