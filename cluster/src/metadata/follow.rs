//! How a node that does not lead the metadata group knows its state: it asks a member for what is newer, again and again.
//!
//! A member that is told by the group's log does so too, for it may have been let go and nobody tells it. A member answers as soon as there is something newer, or after a while that there is not. One that does not answer is
//! left for the next. What this node shows is thereby a little old at times, never wrong: who needs what was decided
//! before now asks the leader first (`Metadata::refresh`).

use std::sync::Arc;
use std::time::Duration;

use model::NodeId;

use super::{Metadata, Published, Shown, State};
use crate::peer::{Lane, Peers};

/// How long a member may wait for something newer before it answers that there is nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// After a member has not answered.
const TRY_NEXT: Duration = Duration::from_millis(100);

/// The nodes that may be members: the storage nodes, or, while this node knows of none, everybody it has met.
pub(super) fn may_know(state: &State, peers: &Peers) -> Vec<NodeId> {
    let storage: Vec<NodeId> = state.nodes.values().filter(|n| n.roles.storage && n.id != peers.me()).map(|n| n.id).collect();
    if storage.is_empty() { peers.known() } else { storage }
}

/// Follows the group's state until the runtime ends, while this node does not lead.
pub(crate) async fn follow(metadata: Arc<Metadata>, published: Arc<Published>, peers: Arc<Peers>) {
    let mut turn = 0_usize;
    loop {
        if metadata.leads() {
            tokio::time::sleep(PATIENCE).await;
            continue;
        }
        let state = published.state.load_full();
        let members = may_know(&state, &peers);
        if members.is_empty() {
            tokio::time::sleep(TRY_NEXT).await;
            continue;
        }
        let member = members[turn % members.len()];
        let path = format!("/peer/v1/metadata/after/{}", published.next());
        let asked = tokio::time::timeout(PATIENCE * 2, peers.call(member, Lane::Asks, &path, "")).await;
        match asked {
            Ok(Ok(answer)) if answer.is_empty() => {}
            Ok(Ok(answer)) => match serde_json::from_slice::<Shown>(&answer) {
                Ok(shown) => published.publish(Arc::new(shown.state), shown.next),
                Err(error) => {
                    tracing::warn!(%member, %error, "a member of the metadata group sent a state that this program does not understand");
                    turn += 1;
                    tokio::time::sleep(TRY_NEXT).await;
                }
            },
            Ok(Err(_)) | Err(_) => {
                turn += 1;
                tokio::time::sleep(TRY_NEXT).await;
            }
        }
    }
}
