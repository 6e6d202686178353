//! What a peer's request is put through to: this node's groups, its metadata, its shards, as far as they are there.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use openraft::Raft;
use parking_lot::RwLock;

use crate::bootstrap::{Hello, HelloAnswer, Introduction, Taken};
use crate::group::{GroupId, Types};
use crate::metadata::{LOG_SLACK_BYTES, Metadata, MetadataMachine, Shown};
use crate::node::Cluster;
use crate::nodes::NodeInfo;
use crate::peer::Peers;
use crate::stale::Heard;
use crate::state_machine::ShardMachine;
use crate::{Error, Result};

/// A member of a group.
#[derive(Clone)]
pub(crate) enum GroupHandle {
    Metadata(Raft<Types, MetadataMachine>),
    Shard(Raft<Types, ShardMachine>),
}

/// What requests of peers reach.
pub(crate) struct Switchboard {
    pub(crate) introduction: Introduction,
    peers: Arc<Peers>,
    groups: RwLock<HashMap<GroupId, (GroupHandle, Arc<Heard>)>>,
    metadata: OnceLock<Arc<Metadata>>,
    cluster: OnceLock<Weak<Cluster>>,
}

impl Switchboard {
    pub(crate) fn new(introduction: Introduction, peers: Arc<Peers>) -> Arc<Switchboard> {
        Arc::new(Switchboard { introduction, peers, groups: RwLock::default(), metadata: OnceLock::new(), cluster: OnceLock::new() })
    }

    /// The way to the others.
    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub(crate) fn connect_group(&self, group: GroupId, handle: GroupHandle) {
        self.groups.write().insert(group, (handle, Arc::default()));
    }

    pub(crate) fn disconnect_group(&self, group: GroupId) {
        self.groups.write().remove(&group);
    }

    pub(crate) fn connect_metadata(&self, metadata: Arc<Metadata>) {
        assert!(self.metadata.set(metadata).is_ok(), "once");
    }

    pub(crate) fn connect_cluster(&self, cluster: &Arc<Cluster>) {
        assert!(self.cluster.set(Arc::downgrade(cluster)).is_ok(), "once");
    }

    /// This node's member of a group, and what leaders have told it.
    pub(crate) fn group(&self, group: GroupId) -> Option<(GroupHandle, Arc<Heard>)> {
        self.groups.read().get(&group).cloned()
    }

    /// Whether this node's member of a group can take so many bytes of entries now: openraft takes an error of the log as the
    /// member's end, so a full disk is found out before.
    pub(crate) fn admit(&self, group: GroupId, bytes: usize) -> Result<()> {
        let admitted = match group {
            GroupId::Metadata => self.metadata.get().and_then(|m| m.own()).map(|own| own.log.reserve(bytes + LOG_SLACK_BYTES)),
            GroupId::Shard(shard) => {
                let slot = self.cluster.get().and_then(Weak::upgrade).and_then(|cluster| cluster.residents.get(shard));
                slot.and_then(|slot| slot.served.as_ref().ok().map(|served| served.replica.may_follow(bytes)))
            }
        };
        admitted.unwrap_or(Ok(())).inspect_err(|error| tracing::debug!(%group, %error, "a leader's entries are not taken now"))
    }

    /// Whether this node's member of a group may vote, see [`Replica::may_vote`](crate::replica::Replica::may_vote).
    pub(crate) fn may_vote(&self, group: GroupId) -> Result<()> {
        let GroupId::Shard(shard) = group else { return Ok(()) };
        let refused = |why: &str| Error::Unreachable { node: "this node".to_owned(), why: format!("its member of group {group} {why}") };
        let cluster = self.cluster.get().and_then(Weak::upgrade).ok_or_else(|| refused("is not open yet"))?;
        let slot = cluster.residents.get(shard).ok_or_else(|| refused("is not open yet"))?;
        match slot.replica()?.may_vote(cluster.shared.founding_replica(group, cluster.node_id())) {
            true => Ok(()),
            false => Err(refused("came in the place of another and has no vote yet")),
        }
    }

    /// The metadata group as this node reaches it, once it does.
    pub(crate) fn metadata(&self) -> Result<&Arc<Metadata>> {
        self.metadata.get().ok_or_else(|| Error::NoMetadataLeader { why: "this node is still starting".to_owned() })
    }

    /// The node, while it runs.
    pub(crate) fn cluster(&self) -> Result<Arc<Cluster>> {
        self.cluster.get().and_then(Weak::upgrade).ok_or(Error::ShuttingDown)
    }

    /// Answers who this node is.
    pub(crate) fn hello(&self, hello: &Hello) -> Result<HelloAnswer> {
        let state = self.metadata.get().map(|metadata| metadata.state().clone());
        let founded = state.as_ref().is_some_and(|state| state.cluster.is_some());
        let nodes = state.map(|state| state.nodes.values().cloned().collect()).unwrap_or_default();
        self.introduction.hello(hello, nodes, founded)
    }

    /// Takes a node into the cluster.
    pub(crate) async fn take_in(&self, node: NodeInfo) -> Result<Taken> {
        let metadata = self.metadata()?;
        metadata.register(node, Some(&self.peers)).await?;
        let shown = metadata.shown_after(0, std::time::Duration::ZERO).await;
        let Shown { next, state } = shown.ok_or_else(|| Error::NoMetadataLeader { why: "nothing is decided yet".to_owned() })?;
        let cluster = state.cluster.ok_or_else(|| Error::NoMetadataLeader { why: "the cluster is not founded yet".to_owned() })?;
        Ok(Taken { cluster, shown: Shown { next, state } })
    }
}
