//! How fast a shard's rows are read from files and memtable together; divan's items are rows of ten fields.

mod shard;

use divan::Bencher;
use divan::counter::ItemsCount;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 25;
const ROWS: usize = ROUNDS * shard::DEVICES;

fn main() {
    divan::main();
}

/// Files of `parts`, each the rounds after those of the one before.
fn in_turn(parts: usize) -> shard::Place {
    let mut place = shard::Place::new();
    for part in 0..parts {
        shard::entries(part * ROUNDS, ROUNDS).iter().for_each(|entry| place.apply(entry));
        place.flush();
    }
    place
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn one_file_everything(bencher: Bencher) {
    let place = in_turn(1);
    let request = shard::everything();
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| assert_eq!(place.read(&request), ROWS));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn one_file_one_field(bencher: Bencher) {
    let place = in_turn(1);
    let request = shard::one_field();
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| assert_eq!(place.read(&request), ROWS));
}

/// Every series lies in every file, no row in two: runs of 25 rows are copied whole.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn four_files_in_turn_everything(bencher: Bencher) {
    let place = in_turn(4);
    let request = shard::everything();
    bencher.counter(ItemsCount::new(4 * ROWS)).bench_local(|| assert_eq!(place.read(&request), 4 * ROWS));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn four_files_in_turn_one_field(bencher: Bencher) {
    let place = in_turn(4);
    let request = shard::one_field();
    bencher.counter(ItemsCount::new(4 * ROWS)).bench_local(|| assert_eq!(place.read(&request), 4 * ROWS));
}

/// Every row stands in the file and in the memtable: each is merged field by field.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn file_overwritten_by_memtable(bencher: Bencher) {
    let mut place = in_turn(1);
    shard::entries(0, ROUNDS).iter().for_each(|entry| place.apply(entry));
    let request = shard::everything();
    bencher.counter(ItemsCount::new(2 * ROWS)).bench_local(|| assert_eq!(place.read(&request), ROWS));
}
