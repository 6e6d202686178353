//! One shard of this node, read.
//!
//! The view of a shard is taken when the plan runs and is shared by all scans of the query ([`Scope`]). Storage's
//! iterator blocks on the disk, so it is pulled on blocking threads, a few batches at a time, at most one pull ahead of
//! the reader: a thread is never held while the reader is slow, and dropping the stream ends the work after the batch
//! in hand. A sweep does not read ahead: what its reader has may be all it wants.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_plan::metrics::Gauge;
use futures::stream;
use model::{Epoch, ShardId};
use storage::scan::{Rows, Sweep};
use storage::{ScanRequest, View};
use tokio::task::JoinHandle;

use super::Counted;
use crate::engine::Shortcuts;
use crate::latest;
use crate::scope::Scope;
use crate::sweep::Wanted;
use crate::table::Which;

/// Batches that one visit to a blocking thread reads; the first visit reads one, so that a short answer is quick.
const BATCHES_PER_PULL: usize = 4;

/// One shard about to be read.
pub(super) struct Read {
    pub(super) scope: Arc<Scope>,
    pub(super) shard: ShardId,
    /// Of its range, as the scan was planned.
    pub(super) version: Option<Epoch>,
    pub(super) which: Which,
    pub(super) request: ScanRequest,
    /// From which end of time, where the time stands among the columns, which times are still wanted.
    pub(super) sweep: Option<(Sweep, usize, Wanted)>,
    pub(super) counted: Counted,
    pub(super) lag: Gauge,
    /// What storage holds for it, and what is read ahead.
    pub(super) memory: MemoryReservation,
}

impl Read {
    /// Takes the view and gives the stream of its rows.
    pub(super) async fn begin(self) -> Result<impl stream::Stream<Item = Result<RecordBatch>>> {
        let view = self.scope.view(self.shard, self.version).await.map_err(|e| self.scope.fail(e))?;
        self.lag.set(self.scope.lag_ms().unwrap_or(0) as usize);
        let stopped = Arc::new(AtomicBool::new(false));
        let held = view.as_ref().map_or(0, |view| self.bytes(view));
        self.memory.try_grow(held).map_err(|e| self.scope.fail(e.into()))?;
        let pull = view.map(|view| {
            let (which, shortcuts, request, stopped) = (self.which, self.scope.shortcuts, self.request.clone(), stopped.clone());
            let sweep = self.sweep.clone();
            tokio::task::spawn_blocking(move || {
                let opened = match sweep {
                    None => open(&view, which, shortcuts, &request),
                    Some((sweep, time, wanted)) => spans(view, request, sweep, time, wanted),
                };
                match opened {
                    Ok(rows) => pull(rows, 1, &stopped),
                    Err(e) => Pulled { batches: VecDeque::new(), rest: Rest::Failed(e) },
                }
            })
        });
        let reading = Reading { read: self, held, ready: VecDeque::new(), pull, paused: None, stopped };
        Ok(stream::try_unfold(reading, |mut reading| async move {
            let batch = reading.next().await?;
            Ok(batch.map(|batch| (batch, reading)))
        }))
    }

    /// What storage is going to hold; of a sweep for the span that takes most.
    fn bytes(&self, view: &View) -> usize {
        match (self.which, &self.sweep) {
            (Which::Latest, _) => view.latest_bytes(&self.request),
            (Which::Every, None) => view.scan_bytes(&self.request),
            (Which::Every, Some((sweep, ..))) => {
                let spans = view.spans(&self.request, *sweep).unwrap_or_default();
                let of = |times: RangeInclusive<i64>| view.scan_bytes(&ScanRequest { times, ..self.request.clone() });
                spans.into_iter().map(of).max().unwrap_or(0)
            }
        }
    }
}

fn open(view: &View, which: Which, shortcuts: Shortcuts, request: &ScanRequest) -> storage::Result<Rows> {
    match which {
        Which::Every => view.scan(request),
        Which::Latest => latest::rows(view, shortcuts, request),
    }
}

/// The rows of one span after the other, without the spans that nobody wants by the time they are reached.
fn spans(view: Arc<View>, request: ScanRequest, sweep: Sweep, time: usize, wanted: Wanted) -> storage::Result<Rows> {
    let spans = view.spans(&request, sweep)?;
    let scan = move |span: RangeInclusive<i64>| {
        // A filter that cannot be looked at bounds nothing.
        let wanted = wanted.times(time).unwrap_or(i64::MIN..=i64::MAX);
        let times = *span.start().max(wanted.start())..=*span.end().min(wanted.end());
        match times.is_empty() {
            true => Ok(Box::new(std::iter::empty()) as Rows),
            false => view.scan(&ScanRequest { times, ..request.clone() }),
        }
    };
    Ok(Box::new(spans.into_iter().flat_map(move |span| scan(span).unwrap_or_else(|e| Box::new(std::iter::once(Err(e)))))))
}

/// What one visit to a blocking thread brought.
struct Pulled {
    batches: VecDeque<RecordBatch>,
    rest: Rest,
}

enum Rest {
    More(Rows),
    End,
    Failed(storage::Error),
}

/// Reads up to `n` batches; returns early once nobody wants them.
fn pull(mut rows: Rows, n: usize, stopped: &AtomicBool) -> Pulled {
    let mut batches = VecDeque::with_capacity(n);
    while batches.len() < n && !stopped.load(Ordering::Relaxed) {
        match rows.next() {
            Some(Ok(batch)) => batches.push_back(batch),
            Some(Err(e)) => return Pulled { batches, rest: Rest::Failed(e) },
            None => return Pulled { batches, rest: Rest::End },
        }
    }
    Pulled { batches, rest: Rest::More(rows) }
}

/// One shard being read. Dropping it tells the blocking thread to stop after its batch.
struct Reading {
    read: Read,
    /// Bytes that storage holds.
    held: usize,
    ready: VecDeque<RecordBatch>,
    pull: Option<JoinHandle<Pulled>>,
    /// What is left of a sweep, while the steps above look at what they got: it may be all they want.
    paused: Option<Rows>,
    stopped: Arc<AtomicBool>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.read.counted.left > 0 {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(self.read.counted.give(batch)));
            }
            if let Some(rows) = self.paused.take() {
                self.pull(rows, 1);
            }
            let Some(pulling) = self.pull.take() else { break };
            let pulled = pulling.await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))?;
            self.ready = pulled.batches;
            let ready: usize = self.ready.iter().map(RecordBatch::get_array_memory_size).sum();
            self.read.memory.try_resize(self.held + ready).map_err(|e| self.read.scope.fail(e.into()))?;
            match pulled.rest {
                Rest::End => {}
                Rest::Failed(e) => return Err(self.read.scope.fail(e.into())),
                Rest::More(rows) if self.read.sweep.is_some() => self.paused = Some(rows),
                Rest::More(rows) => self.pull(rows, BATCHES_PER_PULL),
            }
        }
        self.read.memory.free();
        self.read.counted.baseline.done();
        Ok(None)
    }

    fn pull(&mut self, rows: Rows, n: usize) {
        let stopped = self.stopped.clone();
        self.pull = Some(tokio::task::spawn_blocking(move || pull(rows, n, &stopped)));
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
