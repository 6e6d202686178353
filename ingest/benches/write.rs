//! The whole way of a body below HTTP: parse, route, log, sync, commit, apply, as `Ingest::write` shows it.
//!
//! `cargo bench -p ingest --bench write [-- SECONDS [LINES CONNECTIONS]]` prints requests and rows a second and the whole
//! process's CPU, for the loads of `bench`: one, ten, a hundred and 5,000 lines a request. Its clients cost nothing but
//! their tasks, so what is left of `bench`'s figures is HTTP and the other process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{Cluster, ClusterOptions};
use ingest::request::WriteRequest;
use ingest::{Ingest, IngestOptions};
use model::Timestamp;
use simulator::{Fleet, FleetOptions, KindName};
use storage::disk::RealDisk;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DEVICES: u32 = 10_000;
const NOW: i64 = 1_772_323_200_000_000_000;

fn main() {
    let numbers: Vec<f64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let duration = Duration::from_secs_f64(numbers.first().copied().unwrap_or(5.0));
    let loads = match numbers[..] {
        [_, lines, connections] => vec![(lines as usize, connections as usize)],
        _ => vec![(1, 64), (10, 64), (100, 1), (5_000, 2)],
    };
    println!("| lines | connections | requests/s | rows/s | CPU µs/request | CPU s/million rows | median ms | 99 % ms |");
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
    for (lines, connections) in loads {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        // Beside the sources: a temporary folder may be memory, which syncs at once.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        runtime.block_on(run(dir.path(), lines, connections, duration));
    }
}

async fn run(dir: &std::path::Path, lines: usize, connections: usize, duration: Duration) {
    let clock: cluster::Clock = Arc::new(|| Timestamp(NOW));
    let cluster = Cluster::start(ClusterOptions {
        node: "bench".to_owned(),
        data_dir: dir.join("node"),
        disk: Arc::new(RealDisk),
        shards: 2,
        clock: clock.clone(),
        seed: 1,
        flush_bytes: 64 << 20,
        last_rows_bytes: 64 << 20,
        max_waiting_bytes: 64 << 20,
        peers: None,
    })
    .await
    .expect("the node starts");
    let options = IngestOptions {
        auto_create_databases: true,
        max_body_bytes: 32 << 20,
        max_line_bytes: 1 << 20,
        max_in_flight_bytes: 256 << 20,
        clock,
        origin: 1,
    };
    let ingest = Ingest::new(cluster.clone(), options);
    let request = Arc::new(WriteRequest::read("/api/v2/write", "bucket=bench").expect("a path for writes").expect("a good request"));
    // As many lines as a million rows have, sent again and again: what is stored does not change what storing costs.
    let bodies: Arc<Vec<Bytes>> = Arc::new(bodies(lines, (1_000_000 / lines).min(200_000)));
    let mut admitted = ingest.admission().admit(0).expect("nothing is in flight");
    ingest.write(&request, bodies[0].clone(), None, &mut admitted).await.expect("the tables are agreed");
    drop(admitted);
    let next = Arc::new(AtomicUsize::new(0));
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let writers: Vec<_> = (0..connections)
        .map(|_| {
            let (ingest, request, bodies, next) = (ingest.clone(), request.clone(), bodies.clone(), next.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < duration {
                    let body = bodies[next.fetch_add(1, Relaxed) % bodies.len()].clone();
                    let sent = Instant::now();
                    let mut admitted = ingest.admission().admit(0).expect("there is room");
                    assert!(ingest.write(&request, body, None, &mut admitted).await.expect("an answer").stored);
                    latencies.push(sent.elapsed());
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
        "| {lines} | {connections} | {:.0} | {:.0} | {:.1} | {:.3} | {:.2} | {:.2} |",
        requests / elapsed,
        requests * lines as f64 / elapsed,
        cpu * 1e6 / requests,
        cpu * 1e6 / (requests * lines as f64),
        at(0.5),
        at(0.99),
    );
    cluster.shutdown().await;
}

/// Phones and watches.
fn bodies(lines: usize, count: usize) -> Vec<Bytes> {
    let mut fleet = Fleet::new(FleetOptions {
        devices: DEVICES,
        kinds: vec![KindName::Phone, KindName::Watch],
        points: None,
        interval_ns: 10_000_000_000,
        start_ns: NOW,
        seed: 7,
        late_pct: 0.0,
        duplicate_pct: 0.0,
        offline_pct: 0.0,
    });
    let body = |_| {
        let mut body = Vec::new();
        (0..lines).for_each(|_| assert!(fleet.next_line(&mut body).is_some(), "the fleet goes on for ever"));
        body.into()
    };
    (0..count).map(body).collect()
}

/// CPU time of this process, in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
