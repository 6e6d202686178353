//! Files on their way between the replicas of a shard (DESIGN rules 4, 5 and 7).
//!
//! Before a manifest edit is proposed the other replicas fetch the files that it will name, verify and sync them; it is
//! proposed once a majority has them. A replica that misses some when the edit is applied keeps its memtable or the old
//! files, and fetches what it lacks afterwards. A snapshot's files are fetched before it is installed.
//!
//! ```text
//! POST /peer/v1/shards/N/fetch      JSON array of FileMeta -> {}      the receiver fetches them from the sender
//! POST /peer/v1/shards/N/file       path -> the file's bytes
//! POST /peer/v1/shards/N/snapshot   -> the snapshot's bytes
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use model::{NodeId, ShardId};
use storage::manifest::FileMeta;
use storage::{Adopted, Shard, Snapshot};
use tokio::time::Instant;

use crate::node::Cluster;
use crate::peer::{Lane, PeerBody, Peers, whole};
use crate::replica::Replica;
use crate::{Error, Result};

/// Once a majority has the files, the others are waited for so long: a replica that misses them has to catch up.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// How long a majority may take.
const MAJORITY: Duration = Duration::from_secs(120);
/// Bytes of a file that are read and sent at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Returns when a majority of the shard's members, this one included, has the files.
pub(crate) async fn spread(replica: &Replica, peers: Option<&Arc<Peers>>, files: &[FileMeta]) -> Result<()> {
    let voters: Vec<NodeId> = replica.raft().voter_ids().map(NodeId).collect();
    let Some(peers) = peers.filter(|_| voters.len() > 1 && !files.is_empty()) else { return Ok(()) };
    let body = Bytes::from(serde_json::to_vec(files).expect("writing to memory"));
    let path = format!("/peer/v1/shards/{}/fetch", replica.shard());
    let others = voters.iter().filter(|node| **node != peers.me());
    let mut fetching: FuturesUnordered<_> = others
        .map(|&node| {
            let (body, path) = (body.clone(), &path);
            async move { (node, peers.call(node, Lane::Files, path, body).await) }
        })
        .collect();
    let majority = voters.len() / 2 + 1;
    let mut have = 1;
    let mut deadline = Instant::now() + MAJORITY;
    let mut failed = String::new();
    loop {
        match tokio::time::timeout_at(deadline, fetching.next()).await {
            Ok(Some((_, Ok(_)))) => {
                have += 1;
                if have == majority {
                    deadline = deadline.min(Instant::now() + STRAGGLERS);
                }
            }
            Ok(Some((node, Err(error)))) => failed = format!("node {node}: {error}"),
            Ok(None) | Err(_) => break,
        }
    }
    match have >= majority {
        true => Ok(()),
        false => Err(Error::NoMajority { shard: replica.shard(), what: "has fetched the new files".to_owned(), why: failed }),
    }
}

/// Fetches what a replica lacks because it missed files when an edit was applied. Whether it lacks nothing now.
pub(crate) async fn heal(replica: &Replica, peers: &Arc<Peers>, from: NodeId) -> Result<bool> {
    let path = format!("/peer/v1/shards/{}/snapshot", replica.shard());
    let snapshot = Snapshot::decode(&peers.call(from, Lane::Files, &path, Bytes::new()).await?)?;
    fetch(replica.store(), replica.shard(), peers, from, snapshot.files()).await?;
    let mut asked: Vec<FileMeta> = Vec::new();
    loop {
        let (store, adopted) = (replica.store().clone(), snapshot.clone());
        match blocking(move || Ok(store.adopt(adopted)?)).await? {
            Adopted::Whole => return Ok(true),
            // Later edits brought more; what was asked for once and is still not here is gone there, too.
            Adopted::Lacks(files) if files == asked => return Ok(false),
            Adopted::Lacks(files) => {
                fetch(replica.store(), replica.shard(), peers, from, &files).await?;
                asked = files;
            }
        }
    }
}

/// Fetches those of the files that are not here.
async fn fetch(store: &Arc<Shard>, shard: ShardId, peers: &Arc<Peers>, from: NodeId, files: &[FileMeta]) -> Result<()> {
    let (of, wanted) = (store.clone(), files.to_vec());
    let missing = blocking(move || Ok(of.missing_files(&wanted))).await?;
    for file in missing {
        let request =
            Request::post(format!("/peer/v1/shards/{shard}/file")).body(whole(file.path.clone())).expect("a path of ours is a path");
        let response = peers.send(from, Lane::Files, request).await?;
        if !response.status().is_success() {
            crate::peer::client::read_whole(&from.to_string(), response).await?;
            return Err(Error::PeerFailed { node: from.to_string(), why: format!("it did not give the file {}", file.path) });
        }
        let (store, handle, mut body) = (store.clone(), tokio::runtime::Handle::current(), response.into_body());
        // Writing blocks, and so may waiting here, on a thread made for it.
        blocking(move || {
            let mut receiver = store.receive_file(&file)?;
            while let Some(frame) = handle.block_on(body.frame()) {
                let frame = frame.map_err(|e| Error::PeerFailed { node: from.to_string(), why: e.to_string() })?;
                if let Ok(data) = frame.into_data() {
                    receiver.write(&data)?;
                }
            }
            Ok(receiver.finish()?)
        })
        .await?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

impl Cluster {
    /// Fetches files of an edit that the sender is about to propose.
    pub(crate) async fn fetch_for_peer(&self, shard: ShardId, from: NodeId, body: &[u8]) -> Result<Bytes> {
        let files: Vec<FileMeta> = serde_json::from_slice(body)
            .map_err(|e| Error::PeerFailed { node: from.to_string(), why: format!("its list of files cannot be read: {e}") })?;
        let (slot, peers) = (self.residents.served(shard)?, self.peers.as_ref().ok_or(Error::ShuttingDown)?);
        fetch(slot.replica()?.store(), shard, peers, from, &files).await?;
        Ok(Bytes::new())
    }

    /// Fetches the files of a snapshot that raft is about to install.
    pub(crate) async fn fetch_snapshot_files(&self, shard: ShardId, from: NodeId, snapshot: Bytes) -> Result<()> {
        let (slot, peers) = (self.residents.served(shard)?, self.peers.as_ref().ok_or(Error::ShuttingDown)?);
        let snapshot = Snapshot::decode(&snapshot)?;
        fetch(slot.replica()?.store(), shard, peers, from, snapshot.files()).await
    }

    /// The shard's state at its flushed index.
    pub(crate) fn snapshot_for_peer(&self, shard: ShardId) -> Result<Bytes> {
        let slot = self.residents.served(shard)?;
        Ok(slot.replica()?.store().snapshot()?.encode().into())
    }

    /// A file's bytes as they are read.
    pub(crate) fn file_for_peer(&self, shard: ShardId, path: &str) -> Result<PeerBody> {
        let slot = self.residents.served(shard)?;
        let file = Arc::new(slot.replica()?.store().open_file(path)?);
        let chunks = stream::try_unfold((file, 0_u64), |(file, offset)| async move {
            let of = file.clone();
            let read = tokio::task::spawn_blocking(move || of.read(offset, CHUNK_BYTES)).await.map_err(io::Error::other)?;
            let chunk = read.map_err(io::Error::other)?;
            let next = offset + chunk.len() as u64;
            Ok::<_, io::Error>((!chunk.is_empty()).then(|| (Frame::data(chunk), (file, next))))
        });
        Ok(StreamBody::new(chunks).boxed_unsync())
    }
}
