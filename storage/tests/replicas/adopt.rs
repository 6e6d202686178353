//! A replica that lacks files is behind and heals; one that lacks everything is given it.

use std::io::ErrorKind;

use model::{ErrorKind as Kind, LogIndex, TableId, Term, Timestamp};
use storage::disk::FaultyDisk;
use storage::shard::Adopted;
use storage::{Entry, Error, Outcome, Shard, Snapshot};

use crate::support::*;

fn pair() -> (Shard, Shard) {
    (open_on(&FaultyDisk::new(1), 1).unwrap(), open_on(&FaultyDisk::new(2), 2).unwrap())
}

#[test]
fn a_shard_with_nothing_flushed_has_a_snapshot() {
    let (shard, _) = pair();
    apply(&shard, 0, &write(1, 1, &rows("d1", 0..3, 1)));
    let snapshot = Snapshot::decode(&shard.snapshot().unwrap().encode()).unwrap();
    assert_eq!((snapshot.flushed(), snapshot.membership(), snapshot.files()), (None, [].as_slice(), [].as_slice()));
}

#[test]
fn a_snapshot_is_the_state_at_the_flushed_index_and_not_the_applied_one() {
    let (shard, _) = pair();
    shard.apply_other(Term(1), LogIndex(0), Some(vec![1])).unwrap();
    let edit = flushed(&[&shard], 1, &write(1, 1, &rows("d1", 0..3, 1)));
    shard.apply_other(Term(1), LogIndex(3), Some(vec![2])).unwrap();
    apply(&shard, 4, &Entry::Manifest(edit));
    apply(&shard, 5, &write(2, 1, &rows("d1", 0..3, 2)));
    let snapshot = shard.snapshot().unwrap();
    assert_eq!(snapshot.flushed(), Some((Term(1), LogIndex(2))));
    assert_eq!(snapshot.membership(), [1]);
    assert_eq!(snapshot.files(), shard.files());
}

#[test]
fn an_edit_without_its_files_has_the_same_outcome_and_the_rows_stay() {
    let (leader, follower) = pair();
    let written = rows("d1", 0..12, 1);
    let edit = Entry::Manifest(flushed(&[&leader, &follower], 0, &write(1, 1, &written)));
    assert_eq!(apply(&leader, 2, &edit), [Outcome::Done]);
    assert_eq!(apply(&follower, 2, &edit), [Outcome::Done]);
    assert_eq!(apply(&follower, 3, &edit), [Outcome::Ignored]);
    let stats = follower.stats();
    assert_eq!((stats.behind, stats.files, stats.flushed, stats.memtable_rows), (1, 0, None, 12));
    assert_eq!(read(&follower.view(), 1), written);
    assert_eq!((follower.flushed(), follower.purgeable()), ((None, Vec::new()), None), "its log is kept");
    for refused in [follower.flush(&catalog()), follower.compact(&catalog(), None, true)] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Behind { edits: 1, .. }) && error.kind() == Kind::TryAgain, "{error}");
    }
    let snapshot = follower.snapshot().unwrap();
    assert_eq!(snapshot.flushed(), None, "it gives only what it has");
}

#[test]
fn adopting_drops_what_the_files_cover_and_keeps_the_rest() {
    let (leader, follower) = pair();
    let both = [&leader, &follower];
    let edit = Entry::Manifest(flushed(&both, 0, &write(1, 1, &rows("d1", 0..12, 1))));
    let later = [(3, write(2, 1, &rows("d1", 4..6, 2))), (4, Entry::Seal), (5, write(3, 1, &rows("d2", 0..5, 3)))];
    for shard in both {
        apply(shard, 2, &edit);
        later.iter().for_each(|(index, entry)| drop(apply(shard, *index, entry)));
    }
    let expected = read(&leader.view(), 1);
    assert_eq!(read(&follower.view(), 1), expected);
    let before = follower.view();
    let snapshot = leader.snapshot().unwrap();
    assert_eq!(follower.adopt(snapshot.clone()).unwrap(), Adopted::Lacks(leader.files()));
    send_missing(&leader, &follower, snapshot.files()).unwrap();
    assert_eq!(follower.adopt(snapshot.clone()).unwrap(), Adopted::Whole);
    assert_eq!(follower.stats(), leader.stats());
    assert_eq!(follower.snapshot().unwrap().encode(), leader.snapshot().unwrap().encode());
    assert_eq!(follower.purgeable(), Some(LogIndex(2)));
    assert_eq!((read(&follower.view(), 1), read(&before, 1)), (expected.clone(), expected));
    assert_eq!(follower.adopt(snapshot).unwrap(), Adopted::Whole, "adopting again changes nothing");
    assert!(follower.flush(&catalog()).unwrap().is_some());
}

#[test]
fn a_replica_that_lacks_a_compactions_output_serves_its_inputs_until_it_heals() {
    let (leader, follower) = pair();
    let both = [&leader, &follower];
    let mut at = 0;
    for n in 0..3 {
        let edit = flushed(&both, at, &write(n, 1, &rows("d1", 0..12, n as i64)));
        send_missing(&leader, &follower, edit.files()).unwrap();
        both.iter().for_each(|shard| assert_eq!(apply(shard, at + 2, &Entry::Manifest(edit.clone())), [Outcome::Done]));
        at += 3;
    }
    while let Some(edit) = leader.compact(&catalog(), None, true).unwrap() {
        both.iter().for_each(|shard| assert_eq!(apply(shard, at, &Entry::Manifest(edit.clone())), [Outcome::Done]));
        at += 1;
    }
    assert!(follower.stats().behind > 0 && follower.stats().files > leader.stats().files);
    assert_eq!(read(&follower.view(), 1), read(&leader.view(), 1));
    let held = follower.view();
    send_missing(&leader, &follower, leader.snapshot().unwrap().files()).unwrap();
    assert_eq!(follower.adopt(leader.snapshot().unwrap()).unwrap(), Adopted::Whole);
    assert_eq!(follower.files(), leader.files());
    follower.tidy().unwrap();
    assert_eq!(read(&held, 1), read(&leader.view(), 1), "a view keeps its files");
    drop(held);
    follower.tidy().unwrap();
    follower.tidy().unwrap();
    assert!(follower.open_file(&leader.files()[0].path).is_ok());
}

#[test]
fn drops_and_cutoffs_take_effect_on_a_replica_that_is_behind() {
    let (leader, follower) = pair();
    let both = [&leader, &follower];
    let first = flushed(&both, 0, &write(1, 1, &rows("d1", 0..12, 1)));
    send_missing(&leader, &follower, first.files()).unwrap();
    both.iter().for_each(|shard| drop(apply(shard, 2, &Entry::Manifest(first.clone()))));
    let second = flushed(&both, 3, &write(2, 1, &rows("d2", 0..50, 1)));
    let cutoff = Timestamp(START + 40 * HOUR);
    let rest = [Entry::Manifest(second), Entry::Retention { database: DATABASE, cutoff }, write(3, 1, &rows("d3", 30..45, 1))];
    for shard in both {
        rest.iter().zip(5..).for_each(|(entry, index)| drop(apply(shard, index, entry)));
    }
    assert_eq!(follower.stats().behind, 1);
    assert_eq!(read(&follower.view(), 1), read(&leader.view(), 1));
    assert_eq!(read(&follower.view(), 1).len(), 10 + 5);
    both.iter().for_each(|shard| drop(apply(shard, 8, &Entry::DropTable { table: TableId(1) })));
    assert_eq!(read(&follower.view(), 1).len(), 0);
    assert_eq!(follower.adopt(leader.snapshot().unwrap()).unwrap(), Adopted::Whole, "nothing that is live is missing");
    assert_eq!(follower.snapshot().unwrap().encode(), leader.snapshot().unwrap().encode());
}

#[test]
fn a_snapshot_that_reaches_too_far_or_not_far_enough_is_refused() {
    let (leader, follower) = pair();
    let old = leader.snapshot().unwrap();
    let edit = flushed(&[&leader], 0, &write(1, 1, &rows("d1", 0..12, 1)));
    apply(&leader, 2, &Entry::Manifest(edit));
    let new = leader.snapshot().unwrap();
    assert!(matches!(follower.adopt(new.clone()), Err(Error::Unfit { .. })), "it has applied nothing");
    let error = follower.install(new.clone()).unwrap_err();
    assert!(matches!(error, Error::MissingFiles { files, .. } if files == new.files().len()), "{error}");
    assert!(matches!(leader.install(old.clone()), Err(Error::Unfit { .. })));
    assert!(matches!(leader.adopt(old), Err(Error::Unfit { .. })));
}

/// A leader whose snapshot reaches entry 4, and its entries 2 and 5.
fn leader() -> (Shard, [Entry; 2]) {
    let leader = open_on(&FaultyDisk::new(1), 1).unwrap();
    let edit = flushed(&[&leader], 0, &write(1, 1, &rows("d1", 0..12, 1)));
    let first = Entry::Manifest(edit);
    apply(&leader, 2, &first);
    let second = Entry::Manifest(flushed(&[&leader], 3, &write(2, 2, &rows("d2", 0..12, 2))));
    apply(&leader, 5, &second);
    (leader, [first, second])
}

#[test]
fn a_replica_on_an_empty_disk_installs_and_replays_what_follows() {
    let (leader, [_, edit]) = leader();
    apply(&leader, 6, &write(3, 1, &rows("d1", 3..5, 9)));
    let disk = FaultyDisk::new(9);
    let new = open_on(&disk, 2).unwrap();
    let snapshot = Snapshot::decode(&leader.snapshot().unwrap().encode()).unwrap();
    send_missing(&leader, &new, snapshot.files()).unwrap();
    new.install(snapshot).unwrap();
    let reopened = open_on(&disk.power_loss(3), 2).unwrap();
    for shard in [&new, &reopened] {
        assert_eq!(shard.flushed().0, Some((Term(1), LogIndex(4))));
        assert_eq!(shard.stats().applied, Some(LogIndex(4)));
        assert_eq!(apply(shard, 5, &edit), [Outcome::Ignored], "the snapshot has it");
        apply(shard, 6, &write(3, 1, &rows("d1", 3..5, 9)));
        for table in [1, 2] {
            assert_eq!(read(&shard.view(), table), read(&leader.view(), table));
        }
        // A repeat is known: the answers came with the snapshot.
        assert_eq!(apply(shard, 7, &write(1, 1, &rows("d1", 0..12, 1))), [Outcome::Stored { rows: 12 }]);
        assert_eq!(read(&shard.view(), 1), read(&leader.view(), 1));
    }
}

#[test]
fn an_install_that_fails_or_loses_power_at_any_io_leaves_the_old_state_or_the_new() {
    let (leader, [first, _]) = leader();
    let snapshot = leader.snapshot().unwrap();
    for sticky in [false, true] {
        let mut ended = false;
        for n in 1.. {
            let disk = FaultyDisk::new(n);
            let shard = open_on(&disk, 2).unwrap();
            // Its old state: entries 0 and 1 in the leader's first file, and entry 3 in memory.
            send_missing(&leader, &shard, &leader.files()).unwrap();
            apply(&shard, 0, &write(1, 1, &rows("d1", 0..12, 1)));
            apply(&shard, 1, &Entry::Seal);
            apply(&shard, 2, &first);
            apply(&shard, 3, &write(2, 2, &rows("d2", 0..12, 2)));
            match sticky {
                true => disk.fail_from(n, ErrorKind::Other),
                false => disk.fail_once(n, ErrorKind::Other),
            }
            let installed = shard.install(snapshot.clone());
            disk.heal();
            for after in [disk.power_loss(n), disk.kill()] {
                let found = open_on(&after, 2).unwrap();
                let reaches = found.flushed().0.unwrap().1.0;
                assert!(reaches == 1 || reaches == 4, "I/O {n}: {reaches}");
                assert!(installed.is_err() || reaches == 4, "I/O {n}");
                assert_eq!(read(&found.view(), 1), rows("d1", 0..12, 1), "I/O {n}");
                assert_eq!(read(&found.view(), 2).len(), if reaches == 4 { 12 } else { 0 }, "I/O {n}");
            }
            assert_eq!(read(&shard.view(), 2).len(), 12, "I/O {n}");
            if installed.is_ok() {
                ended = true;
                break;
            }
            // It goes on with the old state, tidies up without harm, and takes the snapshot the next time.
            shard.tidy().unwrap();
            assert_eq!(read(&open_on(&disk.power_loss(n), 2).unwrap().view(), 1).len(), 12, "I/O {n}");
            shard.install(snapshot.clone()).unwrap();
            shard.tidy().unwrap();
            assert_eq!(shard.files(), leader.files(), "I/O {n}");
            assert_eq!(read(&shard.view(), 1), rows("d1", 0..12, 1), "I/O {n}");
        }
        assert!(ended);
    }
}
