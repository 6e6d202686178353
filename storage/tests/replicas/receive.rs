//! A file on its way to a replica is seen by nobody before it is whole.

use std::io::ErrorKind;

use model::ErrorKind as Kind;
use storage::disk::FaultyDisk;
use storage::manifest::FileMeta;
use storage::{Error, Shard};

use crate::support::*;

/// A replica with a flush that is not applied yet, and another one on an empty disk that has applied as much.
fn one_flush() -> (Shard, FaultyDisk, FileMeta) {
    let (disk, other) = (FaultyDisk::new(1), FaultyDisk::new(2));
    let shard = open_on(&disk, 1).unwrap();
    let edit = flushed(&[&shard], 0, &write(1, 1, &rows("d1", 0..12, 4)));
    let file = edit.files()[0].clone();
    (shard, other, file)
}

fn whole(from: &Shard, file: &FileMeta) -> Vec<u8> {
    from.read_file(&file.path, 0, usize::MAX).unwrap().to_vec()
}

#[test]
fn a_file_is_missing_until_it_is_whole() {
    let (from, disk, file) = one_flush();
    let to = open_on(&disk, 2).unwrap();
    let bytes = whole(&from, &file);
    let mut receiver = to.receive_file(&file).unwrap();
    receiver.write(&bytes[..100]).unwrap();
    assert_eq!(to.missing_files(std::slice::from_ref(&file)), std::slice::from_ref(&file));
    assert!(matches!(to.read_file(&file.path, 0, 10), Err(Error::NoSuchFile { .. })));
    assert_eq!(names_below(&disk, "parquet").len(), 0);
    receiver.write(&bytes[100..]).unwrap();
    receiver.finish().unwrap();
    assert_eq!(to.missing_files(std::slice::from_ref(&file)), []);
    assert_eq!(whole(&to, &file), bytes);
    assert_eq!(names_below(&disk, "incoming").len(), 0);
}

#[test]
fn other_bytes_than_the_named_ones_are_refused_and_leave_nothing() {
    let (from, disk, file) = one_flush();
    let to = open_on(&disk, 2).unwrap();
    let bytes = whole(&from, &file);
    let flipped: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 50)).collect();
    for wrong in [&bytes[..bytes.len() - 1], &[bytes.as_slice(), b"x"].concat(), &flipped] {
        let mut receiver = to.receive_file(&file).unwrap();
        let received = receiver.write(wrong).and_then(|()| receiver.finish());
        let error = received.unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }) && error.kind() == Kind::TryAgain, "{error}");
        assert_eq!(disk.files(), [], "nothing is left");
    }
    drop(to.receive_file(&file).unwrap());
    assert_eq!(disk.files(), [], "nothing is left");
    let outside = FileMeta { path: "parquet/../../x.parquet".to_owned(), ..file };
    assert!(matches!(to.receive_file(&outside), Err(Error::Unfit { .. })));
}

#[test]
fn what_was_half_received_is_removed_at_open() {
    let (from, disk, file) = one_flush();
    let to = open_on(&disk, 2).unwrap();
    let mut receiver = to.receive_file(&file).unwrap();
    receiver.write(&whole(&from, &file)[..500]).unwrap();
    let after = disk.kill();
    assert_eq!(names_below(&after, "incoming").len(), 1);
    let to = open_on(&after, 2).unwrap();
    assert_eq!(after.files(), []);
    assert_eq!(to.missing_files(std::slice::from_ref(&file)), [file]);
}

#[test]
fn a_receive_that_fails_or_loses_power_at_any_io_leaves_the_whole_file_or_none_and_can_be_repeated() {
    let (from, _, file) = one_flush();
    for (kind, sticky) in [(ErrorKind::Other, false), (ErrorKind::Other, true), (ErrorKind::StorageFull, false)] {
        for n in 1.. {
            let disk = FaultyDisk::new(n);
            let to = open_on(&disk, 2).unwrap();
            match sticky {
                true => disk.fail_from(n, kind),
                false => disk.fail_once(n, kind),
            }
            let received = send(&from, &to, &file);
            disk.heal();
            for after in [disk.power_loss(n), disk.kill()] {
                let reopened = open_on(&after, 2).unwrap();
                let missing = reopened.missing_files(std::slice::from_ref(&file));
                assert!(received.is_err() || missing.is_empty(), "I/O {n}: a file that was acknowledged is gone");
                assert_eq!(names_below(&after, "incoming").len(), 0, "I/O {n}");
                if missing.is_empty() {
                    assert_eq!(whole(&reopened, &file), whole(&from, &file), "I/O {n}");
                }
            }
            if received.is_ok() && n > 10 {
                break;
            }
            if kind == ErrorKind::StorageFull && received.is_err() {
                assert!(matches!(received, Err(Error::DiskFull { .. })), "I/O {n}: {received:?}");
            }
            send(&from, &to, &file).unwrap();
            assert_eq!(to.missing_files(std::slice::from_ref(&file)), [], "I/O {n}");
        }
    }
}

#[test]
fn a_file_found_at_open_is_here_only_if_it_is_whole() {
    let (from, disk, file) = one_flush();
    let to = open_on(&disk, 2).unwrap();
    send(&from, &to, &file).unwrap();
    assert_eq!(open_on(&disk.kill(), 2).unwrap().missing_files(std::slice::from_ref(&file)), []);
    let damaged = disk.kill();
    damaged.flip_bit(&std::path::Path::new(DIR).join(&file.path), 60, 3);
    let to = open_on(&damaged, 2).unwrap();
    assert_eq!(to.missing_files(std::slice::from_ref(&file)), std::slice::from_ref(&file));
    send(&from, &to, &file).unwrap();
    assert_eq!(whole(&to, &file), whole(&from, &file));
}

#[test]
fn only_named_files_are_read_and_they_stay_while_they_are() {
    let (shard, _, file) = one_flush();
    assert!(matches!(shard.read_file("MANIFEST", 0, 10), Err(Error::NoSuchFile { .. })));
    assert!(matches!(shard.read_file("../shard/MANIFEST", 0, 10), Err(Error::NoSuchFile { .. })));
    let bytes = whole(&shard, &file);
    assert_eq!(shard.read_file(&file.path, 10, 5).unwrap(), bytes[10..15]);
    assert_eq!(shard.read_file(&file.path, file.bytes + 7, 5).unwrap().len(), 0);
    // Before and after the flush is applied, and when a compaction has taken its place.
    let edit = shard.flush(&catalog()).unwrap().unwrap();
    apply(&shard, 2, &storage::Entry::Manifest(edit));
    let live = shard.files()[0].clone();
    let sent = shard.open_file(&live.path).unwrap();
    let edit = flushed(&[&shard], 3, &write(2, 1, &rows("d1", 0..12, 5)));
    apply(&shard, 5, &storage::Entry::Manifest(edit));
    let mut at = 6;
    while let Some(edit) = shard.compact(&catalog(), None, true).unwrap() {
        apply(&shard, at, &storage::Entry::Manifest(edit));
        at += 1;
    }
    assert!(!shard.files().contains(&live));
    shard.tidy().unwrap();
    assert_eq!(sent.read(0, usize::MAX).unwrap().len() as u64, live.bytes);
    assert!(shard.open_file(&live.path).is_ok(), "it is on disk as long as somebody reads it");
    drop(sent);
    shard.tidy().unwrap();
    assert!(matches!(shard.open_file(&live.path), Err(Error::NoSuchFile { .. })));
}

#[test]
fn a_damaged_live_file_is_repaired_by_receiving_it_again() {
    let (from, disk, file) = one_flush();
    let to = open_on(&disk, 2).unwrap();
    let entry = write(1, 1, &rows("d1", 0..12, 4));
    apply(&to, 0, &entry);
    apply(&to, 1, &storage::Entry::Seal);
    send(&from, &to, &file).unwrap();
    let edit = storage::manifest::ManifestEdit::Flush {
        start: None,
        end: model::LogIndex(1),
        term: model::Term(1),
        files: vec![file.clone()],
        replica: model::ReplicaId(1),
    };
    assert_eq!(apply(&to, 2, &storage::Entry::Manifest(edit)), [storage::Outcome::Done]);
    assert_eq!(read(&to.view(), 1).len(), 12);
    disk.flip_bit(&std::path::Path::new(DIR).join(&file.path), 60, 3);
    let again = open_on(&disk.kill(), 2).unwrap();
    send(&from, &again, &file).unwrap();
    assert_eq!(read(&again.view(), 1).len(), 12);
}
