//! Numbers that must not be mixed up are types.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A node: one process, by the number that the metadata group gave its name.
    NodeId(u64)
}
id! {
    /// A shard: one range of device hashes, one raft group. The metadata group has no `ShardId`.
    ShardId(u32)
}
id! {
    /// One replica's own number (a random UUID as an integer): a replica on an empty disk is a new replica.
    ReplicaId(u128)
}
id! {
    /// The period in which one replica may order writes.
    Term(u64)
}
id! {
    /// Position of a record in one log; the first record has index 0.
    LogIndex(u64)
}
id! {
    /// Version of the shard map, or of one shard's range.
    Epoch(u64)
}
id! {
    /// A database; never reused.
    DatabaseId(u32)
}
id! {
    /// A table, unique over all databases; never reused.
    TableId(u32)
}
id! {
    /// A column of one table; never reused. 0 is the table's routing tag, whether or not a point has used it yet.
    ColumnId(u16)
}

impl LogIndex {
    /// The index after this one.
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }
}
