//! What agreement costs on a group of one: writes through [`Cluster::write`] against the same log and shard without raft.
//!
//! `cargo bench -p cluster --bench replica [-- SECONDS]`. Two loads, 64 writers each that wait for their answer: parts of one
//! row (a bare device) and parts of 5,000 rows (a gateway). `direct` is one thread that does what a replica does (take
//! all that waits, encode, append, sync, apply, answer) on `storage::wal` and `storage::Shard`, and never flushes. CPU is
//! the whole process's, clients included.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::{Cluster, ClusterOptions};
use crossbeam::channel::{Sender, bounded};
use model::schema::NewColumn;
use model::{ColumnType, Epoch, FieldColumn, LogIndex, PointBatch, ReplicaId, SeriesKey, ShardId, TableSchema, Term, Timestamp, Values};
use storage::disk::{Disk, RealDisk};
use storage::entry::{Entry, MAX_ENTRY_BYTES, Outcome, RetryWindow, WritePart};
use storage::wal::{NewRecord, Syncer, Wal, WalOptions};
use storage::{Shard, ShardOptions};
use tokio::sync::oneshot;

const WRITERS: u64 = 64;
const NOW: Timestamp = Timestamp(1_780_000_000_000_000_000);
const FLUSH_BYTES: usize = 64 << 20;
const LAST_ROWS_BYTES: usize = 16 << 20;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let seconds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(5.0);
    let duration = Duration::from_secs_f64(seconds);
    println!("| load | path | requests/s | rows/s | CPU µs/request | CPU s/million rows | median ms | 99 % ms |");
    println!("|---|---|--:|--:|--:|--:|--:|--:|");
    for rows in [1, 5_000] {
        for direct in [false, true] {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
            // Beside the sources: a temporary folder may be memory, which syncs at once.
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
            runtime.block_on(run(dir.path(), rows, direct, duration));
        }
    }
}

async fn run(dir: &Path, rows: usize, direct: bool, duration: Duration) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let node = Cluster::start(ClusterOptions {
        node: "bench".to_owned(),
        data_dir: dir.join("node"),
        disk: disk.clone(),
        shards: 1,
        clock: Arc::new(|| NOW),
        seed: 1,
        flush_bytes: FLUSH_BYTES,
        last_rows_bytes: LAST_ROWS_BYTES,
        max_waiting_bytes: 64 << 20,
        peers: None,
    })
    .await
    .expect("the node starts");
    let table = make_table(&node).await;
    let way = Arc::new(if direct { Way::Direct(Direct::start(&dir.join("direct"), disk)) } else { Way::Raft(node.clone()) });
    let next = Arc::new(AtomicU64::new(0));
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (way, table, next) = (way.clone(), table.clone(), next.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut time = 0;
                while began.elapsed() < duration {
                    let part = part(&table, next.fetch_add(1, Ordering::Relaxed), writer, &mut time, rows);
                    let sent = Instant::now();
                    if way.write(part).await {
                        latencies.push(sent.elapsed());
                    }
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for writer in writers {
        latencies.extend(writer.await.expect("no panic"));
    }
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    latencies.sort_unstable();
    let requests = latencies.len() as f64;
    let at = |part: f64| latencies[((requests - 1.0) * part) as usize].as_secs_f64() * 1e3;
    println!(
        "| {rows} rows | {} | {:.0} | {:.0} | {:.1} | {:.3} | {:.2} | {:.2} |",
        if direct { "direct" } else { "raft" },
        requests / elapsed,
        requests * rows as f64 / elapsed,
        cpu * 1e6 / requests,
        cpu * 1e6 / (requests * rows as f64),
        at(0.5),
        at(0.99),
    );
    node.shutdown().await;
}

async fn make_table(node: &Cluster) -> Arc<TableSchema> {
    node.create_database("bench", None, None).await.expect("a database");
    let mut columns = vec![NewColumn { name: "device_id".into(), field: None }];
    columns.extend(["celsius", "battery", "signal"].map(|name| NewColumn { name: name.into(), field: Some(ColumnType::F64) }));
    let agreed = node.add_columns("bench", vec![("phone".into(), columns)]).await.expect("a table");
    agreed.catalog.database("bench").expect("just made").tables["phone"].clone()
}

/// Points of up to 100 devices of a writer, each newer than the one before.
fn part(table: &TableSchema, sequence: u64, writer: u64, time: &mut i64, rows: usize) -> WritePart {
    let mut batch = PointBatch::new(table.id, table.version);
    let devices = rows.min(100) as u64;
    for device in 0..devices {
        let device = (sequence + device) % 100;
        batch.push_series(SeriesKey::new([Some(format!("phone-{writer}-{device}").as_str())]).as_bytes());
    }
    batch.row_series = (0..rows).map(|row| (row as u64 % devices) as u32).collect();
    batch.times = (0..rows).map(|row| NOW.0 + *time + row as i64).collect();
    *time += rows as i64;
    for (i, name) in ["celsius", "battery", "signal"].iter().enumerate() {
        let id = table.column(name).expect("it has it").id;
        let values = Values::F64((0..rows).map(|row| (row + i) as f64 * 0.1).collect());
        batch.columns.push(FieldColumn { id, values, valid: None });
    }
    let range_version = Epoch(1);
    WritePart { origin: 1, sequence, arrived: NOW, range_version, retry_window: RetryWindow::Recent, batches: vec![batch] }
}

enum Way {
    Raft(Arc<Cluster>),
    Direct(Direct),
}

impl Way {
    /// Whether it was stored; what is refused does not count.
    async fn write(&self, part: WritePart) -> bool {
        match self {
            Way::Raft(node) => match node.write(ShardId(0), part).await {
                Ok(applied) => matches!(applied.outcome(), Outcome::Stored { .. }),
                Err(_) => {
                    tokio::task::yield_now().await;
                    false
                }
            },
            Way::Direct(direct) => direct.write(part).await,
        }
    }
}

/// The log and the shard without agreement.
struct Direct {
    parts: Sender<(WritePart, oneshot::Sender<Outcome>)>,
}

impl Direct {
    fn start(dir: &Path, disk: Arc<dyn Disk>) -> Direct {
        disk.create_dir_all(dir).expect("a folder");
        let (mut wal, _) = Wal::open(WalOptions {
            disk: disk.clone(),
            syncer: Syncer::start(),
            dir: dir.join("wal"),
            first_segment_bytes: 4 << 20,
            max_segment_bytes: 64 << 20,
        })
        .expect("a log");
        let shard = Shard::open(ShardOptions {
            disk,
            dir: dir.join("data"),
            shard: ShardId(0),
            replica: ReplicaId(1),
            flush_bytes: FLUSH_BYTES,
            last_rows_bytes: LAST_ROWS_BYTES,
        })
        .expect("a shard");
        let (parts, waiting) = bounded::<(WritePart, oneshot::Sender<Outcome>)>(1_000);
        std::thread::spawn(move || {
            let mut index = 0;
            while let Ok(first) = waiting.recv() {
                let mut bytes = first.0.batches[0].encoded_len_bound();
                let mut group = vec![first];
                while bytes < MAX_ENTRY_BYTES / 2
                    && let Ok(more) = waiting.try_recv()
                {
                    bytes += more.0.batches[0].encoded_len_bound();
                    group.push(more);
                }
                let (parts, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
                let entry = Entry::Write(parts);
                let mut encoded = Vec::with_capacity(bytes + 128 * answers.len());
                entry.encode(&mut encoded);
                let record = NewRecord { kind: 1, term: Term(1), index: LogIndex(index), payload: &encoded };
                let appended = wal.append(&[record]).expect("it fits");
                let (done, synced) = bounded(1);
                wal.sync_then(appended, Box::new(move |result| done.send(result.is_ok()).expect("waited for")));
                assert!(synced.recv().expect("called"), "a sync failed");
                let outcomes = shard.apply(Term(1), LogIndex(index), &entry).expect("it applies");
                index += 1;
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    let _ = answer.send(outcome);
                }
            }
        });
        Direct { parts }
    }

    async fn write(&self, part: WritePart) -> bool {
        let (answer, outcome) = oneshot::channel();
        self.parts.send((part, answer)).expect("the thread runs");
        matches!(outcome.await, Ok(Outcome::Stored { .. }))
    }
}

/// CPU that this process has used. Ticks of `/proc` are 10 ms: run for seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    (fields[11].parse::<f64>().expect("user ticks") + fields[12].parse::<f64>().expect("system ticks")) / 100.0
}
