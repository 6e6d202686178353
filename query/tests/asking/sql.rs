//! The scripts in `tests/sql`: points, questions, rows.
//!
//! Every question is asked in each state that storage can be in, with all shortcuts and with none, and must always have
//! the same answer: it may depend on neither flushes, nor compaction, nor the plan.
//!
//! ```text
//! write                 points, one a line (see `node`)
//! query                 a question, `----`, its answer as CSV; (nothing): a row of one column without a value, which CSV
//!                       writes as an empty line
//! error WORDS           a question whose error has these words
//! ```

use crate::node::{Node, stale};
use query::{RunOptions, Shortcuts};

/// Where the points are when the questions are asked.
#[derive(Clone, Copy, Debug)]
enum State {
    Memory,
    Files,
    /// Older values in files, the real ones in memory.
    MemoryOverFiles,
    /// Older values and the real ones written in several files, then merged.
    Compacted,
}

#[derive(Debug, PartialEq)]
enum Step {
    Write(String),
    Query { sql: String, rows: String },
    Error { words: String, sql: String },
}

fn read(script: &str) -> Vec<(usize, Step)> {
    let mut steps = Vec::new();
    let mut lines = script.lines().enumerate().peekable();
    while let Some((at, head)) = lines.next() {
        if head.is_empty() || head.starts_with('#') {
            continue;
        }
        let mut body = Vec::new();
        while let Some((_, line)) = lines.next_if(|(_, l)| !l.is_empty()) {
            body.push(line);
        }
        let body = body.join("\n");
        let step = match head.split_once(' ').unwrap_or((head, "")) {
            ("write", "") => Step::Write(body),
            ("query", "") => {
                let (sql, rows) = body.split_once("\n----").unwrap_or_else(|| panic!("line {}: no ----", at + 1));
                let rows = rows.trim_start_matches('\n').replace("(nothing)", "");
                Step::Query { sql: sql.to_owned(), rows }
            }
            ("error", words) => Step::Error { words: words.to_owned(), sql: body },
            _ => panic!("line {}: {head}", at + 1),
        };
        steps.push((at + 1, step));
    }
    steps
}

async fn put(node: &Node, lines: &str, state: State) {
    match state {
        State::Memory => node.write(lines).await,
        State::Files => {
            node.write(lines).await;
            node.ask("FLUSH").await;
        }
        State::MemoryOverFiles => {
            node.write(&stale(lines)).await;
            node.ask("FLUSH").await;
            node.write(lines).await;
        }
        State::Compacted => {
            node.write(&stale(lines)).await;
            node.ask("FLUSH").await;
            let all: Vec<&str> = lines.lines().collect();
            let (first, second) = all.split_at(all.len() / 2);
            node.write(&first.join("\n")).await;
            node.ask("FLUSH").await;
            node.write(&second.join("\n")).await;
            node.ask("COMPACT").await;
        }
    }
}

/// Runs one script in one state; tells everything that is not as it should be.
async fn run(name: &str, script: &str, state: State) -> Vec<String> {
    let node = Node::start().await;
    let mut wrong = Vec::new();
    for (line, step) in read(script) {
        if let Step::Write(lines) = &step {
            put(&node, lines, state).await;
            continue;
        }
        for shortcuts in [Shortcuts::On, Shortcuts::Off] {
            let place = format!("{name}:{line} ({state:?}, shortcuts {shortcuts:?})");
            let options = RunOptions { shortcuts, ..RunOptions::default() };
            match &step {
                Step::Write(_) => unreachable!("done above"),
                Step::Query { sql, rows } => match node.csv(sql, options).await {
                    Ok(answer) if answer.trim_end() == rows.trim_end() => {}
                    Ok(answer) => wrong.push(format!("{place}\n{sql}\nexpected:\n{rows}\ngot:\n{answer}")),
                    Err(e) => wrong.push(format!("{place}\n{sql}\n{e}")),
                },
                Step::Error { words, sql } => match node.csv(sql, options).await {
                    Ok(answer) => wrong.push(format!("{place}\n{sql}\nexpected the error {words}, got:\n{answer}")),
                    Err(e) if e.to_string().contains(words.as_str()) => {}
                    Err(e) => wrong.push(format!("{place}\n{sql}\nexpected the error {words}, got: {e}")),
                },
            }
        }
    }
    node.cluster.shutdown().await;
    wrong
}

const ALL: [State; 4] = [State::Memory, State::Files, State::MemoryOverFiles, State::Compacted];
/// For scripts about the plan rather than the rows.
const FIRST_AND_LAST: [State; 2] = [State::Memory, State::Compacted];

async fn answers(name: &str, states: &[State]) {
    let script = std::fs::read_to_string(format!("{}/tests/sql/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut wrong = Vec::new();
    for state in states {
        wrong.extend(run(name, &script, *state).await);
    }
    assert!(wrong.is_empty(), "{} answers are wrong:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_as_they_were_written() {
    answers("rows.slt", &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_exactly_their_rows() {
    answers("filters.slt", &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_buckets_add_up() {
    answers("groups.slt", &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_is_the_newest_row_of_each_series() {
    answers("latest.slt", &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_keep_their_case() {
    answers("names.slt", &FIRST_AND_LAST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_windows_and_subqueries_agree_on_one_read_point() {
    answers("relations.slt", &FIRST_AND_LAST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn system_tables_describe_what_is_there() {
    answers("system.slt", &FIRST_AND_LAST).await;
}

#[test]
fn a_script_is_read_step_by_step() {
    let steps = read("# remark\nwrite\nt a=b v=1 1\n\nquery\nSELECT 1\n----\na\n1\n\nerror not found\nSELECT x");
    assert_eq!(
        steps.into_iter().map(|(_, s)| s).collect::<Vec<_>>(),
        [
            Step::Write("t a=b v=1 1".to_owned()),
            Step::Query { sql: "SELECT 1".to_owned(), rows: "a\n1".to_owned() },
            Step::Error { words: "not found".to_owned(), sql: "SELECT x".to_owned() },
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_database_has_a_name_that_sql_keeps_for_itself_however_it_is_written() {
    let node = Node::start().await;
    for name in ["system", "System", "INFORMATION_SCHEMA"] {
        let e = node.csv(&format!("CREATE DATABASE {name}"), RunOptions::default()).await.unwrap_err();
        assert!(e.to_string().contains("reserved"), "{name}: {e}");
    }
    node.cluster.shutdown().await;
}
