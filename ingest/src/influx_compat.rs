//! The few statements of InfluxDB 1's query language that its clients send before they write and while they look around.
//!
//! `CREATE DATABASE` and `SHOW …`, nothing that reads points: those are asked in SQL. [`Statement::read`] is pure; answers
//! come from the catalog, but for `SHOW TAG VALUES`, which asks whoever can read points through [`TagValues`].

use std::sync::Arc;

use cluster::{Access, Permission};
use futures::future::BoxFuture;
use model::{Catalog, ColumnKind, TableSchema};
use serde_json::{Value, json};

/// Gives the distinct values of a tag of a table in order: `(database, table, tag)`. Who can is wired by the program.
pub type TagValues = Arc<dyn Fn(String, String, String) -> BoxFuture<'static, Result<Vec<String>, String>> + Send + Sync>;

/// One statement that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// `CREATE DATABASE name [WITH [DURATION d] …]`
    CreateDatabase { name: String, retention_ns: Option<i64> },
    /// `SHOW DATABASES`
    ShowDatabases,
    /// Any other `SHOW`, of a database.
    Show { what: Show, database: Option<String>, tables: Vec<String>, limit: usize, offset: usize },
}

/// What a `SHOW` of a database asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Measurements,
    TagKeys,
    /// Of these tags.
    TagValues(Vec<String>),
    FieldKeys,
    RetentionPolicies,
}

/// Why a statement is not understood.
pub(crate) const POINTS_TO_SQL: &str = "only CREATE DATABASE and SHOW DATABASES, MEASUREMENTS, TAG KEYS, TAG VALUES, FIELD KEYS, \
     RETENTION POLICIES are understood here: ask anything else in SQL, with POST /sql?db=… or /api/v3/query_sql";

impl Statement {
    /// What its sender must be allowed to do, with which database: the one named, else `database`.
    pub(crate) fn needs<'a>(&'a self, database: &'a str) -> Option<(Permission, &'a str)> {
        match self {
            Statement::CreateDatabase { name, .. } => Some((Permission::Write, name)),
            // Clients that only write ask for it too; the answer has what its asker may see.
            Statement::ShowDatabases => None,
            Statement::Show { database: on, .. } => Some((Permission::Read, on.as_deref().unwrap_or(database))),
        }
    }

    /// Reads the statements of a `q`, which semicolons part.
    pub(crate) fn read(q: &str) -> Result<Vec<Statement>, String> {
        let words = words(q)?;
        let mut statements = Vec::new();
        for words in words.split(|w| *w == Word::Sign(';')).filter(|w| !w.is_empty()) {
            let mut reader = Reader { words, at: 0 };
            let statement = reader.statement().filter(|_| reader.at == words.len());
            statements.push(statement.ok_or_else(|| format!("error parsing query: {POINTS_TO_SQL}"))?);
        }
        Ok(statements)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// A bare word: a keyword or a name.
    Bare(String),
    /// `"a name"`.
    Quoted(String),
    /// `'a text'`.
    Text(String),
    /// Any other letter.
    Sign(char),
}

fn words(q: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut letters = q.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            c if c.is_whitespace() => {}
            '"' | '\'' => {
                let mut text = String::new();
                loop {
                    match letters.next() {
                        None => return Err(format!("error parsing query: a {letter} is not closed")),
                        Some('\\') => text.extend(letters.next()),
                        Some(c) if c == letter => break,
                        Some(c) => text.push(c),
                    }
                }
                words.push(if letter == '"' { Word::Quoted(text) } else { Word::Text(text) });
            }
            c if c.is_alphanumeric() || c == '_' => {
                let mut text = String::from(c);
                while let Some(c) = letters.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
                    text.push(c);
                }
                words.push(Word::Bare(text));
            }
            c => words.push(Word::Sign(c)),
        }
    }
    Ok(words)
}

struct Reader<'a> {
    words: &'a [Word],
    at: usize,
}

impl Reader<'_> {
    fn keyword(&mut self, keyword: &str) -> Option<()> {
        match self.words.get(self.at) {
            Some(Word::Bare(word)) if word.eq_ignore_ascii_case(keyword) => self.at += 1,
            _ => return None,
        }
        Some(())
    }

    fn sign(&mut self, sign: char) -> Option<()> {
        (self.words.get(self.at) == Some(&Word::Sign(sign))).then(|| self.at += 1)
    }

    fn name(&mut self) -> Option<String> {
        let (Word::Bare(name) | Word::Quoted(name)) = self.words.get(self.at)? else { return None };
        self.at += 1;
        Some(name.clone())
    }

    fn number(&mut self) -> Option<usize> {
        self.name()?.parse().ok()
    }

    fn statement(&mut self) -> Option<Statement> {
        if self.keyword("create").is_some() {
            self.keyword("database")?;
            let name = self.name()?;
            let retention_ns = if self.keyword("with").is_some() { self.policy()? } else { None };
            return Some(Statement::CreateDatabase { name, retention_ns });
        }
        self.keyword("show")?;
        if self.keyword("databases").is_some() {
            return Some(Statement::ShowDatabases);
        }
        let mut what = if self.keyword("measurements").is_some() {
            Show::Measurements
        } else if self.keyword("retention").is_some() {
            self.keyword("policies")?;
            Show::RetentionPolicies
        } else if self.keyword("field").is_some() {
            self.keyword("keys")?;
            Show::FieldKeys
        } else {
            self.keyword("tag")?;
            match self.keyword("keys") {
                Some(()) => Show::TagKeys,
                None => {
                    self.keyword("values")?;
                    Show::TagValues(Vec::new())
                }
            }
        };
        let database = if self.keyword("on").is_some() { Some(self.name()?) } else { None };
        let mut tables = Vec::new();
        if !matches!(what, Show::Measurements | Show::RetentionPolicies) && self.keyword("from").is_some() {
            tables = self.list(Reader::table)?;
        }
        if what == Show::Measurements && self.keyword("with").is_some() {
            self.keyword("measurement")?;
            self.sign('=')?;
            tables.push(self.name()?);
        }
        if let Show::TagValues(tags) = &mut what {
            self.keyword("with")?;
            self.keyword("key")?;
            if self.keyword("in").is_some() {
                self.sign('(')?;
                *tags = self.list(Reader::name)?;
                self.sign(')')?;
            } else {
                self.sign('=')?;
                tags.push(self.name()?);
            }
        }
        let limit = if self.keyword("limit").is_some() { self.number()? } else { usize::MAX };
        let offset = if self.keyword("offset").is_some() { self.number()? } else { 0 };
        Some(Statement::Show { what, database, tables, limit, offset })
    }

    fn list(&mut self, one: fn(&mut Self) -> Option<String>) -> Option<Vec<String>> {
        let mut names = vec![one(self)?];
        while self.sign(',').is_some() {
            names.push(one(self)?);
        }
        Some(names)
    }

    /// `table`, `policy.table` or `database.policy.table`: the last name counts.
    fn table(&mut self) -> Option<String> {
        let mut name = self.name()?;
        while self.sign('.').is_some() {
            name = self.name()?;
        }
        Some(name)
    }

    /// `[DURATION d] [REPLICATION n] [SHARD DURATION d] [NAME n]`: of all that only the duration means something here.
    fn policy(&mut self) -> Option<Option<i64>> {
        let mut retention_ns = None;
        let start = self.at;
        loop {
            if self.keyword("duration").is_some() {
                retention_ns = duration_ns(&self.name()?)?;
            } else if self.keyword("replication").is_some() || self.keyword("name").is_some() {
                self.name()?;
            } else if self.keyword("shard").is_some() {
                self.keyword("duration")?;
                self.name()?;
            } else {
                return (self.at > start).then_some(retention_ns);
            }
        }
    }
}

/// `90d`, `1h30m`, `INF` (and 0, which is the same): how long rows are kept.
fn duration_ns(text: &str) -> Option<Option<i64>> {
    if text.eq_ignore_ascii_case("inf") {
        return Some(None);
    }
    let mut total: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let unit = after.len() - after.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let ns: i64 = match &after[..unit] {
            "ns" => 1,
            "u" | "µ" | "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 604_800_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(ns)?)?;
        rest = &after[unit..];
    }
    Some(Some(total).filter(|&ns| ns > 0))
}

/// The text of a duration as InfluxDB writes it.
fn duration_text(ns: Option<i64>) -> String {
    let seconds = ns.unwrap_or(0) / 1_000_000_000;
    match seconds {
        0 => "0s".to_owned(),
        s => format!("{}h{}m{}s", s / 3600, s / 60 % 60, s % 60),
    }
}

/// One of `results`: the series that a `SHOW` of a database gives, or why it cannot.
pub(crate) async fn show(
    catalog: &Catalog,
    database: &str,
    what: &Show,
    tables: &[String],
    limit: usize,
    offset: usize,
    tag_values: Option<&TagValues>,
) -> Result<Vec<Value>, String> {
    let Some(schema) = catalog.database(database) else {
        // The default database is there before the first write, as far as anybody can tell.
        return if database == model::schema::DEFAULT_DATABASE { Ok(Vec::new()) } else { Err(format!("database not found: {database}")) };
    };
    let of_tables = || schema.tables.values().filter(|t| tables.is_empty() || tables.iter().any(|name| **name == *t.name));
    let page = |values: Vec<Value>| values.into_iter().skip(offset).take(limit).collect::<Vec<_>>();
    match what {
        Show::Measurements => Ok(series("measurements", &["name"], page(of_tables().map(|t| json!([t.name])).collect()))),
        Show::RetentionPolicies => {
            let duration = duration_text(schema.retention_ns);
            let columns = ["name", "duration", "shardGroupDuration", "replicaN", "default"];
            Ok(series("", &columns, vec![json!(["autogen", duration, "168h0m0s", 1, true])]))
        }
        Show::TagKeys => {
            let keys = |t: &TableSchema| page(t.tags().iter().map(|c| json!([c.name])).collect());
            Ok(of_tables().flat_map(|t| series(&t.name, &["tagKey"], keys(t))).collect())
        }
        Show::FieldKeys => {
            let keys = |t: &TableSchema| {
                let keys = t.fields().map(|c| json!([c.name, c.kind.name()])).collect();
                page(keys)
            };
            Ok(of_tables().flat_map(|t| series(&t.name, &["fieldKey", "fieldType"], keys(t))).collect())
        }
        Show::TagValues(tags) => {
            let mut answers = Vec::new();
            for table in of_tables() {
                let mut values = Vec::new();
                for tag in tags {
                    if !matches!(table.column(tag).map(|c| c.kind), Some(ColumnKind::Tag { .. })) {
                        continue;
                    }
                    let ask = tag_values.ok_or_else(|| POINTS_TO_SQL.to_owned())?;
                    let found = ask(database.to_owned(), table.name.to_string(), tag.clone()).await?;
                    values.extend(found.into_iter().map(|value| json!([tag, value])));
                }
                answers.extend(series(&table.name, &["key", "value"], page(values)));
            }
            Ok(answers)
        }
    }
}

/// The databases as `SHOW DATABASES` gives them to one who may see these.
pub(crate) fn databases(catalog: &Catalog, access: &Access) -> Vec<Value> {
    let seen = catalog.databases.keys().filter(|name| access.only_database().is_none_or(|only| only == *name));
    let names = seen.map(|name| json!([name])).collect();
    // Unlike other lists this one is there even when it is empty.
    vec![json!({"name": "databases", "columns": ["name"], "values": Value::Array(names)})]
}

fn series(name: &str, columns: &[&str], values: Vec<Value>) -> Vec<Value> {
    if values.is_empty() {
        return Vec::new();
    }
    let mut one = json!({"columns": columns, "values": values});
    if !name.is_empty() {
        one["name"] = json!(name);
    }
    vec![one]
}

#[cfg(test)]
mod tests {
    use model::schema::NewColumn;
    use model::{ColumnType, DatabaseId, DatabaseSchema, TableId};

    use super::*;

    fn read(q: &str) -> Statement {
        let mut statements = Statement::read(q).unwrap_or_else(|e| panic!("{q}: {e}"));
        assert_eq!(statements.len(), 1, "{q}");
        statements.remove(0)
    }

    fn create(name: &str, retention_ns: Option<i64>) -> Statement {
        Statement::CreateDatabase { name: name.into(), retention_ns }
    }

    fn show_of(what: Show, database: Option<&str>, tables: &[&str]) -> Statement {
        Statement::Show {
            what,
            database: database.map(str::to_owned),
            tables: tables.iter().map(|t| (*t).to_owned()).collect(),
            limit: usize::MAX,
            offset: 0,
        }
    }

    #[test]
    fn statements_that_clients_send_are_understood() {
        assert_eq!(read("CREATE DATABASE \"db1\""), create("db1", None));
        assert_eq!(read("create database telegraf;"), create("telegraf", None));
        assert_eq!(read(r#"CREATE DATABASE "a \"b\"""#), create("a \"b\"", None));
        assert_eq!(read("CREATE DATABASE d WITH DURATION 90d REPLICATION 1 NAME x"), create("d", Some(90 * 86_400_000_000_000)));
        assert_eq!(read("CREATE DATABASE d WITH DURATION 1h30m"), create("d", Some(5_400_000_000_000)));
        assert_eq!(read("CREATE DATABASE d WITH DURATION INF SHARD DURATION 1d"), create("d", None));
        assert_eq!(read("SHOW DATABASES"), Statement::ShowDatabases);
        assert_eq!(read("SHOW measurements"), show_of(Show::Measurements, None, &[]));
        assert_eq!(read("SHOW MEASUREMENTS ON x WITH MEASUREMENT = \"cpu\""), show_of(Show::Measurements, Some("x"), &["cpu"]));
        assert_eq!(read("SHOW TAG KEYS FROM \"cpu\", mem"), show_of(Show::TagKeys, None, &["cpu", "mem"]));
        assert_eq!(read("SHOW FIELD KEYS ON \"d\" FROM \"d\".\"autogen\".\"cpu\""), show_of(Show::FieldKeys, Some("d"), &["cpu"]));
        assert_eq!(read("SHOW RETENTION POLICIES ON \"d\""), show_of(Show::RetentionPolicies, Some("d"), &[]));
        let values = |tags: &[&str]| Show::TagValues(tags.iter().map(|t| (*t).to_owned()).collect());
        assert_eq!(read("SHOW TAG VALUES FROM cpu WITH KEY = \"host\""), show_of(values(&["host"]), None, &["cpu"]));
        assert_eq!(read("SHOW TAG VALUES WITH KEY IN (\"a\", b)"), show_of(values(&["a", "b"]), None, &[]));
        let Statement::Show { limit, offset, .. } = read("SHOW MEASUREMENTS LIMIT 100 OFFSET 5") else { panic!("a SHOW") };
        assert_eq!((limit, offset), (100, 5));
        assert_eq!(Statement::read("SHOW DATABASES; CREATE DATABASE x").unwrap().len(), 2);
    }

    #[test]
    fn anything_else_points_to_sql() {
        for q in [
            "SELECT * FROM cpu",
            "DROP DATABASE x",
            "SHOW",
            "SHOW SERIES",
            "SHOW TAG VALUES FROM cpu",
            "SHOW DATABASES please",
            "CREATE DATABASE",
            "CREATE DATABASE x WITH",
            "SHOW TAG VALUES WITH KEY =~ /h.*/",
        ] {
            assert_eq!(Statement::read(q), Err(format!("error parsing query: {POINTS_TO_SQL}")), "{q}");
        }
        assert_eq!(Statement::read("CREATE DATABASE \"x"), Err("error parsing query: a \" is not closed".to_owned()));
        assert_eq!(Statement::read(" ; "), Ok(Vec::new()));
    }

    fn catalog() -> Catalog {
        let mut cpu = TableSchema::new(TableId(1), DatabaseId(1), "cpu".into());
        let columns = [("host", None), ("usage", Some(ColumnType::F64)), ("region", None), ("n", Some(ColumnType::I64))];
        for (name, field) in columns {
            cpu.add(&NewColumn { name: name.into(), field }, "device_id", 10).unwrap();
        }
        let empty = TableSchema::new(TableId(2), DatabaseId(1), "bare".into());
        let tables = [cpu, empty].into_iter().map(|t| (t.name.clone(), Arc::new(t))).collect();
        let schema = DatabaseSchema {
            id: DatabaseId(1),
            name: "d".into(),
            routing_tag: "device_id".into(),
            retention_ns: Some(90_000_000_000_000),
            tables,
        };
        Catalog { version: 1, databases: [(schema.name.clone(), Arc::new(schema))].into(), next_table: 100, ..Catalog::default() }
    }

    async fn shown(q: &str) -> Value {
        let Statement::Show { what, tables, limit, offset, .. } = read(q) else { panic!("a SHOW") };
        let asked: TagValues =
            Arc::new(|database, table, tag| Box::pin(async move { Ok(vec![format!("{database}.{table}.{tag}"), "z".to_owned()]) }));
        Value::Array(show(&catalog(), "d", &what, &tables, limit, offset, Some(&asked)).await.unwrap())
    }

    #[tokio::test]
    async fn answers_look_like_influxdb_1s() {
        let measurements = json!([{"name": "measurements", "columns": ["name"], "values": [["bare"], ["cpu"]]}]);
        assert_eq!(shown("SHOW MEASUREMENTS").await, measurements);
        let second = json!([{"name": "measurements", "columns": ["name"], "values": [["cpu"]]}]);
        assert_eq!(shown("SHOW MEASUREMENTS LIMIT 1 OFFSET 1").await, second);
        let keys = json!([{"name": "cpu", "columns": ["tagKey"], "values": [["host"], ["region"]]}]);
        assert_eq!(shown("SHOW TAG KEYS").await, keys);
        let fields = json!([{"name": "cpu", "columns": ["fieldKey", "fieldType"], "values": [["usage", "float"], ["n", "integer"]]}]);
        assert_eq!(shown("SHOW FIELD KEYS FROM cpu").await, fields);
        let values = json!([{"name": "cpu", "columns": ["key", "value"], "values": [["host", "d.cpu.host"], ["host", "z"]]}]);
        assert_eq!(shown("SHOW TAG VALUES WITH KEY IN (host, usage, nothing)").await, values);
        let policies = json!([{
            "columns": ["name", "duration", "shardGroupDuration", "replicaN", "default"],
            "values": [["autogen", "25h0m0s", "168h0m0s", 1, true]],
        }]);
        assert_eq!(shown("SHOW RETENTION POLICIES").await, policies);
        assert_eq!(shown("SHOW TAG KEYS FROM nothing").await, json!([]));
        assert_eq!(databases(&catalog(), &Access::Everything), vec![json!({"name": "databases", "columns": ["name"], "values": [["d"]]})]);
    }

    #[tokio::test]
    async fn a_database_that_nobody_has_is_named() {
        let answer = show(&catalog(), "nope", &Show::Measurements, &[], 1, 0, None).await;
        assert_eq!(answer, Err("database not found: nope".to_owned()));
        assert_eq!(show(&catalog(), "default", &Show::Measurements, &[], 1, 0, None).await, Ok(Vec::new()));
    }
}
