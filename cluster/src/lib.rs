//! Who owns what, and agreement: raft groups, the shard map, the metadata group.
//!
//! `cluster` knows no line protocol, no SQL and no Parquet. Every shard is a raft group, of one voter on a single node;
//! the metadata group agrees on databases, tables, columns, nodes and the shard map.

pub mod error;
pub mod node;
pub mod shard_map;

pub use error::Error;
pub use node::{Agreed, Applied, Clock, Cluster, ClusterOptions, ShardStatus};
pub use shard_map::ShardMap;
pub use storage::entry::{Outcome, RetryWindow, WritePart};

/// What cluster's functions give.
pub type Result<T> = std::result::Result<T, Error>;
