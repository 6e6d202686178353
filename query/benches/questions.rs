//! How long questions take from their text to their last row, on one node: `cargo bench -p query`.
//!
//! 1,000 phones, 200 rows each, most of them in files, the newest in memory. A point question is asked of another
//! device each time, and of the same one, whose plan is kept.

#[path = "../tests/asking/node.rs"]
#[allow(dead_code)] // The bench asks; it writes one kind of row.
mod node;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use divan::Bencher;
use node::Node;
use tokio::runtime::Runtime;

const DEVICES: usize = 1_000;
const ROWS: usize = 200;

fn main() {
    divan::main();
}

fn filled() -> &'static (Runtime, Node) {
    static FILLED: OnceLock<(Runtime, Node)> = OnceLock::new();
    FILLED.get_or_init(|| {
        let runtime = Runtime::new().expect("a runtime");
        let node = runtime.block_on(async {
            let node = Node::start().await;
            for round in 0..ROWS {
                let at = round as i64 * 60_000_000_000;
                let line = |d: usize| format!("phone,device_id=p{d},os=a celsius={}.5,steps={}i {at}", d % 40, round % 9);
                node.write(&(0..DEVICES).map(line).collect::<Vec<_>>().join("\n")).await;
                if round + 10 == ROWS {
                    node.ask("COMPACT").await;
                }
            }
            node
        });
        (runtime, node)
    })
}

fn ask(bencher: Bencher, sql: impl Fn() -> String + Sync) {
    let (runtime, node) = filled();
    bencher.bench_local(|| runtime.block_on(node.ask(&sql())));
}

/// Another device each time.
fn device() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(7, Ordering::Relaxed) % DEVICES as u64
}

#[divan::bench]
fn latest_of_one_device(bencher: Bencher) {
    ask(bencher, || format!("SELECT * FROM latest(phone) WHERE device_id = 'p{}'", device()));
}

#[divan::bench]
fn latest_of_the_same_device(bencher: Bencher) {
    ask(bencher, || "SELECT * FROM latest(phone) WHERE device_id = 'p7'".to_owned());
}

#[divan::bench]
fn newest_rows_of_one_device(bencher: Bencher) {
    ask(bencher, || format!("SELECT time, celsius FROM phone WHERE device_id = 'p{}' ORDER BY time DESC LIMIT 10", device()));
}

#[divan::bench]
fn newest_rows_of_all(bencher: Bencher) {
    ask(bencher, || "SELECT time, device_id, celsius FROM phone ORDER BY time DESC LIMIT 10".to_owned());
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn buckets_of_all_devices(bencher: Bencher) {
    ask(bencher, || "SELECT device_id, time_bucket('1h', time) AS t, avg(celsius) FROM phone GROUP BY device_id, t".to_owned());
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn count_of_all(bencher: Bencher) {
    ask(bencher, || "SELECT count(*), avg(celsius) FROM phone".to_owned());
}
