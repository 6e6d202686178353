//! The door for peers: who may speak, and what is asked under `/peer/v1`.
//!
//! It answers from the moment the node starts, because nodes must find each other before any of them is ready; what
//! needs more than that is refused until it is there. The program owns the port and hands each request in.
//!
//! ```text
//! /peer/v1/hello, found, begin, release, join          bootstrap.rs
//! /peer/v1/alive                                       nothing: it answers
//! /peer/v1/metadata/{decide, read, after/N}            metadata/
//! /peer/v1/raft/GROUP/{append, stream, vote, pre-vote, snapshot, transfer}    network.rs
//! /peer/v1/shards/N/{write, propose, flush, compact, fetch, snapshot, file, leader}   forward.rs, files.rs
//! /peer/v1/status                                      figures for the system tables
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use model::{NodeId, ShardId};
use openraft::raft::{StreamAppendResult, TransferLeaderRequest};
use parking_lot::Mutex;

use crate::group::{GroupId, GroupKind, Types};
use crate::peer::client::{PeerBody, whole};
use crate::peer::{CLUSTER_HEADER, FORMAT_HEADER, NODE_HEADER, PEER_FORMAT, PeerSecurity, TO_HEADER, refusal, wire};
use crate::switchboard::{GroupHandle, Switchboard};
use crate::{Error, Result, trace};

/// Bodies that are read whole are at most so long: an entry and what surrounds it, or a snapshot's list of files.
const MAX_BODY_BYTES: usize = 256 << 20;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its node's number.
    pub node: NodeId,
}

/// Answers peers.
pub struct PeerDoor {
    security: PeerSecurity,
    switchboard: OnceLock<Arc<Switchboard>>,
}

impl fmt::Debug for PeerDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerDoor").field("security", &self.security).finish_non_exhaustive()
    }
}

impl PeerDoor {
    /// A door that knows the secret but answers nothing yet.
    pub fn new(security: PeerSecurity) -> Arc<PeerDoor> {
        Arc::new(PeerDoor { security, switchboard: OnceLock::new() })
    }

    pub(crate) fn security(&self) -> &PeerSecurity {
        &self.security
    }

    pub(crate) fn open(&self, switchboard: Arc<Switchboard>) {
        assert!(self.switchboard.set(switchboard).is_ok(), "a door belongs to one node");
    }

    /// Whether a request comes from a peer of this cluster; the refusal if not.
    // The answer is as large as answers are.
    #[expect(clippy::result_large_err)]
    pub fn admit(&self, headers: &HeaderMap) -> std::result::Result<Asker, Response<PeerBody>> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(secret) = &self.security.secret {
            let given = text(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
            if !given.is_some_and(|given| same(given.as_bytes(), secret.as_bytes())) {
                return Err(answer(StatusCode::UNAUTHORIZED, "the cluster secret is missing or wrong (--cluster-secret-file)"));
            }
        }
        match text(FORMAT_HEADER) {
            Some(PEER_FORMAT) => {}
            found => {
                let found = found.unwrap_or("none");
                let why =
                    format!("this node speaks format {PEER_FORMAT} to its peers, the request has format {found}: start a newer alluvium");
                return Err(answer(StatusCode::BAD_REQUEST, why));
            }
        }
        let Some(node) = text(NODE_HEADER).and_then(|n| n.parse().ok()).map(NodeId) else {
            return Err(answer(StatusCode::BAD_REQUEST, "the request does not say which node asks"));
        };
        let me = self.switchboard.get().map(|s| s.peers().me());
        if let (Some(me), Some(meant)) = (me, text(TO_HEADER).and_then(|n| n.parse().ok()).map(NodeId))
            && me != meant
        {
            // No answer of the node that was meant: who asked looks for it elsewhere.
            return Err(answer(StatusCode::MISDIRECTED_REQUEST, format!("this is node {me}, not node {meant}")));
        }
        let theirs = text(CLUSTER_HEADER).and_then(|c| u128::from_str_radix(c, 16).ok());
        let ours = self.switchboard.get().and_then(|s| s.introduction.cluster());
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let why = format!("node {node} is of cluster {theirs:032x}, this one of {ours:032x}");
                Err(refused(&Error::OtherCluster { why }))
            }
            _ => Ok(Asker { node }),
        }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<PeerBody> {
        let asker = match self.admit(request.headers()) {
            Ok(asker) => asker,
            Err(refusal) => return refusal,
        };
        let Some(switchboard) = self.switchboard.get() else { return refused(&Error::ShuttingDown) };
        let (trace, path) = (request.headers().get(trace::TRACEPARENT).cloned(), request.uri().path().to_owned());
        match trace::continued(trace, &path, route(switchboard, asker, request)).await {
            Ok(response) => response,
            Err(error) => refused(&error),
        }
    }
}

/// Compares without telling by the time it takes where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

fn answer(status: StatusCode, why: impl Into<Bytes>) -> Response<PeerBody> {
    Response::builder().status(status).body(whole(why)).expect("a status and a body")
}

fn refused(error: &Error) -> Response<PeerBody> {
    answer(StatusCode::SERVICE_UNAVAILABLE, refusal::encode(error))
}

fn done(body: impl Into<Bytes>) -> Result<Response<PeerBody>> {
    Ok(answer(StatusCode::OK, body))
}

fn json(value: &impl serde::Serialize) -> Result<Response<PeerBody>> {
    done(serde_json::to_vec(value).expect("writing to memory"))
}

async fn route(switchboard: &Arc<Switchboard>, asker: Asker, request: Request<Incoming>) -> Result<Response<PeerBody>> {
    let path = request.uri().path().to_owned();
    let Some(path) = path.strip_prefix("/peer/v1/") else {
        return Ok(answer(StatusCode::NOT_FOUND, "nothing is asked of peers here"));
    };
    let segments: Vec<&str> = path.splitn(4, '/').collect();
    let body = request.into_body();
    match segments.as_slice() {
        ["hello"] => json(&switchboard.hello(&read_json(asker, body).await?)?),
        ["alive"] => done(""),
        ["found"] => {
            switchboard.introduction.promise(&read_json(asker, body).await?)?;
            done("")
        }
        ["begin"] => {
            switchboard.introduction.begin(&read_json(asker, body).await?)?;
            done("")
        }
        ["release"] => {
            switchboard.introduction.release(&read_json(asker, body).await?)?;
            done("")
        }
        ["join"] => json(&switchboard.take_in(read_json(asker, body).await?).await?),
        ["metadata", "decide"] => json(&switchboard.metadata()?.decide_for_peer(&read(asker, body).await?).await?),
        ["metadata", "read"] => done(switchboard.metadata()?.read_for_peer().await?.to_string()),
        ["metadata", "after", next] => {
            let next = next.parse().map_err(|_| unreadable(asker, "no number of an entry"))?;
            json(&switchboard.metadata()?.news_for_peer(next).await?)
        }
        ["raft", group, what] => {
            let group: GroupId = group.parse().map_err(|_| unreadable(asker, "no group"))?;
            raft(switchboard, asker, group, what, body).await
        }
        ["shards", shard, what, rest @ ..] => {
            let shard = ShardId(shard.parse().map_err(|_| unreadable(asker, "no shard"))?);
            let cluster = switchboard.cluster()?;
            match (*what, rest) {
                ("write", []) => done(cluster.write_for_peer(shard, read(asker, body).await?).await?),
                ("propose", []) => done(cluster.propose_for_peer(shard, read(asker, body).await?).await?),
                ("flush", []) => done(cluster.flush_for_peer(shard, &read(asker, body).await?).await?),
                ("compact", []) => done(cluster.compact_for_peer(shard, &read(asker, body).await?).await?),
                ("fetch", []) => done(cluster.fetch_for_peer(shard, asker.node, &read(asker, body).await?).await?),
                ("snapshot", []) => done(cluster.snapshot_for_peer(shard)?),
                ("recover", []) => done(cluster.recover_for_peer(shard).await?),
                ("leader", []) => json(&cluster.leading(shard)),
                ("file", []) => {
                    let path = read(asker, body).await?;
                    let path = std::str::from_utf8(&path).map_err(|e| unreadable(asker, e))?;
                    Ok(Response::new(cluster.file_for_peer(shard, path)?))
                }
                _ => Ok(answer(StatusCode::NOT_FOUND, "a shard is not asked that")),
            }
        }
        ["clock"] => done(switchboard.cluster()?.cutoffs.own_time().0.to_string()),
        ["status"] => json(&switchboard.cluster()?.status_for_peer()),
        _ => Ok(answer(StatusCode::NOT_FOUND, "peers are not asked that")),
    }
}

/// Raft's messages for one group.
async fn raft(switchboard: &Arc<Switchboard>, asker: Asker, group: GroupId, what: &str, body: Incoming) -> Result<Response<PeerBody>> {
    let Some((handle, heard)) = switchboard.group(group) else {
        return Err(Error::Unreachable { node: "this node".to_owned(), why: format!("it has no member of group {group} yet") });
    };
    // What was given up may come back all the same: it is not heard (`recover.rs`).
    let gone = switchboard.metadata().is_ok_and(|m| m.state().nodes.get(&asker.node).is_some_and(|n| n.given_up));
    if gone {
        return Err(Error::Unreachable { node: "this node".to_owned(), why: format!("node {} is gone, the cluster says", asker.node) });
    }
    let bad = |e: io::Error| unreadable(asker, e);
    let ended = |e: String| Error::Stopped { what: format!("group {group}"), why: e };
    match what {
        "stream" => {
            let room = switchboard.clone();
            let told = Arc::new(Mutex::new(VecDeque::new()));
            let telling = told.clone();
            let appends = appends(group.kind(), body).take_while(move |request| {
                let bytes = request.entries.iter().map(crate::log_store::bytes_of).sum();
                // The leader finds the stream ended, and tries again in a moment.
                let may = bytes == 0 || room.admit(group, bytes).is_ok();
                if may {
                    telling.lock().push_back(request.leader_commit.as_ref().map(|id| id.index));
                }
                std::future::ready(may)
            });
            let answers = handle.stream_append(appends).map(move |answer| {
                // One answer per message. A leader that leads no more is not believed: what it tells is old.
                if let (Some(committed), Some(Ok(_))) = (told.lock().pop_front(), &answer) {
                    heard.note(committed);
                }
                let mut bytes = BytesMut::with_capacity(wire::ANSWER_BYTES);
                wire::put_answer(&mut bytes, answer.as_ref());
                Ok::<_, io::Error>(Frame::data(bytes.freeze()))
            });
            Ok(Response::new(StreamBody::new(answers).boxed_unsync()))
        }
        "append" => {
            let mut bytes = BytesMut::from(&read(asker, body).await?[..]);
            let request =
                wire::take_append(group.kind(), &mut bytes).map_err(bad)?.ok_or_else(|| unreadable(asker, "a cut off message"))?;
            let last = request.entries.last().map(|e| e.log_id).or(request.prev_log_id);
            let previous = request.prev_log_id;
            let bytes = request.entries.iter().map(crate::log_store::bytes_of).sum();
            if bytes > 0 {
                switchboard.admit(group, bytes)?;
            }
            let committed = request.leader_commit.as_ref().map(|id| id.index);
            let answered = handle.append(request).await.map_err(ended)?;
            if matches!(answered, openraft::raft::AppendEntriesResponse::Success) {
                heard.note(committed);
            }
            let mut bytes = BytesMut::new();
            wire::put_answer(&mut bytes, Some(&answered.into_stream_result(previous, last)));
            done(bytes.freeze())
        }
        "vote" => {
            switchboard.may_vote(group)?;
            let request = wire::decode_ask(read(asker, body).await?).map_err(bad)?;
            done(wire::encode_granted(&handle.vote(request).await.map_err(ended)?))
        }
        "pre-vote" => {
            switchboard.may_vote(group)?;
            let request = wire::decode_ask(read(asker, body).await?).map_err(bad)?;
            done(wire::encode_granted(&handle.pre_vote(request).await.map_err(ended)?))
        }
        "transfer" => {
            let mut bytes = read(asker, body).await?;
            let from = wire::decode_vote(&mut bytes).map_err(bad)?;
            if bytes.remaining() < 8 {
                return Err(unreadable(asker, "a cut off message"));
            }
            let to = bytes.get_u64_le();
            let last = wire::decode_log_id(&mut bytes).map_err(bad)?;
            handle.transfer(TransferLeaderRequest::new(from, to, last)).await.map_err(ended)?;
            done("")
        }
        "snapshot" => {
            let mut bytes = read(asker, body).await?;
            let vote = wire::decode_vote(&mut bytes).map_err(bad)?;
            let last_log_id = wire::decode_log_id(&mut bytes).map_err(bad)?;
            if bytes.remaining() < 4 {
                return Err(unreadable(asker, "a cut off snapshot"));
            }
            let length = bytes.get_u32_le() as usize;
            if bytes.remaining() < length {
                return Err(unreadable(asker, "a cut off snapshot"));
            }
            let last_membership = crate::log_record::decode_membership(&bytes.split_to(length)).map_err(bad)?;
            let meta = crate::group::SnapshotMeta { last_log_id, last_membership };
            if let GroupId::Shard(shard) = group {
                switchboard.cluster()?.fetch_snapshot_files(shard, asker.node, bytes.clone()).await?;
            }
            let answered = handle.install(vote, crate::group::Snapshot { meta, snapshot: bytes }).await.map_err(ended)?;
            done(wire::encode_vote(&answered.vote))
        }
        _ => Ok(answer(StatusCode::NOT_FOUND, "raft is not asked that")),
    }
}

/// A leader's append messages as they come; ends at the first that makes no sense, and the leader begins anew.
fn appends(kind: GroupKind, body: Incoming) -> impl Stream<Item = openraft::raft::AppendEntriesRequest<Types>> + Send + 'static {
    stream::unfold((body, BytesMut::new()), move |(mut body, mut received)| async move {
        loop {
            match wire::take_append(kind, &mut received) {
                Ok(Some(request)) => return Some((request, (body, received))),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "a leader's message makes no sense");
                    return None;
                }
            }
            let data = body.frame().await?.ok()?.into_data().ok()?;
            received.extend_from_slice(&data);
        }
    })
}

fn unreadable(asker: Asker, what: impl ToString) -> Error {
    Error::PeerFailed { node: format!("node {}", asker.node), why: format!("what it asks cannot be read: {}", what.to_string()) }
}

async fn read(asker: Asker, body: Incoming) -> Result<Bytes> {
    let read = Limited::new(body, MAX_BODY_BYTES).collect().await;
    read.map(|body| body.to_bytes()).map_err(|e| unreadable(asker, e))
}

async fn read_json<T: serde::de::DeserializeOwned>(asker: Asker, body: Incoming) -> Result<T> {
    serde_json::from_slice(&read(asker, body).await?).map_err(|e| unreadable(asker, e))
}

/// What a group's answers look like on their way.
pub(crate) type Answers = futures::stream::BoxStream<'static, Option<StreamAppendResult<Types>>>;

/// Calls the same method of whichever raft it is.
macro_rules! either {
    ($handle:expr, $raft:ident => $call:expr) => {
        match $handle {
            GroupHandle::Metadata($raft) => $call,
            GroupHandle::Shard($raft) => $call,
        }
    };
}

impl GroupHandle {
    fn stream_append(&self, appends: impl Stream<Item = openraft::raft::AppendEntriesRequest<Types>> + Send + 'static) -> Answers {
        either!(self, raft => raft.stream_append(appends).map(|answer| answer.ok()).boxed())
    }

    async fn append(
        &self,
        request: openraft::raft::AppendEntriesRequest<Types>,
    ) -> std::result::Result<openraft::raft::AppendEntriesResponse<Types>, String> {
        either!(self, raft => raft.append_entries(request).await.map_err(|e| e.to_string()))
    }

    async fn vote(&self, request: openraft::raft::VoteRequest<Types>) -> std::result::Result<openraft::raft::VoteResponse<Types>, String> {
        either!(self, raft => raft.vote(request).await.map_err(|e| e.to_string()))
    }

    async fn pre_vote(
        &self,
        request: openraft::raft::VoteRequest<Types>,
    ) -> std::result::Result<openraft::raft::VoteResponse<Types>, String> {
        either!(self, raft => raft.pre_vote(request).await.map_err(|e| e.to_string()))
    }

    async fn transfer(&self, request: TransferLeaderRequest<Types>) -> std::result::Result<(), String> {
        let answered = either!(self, raft => raft.handle_transfer_leader(request).await.map_err(|e| e.to_string()))?;
        answered.map_err(|e| e.to_string())
    }

    async fn install(
        &self,
        vote: crate::group::Vote,
        snapshot: crate::group::Snapshot,
    ) -> std::result::Result<openraft::raft::SnapshotResponse<Types>, String> {
        either!(self, raft => raft.install_full_snapshot(vote, snapshot).await.map_err(|e| e.to_string()))
    }
}
