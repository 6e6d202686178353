//! Several nodes in one process, with real connections between them on loopback.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cluster::peer::{PeerDoor, PeerSecurity, serve};
use cluster::{PeerOptions, Roles};
use model::{NodeId, ShardId};
use query::{PeerService, QueryOptions};
use tokio::sync::watch;

use crate::node::{Made, Node};

/// Nothing here takes so long unless it never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes of a cluster; those that were killed are gone.
pub(crate) struct Fleet {
    nodes: Vec<Option<Node>>,
    closing: Vec<watch::Sender<bool>>,
}

impl Fleet {
    /// A cluster of so many shards, each with so many replicas, on nodes with these roles.
    pub(crate) async fn start(roles: &[&str], shards: u32, replicas: u32) -> Fleet {
        Fleet::with(roles, shards, replicas, |_| {}).await
    }

    /// The same, with queries bounded otherwise.
    pub(crate) async fn with(roles: &[&str], shards: u32, replicas: u32, bound: impl Fn(&mut QueryOptions)) -> Fleet {
        let roles: Vec<Roles> = roles.iter().map(|r| r.parse().unwrap()).collect();
        let listeners: Vec<_> = roles.iter().map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let expect = roles.iter().filter(|r| r.storage).count() as u32;
        let (mut closing, mut starting) = (Vec::new(), Vec::new());
        for (i, (listener, roles)) in listeners.into_iter().zip(roles).enumerate() {
            let door = PeerDoor::new(PeerSecurity { secret: Some("a secret of this test".into()), tls: None });
            let service: Arc<OnceLock<PeerService>> = Arc::default();
            let answer = {
                let (door, service) = (door.clone(), service.clone());
                move |request: http::Request<hyper::body::Incoming>| {
                    let (door, service) = (door.clone(), service.clone());
                    async move {
                        match service.get().filter(|_| PeerService::answers(request.uri().path())) {
                            None => door.answer(request).await,
                            Some(service) => match door.admit(request.headers()) {
                                Ok(_) => service.answer(request).await,
                                Err(refusal) => refusal,
                            },
                        }
                    }
                }
            };
            listener.set_nonblocking(true).unwrap();
            let (close, closed) = watch::channel(false);
            closing.push(close);
            tokio::spawn(serve::serve(tokio::net::TcpListener::from_std(listener).unwrap(), None, answer, closed));
            let peers = PeerOptions {
                roles,
                http: format!("127.0.0.1:{}", 1 + i),
                rpc: addresses[i].clone(),
                join: addresses.clone(),
                bootstrap_expect: roles.storage.then_some(expect),
                replicas: Some(replicas),
                gone_after: cluster::GONE_AFTER,
                door,
            };
            let made = Made { name: format!("n{}", i + 1), shards, peers: Some(peers), seed: 100 + i as u64 };
            let bound = &bound;
            starting.push(async move {
                let node = Node::made(made, bound).await;
                assert!(service.set(node.engine.peer_service()).is_ok());
                Some(node)
            });
        }
        let nodes = tokio::time::timeout(PATIENCE, futures::future::join_all(starting)).await.expect("the cluster comes up");
        let fleet = Fleet { nodes, closing };
        for node in fleet.living() {
            for shard in node.cluster.shards() {
                fleet.until("every shard has a leader", || async { node.cluster.find_leader(shard).await.is_some() }).await;
            }
        }
        fleet
    }

    /// A node that lives.
    pub(crate) fn node(&self, i: usize) -> &Node {
        self.nodes[i].as_ref().expect("the node lives")
    }

    /// All that live.
    pub(crate) fn living(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// The place of a node by its number.
    pub(crate) fn place(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|n| n.as_ref().is_some_and(|n| n.cluster.node_id() == id)).expect("the node lives")
    }

    /// The shards that a node leads.
    pub(crate) async fn led_by(&self, i: usize) -> Vec<ShardId> {
        let node = self.node(i);
        let mut led = Vec::new();
        for shard in node.cluster.shards() {
            if node.cluster.find_leader(shard).await == Some(node.cluster.node_id()) {
                led.push(shard);
            }
        }
        led
    }

    /// Ends a node: nobody reaches it from one moment to the next, and whoever asks it hears nothing.
    pub(crate) async fn kill(&mut self, i: usize) {
        self.closing[i].send_replace(true);
        let node = self.nodes[i].take().expect("it lives");
        node.cluster.shutdown().await;
    }

    /// Waits until something is so.
    pub(crate) async fn until<F, Fut>(&self, what: &str, mut is_so: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited until {what}"));
    }

    /// Ends all.
    pub(crate) async fn end(self) {
        for closing in &self.closing {
            closing.send_replace(true);
        }
        futures::future::join_all(self.living().map(|node| node.cluster.shutdown())).await;
    }
}
