//! Rows on their way to the one who asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use model::ShardId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::Result;
use crate::engine::Abandon;
use crate::error::Error;
use crate::scope::{Lag, Scope};
use crate::stop::Stop;

/// Batches that wait for a slow reader.
pub(crate) const WAITING_BATCHES: usize = 4;

/// How long an ended query may take to say so; then its answer says it in its place.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the running query sends. Without `End` the answer is not whole, whatever the reason.
pub(crate) enum Part {
    Rows(RecordBatch),
    End,
    Failed(Error),
}

/// A task that ends when its owner does not want it any more.
pub(crate) struct Task<T>(pub JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answer of one query. Dropping it stops the query.
pub struct Answer {
    pub(crate) id: u64,
    pub(crate) schema: SchemaRef,
    pub(crate) parts: mpsc::Receiver<Part>,
    pub(crate) scope: Arc<Scope>,
    pub(crate) killed: watch::Receiver<bool>,
    pub(crate) started: Instant,
    pub(crate) over: bool,
    pub(crate) _abandoned: Abandon,
    pub(crate) _driver: Task<()>,
}

/// Figures of a query: final once its rows have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows answered.
    pub rows: u64,
    /// Rows read from shards.
    pub rows_scanned: u64,
    /// Shards read.
    pub shards: u64,
    /// Shards left out, as the query allowed.
    pub missing: Vec<ShardId>,
    /// How old the oldest thing is that was read, where `consistency=stale` was asked for.
    pub lag: Option<Lag>,
    /// Since it was admitted.
    pub elapsed: Duration,
}

impl Answer {
    /// The query's number, as in `system.queries`.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows; `None` once the answer is whole. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<RecordBatch>> {
        if self.over {
            return None;
        }
        let part = tokio::select! {
            biased;
            part = self.parts.recv() => part,
            e = overdue(&self.scope.stop, &mut self.killed) => Some(Part::Failed(e)),
        };
        match part {
            Some(Part::Rows(batch)) => return Some(Ok(batch)),
            Some(Part::End) => {
                self.over = true;
                return None;
            }
            Some(Part::Failed(e)) => {
                self.over = true;
                return Some(Err(e));
            }
            None => {}
        }
        self.over = true;
        let stop = &self.scope.stop;
        Some(Err(match *self.killed.borrow() {
            true => stop.killed(),
            false if stop.left().is_zero() => stop.overdue(),
            false => Error::Engine { message: "the query ended without finishing its answer".to_owned() },
        }))
    }

    /// All rows.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }

    /// Figures so far.
    pub fn summary(&self) -> Summary {
        let figures = &self.scope.figures;
        Summary {
            rows: figures.rows_answered.load(Ordering::Relaxed),
            rows_scanned: figures.rows_scanned.load(Ordering::Relaxed),
            shards: figures.shards.load(Ordering::Relaxed),
            missing: self.scope.missing(),
            lag: self.scope.lag(),
            elapsed: self.started.elapsed(),
        }
    }
}

/// Returns when the query should have ended by itself and has not.
pub(crate) async fn overdue(stop: &Stop, killed: &mut watch::Receiver<bool>) -> Error {
    let was_killed = async {
        if killed.wait_for(|killed| *killed).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let e = tokio::select! {
        () = was_killed => stop.killed(),
        () = tokio::time::sleep_until(stop.deadline().into()) => stop.overdue(),
    };
    tokio::time::sleep(LAST_WORDS).await;
    e
}
