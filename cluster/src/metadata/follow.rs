//! How a node that does not lead the metadata group knows its state: it asks a member for what is newer, again and again.
//!
//! A member that is told by the group's log does so too, for it may have been let go and nobody tells it. Any storage node may be
//! asked, so that the few members need not answer everybody: it answers as soon as there is something newer, or after a while
//! that there is not, and how long ago the group's leader said so. One that does not answer, or does not know for too
//! long (two that follow each other would never hear anything), is left for the next. What this node shows is thereby a little old at times, never wrong: who needs what was decided
//! before now asks the leader first (`Metadata::refresh`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::NodeId;

use super::{Metadata, News, Published, State};
use crate::peer::{Lane, Peers};

/// How long a member may wait for something newer before it answers that there is nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// After all were asked in vain.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// What the leader said so long ago is not passed on.
pub(super) const TOO_OLD: Duration = Duration::from_secs(15);

/// The nodes that may be members: the storage nodes, or, while this node knows of none, everybody it has met.
pub(super) fn may_know(state: &State, peers: &Peers) -> Vec<NodeId> {
    let storage: Vec<NodeId> = state.nodes.values().filter(|n| n.roles.storage && n.id != peers.me()).map(|n| n.id).collect();
    if storage.is_empty() { peers.known() } else { storage }
}

/// Follows the group's state until the runtime ends, while this node does not lead.
pub(crate) async fn follow(metadata: Arc<Metadata>, published: Arc<Published>, peers: Arc<Peers>) {
    // Not everybody begins with the same one.
    let mut turn = peers.me().0 as usize;
    loop {
        if metadata.leads() {
            tokio::time::sleep(PATIENCE).await;
            continue;
        }
        let state = published.state.load_full();
        let members = may_know(&state, &peers);
        if members.is_empty() {
            tokio::time::sleep(TRY_AGAIN).await;
            continue;
        }
        let member = members[turn % members.len()];
        let path = format!("/peer/v1/metadata/after/{}", published.next());
        let asked = tokio::time::timeout(PATIENCE * 2, peers.call(member, Lane::Asks, &path, "")).await;
        let news = match asked {
            Ok(Ok(answer)) => serde_json::from_slice::<News>(&answer).map_err(|error| {
                tracing::warn!(%member, %error, "a storage node told something of the metadata that this program does not understand");
            }),
            Ok(Err(_)) | Err(_) => Err(()),
        };
        match news {
            Ok(News { age_ms, shown }) => {
                if let Some(shown) = shown {
                    published.publish(Arc::new(shown.state.taken_up()), shown.next);
                }
                *published.fresh.lock() = Instant::now().checked_sub(Duration::from_millis(age_ms));
            }
            Err(()) => {
                turn = turn.wrapping_add(1);
                if turn.is_multiple_of(members.len()) {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }
}
