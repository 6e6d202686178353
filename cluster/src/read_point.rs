//! The point at which a query reads a shard: everything acknowledged before it is in the view (DESIGN rule 9).
//!
//! A leader must in general ask a majority whether it still leads. A group's only voter need not: nobody else can have
//! acknowledged anything, and it answers a write only after it has applied it, so what it has applied is the read
//! point. Whether it is the only voter is taken from the newest membership in its log, committed or not, which is known
//! before another voter can exist. The short way costs a lock and a few counters.

use model::NodeId;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use storage::View;

use crate::replica::Replica;
use crate::{Error, Result};

impl Replica {
    /// A view that holds every write acknowledged before the call.
    pub(crate) async fn read(&self) -> Result<View> {
        self.refuse_if_stopped()?;
        // One that was made the only voter (`recover.rs`) must first lead: only then is all that it has applied.
        if !(self.log().sole_voter() && self.raft().is_leader()) {
            self.raft().ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| match error {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
                    Error::NotHere { shard: self.shard(), leader: to.leader_id.map(NodeId) }
                }
                // It takes itself for the leader, and no majority says so.
                RaftError::APIError(_) => Error::NoLeader { shard: self.shard() },
                RaftError::Fatal(error) => {
                    Error::Stopped { what: self.name().to_owned(), why: self.stopped().unwrap_or_else(|| error.to_string()) }
                }
            })?;
        }
        Ok(self.view())
    }
}
