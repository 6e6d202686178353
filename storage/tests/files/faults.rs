//! Every I/O of a flush fails once: nothing half-done is named, and the same flush succeeds afterwards.

use std::io::ErrorKind;
use std::path::Path;

use model::{LogIndex, ReplicaId, Term};
use storage::disk::FaultyDisk;
use storage::manifest::{Manifest, ManifestEdit};
use storage::parquet_file::verify;
use storage::{Error, Result};

use crate::support::*;

/// Today and two earlier days with few rows, which share a `late/` file.
fn three_days(seed: u64) -> Model {
    let mut rows = random_rows(seed, 60, today());
    for (seed, days) in [(seed + 1, 3), (seed + 2, 5)] {
        let start = today().start() - days * DAY;
        rows.extend(random_rows(seed, 10, start..=start + DAY - 1));
    }
    rows
}

#[test]
fn a_flush_writes_the_newest_day_and_one_late_file() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let rows = three_days(1);
    let metas = flush_rows(&files, &rows, 3..=8).unwrap();
    assert_eq!(metas.iter().map(|f| f.day).collect::<Vec<_>>(), [Some(TODAY), None]);
    assert!(metas.iter().all(|f| (f.from, f.to, f.level) == (LogIndex(3), LogIndex(8), 0)));
    assert_eq!(read_all(&files, &metas).unwrap(), rows);
}

#[test]
fn a_flush_that_fails_at_any_io_leaves_nothing_and_succeeds_the_next_time() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let mut failed = 0;
        for n in 1.. {
            let disk = FaultyDisk::new(n);
            let files = files_on(&disk);
            let rows = three_days(n);
            disk.fail_once(n, kind);
            let flushed = flush_rows(&files, &rows, 0..=9);
            disk.heal();
            match flushed {
                Ok(metas) => {
                    assert_eq!(read_all(&files, &metas).unwrap(), rows);
                    break;
                }
                Err(error) => {
                    failed += 1;
                    if kind == ErrorKind::StorageFull {
                        assert!(matches!(error, Error::DiskFull { .. }), "I/O {n}: {error}");
                    }
                    assert_eq!(names(&disk), Vec::<String>::new(), "I/O {n}");
                    let metas = flush_rows(&files, &rows, 0..=9).unwrap();
                    assert_eq!(read_all(&files, &metas).unwrap(), rows);
                }
            }
        }
        assert!(failed > 10, "{failed} I/Os");
    }
}

#[test]
fn a_flush_on_a_full_disk_succeeds_once_there_is_room() {
    let disk = FaultyDisk::new(1);
    let files = files_on(&disk);
    let rows = three_days(1);
    disk.set_capacity(2_000);
    assert!(matches!(flush_rows(&files, &rows, 0..=9), Err(Error::DiskFull { .. })));
    assert_eq!(names(&disk), Vec::<String>::new());
    disk.set_capacity(1 << 20);
    let metas = flush_rows(&files, &rows, 0..=9).unwrap();
    assert_eq!(read_all(&files, &metas).unwrap(), rows);
}

/// Flushes, applies and saves, as a shard does.
fn flush_and_save(disk: &FaultyDisk, manifest: &mut Manifest, rows: &Model, end: u64) -> Result<()> {
    let files = files_on(disk);
    let start = manifest.flushed.map(|(_, index)| index);
    let metas = flush_rows(&files, rows, start.map_or(0, |i| i.0 + 1)..=end)?;
    let edit = ManifestEdit::Flush { start, end: LogIndex(end), term: Term(1), files: metas, replica: ReplicaId(7) };
    let mut next = manifest.clone();
    assert!(next.apply_edit(&edit).is_some());
    next.save(disk, Path::new(DIR))?;
    *manifest = next;
    Ok(())
}

#[test]
fn after_a_power_loss_or_a_kill_at_any_io_every_named_file_is_whole() {
    let mut ended = false;
    for n in 1.. {
        let disk = FaultyDisk::new(n);
        let mut manifest = Manifest::default();
        let first = three_days(1);
        flush_and_save(&disk, &mut manifest, &first, 9).unwrap();
        let mut both = first.clone();
        write_over(&mut both, &three_days(3));
        disk.fail_from(n, ErrorKind::Other);
        let saved = flush_and_save(&disk, &mut manifest, &three_days(3), 19);
        for (what, after) in [("power loss", disk.power_loss(n)), ("kill", disk.kill())] {
            let loaded = Manifest::load(&after, Path::new(DIR)).unwrap().unwrap();
            for meta in loaded.files.values() {
                let whole = verify(&after, Path::new(DIR), meta).map_err(|e| e.to_string());
                assert_eq!(whole, Ok(()), "{what} at I/O {n}");
            }
            let rows = read_all(&files_on(&after), loaded.files.values()).unwrap();
            let expected = if loaded.flushed == Some((Term(1), LogIndex(19))) { &both } else { &first };
            assert_eq!(rows, *expected, "{what} at I/O {n}");
            assert!(saved.is_err() || loaded.flushed == Some((Term(1), LogIndex(19))), "{what} at I/O {n}");
            // What a crash left behind is found by listing, and nothing that is live is taken for it.
            let files = files_on(&after);
            let found = files.list().unwrap();
            let orphans = loaded.orphans(found.iter().map(String::as_str));
            files.remove(orphans);
            assert_eq!(files.list().unwrap().len(), loaded.files.len(), "{what} at I/O {n}");
        }
        if saved.is_ok() {
            ended = true;
            break;
        }
    }
    assert!(ended);
}
