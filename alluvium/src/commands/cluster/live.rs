//! The table of a cluster's nodes that is drawn anew each second, on a terminal; nothing elsewhere.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use console::Term;
use http::Method;

use super::members::Member;
use crate::client::{Client, ServerArgs, whole};
use crate::operate::Status;
use crate::print::{Sheet, thousands};

const PERIOD: Duration = Duration::from_secs(1);
/// Where nobody looks, it is enough to see within this time that a node has ended.
const PERIOD_UNSEEN: Duration = Duration::from_millis(100);
/// A node that does not answer within this time is shown without figures.
const ASK_WITHIN: Duration = Duration::from_millis(700);

/// What is known of a node's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It runs.
    Running,
    /// It has ended, and how.
    Ended(String),
}

/// The table.
pub(super) struct Live {
    term: Option<Term>,
    lines: usize,
    /// By node: a figure that only grows, and when it was read.
    counted: BTreeMap<String, (u64, Instant)>,
}

impl Live {
    pub(super) fn new() -> Live {
        let term = Term::stdout();
        Live { term: term.is_term().then_some(term), lines: 0, counted: BTreeMap::new() }
    }

    pub(super) fn period(&self) -> Duration {
        if self.term.is_some() { PERIOD } else { PERIOD_UNSEEN }
    }

    /// Takes the table away, to print something above it.
    pub(super) fn clear(&mut self) {
        if let Some(term) = &self.term {
            // A terminal that cannot be written to shows nothing anyway.
            let _ = term.clear_last_lines(std::mem::take(&mut self.lines));
        }
    }

    /// Draws the table.
    pub(super) async fn show(&mut self, nodes: &[(Member, State)]) -> anyhow::Result<()> {
        let Some(term) = self.term.clone() else { return Ok(()) };
        let running: Vec<&Member> = nodes.iter().filter(|(_, state)| *state == State::Running).map(|(m, _)| m).collect();
        let (figures, status) = tokio::join!(
            futures::future::join_all(nodes.iter().map(|(member, state)| async move {
                let runs = *state == State::Running;
                if runs { tokio::time::timeout(ASK_WITHIN, figures(member)).await.ok().flatten() } else { None }
            })),
            status(&running),
        );
        let furthest = furthest(figures.iter().flatten());
        let rows = nodes.iter().zip(figures).map(|((member, state), f)| self.row(member, state, f, status.as_ref(), &furthest)).collect();
        let mut text = Vec::new();
        Sheet::of_words(&["node", "role", "state", "leads", "holds", "rows/s", "lag"], rows)
            .draw(&mut text, Some(usize::from(term.size().1).max(20)))?;
        self.clear();
        (&term).write_all(&text)?;
        self.lines = text.iter().filter(|byte| **byte == b'\n').count();
        Ok(())
    }

    fn row(
        &mut self,
        member: &Member,
        state: &State,
        figures: Option<Figures>,
        status: Option<&Status>,
        furthest: &Applied,
    ) -> Vec<String> {
        let shown = match (state, &figures) {
            (State::Ended(how), _) => how.clone(),
            (State::Running, None) => "does not answer".to_owned(),
            (State::Running, Some(figures)) if figures.ready => "ready".to_owned(),
            (State::Running, Some(_)) => "not ready".to_owned(),
        };
        let keeps = member.role == "storage";
        let count = |of: fn(&crate::operate::ShardStatus, &str) -> bool| match status {
            Some(status) if keeps => status.shards.iter().filter(|s| of(s, &member.id)).count().to_string(),
            _ => String::new(),
        };
        let leads = count(|s, id| s.leader.as_deref() == Some(id));
        let holds = count(|s, id| s.replicas.iter().any(|r| r == id));
        let rate = figures.as_ref().and_then(|f| self.rate(&member.id, f.counted)).map(thousands).unwrap_or_default();
        let lag = figures.filter(|_| keeps).map(|f| thousands(f.lag(furthest))).unwrap_or_default();
        vec![member.id.clone(), member.role.clone(), shown, leads, holds, rate, lag]
    }

    fn rate(&mut self, id: &str, counted: u64) -> Option<u64> {
        let now = Instant::now();
        let (before, at) = self.counted.insert(id.to_owned(), (counted, now))?;
        let seconds = now.duration_since(at).as_secs_f64();
        (seconds > 0.0).then(|| (counted.saturating_sub(before) as f64 / seconds) as u64)
    }
}

/// What a node's `/ready` and `/metrics` say.
struct Figures {
    ready: bool,
    /// Lines taken, rows kept or rows read, by role.
    counted: u64,
    /// How far its replicas are.
    applied: Applied,
}

/// The last entry applied, by shard.
type Applied = BTreeMap<String, u64>;

impl Figures {
    /// Entries that others have applied and this node has not.
    fn lag(&self, furthest: &Applied) -> u64 {
        self.applied.iter().map(|(shard, index)| furthest.get(shard).unwrap_or(index).saturating_sub(*index)).sum()
    }
}

/// How far the furthest replica of each shard is.
fn furthest<'a>(all: impl Iterator<Item = &'a Figures>) -> Applied {
    let mut furthest = Applied::new();
    for (shard, index) in all.flat_map(|figures| &figures.applied) {
        let of = furthest.entry(shard.clone()).or_default();
        *of = (*of).max(*index);
    }
    furthest
}

async fn figures(member: &Member) -> Option<Figures> {
    let client = client_of(member)?;
    let ready = client.send(Method::GET, "/ready", &[], &[], "").await.is_ok();
    let text = whole(client.send(Method::GET, "/metrics", &[], &[], "").await.ok()?).await.ok()?;
    let text = std::str::from_utf8(&text).ok()?;
    let name = match member.role.as_str() {
        "ingest" => "alluvium_ingest_lines_total",
        "query" => "alluvium_query_rows_scanned_total",
        _ => "alluvium_applied_rows_total",
    };
    Some(Figures { ready, counted: sum(text, name).unwrap_or(0), applied: by_label(text, "alluvium_shard_applied_index").collect() })
}

/// A metric's values with their labels as they are written.
fn by_label<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (String, u64)> + 'a {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.split_once('}') {
            Some((labels, value)) if labels.starts_with('{') => (&labels[1..], value),
            _ => ("", rest),
        };
        Some((labels.to_owned(), value.strip_prefix(' ')?.parse::<f64>().ok()? as u64))
    })
}

/// The sum of a metric over its labels, if it is there.
fn sum(text: &str, name: &str) -> Option<u64> {
    by_label(text, name).map(|(_, value)| value).reduce(|a, b| a + b)
}

/// The cluster as the first node that answers sees it.
async fn status(running: &[&Member]) -> Option<Status> {
    for member in running {
        let client = client_of(member)?;
        let asked = async { whole(client.send(Method::GET, "/cluster/v1/status", &[], &[], "").await.ok()?).await.ok() };
        if let Ok(Some(text)) = tokio::time::timeout(ASK_WITHIN, asked).await {
            return serde_json::from_slice(&text).ok();
        }
    }
    None
}

fn client_of(member: &Member) -> Option<Client> {
    Client::new(&ServerArgs { url: member.http.clone(), db: String::new(), token: None, ca_file: None }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\nab_total 7\nb 1.5\n";
        assert_eq!(sum(text, "a_total"), Some(5));
        assert_eq!(sum(text, "b"), Some(1));
        assert_eq!(sum(text, "a"), None);
        assert_eq!(by_label(text, "a_total").next(), Some(("x=\"1\"".to_owned(), 2)));
    }
}
