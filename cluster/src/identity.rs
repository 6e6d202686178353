//! Who this data directory belongs to: its cluster, its node, and how often it was started (DESIGN rule 13).
//!
//! ```text
//! payload of DIR/identity         = JSON {"cluster": u128 or null, "node": u64, "name": text, "incarnation": u64, "begun": bool, "founders": [node …]?, "promised_to": u64?}
//! payload of DIR/shards/N/replica = the replica's number, u128 little-endian
//! payload of DIR/replicas         = JSON {"N": u128 …}, the replicas that were opened here and have not left
//! ```
//!
//! A replica's number is made when its folder is: the same shard on an empty disk is another replica. So is a node's:
//! under an old name an empty disk is another node. A folder that has gone, a disk that was not mounted perhaps, is known by
//! the list of replicas: what comes in its place is another replica, never the old one with nothing in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{NodeId, ReplicaId, ShardId};
use parking_lot::Mutex;
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
    /// The founder that it is promised to, until the cluster has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) promised_to: Option<NodeId>,
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
        let mut identity = match Identity::read(disk, dir)? {
            Some(identity) => identity,
            None => Identity {
                cluster: (!peers).then(|| chance.number()),
                node: NodeId(1 + (chance.number() as u64 >> (u64::BITS - NODE_BITS))),
                name: name.to_owned(),
                incarnation: 0,
                begun: !peers,
                founders: Vec::new(),
                promised_to: None,
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

    /// What the directory says, if it says anything.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>> {
        let path = dir.join("identity");
        let Some(payload) = load(disk, &path, StateFile::Identity)? else { return Ok(None) };
        let identity = serde_json::from_slice(&payload).map_err(|e| storage::Error::Corrupt { path, at: 0, what: e.to_string() })?;
        Ok(Some(identity))
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

/// The replicas that were opened in a data directory and have not left it.
pub(crate) struct KnownReplicas {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    numbers: Mutex<BTreeMap<ShardId, ReplicaId>>,
}

impl KnownReplicas {
    /// Reads the list; a data directory of an older program has none.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<KnownReplicas> {
        let path = dir.join("replicas");
        let numbers = match load(&*disk, &path, StateFile::Replicas)? {
            Some(payload) => {
                serde_json::from_slice(&payload).map_err(|e| storage::Error::Corrupt { path: path.clone(), at: 0, what: e.to_string() })?
            }
            None => BTreeMap::new(),
        };
        Ok(KnownReplicas { disk, path, numbers: Mutex::new(numbers) })
    }

    /// Whether any was.
    pub(crate) fn any(&self) -> bool {
        !self.numbers.lock().is_empty()
    }

    /// Their shards.
    pub(crate) fn shards(&self) -> Vec<ShardId> {
        self.numbers.lock().keys().copied().collect()
    }

    /// The replica of a shard that was here last.
    pub(crate) fn get(&self, shard: ShardId) -> Option<ReplicaId> {
        self.numbers.lock().get(&shard).copied()
    }

    /// A replica was opened.
    pub(crate) fn note(&self, shard: ShardId, replica: ReplicaId) -> Result<()> {
        self.change(|numbers| numbers.insert(shard, replica) != Some(replica))
    }

    /// It leaves.
    pub(crate) fn forget(&self, shard: ShardId) -> Result<()> {
        self.change(|numbers| numbers.remove(&shard).is_some())
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<ShardId, ReplicaId>) -> bool) -> Result<()> {
        let mut numbers = self.numbers.lock();
        let mut changed = numbers.clone();
        if change(&mut changed) {
            let payload = serde_json::to_vec(&changed).expect("writing to memory");
            save(&*self.disk, &self.path, StateFile::Replicas, &payload)?;
            *numbers = changed;
        }
        Ok(())
    }
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
