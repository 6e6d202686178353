//! `alluvium sql`: one query, a script from standard input, or the shell.

mod ask;
mod completion;
mod shell;
mod statement;

use std::io::{IsTerminal, Read, Write};

use clap::Args;

pub(super) use self::ask::{Look, ask};
use super::rows::Format;
use crate::client::{Client, ServerArgs};
use crate::config::Span;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium sql 'SELECT * FROM phone LIMIT 5'\n  \
    alluvium sql --db home --format parquet 'SELECT * FROM phone' > phone.parquet\n  \
    alluvium sql                                 the shell; \\? tells what it knows\n  \
    alluvium sql < report.sql")]
pub(super) struct SqlArgs {
    /// The query; without it the shell opens, or standard input is read when it is no terminal
    query: Option<String>,

    /// How rows are printed [default: table on a terminal, csv otherwise]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// How long each query may take [default: as long as the server gives it]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,

    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: SqlArgs) -> anyhow::Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let format = Format::or_usual(args.format);
    let mut client = Client::new(&args.server)?;
    client.timeout = args.timeout.map(|timeout| timeout.0);
    let runtime = super::client_runtime()?;
    let script = match args.query {
        Some(query) => query,
        None if std::io::stdin().is_terminal() && terminal => return shell::run(&runtime, client, format),
        None => {
            let mut script = String::new();
            std::io::stdin().read_to_string(&mut script)?;
            script
        }
    };
    let look = Look { format, expanded: false };
    let statements = statement::split(&script);
    if statements.is_empty() {
        return Err(crate::exit::Exit::Usage("there is no query: give one, such as 'SELECT 1'".to_owned()).into());
    }
    for sql in statements {
        let mut out = std::io::stdout().lock();
        let answered = runtime.block_on(super::interruptible(ask(&client, sql, look, &mut out)))?;
        if format == Format::Table {
            writeln!(std::io::stderr(), "{answered}")?;
        }
    }
    Ok(())
}
