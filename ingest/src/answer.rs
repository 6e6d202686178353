//! The words of errors, to the letter: clients decide by them what they throw away.
//!
//! One JSON body for everybody, but for QuestDB's clients, of which one shows raw JSON at any key beyond four. What differs
//! between dialects is the sentence in `error`: InfluxDB 1's on `/write?db=`, two fixed phrases on v2 and v3.

use serde::Serialize;

use crate::line_protocol::{RefusedKind, RefusedLine};
use crate::request::Dialect;
use crate::request_id::RequestId;
use crate::write::Written;

/// `error` where some lines are stored and others refused; clients of InfluxDB 2 and 3 know this phrase.
const PARTIAL: &str = "partial write of line protocol occurred";
/// `error` where lines are refused and nothing is stored.
const NOTHING: &str = "parsing failed for write_lp endpoint";

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    message: &'a str,
    error: &'a str,
    line: usize,
    #[serde(rename = "errorId")]
    error_id: &'a str,
    data: Vec<BadLine<'a>>,
}

#[derive(Serialize)]
struct BadLine<'a> {
    line_number: usize,
    original_line: &'a str,
    error_message: &'a str,
}

#[derive(Serialize)]
struct QuestDbBody<'a> {
    code: &'a str,
    message: &'a str,
    line: usize,
    #[serde(rename = "errorId")]
    error_id: &'a str,
}

/// The body of an answer about a whole request; `line` is 0 as no line is to blame.
pub fn whole_request(dialect: Dialect, code: &str, message: &str, id: RequestId) -> Vec<u8> {
    body(dialect, Body { code, message, error: message, line: 0, error_id: id.as_str(), data: Vec::new() })
}

/// The body of an answer that refuses lines.
pub(crate) fn refused_lines(dialect: Dialect, accept_partial: bool, written: &Written, id: RequestId) -> Vec<u8> {
    let first = written.refused.first().expect("an answer that refuses lines names the first");
    let message = message(accept_partial, written, first);
    let sentence;
    let error = match dialect {
        Dialect::InfluxV1 => {
            sentence = influx_v1_sentence(written, first);
            &sentence
        }
        _ if written.stored => PARTIAL,
        _ => NOTHING,
    };
    let data = written
        .refused
        .iter()
        .map(|line| BadLine { line_number: line.line_number, original_line: &line.original_line, error_message: &line.reason })
        .collect();
    body(dialect, Body { code: "invalid", message: &message, error, line: first.line_number, error_id: id.as_str(), data })
}

fn body(dialect: Dialect, body: Body<'_>) -> Vec<u8> {
    let text = match dialect {
        Dialect::QuestDb => {
            let Body { code, message, line, error_id, .. } = body;
            serde_json::to_vec(&QuestDbBody { code, message, line, error_id })
        }
        _ => serde_json::to_vec(&body),
    };
    text.expect("strings and numbers become JSON")
}

fn message(accept_partial: bool, written: &Written, first: &RefusedLine) -> String {
    let stored = match (written.stored, accept_partial) {
        (true, _) => "the others are stored",
        (false, true) => "nothing is stored",
        (false, false) => "nothing is stored because of accept_partial=false",
    };
    let refused = match written.refused_lines {
        1 => "1 line".to_owned(),
        many => format!("{many} lines"),
    };
    format!("{refused} refused, {stored}; line {}: {}", first.line_number, first.reason)
}

/// InfluxDB 1 says `partial write` unless no line could even be parsed; `dropped` counts all refused lines.
fn influx_v1_sentence(written: &Written, first: &RefusedLine) -> String {
    let nothing_parsed = !written.stored && written.refused.iter().all(|line| line.kind == RefusedKind::Parse);
    let prefix = if nothing_parsed { "" } else { "partial write: " };
    let (reason, dropped) = (&first.reason, written.refused_lines);
    match first.kind {
        RefusedKind::TypeConflict => format!("{prefix}field type conflict: {reason} dropped={dropped}"),
        RefusedKind::Parse | RefusedKind::Limit => {
            format!("{prefix}unable to parse '{}': {reason} dropped={dropped}", first.original_line)
        }
        // The words by which influxdb-java knows that the line is lost for good.
        RefusedKind::Retention => format!("{prefix}points beyond retention policy: {reason} dropped={dropped}"),
    }
}
