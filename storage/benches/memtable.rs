//! How fast entries are applied and come out of the memtable again in order; divan's items are rows of ten fields.

mod shard;

use divan::Bencher;
use divan::counter::ItemsCount;
use model::ColumnId;
use storage::{ScanRequest, TagFilter};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 50;
const ROWS: usize = ROUNDS * shard::DEVICES;

fn main() {
    divan::main();
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn apply(bencher: Bencher) {
    let entries = shard::entries(0, ROUNDS);
    bencher.counter(ItemsCount::new(ROWS)).with_inputs(shard::Place::new).bench_local_values(|mut place| {
        entries.iter().for_each(|entry| place.apply(entry));
        place
    });
}

/// As `apply`, with a reader that takes a view after every entry.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn apply_under_views(bencher: Bencher) {
    let entries = shard::entries(0, ROUNDS);
    bencher.counter(ItemsCount::new(ROWS)).with_inputs(shard::Place::new).bench_local_values(|mut place| {
        let mut view = None;
        for entry in &entries {
            place.apply(entry);
            view.replace(place.shard.view());
        }
        (place, view)
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn read_everything_sorted(bencher: Bencher) {
    let place = shard::Place::with(&shard::entries(0, ROUNDS));
    let request = shard::everything();
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| assert_eq!(place.read(&request), ROWS));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn read_one_field_sorted(bencher: Bencher) {
    let place = shard::Place::with(&shard::entries(0, ROUNDS));
    let request = shard::one_field();
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| assert_eq!(place.read(&request), ROWS));
}

#[divan::bench]
fn read_one_device(bencher: Bencher) {
    let place = shard::Place::with(&shard::entries(0, ROUNDS));
    let values = vec![Some("device-000000004711".to_owned())];
    let request = ScanRequest { tags: vec![TagFilter { column: ColumnId(0), values }], ..shard::everything() };
    bencher.bench_local(|| assert_eq!(place.read(&request), ROUNDS));
}

#[divan::bench]
fn newest_row_of_one_device(bencher: Bencher) {
    let mut place = shard::Place::with(&shard::entries(0, ROUNDS));
    place.flush();
    shard::entries(ROUNDS, 5).iter().for_each(|entry| place.apply(entry));
    let values = vec![Some("device-000000004711".to_owned())];
    let request = ScanRequest { tags: vec![TagFilter { column: ColumnId(0), values }], ..shard::everything() };
    bencher.bench_local(|| {
        let newest = place.shard.view().latest(&request).expect("a view").expect("sure");
        assert_eq!(newest.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn newest_row_of_every_device(bencher: Bencher) {
    let mut place = shard::Place::with(&shard::entries(0, ROUNDS));
    place.flush();
    shard::entries(ROUNDS, 5).iter().for_each(|entry| place.apply(entry));
    let request = shard::everything();
    bencher.counter(ItemsCount::new(shard::DEVICES)).bench_local(|| {
        let newest = place.shard.view().latest(&request).expect("a view").expect("sure");
        assert_eq!(newest.iter().map(|batch| batch.num_rows()).sum::<usize>(), shard::DEVICES);
    });
}
