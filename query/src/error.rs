//! What goes wrong between a question and its answer, and where in the text.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use model::{ErrorKind, NodeId, ShardId};
use thiserror::Error;

use crate::told::Told;

/// A place in the SQL text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// An error of this crate; [`kind`](Error::kind) tells what can be done about it.
#[derive(Debug, Error)]
pub enum Error {
    /// The text is no SQL, names what is not there, or asks what cannot be computed.
    #[error("{message}")]
    Sql {
        /// What is wrong.
        message: String,
        /// Where, if known.
        place: Option<Place>,
    },
    /// The text is larger or deeper than what is planned.
    #[error("{what}, the limit is {limit}{setting}")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// How much there may be.
        limit: usize,
        /// ` (setting …)` where one can change it.
        setting: &'static str,
    },
    /// The statement writes or touches the server's files.
    #[error("{what} is not allowed: {instead}")]
    Refused {
        /// The statement.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// The statement changes something and came through a door that only reads.
    #[error("{what} changes something and this request only reads: send it with POST")]
    ReadOnly {
        /// The statement.
        what: String,
    },
    /// Part of the language, not built yet.
    #[error("{what} is not available yet")]
    NotYet {
        /// The statement.
        what: String,
    },
    /// A database that nobody created.
    #[error("database not found: \"{name}\"")]
    NoDatabase {
        /// Its name.
        name: String,
    },
    /// No query of that number is running.
    #[error("query {id} is not running")]
    NoQuery {
        /// Its number.
        id: u64,
    },
    /// The deadline passed.
    #[error("the query was stopped at its deadline of {after:?}: ask for less, or give it longer with ?timeout=")]
    Deadline {
        /// How long it had.
        after: Duration,
    },
    /// Somebody killed it.
    #[error("query {id} was killed")]
    Killed {
        /// Its number.
        id: u64,
    },
    /// As many queries are running as may.
    #[error("{limit} queries are running already: try again (setting query_max_concurrent)")]
    TooMany {
        /// How many may run.
        limit: usize,
    },
    /// As many queries of one token are running as may.
    #[error("{limit} queries of token '{token}' are running already: try again (setting query_max_concurrent_per_token)")]
    TooManyOfToken {
        /// Its name.
        token: String,
        /// How many may run.
        limit: usize,
    },
    /// The asker's token does not allow it.
    #[error(transparent)]
    Forbidden(#[from] cluster::Forbidden),
    /// The query needs more memory or spill space than it may have.
    #[error("the query needs more memory than it may have: {message}")]
    OverMemory {
        /// DataFusion's account of who wanted how much.
        message: String,
    },
    /// A shard is not read where it was thought to be.
    #[error("{why}")]
    Elsewhere {
        /// The shard.
        shard: ShardId,
        /// Where it was looked for.
        why: String,
    },
    /// A replica's rows are older than the asker allows.
    #[error("{why}")]
    TooOld {
        /// The shard.
        shard: ShardId,
        /// How old they are, and how old they might be.
        why: String,
    },
    /// A node that worked on the query went away.
    #[error("{why}")]
    Lost {
        /// The node, as long as its shards are not named.
        node: Option<NodeId>,
        /// Which node, and what was seen of it.
        why: String,
    },
    /// The rows have a newer schema than the plan.
    #[error("{message}")]
    StaleSchema {
        /// Which table, and the versions.
        message: String,
    },
    /// Something that another try may find mended.
    #[error("{why}")]
    Later {
        /// What.
        why: String,
    },
    /// Another node has ended its part of the query.
    #[error("{why}")]
    Ended {
        /// Why.
        why: String,
    },
    /// The node is stopping.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// Agreement or a shard failed.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// Storage failed while rows were read.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// A mistake in the engine or in this crate.
    #[error("the query failed inside the engine: {message}")]
    Engine {
        /// What the engine says.
        message: String,
    },
}

impl Error {
    /// A replica's rows may be older than the asker allows.
    pub(crate) fn too_old(shard: ShardId, age: Duration, limit: Duration) -> Error {
        let (age, limit) = (age.as_secs_f64(), limit.as_secs_f64());
        let why = format!(
            "shard {shard} can only be read as it was {age:.1} s ago, older than max_lag={limit}s allows: ask again, or allow more"
        );
        Error::TooOld { shard, why }
    }

    /// What the one who gets it can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Sql { .. }
            | Error::TooLarge { .. }
            | Error::Refused { .. }
            | Error::ReadOnly { .. }
            | Error::NotYet { .. }
            | Error::NoDatabase { .. }
            | Error::NoQuery { .. }
            | Error::Deadline { .. }
            | Error::Killed { .. }
            | Error::Forbidden(_)
            | Error::Ended { .. }
            | Error::OverMemory { .. } => ErrorKind::YourRequest,
            Error::TooMany { .. }
            | Error::TooManyOfToken { .. }
            | Error::Elsewhere { .. }
            | Error::TooOld { .. }
            | Error::Later { .. }
            | Error::Lost { .. }
            | Error::StaleSchema { .. }
            | Error::ShuttingDown => ErrorKind::TryAgain,
            Error::Cluster(e) => e.kind(),
            Error::Storage(e) => e.kind(),
            Error::Engine { .. } => ErrorKind::Broken,
        }
    }

    /// Where in the text, if known.
    pub fn place(&self) -> Option<Place> {
        match self {
            Error::Sql { place, .. } => *place,
            _ => None,
        }
    }

    /// An error about the text as a whole.
    pub(crate) fn sql(message: impl Into<String>) -> Error {
        Error::Sql { message: message.into(), place: None }
    }

    /// Carries this error through DataFusion; [`From`] finds it again.
    pub(crate) fn inside(self) -> DataFusionError {
        DataFusionError::External(Box::new(self))
    }
}

/// Functions of the language that are not built yet; DataFusion knows none of them.
const LATER: [&str; 7] = ["time_bucket_gapfill", "locf", "interpolate", "first", "last", "rate", "delta"];

/// The function of a later version that DataFusion does not find.
fn later_function(message: &str) -> Option<Error> {
    let (_, rest) = message.split_once("Invalid function '")?;
    let (name, _) = rest.split_once('\'')?;
    let later = LATER.into_iter().find(|later| name.eq_ignore_ascii_case(later))?;
    Some(Error::NotYet { what: format!("the function {later}") })
}

impl From<DataFusionError> for Error {
    fn from(e: DataFusionError) -> Error {
        if let Some(ours) = our_own(&e) {
            return ours;
        }
        if may_be_told(&e) {
            let text = e.to_string();
            // A node that worked on the query has told it, whatever DataFusion put around it.
            if let Some(told) = Told::find(&text) {
                return told.error();
            }
            // A stage whose plan never came, because whoever was to send it is gone or busy.
            if text.contains("execute_task timed-out") {
                return Error::Lost { node: None, why: "a node waited in vain for its part of the plan".to_owned() };
            }
        }
        let place = place_of(&e);
        // Arrow's own readers and writers carry the spill disk's errors as text.
        if e.to_string().contains("max_temp_directory_size") {
            return Error::OverMemory {
                message: "what it had to put on disk is over the limit too (setting query_spill_bytes)".to_owned(),
            };
        }
        match e.find_root() {
            DataFusionError::ResourcesExhausted(message) => Error::OverMemory { message: first_line(message) },
            DataFusionError::Internal(message) => Error::Engine { message: first_line(message) },
            DataFusionError::External(source) => Error::Engine { message: source.to_string() },
            DataFusionError::IoError(source) => Error::Engine { message: source.to_string() },
            DataFusionError::ArrowError(source, _) if matches!(source.as_ref(), ArrowError::IoError(..)) => {
                Error::Engine { message: source.to_string() }
            }
            DataFusionError::Plan(message) if let Some(later) = later_function(message) => later,
            DataFusionError::ExecutionJoin(source) => Error::Engine { message: source.to_string() },
            root => Error::Sql { message: first_line(&root.strip_backtrace()), place },
        }
    }
}

/// Whether an error may have come from another node; those that quote the statement come from here.
fn may_be_told(e: &DataFusionError) -> bool {
    match e.find_root() {
        DataFusionError::Plan(_)
        | DataFusionError::SQL(..)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Configuration(_) => false,
        DataFusionError::ArrowError(source, _) => matches!(source.as_ref(), ArrowError::ExternalError(_)),
        _ => true,
    }
}

/// Finds an error of this crate that travelled inside DataFusion's, and takes what it says.
fn our_own(e: &DataFusionError) -> Option<Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours.again());
        }
        next = match error.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Shared(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Collection(all)) => all.first().map(|e| e as &(dyn std::error::Error + 'static)),
            Some(DataFusionError::ArrowError(inner, _)) => match inner.as_ref() {
                ArrowError::ExternalError(inner) => Some(inner.as_ref()),
                _ => None,
            },
            _ => error.source(),
        };
    }
    None
}

impl Error {
    // DataFusion may hand one error to several readers, so it cannot be taken out of its box; the words and the kind are kept.
    fn again(&self) -> Error {
        match self {
            Error::Sql { message, place } => Error::Sql { message: message.clone(), place: *place },
            Error::TooLarge { what, limit, setting } => Error::TooLarge { what: what.clone(), limit: *limit, setting },
            Error::Refused { what, instead } => Error::Refused { what: what.clone(), instead: instead.clone() },
            Error::NotYet { what } => Error::NotYet { what: what.clone() },
            Error::NoDatabase { name } => Error::NoDatabase { name: name.clone() },
            Error::OverMemory { message } => Error::OverMemory { message: message.clone() },
            Error::ShuttingDown => Error::ShuttingDown,
            Error::Elsewhere { shard, why } => Error::Elsewhere { shard: *shard, why: why.clone() },
            Error::TooOld { shard, why } => Error::TooOld { shard: *shard, why: why.clone() },
            Error::Cluster(cluster::Error::NotHere { shard, .. } | cluster::Error::NoLeader { shard }) => {
                Error::Elsewhere { shard: *shard, why: self.to_string() }
            }
            Error::Cluster(cluster::Error::RangeChanged { shard }) => cluster::Error::RangeChanged { shard: *shard }.into(),
            Error::Lost { node, why } => Error::Lost { node: *node, why: why.clone() },
            Error::StaleSchema { message } => Error::StaleSchema { message: message.clone() },
            Error::Storage(e @ storage::Error::StaleSchema { .. }) => Error::StaleSchema { message: e.to_string() },
            Error::Ended { why } => Error::Ended { why: why.clone() },
            Error::Deadline { after } => Error::Deadline { after: *after },
            Error::Killed { id } => Error::Killed { id: *id },
            other if other.kind() == ErrorKind::TryAgain => Error::Later { why: other.to_string() },
            other => Error::Engine { message: other.to_string() },
        }
    }
}

/// Line and column: from DataFusion's diagnostic, else from the end of the parser's message.
fn place_of(e: &DataFusionError) -> Option<Place> {
    if let Some(span) = e.diagnostic().and_then(|d| d.span) {
        return Some(Place { line: span.start.line, column: span.start.column });
    }
    place_in(&e.to_string())
}

fn place_in(message: &str) -> Option<Place> {
    let (_, rest) = message.rsplit_once(" at Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some(Place { line: line.parse().ok()?, column: rest[..digits].parse().ok()? })
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_place_is_found() {
        let message = "sql parser error: Expected: end of statement, found: x at Line: 3, Column: 14\n\nbacktrace";
        assert_eq!(place_in(message), Some(Place { line: 3, column: 14 }));
        assert_eq!(place_in("no place here"), None);
    }

    #[test]
    fn what_a_statement_quotes_is_no_word_of_a_peer() {
        let told = Told::of(&Error::Later { why: "full".to_owned() }).text();
        assert!(matches!(Error::from(DataFusionError::Plan(format!("no function {told}"))), Error::Sql { .. }));
        assert!(matches!(Error::from(DataFusionError::Execution(told)), Error::Later { .. }));
        let late = "Worker::execute_task timed-out while waiting for the plan to be set by the coordinator. (deadline has elapsed)";
        assert!(matches!(Error::from(DataFusionError::Execution(late.to_owned())), Error::Lost { node: None, .. }));
    }

    #[test]
    fn our_own_error_survives_datafusion() {
        let e = Error::NoDatabase { name: "x".to_owned() }.inside().context("while planning");
        let e = DataFusionError::Shared(std::sync::Arc::new(e));
        assert!(matches!(Error::from(e), Error::NoDatabase { name } if name == "x"));
    }
}
