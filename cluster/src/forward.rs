//! The way of a write, or of another request, to the leader of its shard: find it, send, and once more per new leader.
//!
//! A write that loses its leader may or may not be stored. It is sent again under the same origin and sequence, so the
//! shard's retry table answers it with its first outcome and nothing is stored twice (DESIGN rule 6). When the time is
//! up the outcome is unknown, and the answer says so.
//!
//! Parts that wait for the same leader on this node travel together: while one message is on its way the next forms. A
//! leader that was cut off from the others keeps what it is given without settling it. Once another leads, what waits to
//! be sent to it goes to that one, and what was sent to it has an unknown outcome.
//!
//! ```text
//! POST /peer/v1/shards/N/write    | length u32 | entry with one part | …     -> JSON array of PartAnswer, one per part
//! POST /peer/v1/shards/N/leader   -> JSON Leading
//! ```

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderValue;
use model::{Epoch, NodeId, ReplicaId, ShardId, Term};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use storage::WritePart;
use storage::entry::{Entry, Outcome, encode_write};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::node::{Applied, Cluster};
use crate::peer::Lane;
use crate::peer::refusal::Refusal;
use crate::replica::{PART_OVERHEAD_BYTES, Replica, bytes_of};
use crate::together::{Waits, take_together};
use crate::{Error, Result, trace};

/// How long a request may look for a leader that takes it: a few elections.
const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries while nobody leads.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long a node may take to say who leads.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// A node that has not answered for so long may lead no more: the others are asked who does.
const LOOK_ROUND: Duration = Duration::from_secs(1);
/// Messages with writes on their way to one leader at once.
const MESSAGES_IN_FLIGHT: usize = 4;
/// Bytes of parts in one message, unless one alone is larger.
const MESSAGE_BYTES: usize = 4 << 20;

/// Who leads a shard, as a node with a replica of it sees that.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Leading {
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: Term,
    /// The number of this node's replica, if it has one.
    pub(crate) replica: Option<ReplicaId>,
    /// The members that vote; empty while that is changing.
    pub(crate) voters: Vec<NodeId>,
    /// All members by the newest membership in its log, those that only learn included.
    #[serde(default)]
    pub(crate) members: Vec<NodeId>,
    /// Whether that membership has this node's replica by its number.
    #[serde(default = "is_named")]
    pub(crate) is_named: bool,
    /// Term and index of the last entry of this node's log, if it has one.
    #[serde(default)]
    pub(crate) last: Option<(u64, u64)>,
}

/// Older programs do not say.
fn is_named() -> bool {
    true
}

/// What became of one part that was handed on.
#[derive(Serialize, Deserialize)]
enum PartAnswer {
    Stored { rows: u32 },
    WrongRange { current: Epoch },
    Dropped,
    Refused(Refusal),
}

/// What waits to be handed on, and to whom.
#[derive(Default)]
pub(crate) struct Forwards {
    leaders: RwLock<HashMap<ShardId, NodeId>>,
    outboxes: Mutex<HashMap<(ShardId, NodeId), Arc<Outbox>>>,
}

#[derive(Default)]
struct Outbox {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    messages: usize,
}

struct Waiting {
    entry: Bytes,
    trace: Option<HeaderValue>,
    answer: oneshot::Sender<Result<Outcome>>,
}

impl Cluster {
    /// Who leads a shard, as far as this node knows.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        match self.takes_part(shard) {
            Some(replica) => replica.leader(),
            None => self.forwards.leaders.read().get(&shard).copied(),
        }
    }

    /// This node's replica of a shard, if others may rely on what it says: one that has stopped remembers the leader that it had.
    fn takes_part(&self, shard: ShardId) -> Option<Arc<Replica>> {
        let slot = self.residents.get(shard)?;
        let replica = slot.replica().ok()?;
        (self.peers.is_none() || replica.stopped().is_none()).then(|| replica.clone())
    }

    /// Who leads a shard; asks the nodes that have replicas of it where this one does not know.
    pub async fn find_leader(&self, shard: ShardId) -> Option<NodeId> {
        match self.leader(shard) {
            Some(leader) => Some(leader),
            None => self.ask_who_leads(shard).await,
        }
    }

    /// Who leads a shard by the newest word of the other nodes that have replicas of it.
    async fn ask_who_leads(&self, shard: ShardId) -> Option<NodeId> {
        let peers = self.peers.as_ref()?;
        let path = format!("/peer/v1/shards/{shard}/leader");
        let asked = self.replicas(shard).into_iter().filter(|node| *node != peers.me()).map(|node| {
            let path = &path;
            async move {
                let answer = tokio::time::timeout(ASK_TIMEOUT, peers.call(node, Lane::Asks, path, Bytes::new())).await.ok()?.ok()?;
                serde_json::from_slice::<Leading>(&answer).ok()
            }
        });
        let answers = futures::future::join_all(asked).await;
        let newest = answers.into_iter().flatten().filter(|a| a.leader.is_some()).max_by_key(|a| a.term)?;
        self.led_by(shard, newest.leader);
        newest.leader
    }

    /// Takes note that somebody else, or nobody, leads a shard.
    pub fn led_by(&self, shard: ShardId, leader: Option<NodeId>) {
        match leader {
            Some(node) => self.forwards.leaders.write().insert(shard, node),
            None => self.forwards.leaders.write().remove(&shard),
        };
    }

    /// What this node can say about who leads.
    pub(crate) fn leading(&self, shard: ShardId) -> Leading {
        match self.takes_part(shard) {
            Some(replica) => Leading {
                leader: replica.leader(),
                term: replica.term(),
                replica: Some(replica.store().replica()),
                voters: replica.agreed_voters(),
                members: replica.members(),
                is_named: replica.is_named(),
                last: replica.log().last().map(|last| (last.leader_id.term, last.index)),
            },
            None => Leading::default(),
        }
    }

    /// Has a part kept: returns once it is synced by a majority, committed and applied.
    pub async fn write(self: &Arc<Self>, shard: ShardId, part: WritePart) -> Result<Applied> {
        if self.peers.is_none() {
            return self.residents.served(shard)?.replica()?.write(part).await;
        }
        let mut entry: Option<Bytes> = None;
        // A leader that was cut off from the others may never settle what it is given.
        let deadline = Instant::now() + LEADER_TIMEOUT;
        let outcome = self
            .at_leader(shard, |at| {
                let entry = match &at {
                    At::Here(_) => None,
                    At::There(_) => Some(entry.get_or_insert_with(|| encode_part(&part)).clone()),
                };
                let part = matches!(at, At::Here(_)).then(|| part.clone());
                async move {
                    let asked = async {
                        match (at, entry, part) {
                            (At::Here(replica), _, Some(part)) => Ok(replica.write(part).await?.outcome),
                            (At::There(node), Some(entry), _) => self.hand_on(shard, node, entry).await,
                            _ => unreachable!("one of the two was made"),
                        }
                    };
                    let late = || Err(Error::Unknown { shard, why: "its leader did not answer in time".to_owned() });
                    tokio::time::timeout_at(deadline, asked).await.unwrap_or_else(|_| late())
                }
            })
            .await;
        match outcome {
            Ok(outcome) => Ok(Applied { outcome }),
            // Some try may have stored the part: no error may say that it was not.
            Err(error @ (Error::NotHere { .. } | Error::PeerFailed { .. })) => Err(Error::Unknown { shard, why: error.to_string() }),
            Err(error) => Err(error),
        }
    }

    /// Asks the leader, and whoever leads after it, until there is an answer that is not about who leads.
    pub(crate) async fn at_leader<T, F, Fut>(&self, shard: ShardId, mut ask: F) -> Result<T>
    where
        F: FnMut(At) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let me = self.node_id();
        let deadline = Instant::now() + LEADER_TIMEOUT;
        let mut maybe_stored = None;
        // A replica that has stopped gives its place up to another, if there is one.
        let has_others = self.peers.is_some() && self.replicas(shard).len() > 1;
        let may_pass = |error: &Error| {
            let stopped = matches!(error, Error::Stopped { what, .. } if *what == format!("shard {shard}"));
            (about_leaders(error) && self.peers.is_some()) || (has_others && stopped)
        };
        loop {
            let error = match self.find_leader(shard).await {
                Some(node) if node == me => match self.residents.served(shard).and_then(|slot| slot.replica().cloned()) {
                    Ok(replica) => match ask(At::Here(replica)).await {
                        Err(error) if may_pass(&error) && !matches!(error, Error::ShuttingDown) => {
                            if matches!(error, Error::Stopped { .. }) {
                                self.led_by(shard, None);
                            }
                            error
                        }
                        answer => return answer.map_err(|error| maybe_stored.unwrap_or(error)),
                    },
                    Err(error) => error,
                },
                Some(node) => match ask(At::There(node)).await {
                    Err(error) if may_pass(&error) => {
                        let next = match &error {
                            Error::NotHere { leader, .. } => leader.filter(|leader| *leader != node),
                            _ => None,
                        };
                        self.led_by(shard, next);
                        error
                    }
                    // What an earlier try has done is not undone by what this one could not.
                    answer => return answer.map_err(|error| maybe_stored.unwrap_or(error)),
                },
                None => Error::NoLeader { shard },
            };
            if matches!(error, Error::NotHere { .. } | Error::PeerFailed { .. } | Error::Unknown { .. }) {
                maybe_stored = Some(error.again());
            }
            if Instant::now() + TRY_AGAIN >= deadline {
                return Err(maybe_stored.unwrap_or(error));
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Hands a part to the node that leads its shard, together with others that wait for it.
    async fn hand_on(self: &Arc<Self>, shard: ShardId, node: NodeId, entry: Bytes) -> Result<Outcome> {
        let outbox = self.forwards.outboxes.lock().entry((shard, node)).or_default().clone();
        let (answer, outcome) = oneshot::channel();
        let message = {
            let mut queue = outbox.queue.lock();
            if queue.bytes > 0 && queue.bytes + entry.len() > self.max_waiting_bytes {
                self.metrics.refused.inc();
                let what = format!("the queue of writes to shard {shard}");
                return Err(Error::Overloaded { what, limit: self.max_waiting_bytes as u64 });
            }
            queue.bytes += entry.len();
            queue.waiting.push_back(Waiting { entry, trace: trace::current(), answer });
            queue.form()
        };
        if let Some(message) = message {
            self.spawn(self.clone().send(shard, node, outbox, message));
        }
        outcome.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Sends a message, gives each part its answer, and goes on with what has come to wait meanwhile.
    async fn send(self: Arc<Self>, shard: ShardId, node: NodeId, outbox: Arc<Outbox>, first: Vec<Waiting>) {
        let mut next = Some(first);
        let path = format!("/peer/v1/shards/{shard}/write");
        while let Some(message) = next {
            let bytes: usize = message.iter().map(|waiting| waiting.entry.len()).sum();
            let mut body = BytesMut::with_capacity(bytes + 4 * message.len());
            for waiting in &message {
                body.put_u32_le(waiting.entry.len() as u32);
                body.extend_from_slice(&waiting.entry);
            }
            let peers = self.peers.as_ref().expect("only a node with peers hands on");
            let traced = message.iter().find_map(|waiting| waiting.trace.clone());
            let mut deposed = None;
            let answered = tokio::select! {
                biased;
                answered = trace::within(traced, peers.call(node, Lane::Asks, &path, body.freeze())) => answered,
                leader = self.other_leader(shard, node) => {
                    deposed = leader;
                    Err(Error::PeerFailed { node: node.to_string(), why: "it took the writes and does not settle them".to_owned() })
                }
            };
            let answers = answered.and_then(|body| {
                let answers: Vec<PartAnswer> = serde_json::from_slice(&body)
                    .map_err(|e| Error::PeerFailed { node: node.to_string(), why: format!("its answer is none: {e}") })?;
                match answers.len() == message.len() {
                    true => Ok(answers),
                    false => Err(Error::PeerFailed { node: node.to_string(), why: "it answered another number of parts".to_owned() }),
                }
            });
            match answers {
                Ok(answers) => {
                    for (waiting, answer) in message.into_iter().zip(answers) {
                        let _ = waiting.answer.send(match answer {
                            PartAnswer::Stored { rows } => Ok(Outcome::Stored { rows }),
                            PartAnswer::WrongRange { current } => Ok(Outcome::WrongRange { current }),
                            PartAnswer::Dropped => Ok(Outcome::Dropped),
                            PartAnswer::Refused(refusal) => Err(refusal.into()),
                        });
                    }
                }
                Err(error) => {
                    for waiting in message {
                        let _ = waiting.answer.send(Err(error.again()));
                    }
                }
            }
            let mut queue = outbox.queue.lock();
            queue.bytes -= bytes;
            queue.messages -= 1;
            if let Some(leader) = deposed {
                queue.turn_away(shard, leader);
            }
            next = queue.form();
        }
    }

    /// Returns once another node leads the shard than this one that does not answer, or when that has taken too long.
    async fn other_leader(&self, shard: ShardId, node: NodeId) -> Option<NodeId> {
        let deadline = Instant::now() + LEADER_TIMEOUT;
        while Instant::now() + LOOK_ROUND < deadline {
            tokio::time::sleep(LOOK_ROUND).await;
            if let Some(leader) = self.ask_who_leads(shard).await.filter(|leader| *leader != node) {
                return Some(leader);
            }
        }
        None
    }

    /// Takes parts that another node hands on.
    pub(crate) async fn write_for_peer(&self, shard: ShardId, mut body: Bytes) -> Result<Bytes> {
        let slot = self.residents.served(shard)?;
        let replica = slot.replica()?;
        let unreadable = |what: &str| Error::PeerFailed { node: "a peer".to_owned(), why: format!("its parts cannot be read: {what}") };
        let mut parts = Vec::new();
        while body.has_remaining() {
            if body.remaining() < 4 {
                return Err(unreadable("they are cut off"));
            }
            let length = body.get_u32_le() as usize;
            if body.remaining() < length {
                return Err(unreadable("they are cut off"));
            }
            match Entry::decode(&body.split_to(length)).map_err(|e| unreadable(&e.to_string()))? {
                Entry::Write(more) if more.len() == 1 => parts.extend(more),
                _ => return Err(unreadable("an entry that is no part")),
            }
        }
        let answers = futures::future::join_all(parts.into_iter().map(|part| replica.write(part))).await;
        let answers: Vec<PartAnswer> = answers
            .into_iter()
            .map(|answer| match answer.map(|applied| applied.outcome) {
                Ok(Outcome::Stored { rows }) => PartAnswer::Stored { rows },
                Ok(Outcome::WrongRange { current }) => PartAnswer::WrongRange { current },
                Ok(Outcome::Dropped) => PartAnswer::Dropped,
                Ok(other) => unreachable!("a write is stored, or nothing of it is, not {other:?}"),
                Err(error) => PartAnswer::Refused(Refusal::from(&error)),
            })
            .collect();
        Ok(serde_json::to_vec(&answers).expect("writing to memory").into())
    }

    /// Has an entry of upkeep applied by a shard, wherever it is led.
    pub(crate) async fn propose(&self, shard: ShardId, entry: Entry) -> Result<()> {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        let bytes = Bytes::from(bytes);
        self.at_leader(shard, |at| {
            let bytes = bytes.clone();
            async move {
                let asked = async {
                    match at {
                        At::Here(replica) => {
                            let entry = Entry::decode(&bytes).expect("just encoded");
                            replica.propose(entry).await.map(|_| ())
                        }
                        At::There(node) => self.ask(node, shard, "propose", bytes).await,
                    }
                };
                let late = || Err(Error::Unknown { shard, why: "its leader did not answer in time".to_owned() });
                tokio::time::timeout(LEADER_TIMEOUT, asked).await.unwrap_or_else(|_| late())
            }
        })
        .await
    }

    /// Proposes an entry that another node hands on.
    pub(crate) async fn propose_for_peer(&self, shard: ShardId, body: Bytes) -> Result<Bytes> {
        let entry = Entry::decode(&body).map_err(|e| Error::PeerFailed { node: "a peer".to_owned(), why: e.to_string() })?;
        let slot = self.residents.served(shard)?;
        slot.replica()?.propose(entry).await.map(|_| Bytes::new())
    }

    /// Asks a node something about a shard whose answer says nothing more than that it is done.
    pub(crate) async fn ask(&self, node: NodeId, shard: ShardId, what: &str, body: Bytes) -> Result<()> {
        let peers = self.peers.as_ref().ok_or(Error::NotHere { shard, leader: None })?;
        peers.call(node, Lane::Asks, &format!("/peer/v1/shards/{shard}/{what}"), body).await.map(|_| ())
    }
}

/// Where a shard is led.
pub(crate) enum At {
    /// By this node's replica.
    Here(Arc<Replica>),
    /// By that node's.
    There(NodeId),
}

/// Whether another try, with whoever leads then, may end otherwise.
fn about_leaders(error: &Error) -> bool {
    matches!(
        error,
        Error::NotHere { .. }
            | Error::NoLeader { .. }
            | Error::Unreachable { .. }
            | Error::PeerFailed { .. }
            | Error::Unknown { .. }
            | Error::ShuttingDown
    )
}

fn encode_part(part: &WritePart) -> Bytes {
    let mut bytes = Vec::with_capacity(bytes_of(part) + PART_OVERHEAD_BYTES);
    encode_write(std::slice::from_ref(part), &mut bytes);
    bytes.into()
}

impl Waits for Waiting {
    fn bytes(&self) -> usize {
        self.entry.len()
    }

    fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }
}

impl Queue {
    /// The next message, if it may go.
    fn form(&mut self) -> Option<Vec<Waiting>> {
        if self.messages >= MESSAGES_IN_FLIGHT {
            return None;
        }
        let (message, abandoned) = take_together(&mut self.waiting, MESSAGE_BYTES);
        self.bytes -= abandoned;
        if message.is_empty() {
            return None;
        }
        self.messages += 1;
        Some(message)
    }

    /// Nothing of what waits was sent: it goes to the one who leads now.
    fn turn_away(&mut self, shard: ShardId, leader: NodeId) {
        for waiting in self.waiting.drain(..) {
            self.bytes -= waiting.entry.len();
            let _ = waiting.answer.send(Err(Error::NotHere { shard, leader: Some(leader) }));
        }
    }
}
