//! A shard is split: every replica founds the same new shard by itself, from files of its own, whatever its disk does.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::point::routing_hash_of_tag;
use model::{Epoch, LogIndex, ReplicaId, ShardId, TableId, Term};
use storage::disk::FaultyDisk;
use storage::{Entry, Error, HashRange, Outcome, Shard, ShardOptions, Snapshot, Split};

use crate::support::*;

const CHILD: &str = "child";

/// Keeps d1 in the shard and gives the devices of the upper half away; there are some of both.
fn halves() -> (Split, Rows, Rows) {
    let middle = 1 << 63;
    let split = Split { child: ShardId(9), start: 0, at: middle, last: u64::MAX, version: Epoch(1) };
    let (mut lower, mut upper) = (Rows::new(), Rows::new());
    for device in (1..20).map(|n| format!("d{n}")) {
        let half = if routing_hash_of_tag(DATABASE, &device) < middle { &mut lower } else { &mut upper };
        half.extend(rows(&device, 0..5, 1));
    }
    assert!(!lower.is_empty() && !upper.is_empty());
    (split, lower, upper)
}

fn whole(lower: &Rows, upper: &Rows) -> Rows {
    lower.iter().chain(upper).map(|(key, values)| (key.clone(), *values)).collect()
}

/// Applies the first entries up to the flush of the split on all replicas; the files travel to all but those in `without`.
fn split_on(shards: &[&Shard], split: Split, rows: &Rows, without: &[usize]) -> u64 {
    for shard in shards {
        apply(shard, 0, &write(1, 1, rows));
        assert_eq!(apply(shard, 1, &Entry::Split(split)), [Outcome::Done]);
        assert_eq!(shard.split_off(), None, "its rows are not in files yet");
    }
    let edit = shards[0].flush(&catalog()).unwrap().unwrap();
    for (i, shard) in shards.iter().enumerate().skip(1) {
        if !without.contains(&i) {
            send_missing(shards[0], shard, edit.files()).unwrap();
        }
    }
    for shard in shards {
        assert_eq!(apply(shard, 2, &Entry::Manifest(edit.clone())), [Outcome::Done]);
    }
    3
}

fn open_child(disk: &FaultyDisk, replica: u128) -> Shard {
    let options = ShardOptions {
        disk: Arc::new(disk.clone()),
        dir: PathBuf::from(CHILD),
        shard: ShardId(9),
        replica: ReplicaId(replica),
        flush_bytes: 1 << 20,
        last_rows_bytes: 1 << 20,
    };
    Shard::open(options).unwrap()
}

fn found(shard: &Shard, replica: u128) -> storage::Result<()> {
    let split = shard.split_off().expect("it is on its way");
    shard.found_split_off(&split, Path::new(CHILD), ReplicaId(replica), b"members".to_vec())
}

#[test]
fn both_halves_have_their_rows_once_and_all_replicas_found_the_same_shard() {
    let disks = [FaultyDisk::new(1), FaultyDisk::new(2), FaultyDisk::new(3)];
    let shards: Vec<Shard> = disks.iter().zip(1..).map(|(disk, replica)| open_on(disk, replica).unwrap()).collect();
    let (split, lower, upper) = halves();
    let next = split_on(&shards.iter().collect::<Vec<_>>(), split, &whole(&lower, &upper), &[2]);
    let behind = &shards[2];
    assert_eq!(behind.split_off(), None, "without its files a replica founds nothing");
    for shard in &shards {
        assert_eq!(read(&shard.view(), 1), lower);
        assert_eq!(shard.range(), split.lower());
        let entry = write(2, 1, &lower);
        assert_eq!(apply(shard, next, &entry), [Outcome::WrongRange { current: Epoch(2) }]);
    }
    let mut snapshots = Vec::new();
    for (disk, (shard, replica)) in disks.iter().zip(shards.iter().zip(11..)).take(2) {
        found(shard, replica).unwrap();
        found(shard, replica).unwrap();
        let child = open_child(disk, replica);
        assert_eq!(child.flushed(), (Some((Term(0), LogIndex(1))), b"members".to_vec()));
        assert_eq!((child.range(), read(&child.view(), 1)), (split.upper(), upper.clone()));
        snapshots.push(child.snapshot().unwrap().encode());
    }
    assert_eq!(snapshots[0], snapshots[1]);
    // A repeat of a part from before the split is answered by both halves, as it was then.
    let Entry::Write(mut parts) = write(1, 1, &upper) else { unreachable!() };
    parts[0].range_version = Epoch(2);
    let stored = Outcome::Stored { rows: (lower.len() + upper.len()) as u32 };
    let child = open_child(&disks[0], 11);
    assert_eq!(child.apply(Term(1), LogIndex(2), &Entry::Write(parts.clone())).unwrap(), std::slice::from_ref(&stored));
    assert_eq!(apply(&shards[0], next + 1, &Entry::Write(parts)), [stored]);
}

#[test]
fn nothing_is_compacted_until_the_split_is_done_and_then_each_half_keeps_its_own() {
    let disk = FaultyDisk::new(4);
    let shard = open_on(&disk, 1).unwrap();
    let (split, lower, upper) = halves();
    let mut next = split_on(&[&shard], split, &whole(&lower, &upper), &[]);
    assert!(matches!(shard.compact(&catalog(), None, true), Err(Error::Splitting { .. })));
    assert_eq!(shard.compact(&catalog(), None, false).unwrap(), None);
    assert_eq!(
        apply(&shard, next, &Entry::Split(Split { at: 1 << 62, last: (1 << 63) - 1, version: Epoch(2), ..split })),
        [Outcome::Ignored]
    );
    found(&shard, 11).unwrap();
    assert_eq!(apply(&shard, next + 1, &Entry::SplitDone { child: ShardId(8) }), [Outcome::Ignored]);
    assert_eq!(apply(&shard, next + 2, &Entry::SplitDone { child: ShardId(9) }), [Outcome::Done]);
    next += 3;
    while let Some(edit) = shard.compact(&catalog(), None, false).unwrap() {
        assert_eq!(apply(&shard, next, &Entry::Manifest(edit)), [Outcome::Done]);
        next += 1;
    }
    shard.tidy().unwrap();
    assert_eq!(shard.stats().file_rows, lower.len() as u64, "rows of the other half give their place back");
    assert_eq!(read(&shard.view(), 1), lower);
    assert_eq!(read(&open_child(&disk, 11).view(), 1), upper, "files have two names: the other half's stay");
}

#[test]
fn a_compaction_that_was_under_way_has_no_effect_from_the_split_on() {
    let shard = open_on(&FaultyDisk::new(10), 1).unwrap();
    let (split, lower, upper) = halves();
    for (at, rows) in [(0, &lower), (3, &upper)] {
        let edit = flushed(&[&shard], at, &write(at, 1, rows));
        assert_eq!(apply(&shard, at + 2, &Entry::Manifest(edit)), [Outcome::Done]);
    }
    let compacted = Entry::Manifest(shard.compact(&catalog(), None, true).unwrap().unwrap());
    assert_eq!(apply(&shard, 6, &Entry::Split(split)), [Outcome::Done]);
    assert!(matches!(shard.compact(&catalog(), None, true), Err(Error::Splitting { .. })));
    assert_eq!(apply(&shard, 7, &compacted), [Outcome::Ignored]);
    let edit = shard.flush(&catalog()).unwrap().unwrap();
    assert_eq!(apply(&shard, 8, &Entry::Manifest(edit)), [Outcome::Done]);
    assert_eq!(shard.split_off().unwrap().index(), LogIndex(6));
}

#[test]
fn a_split_that_came_too_early_has_no_effect_when_it_is_replayed_either() {
    let disk = FaultyDisk::new(11);
    let shard = open_on(&disk, 1).unwrap();
    let (split, lower, upper) = halves();
    let next = split_on(&[&shard], split, &whole(&lower, &upper), &[]);
    let early = Entry::Split(Split { child: ShardId(10), start: 0, at: 1 << 62, last: (1 << 63) - 1, version: Epoch(2) });
    let done = Entry::SplitDone { child: ShardId(9) };
    found(&shard, 11).unwrap();
    assert_eq!(apply(&shard, next, &early), [Outcome::Ignored]);
    assert_eq!(apply(&shard, next + 1, &done), [Outcome::Done]);
    shard.tidy().unwrap();
    let again = open_on(&disk.kill(), 1).unwrap();
    assert_eq!(again.flushed().0, Some((Term(1), LogIndex(1))));
    assert_eq!(apply(&again, next, &early), [Outcome::Ignored]);
    apply(&again, next + 1, &done);
    for shard in [&shard, &again] {
        assert_eq!((shard.range(), shard.is_splitting()), (split.lower(), false));
        assert_eq!(apply(shard, next + 2, &early), [Outcome::Done], "now it may");
    }
}

#[test]
fn a_repeat_of_a_part_from_before_the_split_is_answered_as_it_was() {
    let shard = open_on(&FaultyDisk::new(12), 1).unwrap();
    let (split, lower, upper) = halves();
    let next = split_on(&[&shard], split, &whole(&lower, &upper), &[]);
    let stored = Outcome::Stored { rows: (lower.len() + upper.len()) as u32 };
    assert_eq!(apply(&shard, next, &write(1, 1, &whole(&lower, &upper))), [stored]);
    assert_eq!(shard.stats().memtable_rows, 0, "nothing is stored again");
}

#[test]
fn newest_rows_of_a_flush_that_a_split_came_into_are_the_shards_own() {
    let shard = open_on(&FaultyDisk::new(13), 1).unwrap();
    let (split, lower, upper) = halves();
    let edit = flushed(&[&shard], 0, &write(1, 1, &whole(&lower, &upper)));
    assert_eq!(apply(&shard, 2, &Entry::Split(split)), [Outcome::Done]);
    assert_eq!(apply(&shard, 3, &Entry::Manifest(edit)), [Outcome::Done]);
    let edit = shard.flush(&catalog()).unwrap().unwrap();
    assert_eq!(apply(&shard, 4, &Entry::Manifest(edit)), [Outcome::Done]);
    assert_eq!(apply(&shard, 5, &Entry::SplitDone { child: ShardId(9) }), [Outcome::Done]);
    let table = catalog().table(TableId(1)).unwrap().1.clone();
    let projection = storage::merge::whole_layout(&table);
    let request = storage::ScanRequest { table, projection, times: i64::MIN..=i64::MAX, tags: Vec::new(), batch_rows: 50 };
    let devices: std::collections::BTreeSet<&String> = lower.keys().map(|(device, _)| device).collect();
    for _ in 0..2 {
        if let Some(newest) = shard.view().latest(&request).unwrap() {
            assert_eq!(newest.iter().map(|batch| batch.num_rows()).sum::<usize>(), devices.len());
        }
        // A look for something to compact reads the newest rows again.
        let _ = shard.compact(&catalog(), None, false).unwrap();
    }
}

#[test]
fn a_shard_that_lost_the_split_takes_the_range_that_the_map_has() {
    let disk = FaultyDisk::new(9);
    let shard = open_on(&disk, 1).unwrap();
    let (split, lower, upper) = halves();
    apply(&shard, 0, &write(1, 1, &whole(&lower, &upper)));
    assert_eq!(apply(&shard, 1, &Entry::Range(split.upper())), [Outcome::Done]);
    assert_eq!(apply(&shard, 2, &Entry::Range(split.lower())), [Outcome::Ignored], "it is no newer one");
    assert_eq!((shard.range(), shard.is_splitting(), read(&shard.view(), 1)), (split.upper(), false, upper.clone()));
    let edit = shard.flush(&catalog()).unwrap().unwrap();
    assert_eq!(apply(&shard, 3, &Entry::Manifest(edit)), [Outcome::Done]);
    let again = open_on(&disk.power_loss(1), 1).unwrap();
    assert_eq!((again.range(), read(&again.view(), 1)), (split.upper(), upper));
}

#[test]
fn a_replica_that_is_given_a_snapshot_learns_of_the_split() {
    let (disk, other) = (FaultyDisk::new(5), FaultyDisk::new(6));
    let (shard, new) = (open_on(&disk, 1).unwrap(), open_on(&other, 2).unwrap());
    let (split, lower, upper) = halves();
    split_on(&[&shard], split, &whole(&lower, &upper), &[]);
    let snapshot = Snapshot::decode(&shard.snapshot().unwrap().encode()).unwrap();
    send_missing(&shard, &new, snapshot.files()).unwrap();
    new.install(snapshot).unwrap();
    assert_eq!((new.range(), read(&new.view(), 1)), (split.lower(), lower));
    found(&new, 12).unwrap();
    assert_eq!(read(&open_child(&other, 12).view(), 1), upper);
}

#[test]
fn a_disk_that_fails_or_loses_power_at_any_moment_leaves_the_whole_new_shard_or_none() {
    let (split, lower, upper) = halves();
    let mut founded = 0;
    for n in 1.. {
        let disk = FaultyDisk::new(7);
        let shard = open_on(&disk, 1).unwrap();
        split_on(&[&shard], split, &whole(&lower, &upper), &[]);
        let before = disk.ios();
        disk.fail_once(before + n, ErrorKind::Other);
        let done = found(&shard, 11);
        let tried = disk.ios() - before;
        disk.heal();
        for seed in 0..4 {
            let after = disk.power_loss(seed);
            let child = open_child(&after, 11);
            match child.flushed().0 {
                None => assert!(done.is_err() && child.range() == HashRange::default()),
                Some(_) => {
                    founded += 1;
                    assert_eq!(read(&child.view(), 1), upper);
                }
            }
        }
        found(&shard, 11).unwrap();
        assert_eq!(read(&open_child(&disk, 11).view(), 1), upper);
        if done.is_ok() && tried < n {
            assert!(founded > 0 && n > 5, "{n} I/Os");
            return;
        }
    }
}

#[test]
fn a_restart_anywhere_in_a_split_goes_on_with_it() {
    let (split, lower, upper) = halves();
    let entries = |edit| [write(1, 1, &whole(&lower, &upper)), Entry::Split(split), Entry::Manifest(edit)];
    let disk = FaultyDisk::new(8);
    let shard = open_on(&disk, 1).unwrap();
    apply(&shard, 0, &write(1, 1, &whole(&lower, &upper)));
    apply(&shard, 1, &Entry::Split(split));
    let edit = shard.flush(&catalog()).unwrap().unwrap();
    // Before the edit: the log brings the split back. After it: the manifest has it.
    let again = open_on(&disk.kill(), 1).unwrap();
    for (index, entry) in entries(edit.clone()).iter().enumerate().take(2) {
        apply(&again, index as u64, entry);
    }
    assert_eq!((again.range(), read(&again.view(), 1)), (split.lower(), lower.clone()));
    apply(&shard, 2, &Entry::Manifest(edit));
    for disk in [disk.kill(), disk.power_loss(3)] {
        let again = open_on(&disk, 1).unwrap();
        assert_eq!(again.flushed().0, Some((Term(1), LogIndex(1))));
        assert_eq!((again.range(), read(&again.view(), 1)), (split.lower(), lower.clone()));
        found(&again, 11).unwrap();
        assert_eq!(read(&open_child(&disk, 11).view(), 1), upper);
    }
}
