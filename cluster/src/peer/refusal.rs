//! An error of this crate on its way to another node, so that it means the same there.
//!
//! ```text
//! body of an answer that is no success = JSON {"kind": …, …}
//! ```

use bytes::Bytes;
use model::schema::SchemaError;
use model::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

use crate::Error;

/// An error as the other side is told.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    NotHere { shard: ShardId, leader: Option<NodeId> },
    NoLeader { shard: ShardId },
    Unknown { shard: ShardId, why: String },
    Overloaded { what: String, limit: u64 },
    Busy { what: String, limit: usize },
    DiskFull(String),
    ShuttingDown,
    NoMetadataLeader { why: String },
    Stopped { what: String, why: String },
    OtherCluster { why: String },
    Schema(SchemaError),
}

pub(crate) fn encode(error: &Error) -> Bytes {
    serde_json::to_vec(&Refusal::from(error)).expect("writing to memory").into()
}

/// The error in an answer, if there is one that this program knows.
pub(crate) fn decode(body: &[u8]) -> Option<Error> {
    serde_json::from_slice::<Refusal>(body).ok().map(Error::from)
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Refusal {
        match error {
            Error::NotHere { shard, leader } => Refusal::NotHere { shard: *shard, leader: *leader },
            Error::NoLeader { shard } => Refusal::NoLeader { shard: *shard },
            Error::Unknown { shard, why } => Refusal::Unknown { shard: *shard, why: why.clone() },
            Error::Overloaded { what, limit } => Refusal::Overloaded { what: what.clone(), limit: *limit },
            Error::Busy { what, limit } => Refusal::Busy { what: what.clone(), limit: *limit },
            Error::DiskFull(why) => Refusal::DiskFull(why.clone()),
            Error::ShuttingDown => Refusal::ShuttingDown,
            Error::NoMetadataLeader { why } => Refusal::NoMetadataLeader { why: why.clone() },
            Error::OtherCluster { why } => Refusal::OtherCluster { why: why.clone() },
            Error::Schema(error) => Refusal::Schema(error.clone()),
            Error::Stopped { what, why } => Refusal::Stopped { what: what.clone(), why: why.clone() },
            other if other.kind() == model::ErrorKind::TryAgain => Refusal::DiskFull(other.to_string()),
            other => Refusal::Stopped { what: "a part of a peer".to_owned(), why: other.to_string() },
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::NotHere { shard, leader } => Error::NotHere { shard, leader },
            Refusal::NoLeader { shard } => Error::NoLeader { shard },
            Refusal::Unknown { shard, why } => Error::Unknown { shard, why },
            Refusal::Overloaded { what, limit } => Error::Overloaded { what, limit },
            Refusal::Busy { what, limit } => Error::Busy { what, limit },
            Refusal::DiskFull(why) => Error::DiskFull(why),
            Refusal::ShuttingDown => Error::ShuttingDown,
            Refusal::NoMetadataLeader { why } => Error::NoMetadataLeader { why },
            Refusal::Stopped { what, why } => Error::Stopped { what, why },
            Refusal::OtherCluster { why } => Error::OtherCluster { why },
            Refusal::Schema(error) => Error::Schema(error),
        }
    }
}
