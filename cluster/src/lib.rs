//! Who owns what, and agreement: raft groups, the shard map, the metadata group.
//!
//! `cluster` knows no line protocol, no SQL and no Parquet. Every shard is a raft group, of one voter on a single node;
//! the metadata group agrees on databases, tables, columns, nodes and the shard map.
//!
//! | file | answers |
//! |---|---|
//! | [`node`], `start`, `bootstrap` | what other crates may ask; how a node starts; how nodes find each other |
//! | `replica`, `residents` | one shard's member: queue, group commit, propose, answer; which ones live here |
//! | `forward` | the way to a shard's leader, and to the next one |
//! | `read_point`, `stale` | the point at which a query reads a shard; how old rows of a follower may be |
//! | `upkeep`, `files`, `cutoffs` | seal, flush, let go of the log, compact; files between replicas; what is too old |
//! | `metadata` | what all nodes agree on: databases, tables, columns, nodes, shards, places |
//! | [`shard_map`], `placement`, `members` | device to shard; where replicas should be; making it so |
//! | `split`, `moves` | one range becoming two; what is and was on its way |
//! | [`peer`], `network`, `switchboard` | what nodes say to each other; raft's part of it; who a request is put through to |
//! | `group`, `log_store`, `log_record`, `state_machine` | raft's types, its log in `storage::wal`, its entries applied |
//! | `recover` | giving up replicas that are gone for ever, on an operator's word |
//! | `dead_leaders` | which leaders have ended, sooner than their silence tells |
//! | `check` | what a stopped node's directory lacks |
//! | [`trace`] | the trace that a request belongs to, on its way to other nodes |
//! | [`tokens`] | who is let in, and what they may do |
//! | `identity`, `state_file`, `room`, `health`, `clock`, [`metrics`] | who a directory belongs to; is there room; must it stop; what time; figures |

mod bootstrap;
mod check;
mod clock;
mod cutoffs;
mod dead_leaders;
pub mod error;
mod files;
mod forward;
mod group;
mod health;
mod identity;
mod log_record;
mod log_store;
mod members;
mod metadata;
pub mod metrics;
mod moves;
mod network;
pub mod node;
pub mod nodes;
pub mod peer;
mod placement;
mod read_point;
mod recover;
mod replica;
mod residents;
mod room;
pub mod shard_map;
mod split;
mod stale;
mod start;
mod state_file;
mod state_machine;
mod switchboard;
mod together;
pub mod tokens;
pub mod trace;
mod upkeep;

pub use check::check_data_dir;
pub use error::Error;
pub use metrics::Metrics;
pub use moves::{Move, MoveKind, MoveState};
pub use node::{Agreed, Applied, Clock, Cluster, ClusterOptions, GONE_AFTER, PeerOptions, ShardStatus};
pub use nodes::{NodeInfo, NodeState, Roles};
pub use recover::{Held, Recovered};
pub use shard_map::ShardMap;
pub use storage::entry::{Outcome, RetryWindow, WritePart};
pub use tokens::{Access, Forbidden, Permission, Token, TokenHash};

/// What cluster's functions give.
pub type Result<T> = std::result::Result<T, Error>;
