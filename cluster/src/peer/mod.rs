//! What nodes say to each other: one HTTP/2 port for all of it, reachable by peers only.
//!
//! | file | answers |
//! |---|---|
//! | [`client`] | how do I reach that node? one connection per node and lane |
//! | [`door`] | who may speak, and what is asked: the paths under `/peer/v1` |
//! | [`serve`](self::serve) | the port |
//! | `wire` | raft's messages as bytes |
//! | `refusal` | an error on its way to another node |
//!
//! Every request carries the cluster's number, the sender's node, the node that is meant, the format of what follows and, where there is one, the
//! cluster's secret. A request of another cluster, for another node or of a newer format is refused, naming both sides' (DESIGN
//! rule 13): a node on an empty disk has the address of the one whose disk was lost, and must not answer for it.

pub mod client;
pub mod door;
pub(crate) mod refusal;
pub mod serve;
pub(crate) mod wire;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use self::client::{Lane, PeerBody, Peers, whole};
pub use self::door::PeerDoor;

/// The cluster's number, in hexadecimal.
pub(crate) const CLUSTER_HEADER: &str = "alluvium-cluster";
/// The sender's node.
pub(crate) const NODE_HEADER: &str = "alluvium-node";
/// The node that is meant: at its address may be another by now.
pub(crate) const TO_HEADER: &str = "alluvium-to";
/// The format of what nodes say to each other.
pub(crate) const FORMAT_HEADER: &str = "alluvium-format";
/// 2: entries carry their trace.
pub(crate) const PEER_FORMAT: &str = "2";

/// What keeps strangers away from the port of peers.
#[derive(Clone, Default)]
pub struct PeerSecurity {
    /// Known to all nodes of the cluster and to nobody else; letters, digits and signs of ASCII only.
    pub secret: Option<Arc<str>>,
    /// How this node opens connections; exchanged when its files change. `None`: without TLS.
    pub tls: Option<Arc<ArcSwap<rustls::ClientConfig>>>,
}

impl fmt::Debug for PeerSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSecurity").field("secret", &self.secret.is_some()).field("tls", &self.tls.is_some()).finish()
    }
}
