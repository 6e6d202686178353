//! The group that agrees on databases, tables, columns, access tokens and the shard map.
//!
//! Commands that arrive together are one entry of its log: a fleet that starts writing asks for the same columns a
//! thousand times at once. Deciding is idempotent, so a command whose outcome is unknown is asked again. Rows are no
//! business of this group: a dropped table's rows go with an entry in every shard's log.

pub(crate) mod command;
mod machine;
mod state;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::schema::NewColumn;
use openraft::Raft;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::command::{Command, Decided};
pub(crate) use self::machine::{MetadataMachine, Published};
pub(crate) use self::state::{State, missing};
use crate::group::{Answer, Proposal, Types};
use crate::log_store::Log;
use crate::{Error, Result};

/// Commands that may wait to be decided.
const MAX_WAITING: usize = 10_000;
/// Bytes of names in one entry, about: with quotes, types and brackets it stays below a shard's entry.
const ENTRY_NAME_BYTES: usize = 128 << 10;
/// Bytes that a command or column adds beside its names, about.
const OVERHEAD_BYTES: usize = 64;
/// Room that the log keeps for openraft's own small entries.
const LOG_SLACK_BYTES: usize = 16 << 10;
/// Entries after which the state is saved and the log before it let go.
const SAVE_AFTER_ENTRIES: u64 = 1_000;

/// This node's member of the metadata group.
pub(crate) struct Metadata {
    raft: Raft<Types, MetadataMachine>,
    log: Arc<Log>,
    runtime: Handle,
    published: Arc<Published>,
    waiting: Mutex<Waiting>,
    save_asked: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    commands: VecDeque<(Command, oneshot::Sender<Result<Decided>>)>,
    deciding: bool,
}

impl Metadata {
    pub(crate) fn new(raft: Raft<Types, MetadataMachine>, log: Arc<Log>, runtime: Handle, published: Arc<Published>) -> Arc<Metadata> {
        Arc::new(Metadata { raft, log, runtime, published, waiting: Mutex::default(), save_asked: AtomicU64::new(0) })
    }

    /// Everything decided so far, as this node knows it.
    pub(crate) fn state(&self) -> arc_swap::Guard<Arc<State>> {
        self.published.state.load()
    }

    /// Has a command decided; returns once this node's state shows it.
    pub(crate) async fn decide(self: &Arc<Metadata>, command: Command) -> Result<Decided> {
        let (answer, decided) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.commands.len() >= MAX_WAITING {
                return Err(Error::Busy { what: "the queue of the metadata group".to_owned(), limit: MAX_WAITING });
            }
            waiting.commands.push_back((command, answer));
            if !waiting.deciding {
                waiting.deciding = true;
                // A task of its own: the one that asked may be cancelled, the others' commands must not be.
                self.runtime.spawn(self.clone().decide_waiting());
            }
        }
        decided.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Has columns decided that a database lacks, in entries of bounded size; one decision for each.
    pub(crate) async fn add_columns(
        self: &Arc<Metadata>,
        database: &Arc<str>,
        missing: Vec<(Arc<str>, Vec<NewColumn>)>,
    ) -> Result<Vec<Decided>> {
        let mut decided = Vec::new();
        for tables in cut(missing) {
            decided.push(self.decide(Command::AddColumns { database: database.clone(), tables }).await?);
        }
        Ok(decided)
    }

    async fn decide_waiting(self: Arc<Metadata>) {
        loop {
            let (commands, answers): (Vec<Command>, Vec<_>) = {
                let mut waiting = self.waiting.lock();
                let mut bytes = 0;
                let fits = waiting.commands.iter().take_while(|(command, _)| {
                    bytes += bytes_of(command);
                    bytes <= ENTRY_NAME_BYTES
                });
                let count = fits.count().max(1).min(waiting.commands.len());
                if count == 0 {
                    waiting.deciding = false;
                    return;
                }
                waiting.commands.drain(..count).unzip()
            };
            match self.propose(commands).await {
                Ok(decided) => {
                    for (answer, decided) in answers.into_iter().zip(decided) {
                        let _ = answer.send(Ok(decided));
                    }
                }
                Err(error) => {
                    for answer in answers {
                        let _ = answer.send(Err(error.again()));
                    }
                }
            }
            self.save_if_long().await;
        }
    }

    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Decided>> {
        let proposal = Proposal::metadata(commands);
        self.log.reserve(proposal.bytes().len() + LOG_SLACK_BYTES)?;
        match self.raft.client_write(proposal).await {
            Ok(response) => match response.data {
                Answer::Metadata(decided) => Ok(decided),
                other => unreachable!("the metadata group answers commands with decisions, not {other:?}"),
            },
            Err(error) => Err(Error::Stopped { what: "the metadata group".to_owned(), why: error.to_string() }),
        }
    }

    /// Has the state saved when enough has been decided since, and lets go of the log before what is saved.
    async fn save_if_long(&self) {
        let next = self.published.next.load(Ordering::Acquire);
        let saved = self.published.saved.load(Ordering::Acquire);
        let asked = self.save_asked.load(Ordering::Relaxed);
        if next < saved.max(asked) + SAVE_AFTER_ENTRIES {
            return;
        }
        self.save_asked.store(next, Ordering::Relaxed);
        // What the last save covered; this one's is let go at the next. A group that has stopped says so elsewhere.
        if saved > 0 {
            let _ = self.raft.trigger().purge_log(saved - 1).await;
        }
        let _ = self.raft.trigger().snapshot().await;
    }

    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the metadata group did not stop cleanly");
        }
        self.log.mark();
    }
}

fn bytes_of(command: &Command) -> usize {
    OVERHEAD_BYTES
        + match command {
            Command::AddColumns { tables, .. } => tables
                .iter()
                .map(|(name, columns)| name.len() + OVERHEAD_BYTES + columns.iter().map(|c| c.name.len() + OVERHEAD_BYTES).sum::<usize>())
                .sum(),
            _ => 0,
        }
}

/// Cuts a long list of columns into lists that fit an entry.
fn cut(tables: Vec<(Arc<str>, Vec<NewColumn>)>) -> Vec<Vec<(Arc<str>, Vec<NewColumn>)>> {
    let mut lists: Vec<Vec<(Arc<str>, Vec<NewColumn>)>> = Vec::new();
    let mut room = 0;
    for (name, columns) in tables {
        let mut fresh = true;
        for column in columns {
            let bytes = column.name.len() + OVERHEAD_BYTES;
            if room < bytes + name.len() + OVERHEAD_BYTES {
                lists.push(Vec::new());
                room = ENTRY_NAME_BYTES - OVERHEAD_BYTES;
                fresh = true;
            }
            let list = lists.last_mut().expect("there is room in it");
            if std::mem::take(&mut fresh) {
                list.push((name.clone(), Vec::new()));
                room -= name.len() + OVERHEAD_BYTES;
            }
            room -= bytes;
            list.last_mut().expect("just pushed").1.push(column);
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_to_fit_and_nothing_is_lost() {
        let column = |i: usize| NewColumn { name: format!("{i:0200}").into(), field: None };
        let tables: Vec<(Arc<str>, Vec<NewColumn>)> = (0..40).map(|t| (format!("t{t}").into(), (0..t * 3).map(column).collect())).collect();
        let lists = cut(tables.clone());
        assert!(lists.len() > 1);
        for list in &lists {
            let command = Command::AddColumns { database: "d".into(), tables: list.clone() };
            assert!(bytes_of(&command) <= ENTRY_NAME_BYTES);
        }
        let flat = |tables: &[(Arc<str>, Vec<NewColumn>)]| -> Vec<(Arc<str>, Arc<str>)> {
            tables.iter().flat_map(|(t, cs)| cs.iter().map(|c| (t.clone(), c.name.clone()))).collect()
        };
        assert_eq!(flat(&lists.concat()), flat(&tables));
    }
}
