//! The journey of one body: parse, agree on schema, route, propose, gather.
//!
//! Everything that can refuse a line comes before the first propose (DESIGN rule 8), so `accept_partial=false` is decided
//! while nothing is stored. The answer is made of [`Applied`](cluster::Applied) values only: what has none is unknown, and
//! unknown beats refused. A body is atomic per shard, as far as its part fits one entry of the log; cluster cuts larger ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::shard_map::ShardRange;
use cluster::{Outcome, RetryWindow, ShardMap, WritePart};
use model::schema::{DEFAULT_DATABASE, DEFAULT_ROUTING_TAG};
use model::{DatabaseId, DatabaseSchema, ErrorKind, ShardId, Timestamp};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::Ingest;
use crate::admission::Admitted;
use crate::error::Error;
use crate::line_protocol::{LineLimits, ParseOptions, Parsed, ParsedBatch, RefusedLine};
use crate::request::WriteRequest;
use crate::route::{Rows, ShardPart, route};

/// What became of a body.
#[derive(Debug)]
pub struct Written {
    /// When the body arrived: the time of points that bring none.
    pub arrived: Timestamp,
    /// Lines that hold a point or were meant to.
    pub lines: u64,
    /// Lines that were refused for what they say.
    pub refused_lines: u64,
    /// The first of them, in order.
    pub refused: Vec<RefusedLine>,
    /// Whether the good lines are stored, durable and visible; otherwise nothing is.
    pub stored: bool,
}

/// Bodies larger than this are parsed beside the connections' threads.
const LARGE_BODY_BYTES: usize = 4 << 20;

/// Times that new columns are asked for: should others keep changing the same tables meanwhile, the request gives up.
const AGREEMENTS: usize = 4;

/// The number of no database: they begin with 1.
const NO_DATABASE: DatabaseId = DatabaseId(0);

/// Times that rows are routed: again by the map that made the one before stale.
const ROUTES: usize = 4;

/// How long rows wait for the new map of a shard that is being split.
const SPLIT_PATIENCE: Duration = Duration::from_secs(10);

impl Ingest {
    /// Stores the points of `body`. Returns when each is durable and visible, or refused, or when that cannot be said.
    ///
    /// `key` is the request's `Idempotency-Key`: within a day, a repeat of the same body with the same key stores nothing again.
    /// `admitted` is the body's share of what may be in flight: it grows with the values that the body becomes.
    pub async fn write(
        self: &Arc<Self>,
        request: &WriteRequest,
        body: Bytes,
        key: Option<&str>,
        admitted: &mut Admitted,
    ) -> Result<Written, Error> {
        let started = Instant::now();
        let arrived = (self.options.clock)();
        let origin = key.map(|key| origin_of(request, key, &body));
        if let Some(refused) = self.refused_before_it_is_there(request, &body, arrived, admitted).await? {
            return Ok(refused);
        }
        let mut database = self.database(&request.database).await?;
        let mut rows = Rows::All;
        for _ in 0..ROUTES {
            let parsed = self.parse_agreed(request, &database, &body, arrived, admitted).await?;
            let rows_parsed = parsed.rows;
            let mut written = nothing_stored(arrived, &parsed);
            if written.refused_lines > 0 && !request.accept_partial {
                return match &rows {
                    Rows::All => Ok(written),
                    // Other shards have stored their parts already, so it cannot be said that nothing is stored.
                    Rows::In(changed) => Err(Error::Moving { shard: changed[0].shard }),
                };
            }
            let Left { moved, dropped } = self.propose(parsed.batches, &rows, origin, arrived).await?;
            if moved.is_empty() && dropped.is_empty() {
                written.stored = rows_parsed > 0;
                self.metrics.observe(started.elapsed());
                return Ok(written);
            }
            if !moved.is_empty() && !self.cluster.wait_for_other_ranges(&moved, SPLIT_PATIENCE).await {
                return Err(Error::Moving { shard: moved[0].shard });
            }
            rows = Rows::In([&moved[..], &dropped].concat());
            if !dropped.is_empty() {
                // This node had not heard of it yet. In another database of the same name devices have other places.
                Box::pin(self.cluster.refresh()).await?;
                let before = std::mem::replace(&mut database, self.database(&request.database).await?);
                if before.id != database.id {
                    rows = Rows::All;
                }
            }
        }
        match rows {
            Rows::In(changed) => Err(Error::Moving { shard: changed[0].shard }),
            Rows::All => Err(Error::SchemaMoving { database: database.name.to_string() }),
        }
    }

    /// What is said of a body of which nothing would be stored in a database that is not there: it does not come to be by that.
    async fn refused_before_it_is_there(
        self: &Arc<Self>,
        request: &WriteRequest,
        body: &Bytes,
        arrived: Timestamp,
        admitted: &mut Admitted,
    ) -> Result<Option<Written>, Error> {
        if !self.may_create(&request.database) || self.cluster.catalog().database(&request.database).is_some() {
            return Ok(None);
        }
        let empty = DatabaseSchema {
            id: NO_DATABASE,
            name: request.database.as_str().into(),
            routing_tag: DEFAULT_ROUTING_TAG.into(),
            retention_ns: None,
            tables: BTreeMap::new(),
        };
        let parsed = self.parse(request, &Arc::new(empty), body, arrived, admitted).await?;
        let decided = parsed.refused_lines > 0 && (parsed.needs.is_empty() || !request.accept_partial);
        Ok(decided.then(|| nothing_stored(arrived, &parsed)))
    }

    /// The database as it is agreed now; created where it is not there and may be.
    async fn database(&self, name: &str) -> Result<Arc<DatabaseSchema>, Error> {
        match self.cluster.catalog().database(name) {
            Some(database) => Ok(database.clone()),
            None if self.may_create(name) => Ok(self.cluster.create_database(name, None, None).await?),
            None => self.known_after_all(name).await,
        }
    }

    /// Whether a write makes a database that is not there. The default one is there for whoever asks, so for whoever writes too.
    fn may_create(&self, name: &str) -> bool {
        self.options.auto_create_databases || name == DEFAULT_DATABASE
    }

    /// A database that this node does not know: another may have made it just now, and a client that is told it is not
    /// there throws its points away.
    async fn known_after_all(&self, name: &str) -> Result<Arc<DatabaseSchema>, Error> {
        // Boxed: it is seldom asked for, and every write would hold its room.
        Box::pin(self.cluster.refresh()).await?;
        self.cluster.catalog().database(name).cloned().ok_or_else(|| cluster::Error::NoDatabase { name: name.to_owned() }.into())
    }

    /// Parses `body` into batches whose columns are all agreed.
    async fn parse_agreed(
        self: &Arc<Self>,
        request: &WriteRequest,
        database: &Arc<DatabaseSchema>,
        body: &Bytes,
        arrived: Timestamp,
        admitted: &mut Admitted,
    ) -> Result<Parsed, Error> {
        let mut parsed = self.parse(request, database, body, arrived, admitted).await?;
        for _ in 0..AGREEMENTS {
            let decided = parsed.refused_lines > 0 && !request.accept_partial;
            if parsed.needs.is_empty() || decided {
                return Ok(parsed);
            }
            // Columns that cannot be added are refused line by line next time: by then the catalog says what they conflict with.
            let agreed = self.cluster.add_columns(&database.name, std::mem::take(&mut parsed.needs)).await?;
            let database = match agreed.catalog.database(&database.name) {
                Some(database) => database.clone(),
                None => self.known_after_all(&database.name).await?,
            };
            parsed = self.parse(request, &database, body, arrived, admitted).await?;
        }
        Err(Error::SchemaMoving { database: database.name.to_string() })
    }

    async fn parse(
        self: &Arc<Self>,
        request: &WriteRequest,
        database: &Arc<DatabaseSchema>,
        body: &Bytes,
        arrived: Timestamp,
        admitted: &mut Admitted,
    ) -> Result<Parsed, Error> {
        if body.len() <= LARGE_BODY_BYTES {
            return self.parse_here(request, database, body, arrived, admitted);
        }
        let (ingest, request, database, body) = (self.clone(), request.clone(), database.clone(), body.clone());
        // Should this request be given up meanwhile, the parser holds the share until it is done.
        let mut share = admitted.take();
        let parsing = tokio::task::spawn_blocking(move || {
            let parsed = ingest.parse_here(&request, &database, &body, arrived, &mut share);
            (parsed, share)
        });
        let (parsed, share) = parsing.await.expect("the parser does not panic");
        *admitted = share;
        parsed
    }

    fn parse_here(
        &self,
        request: &WriteRequest,
        database: &Arc<DatabaseSchema>,
        body: &[u8],
        arrived: Timestamp,
        admitted: &mut Admitted,
    ) -> Result<Parsed, Error> {
        let map = self.cluster.shard_map();
        let options = ParseOptions {
            precision: request.precision,
            arrival: arrived,
            schema: Some(database),
            cutoff: self.cluster.cutoff(database),
            limits: LineLimits { line_bytes: self.options.max_line_bytes, ..LineLimits::default() },
            map: Some(&map),
        };
        let mut parser = self.parsers.take(database.id);
        let parsed = parser.parse_admitted(body, &options, admitted);
        self.parsers.give_back(database.id, parser);
        parsed
    }

    /// Proposes the rows to their shards, all at once. Gives the ranges whose rows are not stored.
    async fn propose(&self, batches: Vec<ParsedBatch>, rows: &Rows, origin: Option<u128>, arrived: Timestamp) -> Result<Left, Error> {
        let map: Arc<ShardMap> = self.cluster.shard_map();
        let sequence_of_key = origin.map(|_| sequence_of(&batches));
        let mut writes = Vec::new();
        for ShardPart { range, batches } in route(batches, &map, rows) {
            let (origin, sequence, retry_window) = match origin.zip(sequence_of_key) {
                Some((origin, sequence)) => (origin, sequence, RetryWindow::Day),
                None => (self.options.origin, self.next_sequence.fetch_add(1, Relaxed), RetryWindow::Recent),
            };
            let part = WritePart { origin, sequence, arrived, range_version: range.version, retry_window, batches };
            writes.push((range, part));
        }
        // A single part, which most requests are, needs no gathering.
        if writes.len() == 1 {
            let (range, part) = writes.remove(0);
            let outcome = self.propose_part(range.shard, part).await;
            return gather([(range, outcome)]);
        }
        let outcomes = futures::future::join_all(writes.into_iter().map(|(range, part)| async move {
            let outcome = self.propose_part(range.shard, part).await;
            (range, outcome)
        }));
        gather(outcomes.await)
    }

    async fn propose_part(&self, shard: ShardId, part: WritePart) -> Result<Kept, Error> {
        match self.cluster.write(shard, part).await?.outcome() {
            Outcome::Stored { .. } => Ok(Kept::Here),
            Outcome::WrongRange { .. } => Ok(Kept::Elsewhere),
            Outcome::Dropped => Ok(Kept::Nowhere),
            Outcome::Done | Outcome::Ignored => unreachable!("a write is stored, or nothing of it is"),
        }
    }
}

/// What is said of a body until something of it is stored.
fn nothing_stored(arrived: Timestamp, parsed: &Parsed) -> Written {
    Written {
        arrived,
        lines: (parsed.rows + parsed.refused_lines) as u64,
        refused_lines: parsed.refused_lines as u64,
        refused: parsed.refused.clone(),
        stored: false,
    }
}

/// What became of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It is stored.
    Here,
    /// Its shard has another range now; nothing is stored.
    Elsewhere,
    /// A table of it was dropped; nothing is stored.
    Nowhere,
}

/// Ranges whose parts must be sent again.
#[derive(Default)]
struct Left {
    /// By a new map.
    moved: Vec<ShardRange>,
    /// By a new catalog.
    dropped: Vec<ShardRange>,
}

/// What must be sent again; an error if there was any, one that may pass before one that stays.
fn gather(outcomes: impl IntoIterator<Item = (ShardRange, Result<Kept, Error>)>) -> Result<Left, Error> {
    let mut left = Left::default();
    let mut worst: Option<Error> = None;
    for (range, outcome) in outcomes {
        let again = match outcome {
            Ok(Kept::Here) => continue,
            Ok(Kept::Elsewhere) => &mut left.moved,
            Ok(Kept::Nowhere) => &mut left.dropped,
            Err(error) => {
                if worst.as_ref().is_none_or(|w| w.kind() != ErrorKind::TryAgain) {
                    worst = Some(error);
                }
                continue;
            }
        };
        if !again.contains(&range) {
            again.push(range);
        }
    }
    worst.map_or(Ok(left), Err)
}

/// Who numbers the parts of a request that has a key: the same key with another body is another request.
fn origin_of(request: &WriteRequest, key: &str, body: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    for text in [&request.database, key] {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(&[request.precision as u8, u8::from(request.accept_partial)]);
    hash.update(body);
    hash.digest128()
}

/// The number of each part of a request that has a key: of all its rows, so that it is the same however shards are split
/// until a retry comes. A retry has the same rows and gets the same number; should it not (a retention has refused some
/// lines since), other rows get another number and are stored, not lost. Times are left out: points that bring none get
/// new ones.
fn sequence_of(batches: &[ParsedBatch]) -> u64 {
    let mut sum = 0_u64;
    // A sum: how the series are spread over batches is the shard map's affair.
    for ParsedBatch { batch, .. } in batches {
        let keys = (0..batch.series()).map(|series| xxh3_64_with_seed(batch.key(series), batch.table.0.into()));
        sum = keys.fold(sum.wrapping_add((batch.rows() as u64) << 32), u64::wrapping_add);
    }
    sum
}
