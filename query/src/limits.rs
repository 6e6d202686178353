//! Is this text small and flat enough to be planned?
//!
//! The parser bounds nested parentheses by itself, but `1+1+…`, `x['a']['a']…`, long chains of OR and chains of UNION become
//! trees as deep as the chain is long, and recursion over such a tree overflows the stack and ends the process
//! (<https://github.com/apache/datafusion/issues/22229>). Each table of a FROM adds its columns to those of all before it,
//! so that memory grows with the square of their number, before any pool is asked. A WITH whose queries each name the one
//! before twice doubles with every step, and planning cannot be interrupted. All are counted in the tokens, before
//! anything recurses, rather too high than too low. Long IN lists and VALUES are flat and only bounded by the text's length.

use std::collections::HashMap;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::Result;
use crate::dialect::Statements;
use crate::error::Error;

/// Operators of one kind in one expression, between two commas or parentheses.
const MAX_CHAIN: usize = 1_000;
/// What is joined, united or listed in FROM, in the whole statement: the columns of all are held for each.
const MAX_RELATIONS: usize = 100;
/// Words without anything else between them. EXPLAIN and INTERVAL nest without the parser's bound.
const MAX_WORDS: usize = 1_000;
/// Open parentheses and brackets.
const MAX_DEPTH: usize = 100;
/// Operators of a plan, each use of a WITH query counted.
const MAX_PLAN_NODES: usize = 5_000;

/// What was counted in one pair of parentheses; operators since the last comma or clause.
#[derive(Default)]
struct Level {
    /// Where it was opened.
    open: usize,
    /// How often it uses queries of a WITH, and they others.
    uses: usize,
    /// AND, OR.
    logic: usize,
    /// Everything that binds tighter.
    arithmetic: usize,
    /// Whether a comma is between relations: FROM was read, and no other clause since.
    in_from: bool,
}

/// The text's tokens without white space, if none of its chains is too long.
pub(crate) fn tokens(sql: &str, max_bytes: usize) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > max_bytes {
        return Err(too_large("the statement's bytes are too many", max_bytes, " (setting query_max_sql_bytes)"));
    }
    let tokens = Tokenizer::new(&Statements, sql).tokenize_with_location();
    let mut tokens = tokens.map_err(|e| {
        let at = e.location;
        Error::Sql { message: e.message, place: Some(crate::error::Place { line: at.line, column: at.column }) }
    })?;
    tokens.retain(|t| !matches!(t.token, Token::Whitespace(_)));
    check(&tokens)?;
    Ok(tokens)
}

fn check(tokens: &[TokenWithSpan]) -> Result<()> {
    let mut open = vec![Level::default()];
    let mut opened_at = vec![0; tokens.len()];
    let mut uses_of: HashMap<&str, usize> = HashMap::new();
    let (mut relations, mut words) = (0, 0);
    for (at, token) in tokens.iter().enumerate() {
        let outermost = open.len() == 1;
        let here = open.last_mut().expect("the outermost level is never closed");
        words = if matches!(token.token, Token::Word(_)) { words + 1 } else { 0 };
        if let Token::Word(word) = &token.token
            && let Some(uses) = uses_of.get(word.value.as_str())
        {
            here.uses = here.uses.saturating_add(*uses);
        }
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                // `x['a']` and `f(x)[1]` reach into what is before them.
                here.arithmetic += usize::from(token.token == Token::LBracket);
                open.push(Level { open: at, ..Level::default() });
            }
            Token::RParen | Token::RBracket | Token::RBrace if !outermost => {
                let (start, uses) = (here.open, here.uses);
                open.pop();
                opened_at[at] = start;
                if let Some(name) = defined(tokens, start, &opened_at) {
                    uses_of.insert(name, uses.saturating_add(1));
                }
                let outer = open.last_mut().expect("the outermost level is never closed");
                outer.uses = outer.uses.saturating_add(uses);
            }
            Token::Comma | Token::SemiColon => {
                (here.logic, here.arithmetic) = (0, 0);
                relations += usize::from(here.in_from);
            }
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR => (here.logic, here.arithmetic) = (here.logic + 1, 0),
                Keyword::JOIN | Keyword::APPLY | Keyword::PIVOT | Keyword::UNPIVOT | Keyword::MATCH_RECOGNIZE => relations += 1,
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::MINUS => {
                    relations += 1;
                    here.in_from = false;
                }
                Keyword::FROM => {
                    (here.logic, here.arithmetic) = (0, 0);
                    here.in_from = !compares(&tokens[..at]);
                }
                Keyword::SELECT | Keyword::WHERE => (here.logic, here.arithmetic, here.in_from) = (0, 0, false),
                Keyword::GROUP | Keyword::HAVING | Keyword::WINDOW | Keyword::QUALIFY | Keyword::ORDER | Keyword::LIMIT => {
                    here.in_from = false;
                }
                Keyword::IS | Keyword::NOTNULL | Keyword::NOT | Keyword::IN | Keyword::BETWEEN => here.arithmetic += 1,
                Keyword::LIKE | Keyword::ILIKE | Keyword::RLIKE | Keyword::REGEXP | Keyword::SIMILAR => here.arithmetic += 1,
                Keyword::MATCH | Keyword::MEMBER | Keyword::OVERLAPS | Keyword::OPERATOR => here.arithmetic += 1,
                Keyword::XOR | Keyword::DIV | Keyword::COLLATE | Keyword::AT => here.arithmetic += 1,
                _ => {}
            },
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) => {}
            // `.` too: in `(x).a.a` each reaches into what is before it.
            _ => here.arithmetic += 1,
        }
        let depth = open.len();
        let here = open.last().expect("the outermost level is never closed");
        if depth > MAX_DEPTH {
            return Err(too_large("parentheses are nested too deeply", MAX_DEPTH, ""));
        }
        if here.logic.max(here.arithmetic) > MAX_CHAIN {
            return Err(too_large("too many operators in one expression (use IN for long lists)", MAX_CHAIN, ""));
        }
        if relations > MAX_RELATIONS {
            return Err(too_large("too many tables are joined or united", MAX_RELATIONS, ""));
        }
        if words > MAX_WORDS {
            return Err(too_large("too many words in a row", MAX_WORDS, ""));
        }
        if here.uses > MAX_PLAN_NODES {
            return Err(too_large("the queries of WITH use each other too often", MAX_PLAN_NODES, ""));
        }
    }
    Ok(())
}

/// Whether a FROM after these tokens is that of `IS [NOT] DISTINCT FROM`.
fn compares(before: &[TokenWithSpan]) -> bool {
    let keyword = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    };
    matches!(before, [.., a, b] if matches!(keyword(a), Keyword::IS | Keyword::NOT) && keyword(b) == Keyword::DISTINCT)
}

/// The name that the parenthesis at `open` gives a query to: `name AS (`, `name (columns) AS [NOT] MATERIALIZED (`.
fn defined<'a>(tokens: &'a [TokenWithSpan], open: usize, opened_at: &[usize]) -> Option<&'a str> {
    let word = |at: usize| match &tokens.get(at)?.token {
        Token::Word(word) => Some(word),
        _ => None,
    };
    let mut at = open.checked_sub(1)?;
    while matches!(word(at)?.keyword, Keyword::MATERIALIZED | Keyword::NOT) {
        at = at.checked_sub(1)?;
    }
    if word(at)?.keyword != Keyword::AS {
        return None;
    }
    at = at.checked_sub(1)?;
    if tokens[at].token == Token::RParen {
        at = opened_at[at].checked_sub(1)?;
    }
    word(at).map(|w| w.value.as_str())
}

/// Refuses plans that are large however short their text is.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let mut nodes = 0;
    plan.apply_with_subqueries(|_| {
        nodes += 1;
        Ok(if nodes > MAX_PLAN_NODES { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    match nodes > MAX_PLAN_NODES {
        true => Err(too_large("the plan has too many steps", MAX_PLAN_NODES, "")),
        false => Ok(()),
    }
}

fn too_large(what: &str, limit: usize, setting: &'static str) -> Error {
    Error::TooLarge { what: what.to_owned(), limit, setting }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sql: &str) -> bool {
        matches!(tokens(sql, 1 << 20), Err(Error::TooLarge { .. }))
    }

    #[test]
    fn chains_that_would_overflow_the_stack_are_refused() {
        for chain in [
            format!("SELECT 1{}", "+1".repeat(2_000)),
            format!("SELECT 1{}", "||'a'".repeat(2_000)),
            format!("SELECT 1 WHERE 1=1{}", " OR 1=2".repeat(2_000)),
            format!("SELECT 1 WHERE 1=1{}", " AND x=2".repeat(2_000)),
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(2_000)),
            format!("WITH \"OR\" AS (SELECT 1) SELECT 1 WHERE 1=1{}", " OR 1=2".repeat(2_000)),
            format!("SELECT 1{}", "::int".repeat(2_000)),
            format!("SELECT {}1", "- ".repeat(2_000)),
            format!("SELECT {}true", "NOT ".repeat(2_000)),
            format!("SELECT 1{}", " IS NULL".repeat(2_000)),
            format!("SELECT {}1{}", "(".repeat(2_000), ")".repeat(2_000)),
            format!("SELECT {}1{}", "[".repeat(2_000), "]".repeat(2_000)),
            format!("SELECT 1{}", " + CASE WHEN true THEN 1 END".repeat(2_000)),
            format!("SELECT v{} FROM t", "['a']".repeat(2_000)),
            format!("SELECT (v){} FROM t", ".a".repeat(2_000)),
            format!("SELECT v{} FROM t", ".'a'".repeat(2_000)),
            format!("SELECT true{}", " XOR true".repeat(2_000)),
            format!("SELECT 1{}", " IN (1)".repeat(2_000)),
            format!("SELECT 1{}", " DIV 1".repeat(2_000)),
            format!("SELECT 1{}", " NOTNULL".repeat(2_000)),
            format!("SELECT {}'1'", "INTERVAL ".repeat(2_000)),
            format!("{}SELECT 1", "EXPLAIN ".repeat(2_000)),
            format!("SELECT '{}'", "x".repeat(1 << 20)),
        ] {
            assert!(refused(&chain), "{}", &chain[..60]);
        }
    }

    #[test]
    fn tables_are_counted_however_they_are_put_together() {
        let listed = |n: usize| (0..n).map(|i| format!("t a{i}")).collect::<Vec<_>>().join(", ");
        for many in [
            format!("SELECT 1 FROM {}", listed(200)),
            format!("SELECT 1 FROM {}, {}", "(SELECT 1) x, ".repeat(60), listed(60)),
            format!("SELECT 1 FROM t{}", " JOIN t ON a IN (1, 2)".repeat(200)),
            format!("SELECT 1 FROM t CROSS JOIN t{}", ", t JOIN t ON a = b".repeat(60)),
            format!("SELECT 1{}", " MINUS SELECT 1".repeat(200)),
            format!("SELECT 1 FROM t{}", " PIVOT(sum(a) FOR b IN (1))".repeat(200)),
            format!("SELECT * FROM {}", (0..40).map(|i| format!("(SELECT 1 FROM {}) b{i}", listed(4))).collect::<Vec<_>>().join(", ")),
        ] {
            assert!(refused(&many), "{many}");
        }
        let columns = (0..500).map(|i| format!("c{i}")).collect::<Vec<_>>().join(", ");
        for few in [
            format!("SELECT {columns} FROM {} WHERE x IN ({columns}) GROUP BY {columns} ORDER BY {columns}", listed(90)),
            format!("SELECT a IS NOT DISTINCT FROM b, {columns} FROM t"),
            format!("SELECT extract(year FROM time), {columns} FROM t"),
            format!("SELECT * FROM (VALUES (1){})", ", (2)".repeat(500)),
            format!("SELECT 1 FROM t UNION SELECT {columns} FROM t"),
        ] {
            assert!(!refused(&few), "{few}");
        }
    }

    #[test]
    fn queries_that_double_with_each_step_are_refused() {
        for define in ["c{} AS (", "c{} (x) AS (", "c{} AS MATERIALIZED (", "\"c{}\" AS NOT MATERIALIZED ("] {
            let step = |i: usize| format!("{}SELECT a.x FROM c{1} a, c{1} b)", define.replace("{}", &i.to_string()), i.wrapping_sub(1));
            let steps = |n: usize| (1..n).map(step).collect::<Vec<_>>().join(", ");
            assert!(refused(&format!("WITH c0 AS (SELECT 1 AS x), {} SELECT * FROM c39", steps(40))), "{define}");
            assert!(!refused(&format!("WITH c0 AS (SELECT 1 AS x), {} SELECT * FROM c4", steps(5))), "{define}");
        }
        let chain = (1..90).map(|i| format!("c{i} AS (SELECT * FROM c{})", i - 1)).collect::<Vec<_>>().join(", ");
        assert!(!refused(&format!("WITH c0 AS (SELECT 1 AS x), {chain} SELECT * FROM c89")), "one after the other is fine");
    }

    #[test]
    fn long_flat_statements_are_planned() {
        let list = (0..20_000).map(|i| format!("'device-{i}'")).collect::<Vec<_>>().join(", ");
        assert!(!refused(&format!("SELECT * FROM phone WHERE device_id IN ({list})")));
        let or = (0..500).map(|i| format!("device_id = 'device-{i}'")).collect::<Vec<_>>().join(" OR ");
        assert!(!refused(&format!("SELECT * FROM phone WHERE {or}")));
        let columns = (0..2_000).map(|i| format!("a{i} + 1 AS b{i}")).collect::<Vec<_>>().join(", ");
        assert!(!refused(&format!("SELECT {columns} FROM phone")));
    }

    #[test]
    fn an_unfinished_string_names_its_place() {
        let error = tokens("SELECT\n  'abc", 1 << 20).unwrap_err();
        assert_eq!(error.place().map(|p| p.line), Some(2), "{error}");
    }
}
