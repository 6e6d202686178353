//! How fast sorted rows of a fleet become a verified, synced Parquet file, and how many bytes they take.
//!
//! 10,000 devices, ten fields each: six floats that walk with two or four decimals, three integers, a boolean. Bytes a row
//! are printed first; divan's items are rows.

mod fleet;

use divan::Bencher;
use divan::counter::ItemsCount;
use storage::parquet_file::Effort;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    for effort in [Effort::Cheap, Effort::Rich] {
        let fleet = fleet::Fleet::new(0, fleet::ROWS_PER_DEVICE);
        let place = fleet::Place::new();
        let meta = place.write(&fleet, effort);
        println!("{effort:?}: {:.2} bytes a row, {} rows", meta.bytes as f64 / meta.rows as f64, meta.rows);
    }
    divan::main();
}

#[divan::bench(args = [Effort::Cheap, Effort::Rich], sample_count = 5, sample_size = 1)]
fn write(bencher: Bencher, effort: Effort) {
    let fleet = fleet::Fleet::new(0, fleet::ROWS_PER_DEVICE);
    let place = fleet::Place::new();
    bencher.counter(ItemsCount::new(fleet.rows())).bench_local(|| place.write(&fleet, effort));
}
