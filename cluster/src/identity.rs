//! Who this data directory belongs to: its cluster, its node, and how often it was started (DESIGN rule 13).
//!
//! ```text
//! payload of DIR/identity         = JSON {"cluster": u128 or null, "node": u64, "name": text, "incarnation": u64, "begun": bool, "founders": [node …]?}
//! payload of DIR/shards/N/replica = the replica's number, u128 little-endian
//! ```
//!
//! A replica's number is made when its folder is: the same shard on an empty disk is another replica. So is a node's:
//! under an old name an empty disk is another node.

use std::path::Path;

use model::{NodeId, ReplicaId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use storage::disk::Disk;

use crate::nodes::NodeInfo;
use crate::state_file::{StateFile, load, save};
use crate::{Error, Result};

/// This node, as its data directory knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// `None`: a node that is to join one, and has not yet.
    pub(crate) cluster: Option<u128>,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    /// How often the node was started.
    pub(crate) incarnation: u64,
    /// Whether that cluster has begun: until then this node is only promised to it.
    #[serde(default = "begun")]
    pub(crate) begun: bool,
    /// With whom this node founds its cluster, if it is the one who does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) founders: Vec<NodeInfo>,
}

/// A directory from before clusters were promised belongs to one that has begun.
fn begun() -> bool {
    true
}

/// Bits of a node's number: few enough to be read out, enough never to meet twice.
const NODE_BITS: u32 = 48;

impl Identity {
    /// Reads the directory's identity, or gives it one, and counts this start. A new directory of a node that is alone
    /// gets a cluster of its own at once; of one that has `peers`, when it has found or founded it.
    pub(crate) fn take(disk: &dyn Disk, dir: &Path, name: &str, peers: bool, chance: &mut Chance) -> Result<Identity> {
        let path = dir.join("identity");
        let mut identity = match load(disk, &path, StateFile::Identity)? {
            Some(payload) => {
                serde_json::from_slice(&payload).map_err(|e| storage::Error::Corrupt { path: path.clone(), at: 0, what: e.to_string() })?
            }
            None => Identity {
                cluster: (!peers).then(|| chance.number()),
                node: NodeId(1 + (chance.number() as u64 >> (u64::BITS - NODE_BITS))),
                name: name.to_owned(),
                incarnation: 0,
                begun: !peers,
                founders: Vec::new(),
            },
        };
        if !(peers || identity.begun && identity.cluster.is_some()) {
            return Err(Error::OtherCluster {
                why: format!(
                    "{} belongs to a node that was to join a cluster and has not yet; start it with --join HOST:PORT again, or take an empty \
                     --data-dir for a node that is alone",
                    dir.display()
                ),
            });
        }
        if identity.name != name {
            tracing::info!(was = identity.name, is = name, "the node has a new name");
            identity.name = name.to_owned();
        }
        identity.incarnation += 1;
        identity.save(disk, dir)?;
        Ok(identity)
    }

    /// Keeps it durably.
    pub(crate) fn save(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let payload = serde_json::to_vec(self).expect("writing to memory");
        save(disk, &dir.join("identity"), StateFile::Identity, &payload)
    }
}

/// Reads the replica's number, or gives the folder the new one.
pub(crate) fn take_replica(disk: &dyn Disk, dir: &Path, new: ReplicaId) -> Result<ReplicaId> {
    let path = dir.join("replica");
    if let Some(payload) = load(disk, &path, StateFile::Replica)? {
        let number = payload.as_slice().try_into().map_err(|_| storage::Error::Corrupt {
            path: path.clone(),
            at: 0,
            what: "it is no replica's number".to_owned(),
        })?;
        return Ok(ReplicaId(u128::from_le_bytes(number)));
    }
    save(disk, &path, StateFile::Replica, &new.0.to_le_bytes())?;
    Ok(new)
}

/// Where this node's numbers come from: a seed, so that a simulation can be played again.
#[derive(Debug)]
pub(crate) struct Chance(StdRng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(StdRng::seed_from_u64(seed))
    }

    /// A number with the shape of a random UUID.
    pub(crate) fn number(&mut self) -> u128 {
        uuid::Builder::from_random_bytes(self.0.random()).into_uuid().as_u128()
    }
}
