//! Who owns what, and agreement: raft groups, the shard map, the metadata group.
//!
//! `cluster` knows no line protocol, no SQL and no Parquet. Every shard is a raft group, of one voter on a single node;
//! the metadata group agrees on databases, tables, columns, nodes and the shard map.
//!
//! | file | answers |
//! |---|---|
//! | [`node`], `start` | what other crates may ask; how a node starts |
//! | `replica` | one shard's member: queue, group commit, propose, answer |
//! | `read_point` | the point at which a query reads a shard |
//! | `upkeep`, `cutoffs` | seal, flush, let go of the log, compact; what is too old |
//! | `metadata` | what all nodes agree on: databases, tables, columns, shards |
//! | [`shard_map`] | device to shard |
//! | `group`, `log_store`, `log_record`, `state_machine` | raft's types, its log in `storage::wal`, its entries applied |
//! | [`tokens`] | who is let in, and what they may do |
//! | `identity`, `state_file`, `room`, `health`, `clock`, [`metrics`] | who a directory belongs to; is there room; must it stop; what time; figures |

mod clock;
mod cutoffs;
pub mod error;
mod group;
mod health;
mod identity;
mod log_record;
mod log_store;
mod metadata;
pub mod metrics;
pub mod node;
mod read_point;
mod replica;
mod room;
pub mod shard_map;
mod start;
mod state_file;
mod state_machine;
pub mod tokens;
mod upkeep;

pub use error::Error;
pub use metrics::Metrics;
pub use node::{Agreed, Applied, Clock, Cluster, ClusterOptions, ShardStatus};
pub use shard_map::ShardMap;
pub use state_file::check_state_files;
pub use storage::entry::{Outcome, RetryWindow, WritePart};
pub use tokens::{Access, Forbidden, Permission, Token, TokenHash};

/// What cluster's functions give.
pub type Result<T> = std::result::Result<T, Error>;
