//! The statements that are ours and not DataFusion's: what was said. Having it done is `carry_out`.
//!
//! ```text
//! FLUSH [TABLE t]                          COMPACT [TABLE t]
//! CREATE DATABASE [IF NOT EXISTS] d [WITH (routing_tag = 'x', retention = '90d')]
//! DROP DATABASE [IF EXISTS] d              DROP TABLE [IF EXISTS] [d.]t
//! ALTER DATABASE d SET retention = '90d' | none
//! KILL QUERY n
//! SHOW DATABASES | TABLES [FROM d] | COLUMNS FROM [d.]t | QUERIES
//! ```
//!
//! SHOW becomes a query on the system tables. What a later version will understand is told apart from what none will.

use cluster::Permission;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use model::Catalog;
use model::schema::DEFAULT_DATABASE;

use crate::Result;
use crate::allowed::refuse;
use crate::error::{Error, Place};

/// A table by name, perhaps of another database than the request's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableName {
    pub database: Option<String>,
    pub table: String,
}

/// One statement of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Flush {
        table: Option<TableName>,
    },
    Compact {
        table: Option<TableName>,
    },
    CreateDatabase {
        name: String,
        if_not_exists: bool,
        routing_tag: Option<String>,
        retention_ns: Option<i64>,
    },
    DropDatabase {
        name: String,
        if_exists: bool,
    },
    DropTable {
        name: TableName,
        if_exists: bool,
    },
    SetRetention {
        database: String,
        retention_ns: Option<i64>,
    },
    KillQuery {
        id: u64,
    },
    /// A question in other words, and what must be there for it to have an answer.
    Show {
        sql: String,
        of: Option<Shown>,
    },
}

/// What a `SHOW` asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub database: String,
    /// One of its tables; `None`: all of them.
    pub table: Option<String>,
}

impl Shown {
    /// Refuses what is not there in the words in which any other question about it is refused.
    pub(crate) fn check(&self, catalog: &Catalog) -> Result<()> {
        let Shown { database, table } = self;
        let known = catalog.database(database);
        if let Some(table) = table
            && !known.is_some_and(|database| database.tables.contains_key(table.as_str()))
        {
            return Err(Error::sql(format!("table '{database}.{table}' not found")));
        }
        // A new node has no database yet; the default one is there for whoever asks.
        match known.is_some() || database == DEFAULT_DATABASE {
            true => Ok(()),
            false => Err(Error::NoDatabase { name: database.clone() }),
        }
    }
}

impl Command {
    /// What its sender must be allowed to do, with which database: the one named, else `database`. Databases come into
    /// being by writing, so making one is writing too; what takes rows away is an admin's.
    pub(crate) fn needs<'a>(&'a self, database: &'a str) -> (Permission, Option<&'a str>) {
        let of = |table: &'a TableName| table.database.as_deref().unwrap_or(database);
        match self {
            Command::Flush { table } | Command::Compact { table } => (Permission::Write, Some(table.as_ref().map_or(database, of))),
            Command::CreateDatabase { name, .. } => (Permission::Write, Some(name)),
            Command::DropDatabase { name, .. } => (Permission::Admin, Some(name)),
            Command::DropTable { name, .. } => (Permission::Admin, Some(of(name))),
            Command::SetRetention { database, .. } => (Permission::Admin, Some(database)),
            Command::KillQuery { .. } => (Permission::Admin, None),
            Command::Show { .. } => (Permission::Read, Some(database)),
        }
    }

    /// Its first words, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Command::Flush { .. } => "FLUSH",
            Command::Compact { .. } => "COMPACT",
            Command::CreateDatabase { .. } => "CREATE DATABASE",
            Command::DropDatabase { .. } => "DROP DATABASE",
            Command::DropTable { .. } => "DROP TABLE",
            Command::SetRetention { .. } => "ALTER DATABASE",
            Command::KillQuery { .. } => "KILL QUERY",
            Command::Show { .. } => "SHOW",
        }
    }
}

/// Whether the text begins with a command that takes as long as there is to do.
pub(crate) fn is_upkeep(sql: &str) -> bool {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    ["FLUSH", "COMPACT"].iter().any(|name| word.eq_ignore_ascii_case(name))
}

/// The command that the tokens say; `None` where they are for DataFusion.
pub(crate) fn parse(tokens: &[TokenWithSpan], database: &str) -> Result<Option<Command>> {
    let mut words = Words { tokens, at: 0 };
    let Some(first) = words.next_word() else { return Ok(None) };
    let command = match first.as_str() {
        "FLUSH" => Command::Flush { table: words.perhaps_table()? },
        "COMPACT" => Command::Compact { table: words.perhaps_table()? },
        "CREATE" if words.take("DATABASE") => {
            let if_not_exists = words.take("IF") && words.demand("NOT")? && words.demand("EXISTS")?;
            let name = words.name("the database's name")?;
            let (routing_tag, retention_ns) = words.database_options()?;
            Command::CreateDatabase { name, if_not_exists, routing_tag, retention_ns }
        }
        "DROP" if words.take("DATABASE") => {
            let if_exists = words.take("IF") && words.demand("EXISTS")?;
            Command::DropDatabase { name: words.name("the database's name")?, if_exists }
        }
        "DROP" if words.take("TABLE") => {
            let if_exists = words.take("IF") && words.demand("EXISTS")?;
            Command::DropTable { name: words.table_name()?, if_exists }
        }
        "ALTER" if words.take("DATABASE") => {
            let database = words.name("the database's name")?;
            words.demand("SET")?;
            words.demand("RETENTION")?;
            words.demand_token(&Token::Eq)?;
            Command::SetRetention { database, retention_ns: words.retention()? }
        }
        "KILL" => {
            words.demand("QUERY")?;
            let id = words.literal().and_then(|n| n.parse().ok());
            Command::KillQuery { id: id.ok_or_else(|| words.wrong("the query's number (see system.queries)"))? }
        }
        "SHOW" if words.take("DATABASES") => show("SELECT database FROM system.databases ORDER BY database".to_owned(), None),
        "SHOW" if words.take("QUERIES") => show("SELECT * FROM system.queries ORDER BY query_id".to_owned(), None),
        "SHOW" if words.take("TABLES") => {
            let of = if words.take("FROM") || words.take("IN") { words.name("the database's name")? } else { database.to_owned() };
            let sql = format!("SELECT \"table\" FROM system.tables WHERE database = {} ORDER BY \"table\"", quoted(&of));
            show(sql, Some(Shown { database: of, table: None }))
        }
        "SHOW" if words.take("COLUMNS") => {
            if !words.take("FROM") {
                words.demand("IN")?;
            }
            let name = words.table_name()?;
            let of = name.database.unwrap_or_else(|| database.to_owned());
            let sql = format!(
                "SELECT \"column\", kind, type FROM system.columns WHERE database = {} AND \"table\" = {} ORDER BY position",
                quoted(&of),
                quoted(&name.table)
            );
            show(sql, Some(Shown { database: of, table: Some(name.table) }))
        }
        "EXPLAIN" => {
            let _ = words.take("ANALYZE");
            let _ = words.take("VERBOSE");
            // DataFusion would tell what MySQL can flush.
            return match ["FLUSH", "COMPACT", "KILL"].into_iter().find(|command| words.is_next(command)) {
                Some(command) => Err(words.wrong(&format!("a question: {command} has no plan"))),
                None => Ok(None),
            };
        }
        "DELETE" => return Err(Error::NotYet { what: "DELETE".to_owned() }),
        "ERASE" => return Err(Error::NotYet { what: "ERASE DEVICE".to_owned() }),
        "ALTER" if words.take("TABLE") => return Err(Error::NotYet { what: "ALTER TABLE".to_owned() }),
        "CREATE" | "DROP" | "ALTER" | "INSERT" | "UPDATE" | "MERGE" | "REPLACE" | "TRUNCATE" | "COPY" | "SET" | "RESET" | "PREPARE"
        | "EXECUTE" | "DEALLOCATE" | "BEGIN" | "START" | "COMMIT" | "ROLLBACK" | "GRANT" | "REVOKE" | "USE" | "LOAD" | "ATTACH"
        | "VACUUM" | "ANALYZE" | "CALL" | "IMPORT" | "EXPORT" | "LOCK" | "UNLOAD" | "DECLARE" => return Err(refuse(&first)),
        _ => return Ok(None),
    };
    words.end()?;
    Ok(Some(command))
}

fn show(sql: String, of: Option<Shown>) -> Command {
    Command::Show { sql, of }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The tokens, read one by one.
struct Words<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.token).filter(|t| **t != Token::EOF)
    }

    /// The next token as an upper case word.
    fn next_word(&mut self) -> Option<String> {
        match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_none() => {
                let word = word.value.to_ascii_uppercase();
                self.at += 1;
                Some(word)
            }
            _ => None,
        }
    }

    fn is_next(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.is_next(word);
        self.at += usize::from(found);
        found
    }

    fn take_token(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn demand(&mut self, word: &str) -> Result<bool> {
        match self.take(word) {
            true => Ok(true),
            false => Err(self.wrong(word)),
        }
    }

    fn demand_token(&mut self, token: &Token) -> Result<()> {
        match self.take_token(token) {
            true => Ok(()),
            false => Err(self.wrong(&token.to_string())),
        }
    }

    /// A name as written, or between double quotes.
    fn name(&mut self, what: &str) -> Result<String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let name = word.value.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.wrong(what)),
        }
    }

    fn table_name(&mut self) -> Result<TableName> {
        let first = self.name("the table's name")?;
        match self.take_token(&Token::Period) {
            true => Ok(TableName { database: Some(first), table: self.name("the table's name")? }),
            false => Ok(TableName { database: None, table: first }),
        }
    }

    fn perhaps_table(&mut self) -> Result<Option<TableName>> {
        match self.take("TABLE") {
            true => self.table_name().map(Some),
            false => Ok(None),
        }
    }

    /// A string or a number.
    fn literal(&mut self) -> Option<String> {
        let text = match self.peek() {
            Some(Token::SingleQuotedString(text) | Token::Number(text, _)) => text.clone(),
            _ => return None,
        };
        self.at += 1;
        Some(text)
    }

    /// `WITH (routing_tag = 'x', retention = '90d')`.
    fn database_options(&mut self) -> Result<(Option<String>, Option<i64>)> {
        let (mut routing_tag, mut retention) = (None, None);
        if !self.take("WITH") {
            return Ok((None, None));
        }
        self.demand_token(&Token::LParen)?;
        loop {
            let option = self.name("routing_tag or retention")?;
            self.demand_token(&Token::Eq)?;
            match option.to_ascii_lowercase().as_str() {
                "routing_tag" => routing_tag = Some(self.literal().ok_or_else(|| self.wrong("the tag's name as a string"))?),
                "retention" => retention = self.retention()?,
                _ => {
                    self.at -= 2;
                    return Err(self.wrong("routing_tag or retention"));
                }
            }
            if !self.take_token(&Token::Comma) {
                break;
            }
        }
        self.demand_token(&Token::RParen)?;
        Ok((routing_tag, retention))
    }

    /// A span of time as a string, or `none`, `NULL`, `'none'` for ever.
    fn retention(&mut self) -> Result<Option<i64>> {
        const WHAT: &str = "a span of time such as '90d', or none";
        if self.take("none") || self.take("null") {
            return Ok(None);
        }
        let text = self.literal().ok_or_else(|| self.wrong(WHAT))?;
        if matches!(text.to_ascii_lowercase().as_str(), "none" | "inf" | "infinite") {
            return Ok(None);
        }
        let span = crate::time_bucket::nanoseconds(&text);
        self.at -= 1;
        let span = span.ok_or_else(|| self.wrong(WHAT))?;
        self.at += 1;
        Ok(Some(span))
    }

    fn end(&mut self) -> Result<()> {
        while self.take_token(&Token::SemiColon) {}
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wrong("the end of the statement")),
        }
    }

    fn wrong(&self, expected: &str) -> Error {
        let found = self.peek().map_or("the end".to_owned(), ToString::to_string);
        let here = self.tokens.get(self.at).map(|t| t.span.start).or(self.tokens.last().map(|t| t.span.end));
        let place = here.map(|at| Place { line: at.line, column: at.column });
        Error::Sql { message: format!("expected {expected}, found {found}"), place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    const DAY: i64 = 86_400_000_000_000;

    fn said(sql: &str) -> Result<Option<Command>> {
        parse(&limits::tokens(sql, 1 << 20)?, "home")
    }

    fn table(database: Option<&str>, table: &str) -> TableName {
        TableName { database: database.map(str::to_owned), table: table.to_owned() }
    }

    #[test]
    fn commands_are_understood_in_any_case_and_names_keep_theirs() {
        let create = |if_not_exists, tag: Option<&str>, retention_ns| Command::CreateDatabase {
            name: "Home".to_owned(),
            if_not_exists,
            routing_tag: tag.map(str::to_owned),
            retention_ns,
        };
        for (sql, command) in [
            ("flush", Command::Flush { table: None }),
            ("FLUSH TABLE Phone;", Command::Flush { table: Some(table(None, "Phone")) }),
            ("compact table a.\"b c\"", Command::Compact { table: Some(table(Some("a"), "b c")) }),
            ("CREATE DATABASE Home", create(false, None, None)),
            ("create database if not exists \"Home\"", create(true, None, None)),
            ("CREATE DATABASE Home WITH (routing_tag = 'car', retention='90d')", create(false, Some("car"), Some(90 * DAY))),
            ("DROP DATABASE IF EXISTS x", Command::DropDatabase { name: "x".to_owned(), if_exists: true }),
            ("DROP TABLE x.y", Command::DropTable { name: table(Some("x"), "y"), if_exists: false }),
            ("ALTER DATABASE x SET retention = '2w'", Command::SetRetention { database: "x".to_owned(), retention_ns: Some(14 * DAY) }),
            ("ALTER DATABASE x SET retention = none", Command::SetRetention { database: "x".to_owned(), retention_ns: None }),
            ("-- a remark\nKILL QUERY 7", Command::KillQuery { id: 7 }),
        ] {
            assert_eq!(said(sql).unwrap(), Some(command), "{sql}");
        }
    }

    #[test]
    fn questions_are_left_to_the_engine() {
        for sql in [
            "SELECT 1",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE VERBOSE SELECT 1",
            "EXPLAIN SELECT * FROM flush",
            "VALUES (1)",
            "(SELECT 1)",
            "SHOW ALL",
            "",
            "DESCRIBE x",
        ] {
            assert_eq!(said(sql).unwrap(), None, "{sql}");
        }
    }

    #[test]
    fn a_wrong_command_names_the_place() {
        for (sql, column) in [
            ("FLUSH phone", 7),
            ("CREATE DATABASE", 16),
            ("CREATE DATABASE x WITH (shards = '3')", 25),
            ("ALTER DATABASE x SET retention = 'soon'", 34),
            ("KILL QUERY x", 12),
            ("DROP DATABASE IF NOT x", 18),
            ("EXPLAIN FLUSH", 9),
            ("explain analyze verbose compact table x", 25),
        ] {
            let error = said(sql).unwrap_err();
            let place = error.place().unwrap_or_else(|| panic!("{sql}: {error}"));
            assert_eq!((place.line, place.column), (1, column), "{sql}: {error}");
        }
    }

    #[test]
    fn what_comes_later_is_told_apart_from_what_never_does() {
        for sql in ["DELETE FROM t WHERE device_id = 'x'", "ERASE DEVICE 'x'", "ALTER TABLE t DROP COLUMN c"] {
            assert!(matches!(said(sql), Err(Error::NotYet { .. })), "{sql}");
        }
        for sql in [
            "COPY t TO '/tmp/x'",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "CREATE TABLE t AS SELECT 1",
            "CREATE VIEW v AS SELECT 1",
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET x = 1",
            "SET datafusion.execution.batch_size = 1",
            "PREPARE p AS SELECT 1",
            "TRUNCATE TABLE t",
            "DROP VIEW v",
        ] {
            assert!(matches!(said(sql), Err(Error::Refused { .. })), "{sql}");
        }
    }

    /// Any text, made of what the language has and of what it has not: a command, a question, or an error.
    #[test]
    fn any_text_is_a_command_a_question_or_refused() {
        const PIECES: [&str; 40] = [
            "FLUSH",
            "COMPACT",
            "CREATE",
            "DROP",
            "ALTER",
            "KILL",
            "SHOW",
            "DATABASE",
            "DATABASES",
            "TABLE",
            "TABLES",
            "QUERY",
            "QUERIES",
            "COLUMNS",
            "FROM",
            "IN",
            "IF",
            "NOT",
            "EXISTS",
            "SET",
            "retention",
            "routing_tag",
            "WITH",
            "(",
            ")",
            "=",
            ",",
            ".",
            ";",
            "'90d'",
            "'it''s'",
            "\"a b\"",
            "\"",
            "'",
            "17",
            "99999999999999999999",
            "none",
            "\u{0}ä",
            "/* c",
            "-- c\n",
        ];
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (mut commands, mut refused) = (0, 0);
        for _ in 0..50_000 {
            let pieces: Vec<&str> = (0..1 + below(9)).map(|_| PIECES[below(PIECES.len())]).collect();
            let text = pieces.join([" ", "", "\n"][below(3)]);
            let Ok(tokens) = crate::limits::tokens(&text, 1 << 20) else {
                refused += 1;
                continue;
            };
            match parse(&tokens, "it's \"mine\"") {
                Ok(Some(Command::Show { sql, .. })) => {
                    assert!(crate::limits::tokens(&sql, 1 << 20).is_ok(), "{text:?}: {sql}");
                    commands += 1;
                }
                Ok(Some(_)) => commands += 1,
                Ok(None) => {}
                Err(e) => {
                    assert_eq!(e.kind(), model::ErrorKind::YourRequest, "{text:?}");
                    refused += 1;
                }
            }
        }
        assert!(commands > 100 && refused > 1_000, "{commands} commands, {refused} refused");
    }
}
