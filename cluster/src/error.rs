//! What goes wrong between asking for agreement and having it.

use model::schema::SchemaError;
use model::{ErrorKind, ShardId};
use thiserror::Error;

use crate::tokens::{MAX_TOKEN_NAME_BYTES, MAX_TOKENS};

/// An error of this crate; [`kind`](Error::kind) tells what can be done about it.
#[derive(Debug, Error)]
pub enum Error {
    /// The schema that was asked for cannot be.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A database that nobody created.
    #[error("database not found: \"{name}\"")]
    NoDatabase {
        /// Its name.
        name: String,
    },
    /// A table that nobody wrote to.
    #[error("table not found: \"{name}\"")]
    NoTable {
        /// Its name.
        name: String,
    },
    /// A database that exists otherwise than asked.
    #[error("database \"{name}\" exists already with routing tag \"{routing_tag}\", which cannot be changed")]
    DatabaseExists {
        /// Its name.
        name: String,
        /// Its routing tag.
        routing_tag: String,
    },
    /// A token's name that another one has.
    #[error("there is a token '{name}' already: revoke it first, or choose another name")]
    TokenExists {
        /// The name.
        name: String,
    },
    /// A token's name that is empty, too long or not printable.
    #[error("a token's name is 1 to {MAX_TOKEN_NAME_BYTES} bytes of printable text")]
    BadTokenName,
    /// As many tokens as there may be.
    #[error("there are {MAX_TOKENS} tokens already: revoke those that nobody uses")]
    TooManyTokens,
    /// A token that nobody made.
    #[error("there is no token '{name}'")]
    NoToken {
        /// Its name.
        name: String,
    },
    /// Nobody could make or revoke tokens any more.
    #[error(
        "one token at least must be an admin of all databases: make such a token first (where nobody knows its secret any more,          'alluvium token reset' on a stopped node makes a new one)"
    )]
    NoAdminLeft,
    /// Nobody leads the shard right now; outcome known: nothing was stored.
    #[error("shard {shard} has no leader right now")]
    NoLeader {
        /// The shard.
        shard: ShardId,
    },
    /// The outcome of a write is not known: it may or may not be stored.
    #[error("the outcome of a write to shard {shard} is unknown: {why}")]
    Unknown {
        /// The shard.
        shard: ShardId,
        /// Why.
        why: String,
    },
    /// Too much is waiting already.
    #[error("{what} is full: {limit} bytes are waiting already")]
    Overloaded {
        /// Which queue.
        what: String,
        /// Its bound.
        limit: u64,
    },
    /// Too many are waiting already.
    #[error("{what} is full: {limit} requests are waiting already")]
    Busy {
        /// Which queue.
        what: String,
        /// Its bound.
        limit: usize,
    },
    /// There is no room on the disk of this shard.
    #[error("{0}")]
    DiskFull(String),
    /// The node is stopping.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// This shard has stopped until it is repaired.
    #[error("{what} has stopped: {why}")]
    Stopped {
        /// The shard or the metadata group.
        what: String,
        /// The first error.
        why: String,
    },
    /// Storage's own error.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Error {
    /// The same error for another who waited for the same thing.
    pub(crate) fn again(&self) -> Error {
        match self {
            Error::NoLeader { shard } => Error::NoLeader { shard: *shard },
            Error::Unknown { shard, why } => Error::Unknown { shard: *shard, why: why.clone() },
            Error::Stopped { what, why } => Error::Stopped { what: what.clone(), why: why.clone() },
            Error::ShuttingDown => Error::ShuttingDown,
            full if full.kind() == ErrorKind::TryAgain => Error::DiskFull(full.to_string()),
            other => Error::Stopped { what: "this part of the node".to_owned(), why: other.to_string() },
        }
    }

    /// What the one who gets it can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Schema(_)
            | Error::NoDatabase { .. }
            | Error::NoTable { .. }
            | Error::DatabaseExists { .. }
            | Error::TokenExists { .. }
            | Error::BadTokenName
            | Error::TooManyTokens
            | Error::NoToken { .. }
            | Error::NoAdminLeft => ErrorKind::YourRequest,
            Error::NoLeader { .. }
            | Error::Unknown { .. }
            | Error::Overloaded { .. }
            | Error::Busy { .. }
            | Error::DiskFull(_)
            | Error::ShuttingDown => ErrorKind::TryAgain,
            Error::Stopped { .. } => ErrorKind::Broken,
            Error::Storage(e) => e.kind(),
        }
    }
}
