//! How nodes find each other, and how a cluster comes into being (DESIGN rule 13).
//!
//! A node that is told to join asks the addresses it was given who they are. If one belongs to a cluster, the node asks
//! to be taken in and belongs to it from then on. A node that is told to join never founds a cluster by itself: only when
//! `--bootstrap-expect N` storage nodes have found each other does the one with the smallest number found one with them:
//! it keeps its decision on disk and asks the others to promise themselves; each keeps its promise on disk and gives it
//! to one founder at a time. With all promises the cluster begins, which is never taken back. A founder that was killed in
//! between takes up the same founding again; one that is refused because another was quicker, or that does not reach all of
//! them for a minute, gives the promises back. Who did not hear of that sees it when the founder next says who it is.
//!
//! ```text
//! POST /peer/v1/hello   Hello  -> HelloAnswer    who are you?
//! POST /peer/v1/found   Promise -> {}            be of my cluster, once it begins
//! POST /peer/v1/begin   Promise -> {}            it has begun
//! POST /peer/v1/release Promise -> {}            it never will
//! POST /peer/v1/join   NodeInfo -> Taken         take me into yours
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::NodeId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::disk::Disk;

use crate::identity::Identity;
use crate::metadata::Shown;
use crate::nodes::NodeInfo;
use crate::peer::{Lane, Peers};
use crate::{Error, Result};

/// Between two rounds of questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// After so many rounds without a cluster, what is missing is said in the log; then at twice as many, and so on.
const TELL_AFTER: u32 = 50;
/// A founder waits so long for the others' promises before it gives its founding up.
const PROMISES_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeInfo,
    pub(crate) cluster: Option<u128>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HelloAnswer {
    pub(crate) node: NodeInfo,
    /// The cluster that it belongs or is promised to.
    pub(crate) cluster: Option<u128>,
    /// Whether that cluster has begun, as far as it knows.
    pub(crate) begun: bool,
    /// Whether it has come into being: whether others can be taken in.
    pub(crate) founded: bool,
    /// The nodes that it knows, itself included.
    pub(crate) nodes: Vec<NodeInfo>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub(crate) cluster: u128,
    pub(crate) nodes: Vec<NodeInfo>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) cluster: u128,
    pub(crate) shown: Shown,
}

/// Who this node is, and to which cluster it belongs or is promised.
pub(crate) struct Introduction {
    me: NodeInfo,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    peers: Arc<Peers>,
    identity: Mutex<Identity>,
    /// Its cluster has begun.
    begun: tokio::sync::Notify,
}

/// What a node has learned by asking around.
pub(crate) enum Belongs {
    /// It belongs to a cluster already, or is promised to one: its groups are opened, and others call it.
    Already,
    /// It founds the metadata group with these.
    Founder(Vec<NodeInfo>),
    /// It was taken into a cluster that decided this so far.
    Taken(Box<Shown>),
}

impl Introduction {
    pub(crate) fn new(me: NodeInfo, identity: Identity, disk: Arc<dyn Disk>, dir: PathBuf, peers: Arc<Peers>) -> Introduction {
        if let Some(cluster) = identity.cluster.filter(|_| identity.begun) {
            peers.belong_to(cluster);
        }
        Introduction { me, disk, dir, peers, identity: Mutex::new(identity), begun: tokio::sync::Notify::new() }
    }

    /// The cluster that it belongs to; not one that it is only promised to.
    pub(crate) fn cluster(&self) -> Option<u128> {
        let identity = self.identity.lock();
        identity.cluster.filter(|_| identity.begun)
    }

    /// With whom this node founds its cluster, if it is the one who does.
    pub(crate) fn founders(&self) -> Vec<NodeInfo> {
        self.identity.lock().founders.clone()
    }

    /// Answers a hello, and takes note of where the other is.
    pub(crate) fn hello(&self, hello: &Hello, nodes: Vec<NodeInfo>, founded: bool) -> Result<HelloAnswer> {
        refuse_other(self.cluster(), hello.cluster, &hello.node)?;
        self.peers.found_at(hello.node.id, &hello.node.rpc);
        let nodes = if nodes.is_empty() { vec![self.me.clone()] } else { nodes };
        let identity = self.identity.lock();
        Ok(HelloAnswer { node: self.me.clone(), cluster: identity.cluster, begun: identity.begun, founded, nodes })
    }

    /// Promises this node to a cluster: to one at a time.
    pub(crate) fn promise(&self, promise: &Promise) -> Result<()> {
        promise.nodes.iter().for_each(|node| self.peers.found_at(node.id, &node.rpc));
        self.change(|identity| match identity.cluster {
            Some(cluster) if cluster == promise.cluster => Ok(()),
            Some(cluster) => {
                let why = format!("node {} is of cluster {cluster:032x} or promised to it, not to {:032x}", self.me.name, promise.cluster);
                Err(Error::OtherCluster { why })
            }
            None => {
                identity.cluster = Some(promise.cluster);
                identity.promised_to = promise.nodes.first().map(|founder| founder.id);
                Ok(())
            }
        })
    }

    /// The cluster that it is promised to has begun, or it was taken into one that has.
    pub(crate) fn begin(&self, promise: &Promise) -> Result<()> {
        self.promise(promise)?;
        self.change(|identity| {
            identity.begun = true;
            identity.promised_to = None;
            Ok(())
        })?;
        self.peers.belong_to(promise.cluster);
        self.begun.notify_waiters();
        Ok(())
    }

    /// The founder takes its founding back: the promise to it is void.
    pub(crate) fn release(&self, promise: &Promise) -> Result<()> {
        self.change(|identity| {
            if identity.cluster == Some(promise.cluster) && !identity.begun {
                identity.cluster = None;
                identity.founders.clear();
                identity.promised_to = None;
            }
            Ok(())
        })
    }

    /// The cluster that it belongs or is promised to, and the founder that has the promise.
    fn promised(&self) -> Option<(u128, Option<NodeId>)> {
        let identity = self.identity.lock();
        identity.cluster.map(|cluster| (cluster, identity.promised_to))
    }

    /// Changes the identity, durably or not at all.
    fn change(&self, change: impl FnOnce(&mut Identity) -> Result<()>) -> Result<()> {
        let mut identity = self.identity.lock();
        let mut changed = identity.clone();
        change(&mut changed)?;
        if changed != *identity {
            changed.save(&*self.disk, &self.dir)?;
            *identity = changed;
        }
        Ok(())
    }

    /// Asks around until this node belongs to a cluster.
    pub(crate) async fn find(&self, join: &[String], expect: Option<u32>, new_cluster: u128) -> Result<Belongs> {
        let mut rounds = 0_u32;
        let mut tell_after = TELL_AFTER;
        loop {
            let begun = self.begun.notified();
            let founders = self.founders();
            if self.cluster().is_some() {
                return Ok(if founders.is_empty() { Belongs::Already } else { Belongs::Founder(founders) });
            }
            if !founders.is_empty() && self.collect_promises(&founders).await? {
                return Ok(Belongs::Founder(founders));
            }
            let promised_before = self.promised();
            let (answers, failures) = self.ask_all(join).await;
            if let Some((cluster, Some(founder))) = promised_before
                && promised_before == self.promised()
                && answers.iter().any(|answer| answer.node.id == founder && answer.cluster != Some(cluster))
            {
                tracing::info!(cluster = format!("{cluster:032x}"), "the founder of a cluster has given it up: the promise to it is void");
                self.release(&Promise { cluster, nodes: Vec::new() })?;
            }
            let promised_to = self.promised().map(|(cluster, _)| cluster);
            for answer in &answers {
                if let Some(cluster) = answer.cluster.filter(|cluster| answer.begun && promised_to == Some(*cluster)) {
                    self.begin(&Promise { cluster, nodes: Vec::new() })?;
                    return Ok(Belongs::Already);
                }
                if let (Some(cluster), true, None) = (answer.cluster, answer.founded, promised_to) {
                    match self.join_by(answer, cluster).await {
                        Ok(taken) => return Ok(Belongs::Taken(Box::new(taken))),
                        Err(error @ Error::OtherCluster { .. }) => return Err(error),
                        Err(error) => tracing::warn!(by = answer.node.name, %error, "could not join yet"),
                    }
                }
            }
            if let Some(founders) = self.founders_among(&answers, expect) {
                self.found(&founders, new_cluster)?;
                continue;
            }
            rounds += 1;
            if rounds >= tell_after {
                tell_after *= 2;
                let found = 1 + answers.iter().filter(|a| a.node.roles.storage).count();
                let why = match (promised_to, expect) {
                    (Some(cluster), _) => format!(
                        "this node has promised itself to the cluster {cluster:032x}, which has not begun: whoever founds it does not \
                         answer. If that node is gone for ever, start this one with an empty --data-dir: it holds nothing yet"
                    ),
                    (None, Some(expect)) => format!("waiting for {expect} storage nodes, {found} found"),
                    (None, None) => {
                        "none of them belongs to a cluster; one of them must be started alone first, or with --bootstrap-expect".to_owned()
                    }
                };
                tracing::warn!(join = join.join(","), unreachable = failures.join("; "), "no cluster found yet: {why}");
            }
            tokio::select! {
                () = begun => {}
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    /// Tells those addresses where this node is now, and learns where they are; returns who answered.
    pub(crate) async fn ask_all(&self, join: &[String]) -> (Vec<HelloAnswer>, Vec<String>) {
        let hello = serde_json::to_vec(&Hello { node: self.me.clone(), cluster: self.cluster() }).expect("writing to memory");
        let asked = join.iter().filter(|address| **address != self.me.rpc).map(|address| {
            let hello = hello.clone();
            async move {
                let call = self.peers.call_at(address, Lane::Votes, "/peer/v1/hello", hello);
                match tokio::time::timeout(ASK_TIMEOUT, call).await {
                    Ok(answer) => answer
                        .map_err(|e| e.to_string())
                        .and_then(|a| serde_json::from_slice::<HelloAnswer>(&a).map_err(|e| format!("{address}: {e}"))),
                    Err(_) => Err(format!("{address}: no answer")),
                }
            }
        });
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for answer in futures::future::join_all(asked).await {
            match answer {
                // A name of many addresses, or this node's own under another name.
                Ok(answer) if answer.node.id == self.me.id => {}
                Ok(answer) if answers.iter().any(|known: &HelloAnswer| known.node.id == answer.node.id) => {}
                Ok(answer) => answers.push(answer),
                Err(why) => failures.push(why),
            }
        }
        // What a node says of itself is newer than what others remember of it.
        let remembered = answers.iter().flat_map(|answer| &answer.nodes);
        for node in remembered.chain(answers.iter().map(|answer| &answer.node)) {
            self.peers.found_at(node.id, &node.rpc);
        }
        (answers, failures)
    }

    async fn join_by(&self, answer: &HelloAnswer, cluster: u128) -> Result<Shown> {
        let me = serde_json::to_vec(&self.me).expect("writing to memory");
        let taken = self.peers.call_at(&answer.node.rpc, Lane::Asks, "/peer/v1/join", me).await?;
        let taken: Taken = serde_json::from_slice(&taken)
            .map_err(|e| Error::PeerFailed { node: answer.node.name.clone(), why: format!("its answer is none: {e}") })?;
        if taken.cluster != cluster {
            return Err(Error::OtherCluster { why: format!("node {} changed its cluster", answer.node.name) });
        }
        self.begin(&Promise { cluster, nodes: Vec::new() })?;
        Ok(taken.shown)
    }

    /// The founders, if there are as many as expected, all without a cluster, and this node is to lead the founding.
    fn founders_among(&self, answers: &[HelloAnswer], expect: Option<u32>) -> Option<Vec<NodeInfo>> {
        let expect = expect? as usize;
        if !self.me.roles.storage || self.identity.lock().cluster.is_some() {
            return None;
        }
        let free = answers.iter().filter(|a| a.node.roles.storage && a.cluster.is_none()).map(|a| a.node.clone());
        let mut founders: Vec<NodeInfo> = free.chain([self.me.clone()]).collect();
        founders.sort_by_key(|node| node.id);
        (founders.len() >= expect && founders[0].id == self.me.id).then(|| founders[..expect.max(1)].to_vec())
    }

    /// Decides, durably, that this node founds a cluster with these.
    fn found(&self, founders: &[NodeInfo], cluster: u128) -> Result<()> {
        self.change(|identity| {
            identity.cluster = Some(cluster);
            identity.founders = founders.to_vec();
            Ok(())
        })
    }

    /// Returns `true` when every founder has promised itself and the cluster has begun, `false` when another was quicker.
    async fn collect_promises(&self, founders: &[NodeInfo]) -> Result<bool> {
        let cluster = self.identity.lock().cluster.expect("a founder has its cluster");
        let promise = Promise { cluster, nodes: founders.to_vec() };
        let others: Vec<&NodeInfo> = founders.iter().filter(|node| node.id != self.me.id).collect();
        let deadline = tokio::time::Instant::now() + PROMISES_TIMEOUT;
        let mut rounds = 0_u32;
        let mut waiting = others.clone();
        while !waiting.is_empty() {
            let mut left = Vec::new();
            for node in waiting {
                match self.tell(node, "found", &promise).await {
                    Ok(()) => {}
                    Err(Error::OtherCluster { why }) => {
                        tracing::info!(why, "another node was quicker: this one does not found a cluster");
                        return self.give_back(&promise).await;
                    }
                    Err(error) if tokio::time::Instant::now() >= deadline => {
                        tracing::warn!(node = node.name, %error, "a node has not promised itself to the cluster: it is founded with others");
                        return self.give_back(&promise).await;
                    }
                    Err(error) => {
                        if rounds.is_multiple_of(TELL_AFTER) {
                            tracing::warn!(node = node.name, %error, "a node has not promised itself to the cluster; it is asked again");
                        }
                        left.push(node);
                    }
                }
            }
            waiting = left;
            if !waiting.is_empty() {
                rounds += 1;
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
        self.begin(&promise)?;
        tracing::info!(nodes = founders.len(), cluster = format!("{cluster:032x}"), "the cluster begins");
        for node in others {
            // Who does not hear of it now hears of it when it asks around.
            let _ = self.tell(node, "begin", &promise).await;
        }
        Ok(true)
    }

    /// Takes the founding back.
    async fn give_back(&self, promise: &Promise) -> Result<bool> {
        // Here first: who is not reached asks this node who it is, and finds that it founds nothing.
        self.release(promise)?;
        for node in promise.nodes.iter().filter(|node| node.id != self.me.id) {
            let _ = self.tell(node, "release", promise).await;
        }
        Ok(false)
    }

    async fn tell(&self, node: &NodeInfo, what: &str, promise: &Promise) -> Result<()> {
        let body = serde_json::to_vec(promise).expect("writing to memory");
        let path = format!("/peer/v1/{what}");
        let call = self.peers.call_at(&node.rpc, Lane::Votes, &path, body);
        match tokio::time::timeout(ASK_TIMEOUT, call).await {
            Ok(answer) => answer.map(|_| ()),
            Err(_) => Err(Error::PeerFailed { node: node.name.clone(), why: "no answer".to_owned() }),
        }
    }
}

fn refuse_other(ours: Option<u128>, theirs: Option<u128>, node: &NodeInfo) -> Result<()> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(Error::OtherCluster {
            why: format!(
                "node {} belongs to cluster {theirs:032x}, this one to {ours:032x}: start it with an empty --data-dir to take it in",
                node.name
            ),
        }),
        _ => Ok(()),
    }
}

/// Everybody that may be asked where the others are: the addresses given, and those known.
pub(crate) fn addresses(join: &[String], nodes: impl Iterator<Item = NodeInfo>, me: NodeId) -> Vec<String> {
    let mut all: Vec<String> = join.to_vec();
    all.extend(nodes.filter(|node| node.id != me && !node.rpc.is_empty()).map(|node| node.rpc));
    all.sort_unstable();
    all.dedup();
    all
}
