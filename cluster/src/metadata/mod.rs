//! The group that agrees on databases, tables, columns, nodes, access tokens, the shard map and where replicas are.
//!
//! Commands that arrive together are one entry of its log: a fleet that starts writing asks for the same columns a
//! thousand times at once. Deciding is idempotent, so a command whose outcome is unknown is asked again. Rows are no
//! business of this group: a dropped table's rows go with an entry in every shard's log.
//!
//! Any node may ask: one that does not lead the group hands its commands on to the one that does, and answers once its
//! own state shows what was decided. A node that is no member follows the group's state (`follow.rs`).

pub(crate) mod command;
pub(crate) mod follow;
mod machine;
mod state;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use model::NodeId;
use model::schema::NewColumn;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{Raft, ReadPolicy};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::command::{Command, Decided};
pub(crate) use self::machine::{MetadataMachine, News, Published, Shown};
pub(crate) use self::state::{Placement, Splitting, State, missing};
use crate::group::{self, Answer, Proposal, Types};
use crate::log_store::Log;
use crate::nodes::{NodeInfo, NodeState};
use crate::peer::{Lane, Peers};
use crate::{Error, Result};

/// Commands that may wait to be decided.
const MAX_WAITING: usize = 10_000;
/// Bytes of names in one entry, about: with quotes, types and brackets it stays below a shard's entry.
const ENTRY_NAME_BYTES: usize = 128 << 10;
/// Bytes that a command or column adds beside its names, about.
const OVERHEAD_BYTES: usize = 64;
/// Room that the log keeps for openraft's own small entries.
pub(crate) const LOG_SLACK_BYTES: usize = 16 << 10;
/// Entries after which the state is saved and the log before it let go.
const SAVE_AFTER_ENTRIES: u64 = 1_000;

/// How long a question to the group may look for its leader: a few elections.
const LEADER_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long a node whose name another wants may take to say that it is there.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node may take to show what was decided.
const SHOW_TIMEOUT: Duration = Duration::from_secs(8);

/// This node's member of the metadata group, if it has one.
pub(crate) struct Member {
    pub(crate) raft: Raft<Types, MetadataMachine>,
    pub(crate) log: Arc<Log>,
}

/// What was decided, and by which entry: an answer to a node that has handed its commands on.
#[derive(Serialize, Deserialize)]
pub(crate) struct Answered {
    next: u64,
    decided: Vec<Decided>,
}

/// The metadata group as this node reaches it.
pub(crate) struct Metadata {
    member: Option<Member>,
    peers: Option<Arc<Peers>>,
    /// The member that led when it was asked last.
    leader: Mutex<Option<NodeId>>,
    runtime: Handle,
    published: Arc<Published>,
    waiting: Mutex<Waiting>,
    save_asked: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    commands: VecDeque<(Command, oneshot::Sender<Result<Decided>>)>,
    deciding: bool,
}

impl Metadata {
    pub(crate) fn new(member: Option<Member>, peers: Option<Arc<Peers>>, runtime: Handle, published: Arc<Published>) -> Arc<Metadata> {
        Arc::new(Metadata {
            member,
            peers,
            leader: Mutex::default(),
            runtime,
            published,
            waiting: Mutex::default(),
            save_asked: AtomicU64::new(0),
        })
    }

    /// Everything decided so far, as this node knows it.
    pub(crate) fn state(&self) -> arc_swap::Guard<Arc<State>> {
        self.published.state.load()
    }

    /// Has a command decided; returns once this node's state shows it.
    pub(crate) async fn decide(self: &Arc<Metadata>, command: Command) -> Result<Decided> {
        let (answer, decided) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.commands.len() >= MAX_WAITING {
                return Err(Error::Busy { what: "the queue of the metadata group".to_owned(), limit: MAX_WAITING });
            }
            waiting.commands.push_back((command, answer));
            if !waiting.deciding {
                waiting.deciding = true;
                // A task of its own: the one that asked may be cancelled, the others' commands must not be.
                self.runtime.spawn(self.clone().decide_waiting());
            }
        }
        decided.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Takes a node in, or its new addresses. A name belongs to one node: the one before it must be out of reach.
    pub(crate) async fn register(self: &Arc<Metadata>, node: NodeInfo, peers: Option<&Arc<Peers>>) -> Result<()> {
        let named = self.state().nodes.values().find(|n| n.name == node.name && n.id != node.id && n.state != NodeState::Gone).cloned();
        if let (Some(other), Some(peers)) = (named, peers) {
            // Asked by its number: a new disk at its address does not answer for it.
            let call = peers.call(other.id, Lane::Votes, "/peer/v1/alive", "");
            if let Ok(Ok(_)) = tokio::time::timeout(ALIVE_TIMEOUT, call).await {
                let why = format!("there is a node {} at {}: start this one with another --node-id", other.name, other.rpc);
                return Err(Error::OtherCluster { why });
            }
        }
        let name = node.name.clone();
        match self.decide(Command::Register(node)).await? {
            Decided::Outdated => Err(Error::OtherCluster {
                why: format!(
                    "the cluster has given up the node whose data directory this is, and goes on without it: start {name} with an empty \
                     --data-dir to take it in anew"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Has columns decided that a database lacks, in entries of bounded size; one decision for each.
    pub(crate) async fn add_columns(
        self: &Arc<Metadata>,
        database: &Arc<str>,
        missing: Vec<(Arc<str>, Vec<NewColumn>)>,
    ) -> Result<Vec<Decided>> {
        let mut decided = Vec::new();
        for tables in cut(missing) {
            decided.push(self.decide(Command::AddColumns { database: database.clone(), tables }).await?);
        }
        Ok(decided)
    }

    async fn decide_waiting(self: Arc<Metadata>) {
        loop {
            let (commands, answers): (Vec<Command>, Vec<_>) = {
                let mut waiting = self.waiting.lock();
                let mut bytes = 0;
                let fits = waiting.commands.iter().take_while(|(command, _)| {
                    bytes += bytes_of(command);
                    bytes <= ENTRY_NAME_BYTES
                });
                let count = fits.count().max(1).min(waiting.commands.len());
                if count == 0 {
                    waiting.deciding = false;
                    return;
                }
                waiting.commands.drain(..count).unzip()
            };
            match self.propose(commands).await {
                Ok(decided) => {
                    for (answer, decided) in answers.into_iter().zip(decided) {
                        let _ = answer.send(Ok(decided));
                    }
                }
                Err(error) => {
                    for answer in answers {
                        let _ = answer.send(Err(error.again()));
                    }
                }
            }
            self.save_if_long().await;
        }
    }

    /// Has commands decided by whoever leads the group; this node's state shows them when it returns.
    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Decided>> {
        let bytes = Command::encode(&commands);
        let answered = self
            .at_leader(|at| {
                let (commands, bytes) = (commands.clone(), bytes.clone());
                async move {
                    match at {
                        At::Here(member) => self.propose_here(member, commands).await,
                        At::There(peers, node) => {
                            let answer = peers.call(node, Lane::Asks, "/peer/v1/metadata/decide", bytes).await?;
                            serde_json::from_slice(&answer)
                                .map_err(|e| Error::PeerFailed { node: node.to_string(), why: format!("its answer is none: {e}") })
                        }
                    }
                }
            })
            .await?;
        self.wait_for(answered.next).await?;
        Ok(answered.decided)
    }

    /// Decides commands that another node hands on, if this one leads.
    pub(crate) async fn decide_for_peer(&self, bytes: &[u8]) -> Result<Answered> {
        let commands = Command::decode(bytes).map_err(|e| Error::PeerFailed { node: "a peer".to_owned(), why: e.to_string() })?;
        let answered = self.propose_here(self.member()?, commands).await;
        self.save_if_long().await;
        answered
    }

    async fn propose_here(&self, member: &Member, commands: Vec<Command>) -> Result<Answered> {
        let proposal = Proposal::metadata(commands);
        member.log.reserve(proposal.bytes().len() + LOG_SLACK_BYTES)?;
        match member.raft.client_write(proposal).await {
            Ok(response) => match response.data {
                Answer::Metadata(decided) => Ok(Answered { next: response.log_id.index + 1, decided }),
                other => unreachable!("the metadata group answers commands with decisions, not {other:?}"),
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(self.not_leading(to.leader_id)),
            Err(RaftError::APIError(other)) => Err(Error::NoMetadataLeader { why: other.to_string() }),
            Err(RaftError::Fatal(error)) => Err(Error::Stopped { what: "the metadata group".to_owned(), why: error.to_string() }),
        }
    }

    /// Returns when this node shows everything that was decided before the call.
    ///
    /// A group's only voter shows it already; else the leader is asked how far it is.
    pub(crate) async fn refresh(&self) -> Result<()> {
        if let Some(member) = &self.member
            && member.log.sole_voter()
        {
            return Ok(());
        }
        let next = self
            .at_leader(|at| async move {
                match at {
                    At::Here(member) => self.read_here(member).await,
                    At::There(peers, node) => {
                        let answer = peers.call(node, Lane::Asks, "/peer/v1/metadata/read", Bytes::new()).await?;
                        let text = std::str::from_utf8(&answer).ok().and_then(|text| text.parse().ok());
                        text.ok_or_else(|| Error::PeerFailed { node: node.to_string(), why: "its answer is no number".to_owned() })
                    }
                }
            })
            .await?;
        self.wait_for(next).await
    }

    /// How far the group is, if this node leads it.
    pub(crate) async fn read_for_peer(&self) -> Result<u64> {
        self.read_here(self.member()?).await
    }

    async fn read_here(&self, member: &Member) -> Result<u64> {
        match member.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(self.published.next()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => Err(self.not_leading(to.leader_id)),
            Err(RaftError::APIError(other)) => Err(Error::NoMetadataLeader { why: other.to_string() }),
            Err(RaftError::Fatal(error)) => Err(Error::Stopped { what: "the metadata group".to_owned(), why: error.to_string() }),
        }
    }

    fn not_leading(&self, leader: Option<u64>) -> Error {
        *self.leader.lock() = leader.map(NodeId);
        let why = leader.map_or("nobody leads it".to_owned(), |node| format!("node {node} leads it"));
        Error::NoMetadataLeader { why }
    }

    fn member(&self) -> Result<&Member> {
        self.member.as_ref().ok_or_else(|| Error::NoMetadataLeader { why: "this node is no member of it".to_owned() })
    }

    /// The member that leads, as far as this node knows.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let own = self.member.as_ref().and_then(|m| m.raft.metrics().borrow_watched().current_leader);
        own.map(NodeId).or(*self.leader.lock())
    }

    /// Whether this node leads.
    pub(crate) fn leads(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.raft.is_leader())
    }

    /// Asks the leader, and asks again where it has changed, until there is an answer or it takes too long.
    async fn at_leader<'a, T, F, Fut>(&'a self, ask: F) -> Result<T>
    where
        F: Fn(At<'a>) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let deadline = Instant::now() + LEADER_TIMEOUT;
        let mut turn = 0;
        loop {
            // Every other time somebody else is asked: whom this node takes for the leader may be none any more.
            let leader = self.leader().filter(|_| turn % 2 == 0);
            let at = match (&self.member, &self.peers, leader) {
                (Some(member), None, _) => At::Here(member),
                (Some(member), _, _) if member.raft.is_leader() => At::Here(member),
                (_, Some(peers), Some(node)) if node != peers.me() => At::There(peers, node),
                (_, Some(peers), _) => match self.someone(peers, turn) {
                    Some(node) => At::There(peers, node),
                    None => return Err(Error::NoMetadataLeader { why: "no storage node is known".to_owned() }),
                },
                (None, None, _) => unreachable!("a node without peers is the group's member"),
            };
            turn += 1;
            let error = match tokio::time::timeout_at(deadline, ask(at)).await {
                Ok(Err(error @ (Error::NoMetadataLeader { .. } | Error::Unreachable { .. } | Error::PeerFailed { .. }))) => error,
                Ok(answer) => return answer,
                Err(_) => Error::NoMetadataLeader { why: "no answer in time".to_owned() },
            };
            if !matches!(error, Error::NoMetadataLeader { .. }) {
                // Whom we took for the leader is gone.
                *self.leader.lock() = None;
            }
            if Instant::now() + TRY_AGAIN >= deadline {
                return Err(match error {
                    Error::NoMetadataLeader { why } => Error::NoMetadataLeader { why },
                    other => Error::NoMetadataLeader { why: other.to_string() },
                });
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// A storage node that may lead the group, another one each turn.
    fn someone(&self, peers: &Peers, turn: usize) -> Option<NodeId> {
        let may = follow::may_know(&self.state(), peers);
        if may.is_empty() {
            return None;
        }
        Some(may[turn % may.len()])
    }

    /// Returns when this node shows the entry before `next`.
    async fn wait_for(&self, next: u64) -> Result<()> {
        let mut shown = self.published.next.subscribe();
        match tokio::time::timeout(SHOW_TIMEOUT, shown.wait_for(|&shown| shown >= next)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::NoMetadataLeader { why: "this node has not heard of what was decided".to_owned() }),
        }
    }

    /// Where news of the state show up.
    pub(crate) fn news(&self) -> tokio::sync::watch::Receiver<u64> {
        self.published.next.subscribe()
    }

    /// The state and how far it is, for a node that follows, once it is newer than `after`.
    pub(crate) async fn shown_after(&self, after: u64, patience: Duration) -> Option<Shown> {
        let mut news = self.news();
        let _ = tokio::time::timeout(patience, news.wait_for(|&next| next > after)).await;
        // Under the lock of `next`, so that the two belong together.
        let next = self.published.next.borrow();
        (*next > after).then(|| Shown { next: *next, state: State::clone(&self.state()) })
    }

    /// The group's own part of this node, if it has one.
    pub(crate) fn own(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// What is newer than `after`, for a node that follows this one. Refused where this node has not heard of a member that
    /// has a leader for too long: nodes that follow each other would all stay as they are.
    pub(crate) async fn news_for_peer(&self, after: u64) -> Result<News> {
        let old = || Error::NoMetadataLeader { why: "this node has heard nothing of the metadata group for too long".to_owned() };
        self.age().ok_or_else(old)?;
        let shown = self.shown_after(after, follow::PATIENCE).await;
        let age = self.age().ok_or_else(old)?;
        Ok(News { age_ms: age.as_millis() as u64, shown })
    }

    /// How old at most what this node shows is; `None`: too old to tell others.
    fn age(&self) -> Option<Duration> {
        // A member that was let go, or is cut off, still takes whom it followed for its leader: only the leader itself knows,
        // and as long as a majority says so.
        let of_leader = |member: &Member| group::age_as_leader(&member.raft, &member.log);
        let of_others = || self.published.fresh.lock().map(|fresh| fresh.elapsed());
        self.member.as_ref().and_then(of_leader).or_else(of_others).filter(|age| *age <= follow::TOO_OLD)
    }

    /// Has the state saved when enough has been decided since, and lets go of the log before what is saved.
    pub(crate) async fn save_if_long(&self) {
        let Some(member) = &self.member else { return };
        let next = self.published.next();
        let saved = self.published.saved.load(Ordering::Acquire);
        let asked = self.save_asked.load(Ordering::Relaxed);
        if next < saved.max(asked) + SAVE_AFTER_ENTRIES {
            return;
        }
        self.save_asked.store(next, Ordering::Relaxed);
        // What the last save covered; this one's is let go at the next. A group that has stopped says so elsewhere.
        if saved > 0 {
            let _ = member.raft.trigger().purge_log(saved - 1).await;
        }
        let _ = member.raft.trigger().snapshot().await;
    }

    pub(crate) async fn shutdown(&self) {
        let Some(member) = &self.member else { return };
        if let Err(error) = member.raft.shutdown().await {
            tracing::warn!(%error, "the metadata group did not stop cleanly");
        }
        member.log.mark();
    }
}

/// Where a question to the group goes.
enum At<'a> {
    Here(&'a Member),
    There(&'a Arc<Peers>, NodeId),
}

fn bytes_of(command: &Command) -> usize {
    OVERHEAD_BYTES
        + match command {
            Command::AddColumns { tables, .. } => tables
                .iter()
                .map(|(name, columns)| name.len() + OVERHEAD_BYTES + columns.iter().map(|c| c.name.len() + OVERHEAD_BYTES).sum::<usize>())
                .sum(),
            _ => 0,
        }
}

/// Cuts a long list of columns into lists that fit an entry.
fn cut(tables: Vec<(Arc<str>, Vec<NewColumn>)>) -> Vec<Vec<(Arc<str>, Vec<NewColumn>)>> {
    let mut lists: Vec<Vec<(Arc<str>, Vec<NewColumn>)>> = Vec::new();
    let mut room = 0;
    for (name, columns) in tables {
        let mut fresh = true;
        for column in columns {
            let bytes = column.name.len() + OVERHEAD_BYTES;
            if room < bytes + name.len() + OVERHEAD_BYTES {
                lists.push(Vec::new());
                room = ENTRY_NAME_BYTES - OVERHEAD_BYTES;
                fresh = true;
            }
            let list = lists.last_mut().expect("there is room in it");
            if std::mem::take(&mut fresh) {
                list.push((name.clone(), Vec::new()));
                room -= name.len() + OVERHEAD_BYTES;
            }
            room -= bytes;
            list.last_mut().expect("just pushed").1.push(column);
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_to_fit_and_nothing_is_lost() {
        let column = |i: usize| NewColumn { name: format!("{i:0200}").into(), field: None };
        let tables: Vec<(Arc<str>, Vec<NewColumn>)> = (0..40).map(|t| (format!("t{t}").into(), (0..t * 3).map(column).collect())).collect();
        let lists = cut(tables.clone());
        assert!(lists.len() > 1);
        for list in &lists {
            let command = Command::AddColumns { database: "d".into(), tables: list.clone() };
            assert!(bytes_of(&command) <= ENTRY_NAME_BYTES);
        }
        let flat = |tables: &[(Arc<str>, Vec<NewColumn>)]| -> Vec<(Arc<str>, Arc<str>)> {
            tables.iter().flat_map(|(t, cs)| cs.iter().map(|c| (t.clone(), c.name.clone()))).collect()
        };
        assert_eq!(flat(&lists.concat()), flat(&tables));
    }
}
