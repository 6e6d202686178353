//! How fast six flushed files of a fleet become one rich file, read back and verified.

mod fleet;

use divan::Bencher;
use divan::counter::ItemsCount;
use model::Timestamp;
use storage::HashRange;
use storage::compaction::{Eagerness, compact, plan};
use storage::parquet_file::Effort;

/// Files that one compaction merges.
const PARTS: usize = 6;
/// Rows of each device in each of them.
const ROWS_PER_DEVICE: usize = 12;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let (place, metas) = flushed();
    let edit = run(&place, &metas);
    let output = &edit.files()[0];
    println!("{PARTS} files -> 1: {:.2} bytes a row, {} rows", output.bytes as f64 / output.rows as f64, output.rows);
    divan::main();
}

fn flushed() -> (fleet::Place, Vec<storage::manifest::FileMeta>) {
    let place = fleet::Place::new();
    let metas = (0..PARTS).map(|part| place.write(&fleet::Fleet::new(part, ROWS_PER_DEVICE), Effort::Cheap)).collect();
    (place, metas)
}

fn run(place: &fleet::Place, metas: &[storage::manifest::FileMeta]) -> storage::manifest::ManifestEdit {
    let plan = plan(metas, &Default::default(), &HashRange::default(), None, Eagerness::WhenItPays).expect("six neighbours of one size");
    compact(&place.files, &plan, "default".into(), &fleet::table(), Timestamp(i64::MIN), HashRange::default()).expect("a verified file")
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn merge_six(bencher: Bencher) {
    let (place, metas) = flushed();
    bencher.counter(ItemsCount::new(PARTS * ROWS_PER_DEVICE * fleet::DEVICES)).bench_local(|| run(&place, &metas));
}
