//! A group's way to its other members, for openraft.
//!
//! Votes and heartbeats go one by one on their own lane; the log is one stream per follower, pipelined, on another;
//! a snapshot and what it names travel on a third, so none of them waits for a larger one. A member that cannot be
//! reached is unreachable, whatever the reason: openraft then waits a little before it tries again.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use model::NodeId;
use openraft::AnyError;
use openraft::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use crate::group::{GroupId, Member, Snapshot, Types, Vote};
use crate::log_record::encode_membership;
use crate::peer::wire;
use crate::peer::{Lane, Peers};

/// A stream that could not begin is not begun again sooner.
const STREAM_AGAIN: Duration = Duration::from_millis(100);

type Rpc<T> = std::result::Result<T, RPCError<Types>>;

/// Makes the way to each member of one group. A node that is alone has no [`Peers`]: every call says so.
pub(crate) struct GroupNetwork {
    pub(crate) group: GroupId,
    pub(crate) peers: Option<Arc<Peers>>,
}

/// The way to one member.
pub(crate) struct MemberNetwork {
    group: GroupId,
    target: NodeId,
    peers: Option<Arc<Peers>>,
}

fn unreachable(why: impl ToString) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(why)))
}

impl RaftNetworkFactory<Types> for GroupNetwork {
    type Network = MemberNetwork;

    async fn new_client(&mut self, target: u64, node: &Member) -> MemberNetwork {
        let target = NodeId(target);
        if let Some(peers) = &self.peers
            && peers.address(target).is_none()
        {
            peers.found_at(target, &node.rpc);
        }
        MemberNetwork { group: self.group, target, peers: self.peers.clone() }
    }
}

impl MemberNetwork {
    fn peers(&self) -> Rpc<&Arc<Peers>> {
        self.peers.as_ref().ok_or_else(|| unreachable("this node has no peers"))
    }

    fn path(&self, what: &str) -> String {
        format!("/peer/v1/raft/{}/{what}", self.group)
    }

    async fn call(&self, what: &str, body: Bytes, option: &RPCOption) -> Rpc<Bytes> {
        let path = self.path(what);
        let call = self.peers()?.call(self.target, Lane::Votes, &path, body);
        match tokio::time::timeout(option.hard_ttl(), call).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(unreachable(format!("no answer to {what} within {} ms", option.hard_ttl().as_millis()))),
        }
    }
}

impl RaftNetworkV2<Types> for MemberNetwork {
    type SnapshotData = Bytes;

    async fn append_entries(&mut self, rpc: AppendEntriesRequest<Types>, option: RPCOption) -> Rpc<AppendEntriesResponse<Types>> {
        let answer = self.call("append", wire::append_chunks(&rpc).concat().into(), &option).await?;
        let answer = wire::take_answer(&mut BytesMut::from(&answer[..])).map_err(unreachable)?;
        Ok(answer.ok_or_else(|| unreachable("an answer that is cut off"))?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> futures::future::BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Types>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        async move {
            let chunks =
                input.flat_map(|request| stream::iter(wire::append_chunks(&request)).map(|chunk| Ok::<_, io::Error>(Frame::data(chunk))));
            let body = StreamBody::new(chunks).boxed_unsync();
            let request = Request::post(self.path("stream")).body(body).map_err(unreachable)?;
            let begun = async {
                let response = self.peers()?.send(self.target, Lane::Log, request).await.map_err(unreachable)?;
                if !response.status().is_success() {
                    let answered = crate::peer::client::read_whole(&self.target.to_string(), response).await;
                    return Err(answered.err().map_or_else(|| unreachable("an answer that is none"), unreachable));
                }
                Ok(answers(response.into_body()).boxed())
            };
            match begun.await {
                // openraft tries again at once: a thousand times a second, for each group, while a node is down or opens its shards.
                Err(error) => {
                    tokio::time::sleep(STREAM_AGAIN).await;
                    Err(error)
                }
                begun => begun,
            }
        }
        .boxed()
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Rpc<VoteResponse<Types>> {
        wire::decode_granted(self.call("vote", wire::encode_ask(&rpc), &option).await?).map_err(unreachable)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Rpc<VoteResponse<Types>> {
        wire::decode_granted(self.call("pre-vote", wire::encode_ask(&rpc), &option).await?).map_err(unreachable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> std::result::Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let lost = |why: String| StreamingError::Unreachable(Unreachable::new(&AnyError::error(why)));
        let peers = self.peers.clone().ok_or_else(|| lost("this node has no peers".to_owned()))?;
        let meta = &snapshot.meta;
        let membership = encode_membership(meta.last_membership.log_id().as_ref(), meta.last_membership.membership());
        let mut body = BytesMut::new();
        body.extend_from_slice(&wire::encode_vote(&vote));
        body.extend_from_slice(&wire::encode_log_id(meta.last_log_id.as_ref()));
        body.put_u32_le(membership.len() as u32);
        body.extend_from_slice(&membership);
        body.extend_from_slice(&snapshot.snapshot);
        // The receiver fetches the files that the snapshot names before it answers: that takes as long as it takes, and
        // a connection that has died is noticed by its lack of signs of life.
        let path = self.path("snapshot");
        let call = peers.call(self.target, Lane::Files, &path, body.freeze());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = call => {
                let mut answer = answer.map_err(|e| lost(e.to_string()))?;
                Ok(SnapshotResponse::new(wire::decode_vote(&mut answer).map_err(|e| lost(e.to_string()))?))
            }
        }
    }

    async fn transfer_leader(&mut self, req: TransferLeaderRequest<Types>, option: RPCOption) -> Rpc<TransferLeaderResponse<Types>> {
        let mut body = BytesMut::new();
        body.extend_from_slice(&wire::encode_vote(req.from_leader()));
        body.put_u64_le(*req.to_node_id());
        body.extend_from_slice(&wire::encode_log_id(req.last_log_id()));
        // A member that will not lead says why in its log; to the one who asked it is the same: it does not.
        self.call("transfer", body.freeze(), &option).await.map(|_| Ok(()))
    }
}

/// A follower's answers as they come.
fn answers(body: Incoming) -> impl Stream<Item = Rpc<StreamAppendResult<Types>>> {
    stream::try_unfold((body, BytesMut::new()), |(mut body, mut received)| async move {
        loop {
            if let Some(answer) = wire::take_answer(&mut received).map_err(unreachable)? {
                return Ok(Some((answer, (body, received))));
            }
            match body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(unreachable)?.into_data() {
                        received.extend_from_slice(&data);
                    }
                }
                None if received.is_empty() => return Ok(None),
                None => return Err(unreachable("answers that are cut off")),
            }
        }
    })
}
