//! The metadata group's state machine: committed commands change the state in memory, readers see the new one at once.
//!
//! The state is saved whole from time to time (`meta/snapshot`), so that the group's log stays short:
//!
//! ```text
//! payload of meta/snapshot = JSON {"applied": [term, index], "membership": text, "state": …}
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use model::{LogIndex, Term};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::disk::Disk;
use storage::wal;
use tokio::sync::watch;

use super::command::Command;
use super::state::State;
use crate::Result;
use crate::group::{Answer, Content, LogId, Snapshot, SnapshotMeta, StoredMembership, Types, log_id};
use crate::log_record::{NORMAL, decode_membership, encode_membership};
use crate::state_file::{self, StateFile};

/// What the group's readers see: the newest state, and how far it has come.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) state: ArcSwap<State>,
    /// One above the last entry applied.
    pub(crate) next: watch::Sender<u64>,
    /// One above the last entry that the saved state covers.
    pub(crate) saved: AtomicU64,
    /// When what is shown was the newest that the group's leader knew; `None`: never.
    pub(crate) fresh: Mutex<Option<Instant>>,
}

impl Published {
    /// Shows a state that is newer than the one shown; an older one changes nothing.
    pub(crate) fn publish(&self, state: Arc<State>, next: u64) {
        self.next.send_if_modified(|shown| {
            let newer = next > *shown;
            if newer {
                self.state.store(state);
                *shown = next;
            }
            newer
        });
    }

    /// One above the last entry that is shown.
    pub(crate) fn next(&self) -> u64 {
        *self.next.borrow()
    }
}

/// What a node says to one that follows it.
#[derive(Serialize, Deserialize)]
pub(crate) struct News {
    /// How old this is: since the group's leader said it.
    pub(crate) age_ms: u64,
    /// What is newer, if anything.
    pub(crate) shown: Option<Shown>,
}

/// A state and one above the last entry that it covers, as a node that follows the group gets them.
#[derive(Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) next: u64,
    pub(crate) state: State,
}

/// Applies commands in the log's order.
pub(crate) struct MetadataMachine {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    saved: Option<SnapshotMeta>,
    published: Arc<Published>,
}

#[derive(Serialize, Deserialize)]
struct SavedText {
    applied: Option<(Term, LogIndex)>,
    membership: String,
    state: State,
}

impl MetadataMachine {
    /// Reads the saved state, if there is one; the log is replayed over it.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: PathBuf) -> Result<(MetadataMachine, Arc<Published>)> {
        let published = Arc::new(Published::default());
        let mut machine = MetadataMachine {
            disk,
            path,
            state: State::default(),
            applied: None,
            membership: StoredMembership::default(),
            saved: None,
            published: published.clone(),
        };
        if let Some(payload) = state_file::load(&*machine.disk, &machine.path, StateFile::Metadata)? {
            machine.restore(&payload).map_err(|e| storage::Error::Corrupt { path: machine.path.clone(), at: 0, what: e.to_string() })?;
        }
        Ok((machine, published))
    }

    /// The state as a stopped node left it in its folder: what was saved, and what the log holds beyond that, whether it
    /// was agreed on or not. Changes nothing.
    pub(crate) fn left_behind(disk: &Arc<dyn Disk>, dir: &Path) -> Result<State> {
        let (mut machine, _) = MetadataMachine::open(disk.clone(), dir.join("snapshot"))?;
        let log = wal::survey(&**disk, &dir.join("wal"))?;
        let next = machine.next();
        for record in log.records(&**disk)?.iter().filter(|record| record.kind == NORMAL && record.index.0 >= next) {
            let undone = |source| storage::Error::BadEntry { index: record.index.0, source };
            for command in Command::decode(&record.payload).map_err(undone)? {
                machine.state.apply(&command);
            }
        }
        Ok(machine.state)
    }

    fn restore(&mut self, payload: &[u8]) -> io::Result<()> {
        let text: SavedText = serde_json::from_slice(payload).map_err(io::Error::other)?;
        self.membership = decode_membership(text.membership.as_bytes())?;
        self.applied = text.applied.map(|(term, index)| log_id(term, index));
        self.state = text.state.taken_up();
        self.saved = Some(self.meta());
        self.publish();
        self.published.saved.store(self.next(), Ordering::Release);
        Ok(())
    }

    fn next(&self) -> u64 {
        self.applied.as_ref().map_or(0, |id| id.index + 1)
    }

    fn publish(&self) {
        self.published.publish(Arc::new(self.state.clone()), self.next());
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    fn encode(&self) -> Vec<u8> {
        let membership = encode_membership(self.membership.log_id().as_ref(), self.membership.membership());
        let text = SavedText {
            applied: self.applied.as_ref().map(|id| (Term(id.leader_id.term), LogIndex(id.index))),
            membership: String::from_utf8(membership).expect("a number below 128, then JSON"),
            state: self.state.clone(),
        };
        serde_json::to_vec(&text).expect("writing to memory")
    }

    async fn save(&mut self, payload: Vec<u8>) -> Result<()> {
        let (disk, path) = (self.disk.clone(), self.path.clone());
        tokio::task::spawn_blocking(move || state_file::save(&*disk, &path, StateFile::Metadata, &payload))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        self.saved = Some(self.meta());
        self.published.saved.store(self.next(), Ordering::Release);
        Ok(())
    }
}

impl RaftStateMachine<Types> for MetadataMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SavedState;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = match &entry.payload {
                EntryPayload::Normal(proposal) => match proposal.content() {
                    Content::Metadata(commands) => Answer::Metadata(commands.iter().map(|c| self.state.apply(c)).collect()),
                    Content::Shard(_) => return Err(io::Error::other("an entry of a shard in the metadata group's log")),
                },
                EntryPayload::Blank => Answer::Other,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Answer::Other
                }
            };
            self.applied = Some(entry.log_id);
            // Before the answer: who has it must find what was decided.
            self.publish();
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    /// Saves the state. Where there is no room the log stays longer instead: it is tried again later.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SavedState> {
        let payload = self.encode();
        if let Err(error) = self.save(payload.clone()).await {
            tracing::warn!(%error, path = %self.path.display(), "could not save the metadata; its log stays longer");
            if !force {
                return None;
            }
        }
        Some(SavedState { meta: self.meta(), payload: payload.into() })
    }

    async fn get_snapshot_builder(&mut self) -> SavedState {
        self.try_create_snapshot_builder(true).await.expect("it is forced")
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        self.restore(&snapshot)?;
        self.save(snapshot.to_vec()).await.map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let Some(meta) = self.saved.clone() else { return Ok(None) };
        let payload = state_file::load(&*self.disk, &self.path, StateFile::Metadata).map_err(io::Error::other)?;
        let payload = payload.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the saved metadata is gone"))?;
        Ok(Some(Snapshot { meta, snapshot: payload.into() }))
    }
}

/// A saved state on its way to openraft.
pub(crate) struct SavedState {
    meta: SnapshotMeta,
    payload: Bytes,
}

impl RaftSnapshotBuilder<Types> for SavedState {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        Ok(Snapshot { meta: self.meta.clone(), snapshot: self.payload.clone() })
    }
}
