//! Why a request for writing was not carried out.
//!
//! Lines that are refused one by one are no error: they are part of [`Written`](crate::write::Written).

use model::{ErrorKind, ShardId};
use thiserror::Error;

/// An error of this crate; [`kind`](Error::kind) tells what can be done about it.
#[derive(Debug, Error)]
pub enum Error {
    /// A parameter with a value that it cannot have.
    #[error("parameter '{name}' cannot be '{value}': {allowed}")]
    BadParameter {
        /// The parameter.
        name: &'static str,
        /// Its value, cut to 64 bytes.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A database name that may not be used.
    #[error("database name '{name}' {why}")]
    BadDatabase {
        /// The name, cut to 64 bytes.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A body without a byte, where the interface wants points.
    #[error("the body is empty: writing requires points")]
    EmptyBody,
    /// A body beyond the limit.
    #[error("the body is larger than {limit} bytes {when} (setting max_body_bytes): send fewer lines at a time")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// `as sent` or `when inflated`.
        when: &'static str,
    },
    /// A compression that is not known.
    #[error("content encoding '{encoding}' is not supported: send gzip or no encoding")]
    Encoding {
        /// What the request says.
        encoding: String,
    },
    /// A text in letters that lines are not written in.
    #[error("a body in the charset '{charset}' is not read: send line protocol as utf-8")]
    Charset {
        /// What the request says.
        charset: String,
    },
    /// A body that is something else.
    #[error("{what} is not line protocol: send lines like table,tag=value field=1.5 1700000000000000000")]
    NotLineProtocol {
        /// What it is.
        what: String,
    },
    /// A body that does not inflate, or is not what it must be.
    #[error("could not read the body: {why}")]
    BadBody {
        /// Why.
        why: String,
    },
    /// A body that arrives too slowly.
    #[error("the body arrived too slowly: send the same body again")]
    SlowBody,
    /// A body that ended before its end.
    #[error("the body broke off ({why}): send the same body again")]
    BrokenOff {
        /// What was seen of it.
        why: String,
    },
    /// Too many bytes are in flight already.
    #[error("the server is overloaded: {limit} bytes are in flight already (setting max_in_flight_bytes); send the same body again later")]
    Overloaded {
        /// The bound.
        limit: u64,
    },
    /// The node takes no more writes.
    #[error("the node is shutting down: send the same body again to another node or later")]
    ShuttingDown,
    /// Shards' ranges changed twice while one request was under way.
    #[error("shard {shard} is moving: send the same body again")]
    Moving {
        /// One of the shards.
        shard: ShardId,
    },
    /// Others kept adding to the same tables while this request asked for its columns.
    #[error("the schema of database '{database}' is changing: send the same body again")]
    SchemaMoving {
        /// The database.
        database: String,
    },
    /// The sender's token does not allow it.
    #[error(transparent)]
    Forbidden(#[from] cluster::Forbidden),
    /// What agreement or storage said.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
}

impl Error {
    /// What the one who gets it can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::BadParameter { .. }
            | Error::BadDatabase { .. }
            | Error::EmptyBody
            | Error::TooLarge { .. }
            | Error::Encoding { .. }
            | Error::Charset { .. }
            | Error::NotLineProtocol { .. }
            | Error::BadBody { .. }
            | Error::Forbidden(_) => ErrorKind::YourRequest,
            // Clients throw away what a 4xx refuses, and nothing is wrong with these points.
            Error::SlowBody
            | Error::BrokenOff { .. }
            | Error::Overloaded { .. }
            | Error::ShuttingDown
            | Error::Moving { .. }
            | Error::SchemaMoving { .. } => ErrorKind::TryAgain,
            Error::Cluster(error) => error.kind(),
        }
    }
}

/// The first bytes of a text that came from outside, for a message.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
