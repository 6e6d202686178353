//! Compaction changes where rows stand and never what they say.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use arrow::array::AsArray;
use arrow::datatypes::TimestampNanosecondType;
use model::Timestamp;
use parquet::file::metadata::ParquetMetaDataReader;
use proptest::prelude::*;
use storage::HashRange;
use storage::Result;
use storage::compaction::{Eagerness, Step, compact, plan};
use storage::disk::FaultyDisk;
use storage::manifest::{FileMeta, Manifest, ManifestEdit};
use storage::parquet_file::ParquetFiles;

use crate::support::*;

const EAGER: Eagerness = Eagerness::UntilEachRowStandsOnce;

fn live(flushed: Vec<FileMeta>) -> Manifest {
    Manifest { files: flushed.into_iter().map(|f| (f.path.clone(), f)).collect(), ..Manifest::default() }
}

/// Runs the next plan and applies its edit; `None`: nothing to do.
fn step(files: &std::sync::Arc<ParquetFiles>, manifest: &mut Manifest, eagerness: Eagerness, cutoff: i64) -> Option<Result<Step>> {
    let plan = plan(manifest.files.values(), &manifest.cutoffs, &HashRange::default(), None, eagerness)?;
    let edit: Result<ManifestEdit> = compact(files, &plan, "default".into(), &table(), Timestamp(cutoff), HashRange::default());
    Some(edit.map(|edit| {
        let left = manifest.apply_edit(&edit).expect("its inputs are live");
        files.remove(left.iter().map(|f| f.path.as_str()));
        plan.step
    }))
}

fn compact_all(files: &std::sync::Arc<ParquetFiles>, manifest: &mut Manifest) -> usize {
    let mut steps = 0;
    while let Some(done) = step(files, manifest, EAGER, i64::MIN) {
        done.unwrap();
        steps += 1;
    }
    steps
}

/// Overlapping writes of four days.
fn any_writes() -> impl Strategy<Value = Vec<Model>> {
    let write = (any::<u64>(), 1..80usize, 0..4i64, 1..4i64).prop_map(|(seed, rows, first, days)| {
        random_rows(seed, rows, today().start() - first * DAY..=today().start() + days * DAY - DAY / 3)
    });
    prop::collection::vec(write, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn after_a_full_compaction_each_row_stands_once_and_says_what_was_written_last(writes in any_writes(), steps_between in 0..3usize) {
        let disk = FaultyDisk::new(1);
        let files = files_on(&disk);
        let mut manifest = Manifest::default();
        let mut expected = Model::new();
        for (i, rows) in writes.iter().enumerate() {
            write_over(&mut expected, rows);
            let span = i as u64 * 10..=i as u64 * 10 + 9;
            manifest.files.extend(flush_rows(&files, rows, span).unwrap().into_iter().map(|f| (f.path.clone(), f)));
            for _ in 0..steps_between {
                step(&files, &mut manifest, if i % 2 == 0 { EAGER } else { Eagerness::WhenItPays }, i64::MIN);
            }
            prop_assert_eq!(&read_all(&files, manifest.files.values()).unwrap(), &expected);
        }
        compact_all(&files, &mut manifest);
        let mut days = BTreeMap::new();
        for file in manifest.files.values() {
            *days.entry(file.day).or_insert(0) += 1;
        }
        prop_assert!(days.iter().all(|(day, &n)| day.is_some() && n == 1), "{:?}", days);
        let rows: u64 = manifest.files.values().map(|f| f.rows).sum();
        prop_assert_eq!(rows, expected.len() as u64);
        prop_assert_eq!(read_all(&files, manifest.files.values()).unwrap(), expected);
        // Only live files are left on the disk.
        prop_assert_eq!(files.list().unwrap().len(), manifest.files.len());
    }
}

#[test]
fn a_compaction_that_fails_at_any_io_leaves_its_inputs_and_nothing_else() {
    let writes: Vec<Model> = (0..3).map(|i| random_rows(i, 60, today().start() - DAY..=*today().end())).collect();
    let mut expected = Model::new();
    writes.iter().for_each(|rows| write_over(&mut expected, rows));
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let mut failed = 0;
        for n in 1.. {
            let disk = FaultyDisk::new(n);
            let files = files_on(&disk);
            let mut flushed = Vec::new();
            for (i, rows) in writes.iter().enumerate() {
                flushed.extend(flush_rows(&files, rows, i as u64 * 10..=i as u64 * 10 + 9).unwrap());
            }
            let mut manifest = live(flushed);
            let before = names(&disk);
            // A fresh handle, so that opening the inputs is tried too.
            let files = files_on(&disk);
            let plan = plan(manifest.files.values(), &manifest.cutoffs, &HashRange::default(), None, EAGER).unwrap();
            disk.fail_once(n, kind);
            let edit = compact(&files, &plan, "default".into(), &table(), Timestamp(i64::MIN), HashRange::default());
            disk.heal();
            match edit {
                Ok(edit) => {
                    assert!(manifest.apply_edit(&edit).is_some());
                    assert_eq!(read_all(&files, manifest.files.values()).unwrap(), expected);
                    break;
                }
                Err(_) => {
                    failed += 1;
                    assert_eq!(names(&disk), before, "I/O {n}");
                    assert_eq!(read_all(&files, manifest.files.values()).unwrap(), expected, "I/O {n}");
                    compact_all(&files, &mut manifest);
                    assert_eq!(read_all(&files, manifest.files.values()).unwrap(), expected, "I/O {n}");
                }
            }
        }
        assert!(failed > 10, "{failed} I/Os");
    }
}

#[test]
fn a_damaged_input_stops_the_compaction_and_is_not_spread() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let mut flushed = flush_rows(&files, &random_rows(1, 60, today()), 0..=9).unwrap();
    flushed.extend(flush_rows(&files, &random_rows(2, 60, today()), 10..=19).unwrap());
    let manifest = live(flushed.clone());
    disk.flip_bit(&std::path::Path::new(DIR).join(&flushed[1].path), flushed[1].bytes / 2, 4);
    let plan = plan(manifest.files.values(), &manifest.cutoffs, &HashRange::default(), None, EAGER).unwrap();
    let error = compact(&files, &plan, "default".into(), &table(), Timestamp(i64::MIN), HashRange::default()).unwrap_err();
    assert!(matches!(&error, storage::Error::Corrupt { .. }) && error.to_string().contains(&flushed[1].path), "{error}");
    assert_eq!(files.list().unwrap().len(), 2);
}

#[test]
fn rows_older_than_the_cutoff_leave_with_the_compaction_of_their_file() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let rows = random_rows(1, 200, today());
    let mut manifest = live(flush_rows(&files, &rows, 0..=9).unwrap());
    let cutoff = today().start() + DAY / 2;
    step(&files, &mut manifest, EAGER, cutoff).unwrap().unwrap();
    let mut expected = rows;
    expected.retain(|(_, time), _| *time >= cutoff);
    assert_eq!(read_all(&files, manifest.files.values()).unwrap(), expected);
    // And where none is young enough, nothing takes the files' place.
    manifest.cutoffs.insert(1, today().end() + 1);
    assert_eq!(step(&files, &mut manifest, Eagerness::WhenItPays, today().end() + 1).unwrap().unwrap(), Step::Expire);
    assert!(manifest.files.is_empty());
}

#[test]
fn large_rows_are_flushed_and_compacted_a_few_at_a_time() {
    const ROWS: i64 = 1_000;
    const TEXT_BYTES: usize = 128 << 10;
    const MIB: i64 = 1 << 20;
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let mut manifest = Manifest::default();
    for write in 0..4 {
        // Rows of different writes take turns.
        let row = |i: i64| {
            let fields = Fields { note: Some(random_text((write * ROWS + i) as u64, TEXT_BYTES)), ..Fields::default() };
            (((Some("camera".to_owned()), None), today().start() + i * 4 + write), fields)
        };
        let rows: Model = (0..ROWS / 4).map(row).collect();
        let span = write as u64 * 10..=write as u64 * 10 + 9;
        manifest.files.extend(flush_rows(&files, &rows, span).unwrap().into_iter().map(|f| (f.path.clone(), f)));
    }
    compact_all(&files, &mut manifest);
    let merged = manifest.files.values().next().unwrap();
    assert_eq!((manifest.files.len(), merged.rows), (1, ROWS as u64));

    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::from(bytes(&disk, merged))).unwrap();
    let sizes: Vec<i64> = metadata.row_groups().iter().map(|group| group.compressed_size()).collect();
    assert!(sizes.len() > 1 && sizes.iter().all(|&size| size <= 70 * MIB), "row groups of {sizes:?} bytes");
    let mut times = Vec::new();
    for batch in files.open(merged).unwrap().scan(&everything()).unwrap() {
        let batch = batch.unwrap();
        assert!((1..=(4 << 20) / TEXT_BYTES).contains(&batch.num_rows()), "a batch of {} rows", batch.num_rows());
        times.extend_from_slice(batch.column(0).as_primitive::<TimestampNanosecondType>().values());
    }
    assert_eq!(times, (0..ROWS).map(|i| today().start() + i).collect::<Vec<_>>());
}

#[test]
fn a_late_file_of_very_many_days_is_cut_with_few_files_open() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let rows = random_rows(1, 300, today().start() - 100 * DAY..=*today().end());
    let flushed = flush_rows(&files, &rows, 0..=9).unwrap();
    assert_eq!(flushed.len(), 2);
    let mut manifest = live(flushed);
    let days = rows.keys().map(|(_, time)| Timestamp(*time).day()).collect::<std::collections::BTreeSet<_>>().len();
    compact_all(&files, &mut manifest);
    assert_eq!(manifest.files.len(), days);
    assert_eq!(read_all(&files, manifest.files.values()).unwrap(), rows);
}
