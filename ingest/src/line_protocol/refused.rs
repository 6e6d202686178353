//! Lines that are not taken, and why.

use model::schema::{MAX_NAME_BYTES, SchemaError, check_name};

/// Bytes of a refused line that are told.
pub const MAX_ORIGINAL_LINE_BYTES: usize = 1_024;

/// A line that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLine {
    /// Its number, from 1; newlines inside strings count.
    pub line_number: usize,
    /// Its text, at most [`MAX_ORIGINAL_LINE_BYTES`] bytes of it; what is not UTF-8 is replaced.
    pub original_line: String,
    /// Why, in one sentence.
    pub reason: String,
    /// What kind of reason.
    pub kind: RefusedKind,
}

/// Why a line was not taken, as far as answers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// It is not line protocol.
    Parse,
    /// A column is of another kind or type.
    TypeConflict,
    /// A limit was exceeded.
    Limit,
    /// It is older than what the database keeps.
    Retention,
}

/// Why a line cannot be taken.
pub(super) struct Refusal {
    pub(super) kind: RefusedKind,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn limit(reason: String) -> Refusal {
        Refusal { kind: RefusedKind::Limit, reason }
    }

    pub(super) fn parse(reason: String) -> Refusal {
        Refusal { kind: RefusedKind::Parse, reason }
    }
}

impl From<SchemaError> for Refusal {
    fn from(error: SchemaError) -> Refusal {
        let kind = match error {
            SchemaError::Conflict { .. } => RefusedKind::TypeConflict,
            SchemaError::TooManyColumns { .. } | SchemaError::TooManyTables { .. } | SchemaError::TooManyDatabases { .. } => {
                RefusedKind::Limit
            }
            SchemaError::BadName { .. } => RefusedKind::Parse,
        };
        Refusal { kind, reason: error.to_string() }
    }
}

/// Refuses a name that no table or column may have.
pub(super) fn checked_name(what: &str, name: &str) -> Result<(), Refusal> {
    check_name(what, name).map_err(|error| {
        let kind = if name.len() > MAX_NAME_BYTES { RefusedKind::Limit } else { RefusedKind::Parse };
        Refusal { kind, reason: error.to_string() }
    })
}
