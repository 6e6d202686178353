//! Queries over several nodes: the only place that knows datafusion-distributed.
//!
//! A plan is made as on one node. Then it is looked at: if this node leads every shard that its scans read, it runs here
//! as it is. If all are led by one other node, the statement is sent there whole. Otherwise the plan is cut into stages, and each scan
//! is pinned to the nodes that lead its shards: task `i` of a stage runs on node `i` of the query's [`Placement`].
//! What the cutting leaves in another place (one producer and one consumer, a step that can only run once) reads the
//! shard from afar: a scan never depends on where it runs.
//!
//! | file | answers |
//! |---|---|
//! | `placement` | which node reads which shard, fixed for one run of a query; what to do with a plan |
//! | `spread` | cut a plan into stages, pin its scans, choose what runs where |
//! | `leaf` | a scan as bytes |
//! | `head` | what a request between nodes says of its query |
//! | `visits` | queries of other nodes that have work here: their read points, their end |
//! | `calls` | asking another node: a whole statement, one scan, its queries |
//! | `whole` | which statements go whole to one node, known by their form |
//! | `rows` | rows on their way between nodes |
//! | `door` | what peers ask of this node |
//! | `allowed_steps` | may a peer have this step run? |

mod allowed_steps;
pub(crate) mod calls;
pub(crate) mod door;
pub(crate) mod head;
pub(crate) mod leaf;
pub(crate) mod placement;
pub(crate) mod rows;
pub(crate) mod spread;
pub(crate) mod visits;
pub(crate) mod whole;

pub(crate) use datafusion_distributed::Worker;
pub use door::PeerService;
pub(crate) use placement::{Avoid, Course, Placement};
pub(crate) use spread::{explained, gathered, spread, worker};
