//! The shell: statements end with `;`, commands of its own begin with `\`.
//!
//! Ctrl-C cancels the query that runs, or clears the line; Ctrl-D or `\q` ends the shell.

use std::borrow::Cow;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use reedline::{
    ColumnarMenu, DefaultHinter, Emacs, FileBackedHistory, KeyCode, KeyModifiers, MenuBuilder, Prompt, PromptEditMode, PromptHistorySearch,
    Reedline, ReedlineEvent, ReedlineMenu, Signal, ValidationResult, Validator, default_emacs_keybindings,
};
use tokio::runtime::Runtime;

use super::ask::{Look, ask, rows_of};
use super::completion::{Names, Offer, refresh};
use super::{Format, statement};
use crate::client::Client;
use crate::exit::Exit;

const HISTORY_LINES: usize = 10_000;

const HELP: &str = "  SELECT …;          runs when the line ends with ;
  \\d                 tables of this database
  \\d TABLE           columns of a table
  \\l                 databases
  \\c NAME            use another database
  \\x                 each row as a block of lines, on or off
  \\format FORMAT     table, csv, json, jsonl
  \\timing            the line below each answer, on or off
  \\watch SECONDS     the last query again and again, until Ctrl-C
  \\q                 leave (Ctrl-D too)";

/// The shell's state.
struct Shell<'a> {
    runtime: &'a Runtime,
    client: Client,
    look: Look,
    timing: bool,
    last: Option<String>,
    names: Names,
    shards: Option<u64>,
}

enum Next {
    Line,
    Leave,
}

pub(super) fn run(runtime: &Runtime, client: Client, format: Format) -> anyhow::Result<()> {
    let names: Names = Arc::new(RwLock::new(Vec::new()));
    // The first question also tells whether anybody is there.
    let version = runtime.block_on(async {
        let answer = client.send(http::Method::GET, "/ping", &[], &[], "").await?;
        anyhow::Ok(answer.headers().get("x-influxdb-version").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned())
    })?;
    runtime.block_on(refresh(&client, &names));
    let shards = runtime.block_on(count_of_shards(&client));
    let mut err = std::io::stderr();
    writeln!(err, "alluvium {version} at {} · \\? for help, Ctrl-D to leave", client.url())?;
    let mut editor = editor(names.clone())?;
    let mut shell = Shell { runtime, client, look: Look { format, expanded: false }, timing: true, last: None, names, shards };
    loop {
        match editor.read_line(&Words { database: shell.client.db.clone() })? {
            Signal::Success(line) => match shell.obey(line.trim()) {
                Ok(Next::Line) => {}
                Ok(Next::Leave) => return Ok(()),
                Err(error) => writeln!(err, "{} {}", console::style("error:").for_stderr().red().bold(), crate::commands::told(&error))?,
            },
            Signal::CtrlD => return Ok(()),
            _ => {}
        }
    }
}

impl Shell<'_> {
    fn obey(&mut self, line: &str) -> anyhow::Result<Next> {
        if let Some(command) = line.strip_prefix('\\') {
            return self.obey_meta(command.trim_end_matches(';').trim());
        }
        if matches!(line.trim_end_matches(';').trim(), "quit" | "exit") {
            return Ok(Next::Leave);
        }
        for sql in statement::split(line) {
            self.ask(sql)?;
            self.last = Some(sql.to_owned());
            if !sql.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select")) {
                self.runtime.block_on(refresh(&self.client, &self.names));
            }
        }
        Ok(Next::Line)
    }

    fn obey_meta(&mut self, command: &str) -> anyhow::Result<Next> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let argument = argument.trim();
        let mut err = std::io::stderr();
        match (name, argument) {
            ("q", _) => return Ok(Next::Leave),
            ("?", _) => writeln!(err, "{HELP}")?,
            ("l", _) => self.ask("SELECT * FROM system.databases")?,
            ("d", "") => self.ask("SELECT * FROM system.tables")?,
            ("d", table) if table.contains('.') => self.ask(&format!("DESCRIBE {table}"))?,
            ("d", table) => self.ask(&columns_of(&self.client.db, table))?,
            ("c", "") => writeln!(err, "this is database {}", self.client.db)?,
            ("c", name) => {
                self.client.db = name.to_owned();
                self.runtime.block_on(refresh(&self.client, &self.names));
            }
            ("x", _) => {
                self.look.expanded = !self.look.expanded;
                writeln!(err, "each row as {}", if self.look.expanded { "a block of lines" } else { "a line" })?;
            }
            ("timing", _) => {
                self.timing = !self.timing;
                writeln!(err, "the line below each answer is {}", if self.timing { "on" } else { "off" })?;
            }
            ("format", name) => match <Format as clap::ValueEnum>::from_str(name, true) {
                Ok(Format::Parquet | Format::Arrow) => {
                    anyhow::bail!("a terminal cannot show {name}: alluvium sql --format {name} '…' > FILE")
                }
                Ok(format) => self.look.format = format,
                Err(_) => anyhow::bail!("no such format: table, csv, json, jsonl"),
            },
            ("watch", seconds) => self.watch(seconds)?,
            (other, _) => anyhow::bail!("no such command: \\{other} (\\? tells which there are)"),
        }
        Ok(Next::Line)
    }

    /// Asks until there is an answer or Ctrl-C.
    fn ask(&self, sql: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self.runtime.block_on(super::super::interruptible(ask(&self.client, sql, self.look, &mut out))) {
            Ok(answered) if self.timing => Ok(writeln!(std::io::stderr(), "{}", answered.of_shards(self.shards))?),
            Ok(_) => Ok(()),
            Err(error) if matches!(error.downcast_ref(), Some(Exit::Interrupted)) => Ok(writeln!(std::io::stderr(), "\ncancelled")?),
            Err(error) => Err(error),
        }
    }

    fn watch(&self, seconds: &str) -> anyhow::Result<()> {
        let wrong = || anyhow::anyhow!("write it like \\watch 1");
        let pause = if seconds.is_empty() { 2.0 } else { seconds.parse::<f64>().map_err(|_| wrong())? };
        let pause = Duration::try_from_secs_f64(pause).map_err(|_| wrong())?;
        let sql = self.last.as_deref().ok_or_else(|| anyhow::anyhow!("there is no query yet to watch"))?;
        let mut out = std::io::stdout().lock();
        let watched: anyhow::Result<()> = self.runtime.block_on(super::super::interruptible(async {
            loop {
                // Home and clear: the table stands still while its figures change.
                out.write_all(b"\x1b[H\x1b[2J")?;
                let answered = ask(&self.client, sql, self.look, &mut out).await?;
                let answered = answered.of_shards(self.shards);
                writeln!(std::io::stderr(), "{answered} · every {} s, Ctrl-C ends", pause.as_secs_f64())?;
                tokio::time::sleep(pause).await;
            }
        }));
        match watched {
            Err(error) if matches!(error.downcast_ref(), Some(Exit::Interrupted)) => Ok(writeln!(std::io::stderr())?),
            other => other,
        }
    }
}

/// For the line below answers, which says less where this is not known.
async fn count_of_shards(client: &Client) -> Option<u64> {
    let batches = rows_of(client, "SELECT shard_id FROM system.shards").await.ok()?;
    Some(batches.iter().map(|batch| batch.num_rows() as u64).sum())
}

/// Asks for the columns of a table; its name may be in quotes.
fn columns_of(database: &str, table: &str) -> String {
    let text = |name: &str| format!("'{}'", name.trim_matches('"').replace('\'', "''"));
    let (database, table) = (text(database), text(table));
    format!("SELECT \"column\", kind, type FROM system.columns WHERE \"database\" = {database} AND \"table\" = {table} ORDER BY position")
}

fn editor(names: Names) -> anyhow::Result<Reedline> {
    let mut keys = default_emacs_keybindings();
    keys.add_binding(
        KeyModifiers::NONE,
        KeyCode::Tab,
        ReedlineEvent::UntilFound(vec![ReedlineEvent::Menu("offers".to_owned()), ReedlineEvent::MenuNext]),
    );
    let menu = ColumnarMenu::default().with_name("offers");
    let mut editor = Reedline::create()
        .with_validator(Box::new(EndsWithSemicolon))
        .with_completer(Box::new(Offer { names }))
        .with_quick_completions(true)
        .with_partial_completions(true)
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)))
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_ansi_colors(console::colors_enabled())
        .with_hinter(Box::new(DefaultHinter::default()));
    if let Some(path) = history_file() {
        // A history that cannot be kept is no reason not to answer.
        if let Ok(history) = FileBackedHistory::with_file(HISTORY_LINES, path) {
            editor = editor.with_history(Box::new(history));
        }
    }
    Ok(editor)
}

fn history_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".local/state"),
    };
    Some(folder.join("alluvium").join("history"))
}

struct EndsWithSemicolon;

impl Validator for EndsWithSemicolon {
    fn validate(&self, line: &str) -> ValidationResult {
        let trimmed = line.trim();
        let done = trimmed.is_empty() || trimmed.starts_with('\\') || matches!(trimmed, "quit" | "exit") || statement::is_complete(line);
        if done { ValidationResult::Complete } else { ValidationResult::Incomplete }
    }
}

struct Words {
    database: String,
}

impl Prompt for Words {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        match self.database.as_str() {
            model::schema::DEFAULT_DATABASE => "alluvium".into(),
            name => format!("alluvium:{name}").into(),
        }
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "       -> ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!("(search: {}) ", search.term).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enter_ends_commands_at_once_and_sql_at_its_semicolon() {
        for (line, done) in [("", true), ("\\d", true), ("exit", true), ("SELECT 1", false), ("SELECT 1;", true)] {
            assert_eq!(matches!(EndsWithSemicolon.validate(line), ValidationResult::Complete), done, "{line:?}");
        }
    }

    #[test]
    fn table_names_are_texts_to_the_catalog() {
        assert!(columns_of("home", "Phone").contains("\"table\" = 'Phone' "));
        assert!(columns_of("home", "\"a 'b\"").contains("\"table\" = 'a ''b' "));
    }
}
