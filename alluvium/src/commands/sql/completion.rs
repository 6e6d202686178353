//! What Tab offers: SQL words, functions, tables, columns and the shell's own commands.
//!
//! The names are read from the catalog when the shell opens and after each statement that may have changed them. Where
//! the server cannot be asked there are fewer suggestions, never an error.

use std::sync::{Arc, RwLock};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use reedline::{Completer, CompletionResult, Span, Suggestion};

use super::ask::rows_of;
use crate::client::Client;

const KEYWORDS: [&str; 58] = [
    "ALTER",
    "ANALYZE",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "COMPACT",
    "COUNT",
    "CREATE",
    "CROSS",
    "DATABASE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FALSE",
    "FILTER",
    "FLUSH",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "ILIKE",
    "IN",
    "INNER",
    "INTERSECT",
    "INTERVAL",
    "IS",
    "JOIN",
    "KILL",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OVER",
    "PARTITION",
    "QUERY",
    "SELECT",
    "SHOW",
    "TABLE",
    "THEN",
    "TRUE",
    "UNION",
    "WHEN",
    "WHERE",
];

const FUNCTIONS: [&str; 36] = [
    "abs",
    "approx_distinct",
    "approx_percentile_cont",
    "array_agg",
    "avg",
    "ceil",
    "coalesce",
    "count",
    "date_bin",
    "date_part",
    "date_trunc",
    "first_value",
    "floor",
    "greatest",
    "lag",
    "last_value",
    "latest",
    "lead",
    "least",
    "length",
    "lower",
    "max",
    "median",
    "min",
    "now",
    "nullif",
    "power",
    "rank",
    "round",
    "row_number",
    "sqrt",
    "stddev",
    "sum",
    "time_bucket",
    "to_timestamp",
    "upper",
];

pub(super) const META: [&str; 9] = ["\\?", "\\c", "\\d", "\\format", "\\l", "\\q", "\\timing", "\\watch", "\\x"];

/// Tables and columns by name, shared between the shell and its completer.
pub(super) type Names = Arc<RwLock<Vec<(String, &'static str)>>>;

/// Reads the names again; keeps the old ones where that fails.
pub(super) async fn refresh(client: &Client, names: &Names) {
    let mut found = Vec::new();
    for (sql, kind) in [
        ("SELECT DISTINCT table_name FROM information_schema.tables", "table"),
        (
            "SELECT DISTINCT column_name FROM information_schema.columns WHERE table_schema NOT IN ('information_schema', 'system')",
            "column",
        ),
    ] {
        let Ok(batches) = rows_of(client, sql).await else { return };
        for batch in batches {
            let Ok(column) = cast(batch.column(0), &DataType::Utf8) else { return };
            found.extend(column.as_string::<i32>().iter().flatten().map(|name| (name.to_owned(), kind)));
        }
    }
    if let Ok(mut names) = names.write() {
        *names = found;
    }
}

pub(super) struct Offer {
    pub(super) names: Names,
}

impl Completer for Offer {
    fn complete(&mut self, line: &str, position: usize) -> CompletionResult {
        let before = &line[..position];
        let start = before
            .rfind(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '\\' | '?')))
            .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        let word = &before[start..];
        let span = Span::new(start, position);
        let suggest = |value: &str, kind: &str| Suggestion {
            value: value.to_owned(),
            description: Some(kind.to_owned()),
            span,
            append_whitespace: kind != "function",
            ..Suggestion::default()
        };
        if word.is_empty() {
            return CompletionResult::fresh(Vec::new());
        }
        let fits = |candidate: &str| {
            candidate.len() >= word.len() && candidate.is_char_boundary(word.len()) && candidate[..word.len()].eq_ignore_ascii_case(word)
        };
        let mut offers: Vec<Suggestion> = Vec::new();
        if word.starts_with('\\') {
            offers.extend(META.iter().filter(|m| fits(m)).map(|m| suggest(m, "shell")));
            return CompletionResult::fresh(offers);
        }
        if let Ok(names) = self.names.read() {
            offers.extend(names.iter().filter(|(name, _)| fits(name)).map(|(name, kind)| suggest(name, kind)));
        }
        offers.extend(FUNCTIONS.iter().filter(|f| fits(f)).map(|f| suggest(&format!("{f}("), "function")));
        let lower = word.chars().all(|c| c.is_lowercase());
        offers.extend(
            KEYWORDS.iter().filter(|k| fits(k)).map(|k| if lower { suggest(&k.to_lowercase(), "word") } else { suggest(k, "word") }),
        );
        CompletionResult::fresh(offers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(line: &str) -> Vec<String> {
        let names = Arc::new(RwLock::new(vec![("phone".to_owned(), "table"), ("battery_pct".to_owned(), "column")]));
        Offer { names }.complete(line, line.len()).suggestions().iter().map(|s| s.value.clone()).collect()
    }

    #[test]
    fn tables_columns_functions_and_words_are_offered() {
        assert_eq!(offered("SELECT bat"), ["battery_pct"]);
        assert_eq!(offered("select * from pho"), ["phone"]);
        assert_eq!(offered("select time_b"), ["time_bucket("]);
        assert_eq!(offered("SEL"), ["SELECT"]);
        assert_eq!(offered("sel"), ["select"]);
        assert_eq!(offered("\\wa"), ["\\watch"]);
        assert_eq!(offered("select avg(batt"), ["battery_pct"]);
        assert!(offered("select ").is_empty());
        assert!(offered("über").is_empty());
    }
}
