//! What goes wrong between asking for agreement and having it.

use model::schema::SchemaError;
use model::{ErrorKind, NodeId, ShardId};
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
        "one token at least must be an admin of all databases: make such a token first (where nobody knows its secret any more, \
         'alluvium token reset' on a stopped node makes a new one)"
    )]
    NoAdminLeft,
    /// Nobody leads the shard right now; outcome known: nothing was stored.
    #[error("shard {shard} has no leader right now")]
    NoLeader {
        /// The shard.
        shard: ShardId,
    },
    /// This node has no replica of the shard, or does not lead it.
    #[error("shard {shard} is not led by this node{}", leader.map_or(String::new(), |node| format!(", but by node {node}")))]
    NotHere {
        /// The shard.
        shard: ShardId,
        /// Who leads it, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// A node could not be reached; nothing was sent.
    #[error("could not reach {node}: {why}")]
    Unreachable {
        /// Its address or number.
        node: String,
        /// Why.
        why: String,
    },
    /// A node was asked and did not answer as it should; what it did is not known.
    #[error("{node} did not answer: {why}")]
    PeerFailed {
        /// Its address.
        node: String,
        /// Why.
        why: String,
    },
    /// Nobody leads the metadata group right now, or it cannot be reached.
    #[error("the metadata group has no leader that this node can reach: {why}")]
    NoMetadataLeader {
        /// What was tried last.
        why: String,
    },
    /// Too few members of a shard have done what must be done before it can go on.
    #[error("no majority of shard {shard} {what}: {why}")]
    NoMajority {
        /// The shard.
        shard: ShardId,
        /// What they have not done.
        what: String,
        /// The last failure.
        why: String,
    },
    /// The nodes are not of one cluster.
    #[error("{why}")]
    OtherCluster {
        /// Which clusters, and the way out.
        why: String,
    },
    /// What was asked for rests on a state that is no more.
    #[error("the cluster has changed meanwhile: {what}; look at it again and repeat the request if it still makes sense")]
    Outdated {
        /// What was asked for.
        what: String,
    },
    /// A shard that nobody made.
    #[error("there is no shard {shard}")]
    NoShard {
        /// Its number.
        shard: ShardId,
    },
    /// A place to split a shard that is not inside of it.
    #[error(
        "shard {shard} cannot be split at {at}: its routing hashes are {first} to {last}, and the new shard begins above the first of them"
    )]
    OutOfRange {
        /// The shard.
        shard: ShardId,
        /// The place.
        at: u64,
        /// Its first routing hash.
        first: u64,
        /// Its last one.
        last: u64,
    },
    /// The shard has another range than the asker knew: it was split, or its replica here has not heard of it yet.
    #[error("shard {shard} has another range by now: it was split a moment ago")]
    RangeChanged {
        /// The shard.
        shard: ShardId,
    },
    /// Nothing is given up of a shard that can still decide.
    #[error(
        "{left} of the {of} replicas of shard {shard} are in reach: nothing of it is lost, and nothing is given up; where it has no \
         leader, start the nodes that it is on"
    )]
    NotLost {
        /// The shard.
        shard: ShardId,
        /// Replicas in reach.
        left: usize,
        /// All of them.
        of: usize,
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
            Error::NotHere { shard, leader } => Error::NotHere { shard: *shard, leader: *leader },
            Error::RangeChanged { shard } => Error::RangeChanged { shard: *shard },
            Error::NoMetadataLeader { why } => Error::NoMetadataLeader { why: why.clone() },
            Error::Unreachable { node, why } => Error::Unreachable { node: node.clone(), why: why.clone() },
            Error::PeerFailed { node, why } => Error::PeerFailed { node: node.clone(), why: why.clone() },
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
            | Error::RangeChanged { .. }
            | Error::Unknown { .. }
            | Error::Overloaded { .. }
            | Error::Busy { .. }
            | Error::DiskFull(_)
            | Error::NotHere { .. }
            | Error::Unreachable { .. }
            | Error::PeerFailed { .. }
            | Error::NoMetadataLeader { .. }
            | Error::NoMajority { .. }
            | Error::ShuttingDown => ErrorKind::TryAgain,
            Error::Outdated { .. } | Error::NotLost { .. } | Error::NoShard { .. } | Error::OutOfRange { .. } => ErrorKind::YourRequest,
            Error::Stopped { .. } | Error::OtherCluster { .. } => ErrorKind::Broken,
            Error::Storage(e) => e.kind(),
        }
    }
}
