//! Queries under way and the last that ended: their bound, `KILL QUERY`, `system.queries`.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::Result;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::scope::Figures;
use crate::stop::Stop;

/// Ended queries that are remembered.
const REMEMBERED: usize = 100;
/// Bytes of a query's text that are remembered.
const SHOWN_SQL_BYTES: usize = 4_096;

/// All queries of this node that are under way, and the last that ended.
pub(crate) struct Running {
    limit: usize,
    limit_per_token: usize,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    running: BTreeMap<u64, Entry>,
    ended: VecDeque<Seen>,
}

/// A query that wants to be let in.
pub(crate) struct Asked<'a> {
    pub database: &'a str,
    pub sql: &'a str,
    /// The asker's token's name; empty where there is none.
    pub token: &'a str,
    pub started: Timestamp,
    pub timeout: Duration,
}

struct Entry {
    token: String,
    database: String,
    sql: String,
    started: Timestamp,
    clock: Instant,
    figures: Arc<Figures>,
    stop: Arc<Stop>,
    kill: watch::Sender<bool>,
}

/// One line of `system.queries`.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub id: u64,
    pub database: String,
    pub sql: String,
    pub state: Cow<'static, str>,
    pub started: Timestamp,
    pub elapsed: Duration,
    pub rows: u64,
    pub rows_scanned: u64,
    pub shards: u64,
    pub error: Option<String>,
    /// The name of the token that asked; nobody's in what an older program tells.
    #[serde(default)]
    pub token: Option<String>,
}

impl Entry {
    fn seen(&self, id: u64, state: &'static str, error: Option<String>) -> Seen {
        Seen {
            id,
            database: self.database.clone(),
            sql: self.sql.clone(),
            state: state.into(),
            started: self.started,
            elapsed: self.clock.elapsed(),
            rows: self.figures.rows_answered.load(Ordering::Relaxed),
            rows_scanned: self.figures.rows_scanned.load(Ordering::Relaxed),
            shards: self.figures.shards.load(Ordering::Relaxed),
            error,
            token: Some(self.token.clone()),
        }
    }
}

impl Seen {
    /// The query as another token may see it: a statement can name what that may not.
    pub(crate) fn without_words(self) -> Seen {
        Seen { sql: String::new(), error: None, ..self }
    }
}

impl Running {
    pub(crate) fn new(after: u64, limit: usize, limit_per_token: usize, metrics: Metrics) -> Arc<Running> {
        let state = State { last_id: after, ..State::default() };
        Arc::new(Running { limit, limit_per_token, metrics, state: Mutex::new(state) })
    }

    /// Lets a query in, or says that there are too many; those without a token are bounded together only.
    pub(crate) fn admit(self: &Arc<Running>, asked: Asked<'_>) -> Result<Ticket> {
        let token = asked.token;
        let mut state = self.state.lock();
        if state.running.len() >= self.limit {
            return Err(Error::TooMany { limit: self.limit });
        }
        if !token.is_empty() && state.running.values().filter(|entry| entry.token == token).count() >= self.limit_per_token {
            return Err(Error::TooManyOfToken { token: token.to_owned(), limit: self.limit_per_token });
        }
        state.last_id += 1;
        let id = state.last_id;
        let figures = Arc::new(Figures::default());
        let (kill, killed) = watch::channel(false);
        let stop = Stop::after(id, asked.timeout);
        let entry = Entry {
            token: token.to_owned(),
            database: asked.database.to_owned(),
            sql: cut(asked.sql),
            started: asked.started,
            clock: Instant::now(),
            figures: figures.clone(),
            stop: stop.clone(),
            kill,
        };
        state.running.insert(id, entry);
        self.metrics.running.inc();
        Ok(Ticket { id, figures, stop, killed, running: self.clone(), outcome: None })
    }

    /// Tells a running query to end.
    pub(crate) fn kill(&self, id: u64) -> Result<()> {
        match self.state.lock().running.get(&id) {
            Some(entry) => {
                entry.stop.kill();
                entry.kill.send_replace(true);
                Ok(())
            }
            None => Err(Error::NoQuery { id }),
        }
    }

    /// The last that ended, then those under way.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let state = self.state.lock();
        let running = state.running.iter().map(|(id, entry)| entry.seen(*id, "running", None));
        state.ended.iter().cloned().chain(running).collect()
    }
}

fn cut(sql: &str) -> String {
    let mut end = sql.len().min(SHOWN_SQL_BYTES);
    while !sql.is_char_boundary(end) {
        end -= 1;
    }
    sql[..end].to_owned()
}

/// A query's place among the running ones; given back when dropped.
pub(crate) struct Ticket {
    pub id: u64,
    pub figures: Arc<Figures>,
    pub stop: Arc<Stop>,
    pub killed: watch::Receiver<bool>,
    running: Arc<Running>,
    outcome: Option<Result<(), String>>,
}

impl Ticket {
    /// Notes how it ended; a ticket dropped without is one whose asker went away.
    pub(crate) fn ended(mut self, outcome: Result<(), &Error>) {
        self.outcome = Some(outcome.map_err(ToString::to_string));
    }

    /// Waits until somebody kills the query.
    pub(crate) async fn wait_killed(&mut self) {
        if self.killed.wait_for(|killed| *killed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.running.state.lock();
        let Some(entry) = state.running.remove(&self.id) else { return };
        entry.stop.abandon();
        let (end, error) = match self.outcome.take() {
            Some(Ok(())) => ("done", None),
            Some(Err(e)) => ("failed", Some(e)),
            None => ("abandoned", None),
        };
        let seen = entry.seen(self.id, end, error);
        let metrics = &self.running.metrics;
        metrics.running.dec();
        metrics.duration.observe(seen.elapsed.as_secs_f64());
        metrics.rows_scanned.inc_by(seen.rows_scanned);
        metrics.rows_answered.inc_by(seen.rows);
        if seen.error.is_some() {
            metrics.failed.inc();
        }
        if state.ended.len() == REMEMBERED {
            state.ended.pop_front();
        }
        state.ended.push_back(seen);
    }
}
