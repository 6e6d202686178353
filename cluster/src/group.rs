//! What every raft group of this node is made of: the types given to openraft, how a group starts, and how it is asked.
//!
//! A group of one voter runs through the same openraft core, the same log, the same state machine and the same network as
//! a group of three; it only has nobody to call. Formats on disk and between nodes are our own and do not follow
//! openraft's (its alphas move), so its `serde` feature is off.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use model::{LogIndex, ReplicaId, ShardId, Term};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::responder::Responder;
use openraft::storage::RaftStateMachine;
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};
use openraft::{Config, EntryPayload, OptionalSend, Raft, RaftMetrics, RaftTypeConfig, SnapshotPolicy};
use storage::entry::{Entry, Outcome};

use crate::log_store::{Log, LogStore};
use crate::metadata::command::{Command, Decided};
use crate::network::GroupNetwork;
use crate::{Error, Result};

/// The types of this node's groups, for openraft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types {}

impl RaftTypeConfig for Types {
    type D = Proposal;
    type R = Answer;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    // One leader a term: a log record then needs its term only, not also the node that led it.
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Proposal, u64, Member>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    #[allow(deprecated)]
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = Reply<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LogId = openraft::LogId<CommittedLeaderId<u64>>;
pub(crate) type Vote = openraft::Vote<LeaderId<u64, u64>>;
pub(crate) type RaftEntry = openraft::Entry<CommittedLeaderId<u64>, EntryPayload<Proposal, u64, Member>>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId<u64>, u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId<u64>, u64, Member>;
pub(crate) type Snapshot = openraft::Snapshot<CommittedLeaderId<u64>, u64, Member, Bytes>;

pub(crate) fn log_id(term: Term, index: LogIndex) -> LogId {
    LogId::new(CommittedLeaderId::new(term.0), index.0)
}

/// A member of a group. A replica on an empty disk is another member, whatever its node is called (DESIGN rule 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The node's name.
    pub(crate) name: String,
    /// The replica's own number.
    pub(crate) replica: ReplicaId,
    /// Where its node spoke to peers when it became a member; empty for a node that was alone.
    pub(crate) rpc: String,
}

/// What a group agrees on: the bytes that the log keeps and what they say, shared, so that a leader never decodes.
#[derive(Clone)]
pub(crate) struct Proposal(Arc<Proposed>);

struct Proposed {
    bytes: Bytes,
    content: Content,
    /// The trace that it is told under, on its way and not in the log.
    trace: Option<HeaderValue>,
}

/// What a proposal says.
pub(crate) enum Content {
    /// To a shard.
    Shard(Entry),
    /// To the metadata group: commands in order.
    Metadata(Vec<Command>),
}

impl Proposal {
    /// A proposal to a shard whose bytes the caller has made by [`Entry::encode`].
    pub(crate) fn shard(bytes: Bytes, entry: Entry) -> Proposal {
        Proposal(Arc::new(Proposed { bytes, content: Content::Shard(entry), trace: None }))
    }

    /// A proposal to the metadata group.
    pub(crate) fn metadata(commands: Vec<Command>) -> Proposal {
        Proposal(Arc::new(Proposed { bytes: Command::encode(&commands), content: Content::Metadata(commands), trace: None }))
    }

    /// Reads a proposal back from the log.
    pub(crate) fn decode(kind: GroupKind, bytes: Bytes, index: u64) -> io::Result<Proposal> {
        let content = match kind {
            GroupKind::Shard => Entry::decode(&bytes).map(Content::Shard),
            GroupKind::Metadata => Command::decode(&bytes).map(Content::Metadata),
        };
        let content = content.map_err(|source| io::Error::new(io::ErrorKind::InvalidData, storage::Error::BadEntry { index, source }))?;
        Ok(Proposal(Arc::new(Proposed { bytes, content, trace: None })))
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    pub(crate) fn content(&self) -> &Content {
        &self.0.content
    }

    /// The same, told under a trace; for one that nobody else has yet.
    pub(crate) fn traced(mut self, trace: Option<HeaderValue>) -> Proposal {
        if let Some(proposed) = Arc::get_mut(&mut self.0) {
            proposed.trace = trace;
        }
        self
    }

    /// The trace that it is told under.
    pub(crate) fn trace(&self) -> Option<&HeaderValue> {
        self.0.trace.as_ref()
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

// openraft prints entries when it traces: never a megabyte of points.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.content() {
            Content::Shard(Entry::Write(_)) => "write",
            Content::Shard(Entry::Seal) => "seal",
            Content::Shard(Entry::Manifest(_)) => "manifest edit",
            Content::Shard(_) => "shard entry",
            Content::Metadata(_) => "metadata commands",
        };
        write!(f, "{what} of {} bytes", self.bytes().len())
    }
}

/// What applying an entry gave.
#[derive(Debug)]
pub(crate) enum Answer {
    /// An entry of openraft's own: nothing to tell.
    Other,
    /// One outcome per write part, or one for any other entry of a shard.
    Shard(Vec<Outcome>),
    /// One decision per command.
    Metadata(Vec<Decided>),
}

/// Which kind of group a log belongs to: how its records are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupKind {
    Shard,
    Metadata,
}

/// Takes a proposal's answer where it is made, on the task that applied it: no task of its own waits for it.
pub(crate) struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Reply<T> {
    pub(crate) fn new(take: impl FnOnce(T) + Send + 'static) -> Reply<T> {
        Reply(Box::new(take))
    }
}

impl<C: RaftTypeConfig, T: OptionalSend + 'static> Responder<C, T> for Reply<T> {
    fn on_complete(self, result: T) {
        (self.0)(result)
    }
}

/// Which group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GroupId {
    /// The metadata group.
    Metadata,
    /// A shard's.
    Shard(ShardId),
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupId::Metadata => f.write_str("metadata"),
            GroupId::Shard(shard) => shard.fmt(f),
        }
    }
}

impl FromStr for GroupId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<GroupId, Self::Err> {
        match text {
            "metadata" => Ok(GroupId::Metadata),
            shard => shard.parse().map(|id| GroupId::Shard(ShardId(id))),
        }
    }
}

impl GroupId {
    /// How its log is read.
    pub(crate) fn kind(self) -> GroupKind {
        match self {
            GroupId::Metadata => GroupKind::Metadata,
            GroupId::Shard(_) => GroupKind::Shard,
        }
    }
}

/// How a member whose log is new comes into its group.
pub(crate) enum Founding {
    /// The group is founded by these members, this one among them.
    With(BTreeMap<u64, Member>),
    /// A leader will add it.
    Wait,
}

/// A leader shows that it is there so often. Followers wait for a few times as long before they elect another.
const HEARTBEAT_MS: u64 = 100;
const ELECTION_MIN_MS: u64 = 350;
const ELECTION_MAX_MS: u64 = 700;
/// Nobody votes for another while it has heard from a leader within this: openraft's lease, the longest election timeout.
pub(crate) const LEASE: Duration = Duration::from_millis(ELECTION_MAX_MS);
/// How long another member may take to lead.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that could not be reached is tried again after so long.
const BACKOFF: &str = "200ms";

/// Starts this node's member of a group: founds the group if its log is new and it is among the founders, else takes
/// it up again. A group of one voter leads and has applied its whole log when this returns.
///
/// Runs on the groups' runtime: openraft spawns its tasks on the runtime that it is called on.
pub(crate) async fn start<SM>(
    name: &str,
    node: u64,
    founding: Founding,
    log: LogStore,
    machine: SM,
    network: GroupNetwork,
) -> Result<Raft<Types, SM>>
where
    SM: RaftStateMachine<Types, SnapshotData = Bytes>,
{
    let stopped = |why: String| Error::Stopped { what: name.to_owned(), why };
    let config = Config {
        cluster_name: name.to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        backoff: BACKOFF.to_owned(),
        max_payload_entries: 64,
        max_append_entries: Some(64),
        snapshot_policy: SnapshotPolicy::Never,
        // Only `purge_log` lets go of the log, up to what is saved: a snapshot is of the state in memory, which a crash takes.
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // Not before the log names this replica as a member: see `elect_once_named`.
        enable_elect: false,
        // A leader that was killed does not know what was committed. Taking up its term again it would read, in good faith,
        // less than it has acknowledged; it is elected anew instead, and the first entry of the new term tells.
        enable_leader_restore: Some(false),
        // A member may come back with nothing, its folder lost: it is sent all again. It has no vote until it is named anew.
        allow_log_reversion: Some(true),
        ..Config::default()
    };
    let log_of_group = log.log();
    let config = Arc::new(config.validate().expect("our settings are consistent"));
    let raft = Raft::new(node, config, network, log, machine).await.map_err(|e| stopped(e.to_string()))?;
    let initialized = raft.is_initialized().await.map_err(|e| stopped(e.to_string()))?;
    // What openraft shows of itself is a moment late: whether this node founds the group alone is known here.
    log_of_group.note_membership(&membership(&raft));
    let named = log_of_group.is_named(&membership(&raft));
    let mut sole = initialized && named && raft.voter_ids().eq([node]);
    match founding {
        Founding::With(members) if !initialized => {
            sole = members.len() == 1;
            raft.runtime_config().elect(true);
            raft.initialize(members).await.map_err(|e| stopped(e.to_string()))?;
        }
        _ if sole && !raft.is_leader() => {
            // Killed between its vote and its first entry. Nobody else can vote: there is no reason to wait for a timeout.
            raft.trigger().elect(false).await.map_err(|e| stopped(e.to_string()))?;
        }
        _ => {}
    }
    if sole {
        raft.wait(None).metrics(|m| m.current_leader == Some(node), "a sole voter leads").await.map_err(|e| stopped(e.to_string()))?;
        raft.wait_for_recovery(None).await.map_err(|e| stopped(e.to_string()))?;
    }
    match named {
        true => raft.runtime_config().elect(true),
        false => drop(tokio::spawn(elect_once_named(raft.clone(), log_of_group))),
    }
    Ok(raft)
}

/// Lets a member take part in elections once its log names it. A replica on an empty folder is sent the log, and in its
/// beginning may be a membership with an earlier replica of this node in it, perhaps alone: electing itself by that, it would
/// lead a group of its own and acknowledge what nobody else has.
async fn elect_once_named<SM: RaftStateMachine<Types>>(raft: Raft<Types, SM>, log: Arc<Log>) {
    let mut metrics = raft.metrics();
    loop {
        {
            let now = metrics.borrow_watched();
            if log.is_named(now.membership_config.membership()) {
                return raft.runtime_config().elect(true);
            }
            if now.running_state.is_err() {
                return;
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Founds a group whose first founder has not done so in time: it may have died before it could.
pub(crate) async fn found_anyway<SM>(raft: Raft<Types, SM>, founders: BTreeMap<u64, Member>, patience: Duration)
where
    SM: RaftStateMachine<Types, SnapshotData = Bytes>,
{
    tokio::time::sleep(patience).await;
    if let Ok(false) = raft.is_initialized().await
        && let Err(error) = raft.initialize(founders).await
    {
        tracing::debug!(%error, "a group was founded meanwhile");
    }
}

/// If this member leads: has the group led by the member with the most of the log; returns once that is so, or it takes
/// too long.
pub(crate) async fn hand_over<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>) {
    if !raft.is_leader() {
        return;
    }
    let metrics = raft.metrics().borrow_watched().clone();
    let me = *raft.node_id();
    let others = metrics.replication.into_iter().flatten().filter(|(id, _)| *id != me && raft.voter_ids().any(|voter| voter == *id));
    let Some((to, _)) = others.max_by_key(|(_, matched)| matched.as_ref().map(|id| id.index)) else { return };
    if raft.trigger().transfer_leader(to).await.is_ok() {
        let led = |m: &RaftMetrics<Types>| m.current_leader.is_some_and(|leader| leader != me);
        let _ = raft.wait(Some(HAND_OVER_TIMEOUT)).metrics(led, "another leads").await;
    }
}

/// How long ago a majority last knew this member as its leader, if it takes itself for that: one that is cut off does.
pub(crate) fn age_as_leader<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>, log: &Log) -> Option<Duration> {
    match (raft.is_leader(), log.sole_voter()) {
        (false, _) => None,
        (true, true) => Some(Duration::ZERO),
        (true, false) => {
            let acknowledged = raft.metrics().borrow_watched().last_quorum_acked;
            acknowledged.map(|at| openraft::Instant::elapsed(&at.into_inner()))
        }
    }
}

/// The newest membership in the group's log, committed or not.
pub(crate) fn membership<SM: RaftStateMachine<Types>>(raft: &Raft<Types, SM>) -> Membership {
    raft.metrics().borrow_watched().membership_config.membership().clone()
}
