//! Is this text small and flat enough to be planned?
//!
//! The parser bounds nested parentheses by itself, but `1+1+…`, long chains of OR and chains of UNION become trees as
//! deep as the chain is long, and recursion over such a tree overflows the stack and ends the process
//! (<https://github.com/apache/datafusion/issues/22229>). A WITH whose queries each name the one before twice doubles with
//! every step, and planning cannot be interrupted. Both are counted in the tokens, before anything recurses, rather too
//! high than too low. Long IN lists and VALUES are flat and only bounded by the text's length.

use std::collections::HashMap;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::Result;
use crate::error::Error;

/// Operators of one kind in one expression, between two commas or parentheses.
const MAX_CHAIN: usize = 1_000;
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
    /// UNION, INTERSECT, EXCEPT, JOIN.
    relations: usize,
}

/// The text's tokens without white space, if none of its chains is too long.
pub(crate) fn tokens(sql: &str, max_bytes: usize) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > max_bytes {
        return Err(too_large("the statement's bytes are too many", max_bytes, " (setting query_max_sql_bytes)"));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location();
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
    for (at, token) in tokens.iter().enumerate() {
        let outermost = open.len() == 1;
        let here = open.last_mut().expect("the outermost level is never closed");
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => open.push(Level { open: at, ..Level::default() }),
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
            Token::Comma | Token::SemiColon => (here.logic, here.arithmetic) = (0, 0),
            Token::Word(word) if uses_of.contains_key(word.value.as_str()) => {
                here.uses = here.uses.saturating_add(uses_of[word.value.as_str()]);
            }
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR => (here.logic, here.arithmetic) = (here.logic + 1, 0),
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::JOIN => here.relations += 1,
                Keyword::SELECT | Keyword::FROM | Keyword::WHERE => (here.logic, here.arithmetic) = (0, 0),
                Keyword::IS | Keyword::LIKE | Keyword::ILIKE | Keyword::NOT | Keyword::COLLATE | Keyword::AT => here.arithmetic += 1,
                _ => {}
            },
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) | Token::Period => {}
            _ => here.arithmetic += 1,
        }
        let depth = open.len();
        let here = open.last().expect("the outermost level is never closed");
        if depth > MAX_DEPTH {
            return Err(too_large("parentheses are nested too deeply", MAX_DEPTH, ""));
        }
        if here.logic.max(here.arithmetic).max(here.relations) > MAX_CHAIN {
            return Err(too_large("too many operators in one expression (use IN for long lists)", MAX_CHAIN, ""));
        }
        if here.uses > MAX_PLAN_NODES {
            return Err(too_large("the queries of WITH use each other too often", MAX_PLAN_NODES, ""));
        }
    }
    Ok(())
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
            format!("SELECT 1{}", "::int".repeat(2_000)),
            format!("SELECT {}1", "- ".repeat(2_000)),
            format!("SELECT {}true", "NOT ".repeat(2_000)),
            format!("SELECT 1{}", " IS NULL".repeat(2_000)),
            format!("SELECT {}1{}", "(".repeat(2_000), ")".repeat(2_000)),
            format!("SELECT {}1{}", "[".repeat(2_000), "]".repeat(2_000)),
            format!("SELECT 1{}", " + CASE WHEN true THEN 1 END".repeat(2_000)),
            format!("SELECT '{}'", "x".repeat(1 << 20)),
        ] {
            assert!(refused(&chain), "{}", &chain[..60]);
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
