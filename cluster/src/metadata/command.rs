//! What the metadata group is asked to decide, and its bytes.
//!
//! ```text
//! entry = | format u8 = 1 | JSON array of commands |
//! ```

use std::sync::Arc;

use bytes::Bytes;
use model::schema::{NewColumn, SchemaError};
use model::{DatabaseId, DecodeError, Epoch, NodeId, ShardId, TableId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::nodes::{NodeInfo, NodeState};
use crate::shard_map::ShardMap;
use crate::tokens::Token;

const FORMAT: u8 = 1;

/// One thing to decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// The cluster comes into being with these shards; the first one decides.
    Found {
        /// Its number.
        cluster: u128,
        /// Its shards.
        shards: ShardMap,
        /// Replicas that a shard should have, where there are so many storage nodes.
        #[serde(default = "alone")]
        replication: u32,
        /// The nodes that found it.
        #[serde(default)]
        nodes: Vec<NodeInfo>,
    },
    /// A node has started: it is new, or has other addresses now.
    Register(NodeInfo),
    /// Whether shards may be placed on a node.
    SetNodeState { node: NodeId, state: NodeState },
    /// A node is gone for ever, an operator says.
    GiveUp { node: NodeId },
    /// Replicas that a shard should have, where there are so many storage nodes.
    SetReplication { replication: u32 },
    /// Where a shard's replicas should be, if they should still be where the asker thought.
    Place {
        shard: ShardId,
        were: Vec<NodeId>,
        replicas: Vec<NodeId>,
        /// By the asker's clock; `None`: an older program asked.
        #[serde(default)]
        asked: Option<Timestamp>,
    },
    /// A shard's replicas are where they should be, if they should still be there.
    Placed { shard: ShardId, replicas: Vec<NodeId>, at: Timestamp },
    /// A shard's range is to become two, if it still has the version that the asker knew.
    Split { shard: ShardId, at: u64, version: Epoch, asked: Timestamp },
    /// The shard that was split off is kept by a majority of its replicas: it has its place in the map.
    SplitLive { shard: ShardId, child: ShardId, at: Timestamp },
    /// A database; one that exists alike is fine.
    CreateDatabase {
        name: Arc<str>,
        /// `None`: the default one, or whatever an existing database has.
        routing_tag: Option<Arc<str>>,
        /// `None`: for ever, or whatever an existing database has.
        retention_ns: Option<i64>,
    },
    /// Tables and columns; those there already alike are fine.
    AddColumns { database: Arc<str>, tables: Vec<(Arc<str>, Vec<NewColumn>)> },
    /// Forgets a database.
    DropDatabase {
        name: Arc<str>,
        /// Drawn by whoever asks: the same again, the answer having been lost, gets the same answer.
        #[serde(default)]
        asked: u128,
    },
    /// Forgets a table.
    DropTable {
        database: Arc<str>,
        table: Arc<str>,
        /// As of [`DropDatabase`](Command::DropDatabase).
        #[serde(default)]
        asked: u128,
    },
    /// Sets how long rows are kept.
    SetRetention { database: Arc<str>, retention_ns: Option<i64> },
    /// Rows older than this are refused and hidden; never moves back.
    Cutoff { database: DatabaseId, cutoff: Timestamp },
    /// An access token; the same one again is fine.
    CreateToken { token: Token },
    /// An access token instead of whatever has its name.
    ResetToken { token: Token },
    /// Forgets an access token; one that is unknown is fine.
    RevokeToken { name: Arc<str> },
}

/// What became of a command; the same on every member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decided {
    /// It is so, now or already.
    Done,
    /// What could be added is there; these could not.
    Added { refused: Vec<SchemaError> },
    /// The shard that is to be split off has this number.
    SplitOff { child: ShardId },
    /// These tables are forgotten; their rows go with a drop entry in every shard.
    Dropped { tables: Vec<TableId> },
    /// A name that may not be used, or too many.
    Schema(SchemaError),
    /// The database is unknown.
    NoDatabase,
    /// The table is unknown.
    NoTable,
    /// The database exists with another routing tag.
    DatabaseExists { routing_tag: Arc<str> },
    /// Another token has this name.
    TokenExists,
    /// There is no room for another token.
    TooManyTokens,
    /// Without an admin of all databases nobody could make or revoke tokens any more.
    NoAdminLeft,
    /// What was asked for rests on a state that is no more, or names what is not there.
    Outdated,
}

/// A cluster from before it could have peers: each shard once.
fn alone() -> u32 {
    1
}

impl Command {
    /// The bytes of commands in order.
    pub(crate) fn encode(commands: &[Command]) -> Bytes {
        let mut bytes = vec![FORMAT];
        serde_json::to_writer(&mut bytes, commands).expect("writing to memory");
        bytes.into()
    }

    /// Reads commands back.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Command>, DecodeError> {
        match bytes {
            [FORMAT, json @ ..] => serde_json::from_slice(json).map_err(|e| DecodeError { what: "metadata command", at: 1 + e.column() }),
            _ => Err(DecodeError { what: "format of metadata commands (start a newer alluvium)", at: 0 }),
        }
    }
}
