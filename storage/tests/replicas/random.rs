//! Three replicas, one log, and chance: files get lost on their way, replicas restart, lose power, fall back, are replaced.
//!
//! Whatever happens, each shows exactly the rows of the entries that it has applied, each entry has one outcome, and once
//! all have caught up they hold the same state byte for byte.
//!
//! A failure prints its seed: `ALLUVIUM_SEED=… cargo test -p storage --test replicas random` runs that case alone.

use std::io::ErrorKind;

use model::{TableId, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage::disk::FaultyDisk;
use storage::manifest::{FileMeta, ManifestEdit};
use storage::shard::Adopted;
use storage::{Entry, Outcome, Shard, Snapshot, View};

use crate::support::*;

const CASES: u64 = 60;
const STEPS: usize = 150;

struct Replica {
    id: u128,
    disk: FaultyDisk,
    shard: Shard,
    /// The next entry to apply.
    next: u64,
    /// Entries below this may have had their effect on this disk before: only then is an edit's outcome not the first one.
    replay: u64,
    /// Views, with the rows that they showed.
    held: Vec<(View, Tables)>,
}

impl Replica {
    fn new(id: u128, disk: FaultyDisk, replay: u64) -> Replica {
        let shard = open_on(&disk, id).unwrap();
        let next = shard.flushed().0.map_or(0, |(_, index)| index.0 + 1);
        Replica { id, disk, shard, next, replay, held: Vec::new() }
    }

    fn is_sound(&self) -> bool {
        self.next >= self.replay && self.shard.stats().behind == 0
    }
}

struct World {
    rng: StdRng,
    replicas: Vec<Replica>,
    log: Vec<Entry>,
    /// Outcomes of each entry, by whoever applied it first.
    outcomes: Vec<Option<Vec<Outcome>>>,
    /// Rows before each entry, and at the end.
    tables: Vec<Tables>,
    cutoff: i64,
    sequence: u64,
    /// Of the tables that were not dropped.
    first_table: u32,
    next_id: u128,
    counts: Counts,
}

/// What was met on the way, so that the test knows that it tests something.
#[derive(Debug, Default)]
struct Counts {
    behind: u64,
    adopted: u64,
    installed: u64,
    compacted: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let replicas = (1..=3).map(|id| Replica::new(id, FaultyDisk::new(seed * 100 + id as u64), 0)).collect();
        World {
            rng: StdRng::seed_from_u64(seed),
            replicas,
            log: Vec::new(),
            outcomes: Vec::new(),
            tables: vec![Tables::new()],
            cutoff: i64::MIN,
            sequence: 0,
            first_table: 1,
            next_id: 4,
            counts: Counts::default(),
        }
    }

    fn any_replica(&mut self) -> usize {
        self.rng.random_range(0..self.replicas.len())
    }

    /// Adds an entry to the log, with what it does to the rows.
    fn propose(&mut self, entry: Entry, effect: impl FnOnce(&mut Tables)) {
        let mut tables = self.tables.last().unwrap().clone();
        effect(&mut tables);
        self.tables.push(tables);
        self.log.push(entry);
        self.outcomes.push(None);
    }

    fn write(&mut self) {
        let (table, mut rows) = (self.rng.random_range(self.first_table..self.first_table + 2), Rows::new());
        for _ in 0..self.rng.random_range(1..20) {
            let device = format!("d{}", self.rng.random_range(0..4));
            let a = self.rng.random_bool(0.7).then(|| self.rng.random_range(0..1_000));
            let b = (a.is_none() || self.rng.random_bool(0.5)).then(|| self.rng.random_range(0..1_000));
            rows.insert((device, START + self.rng.random_range(0..60) * HOUR), (a, b));
        }
        self.sequence += 1;
        self.propose(write(self.sequence, table, &rows), |tables| write_over(tables.entry(table).or_default(), &rows));
    }

    /// An old write comes again: it is known, and nothing changes.
    fn repeat(&mut self) {
        let writes: Vec<Entry> = self.log.iter().filter(|entry| matches!(entry, Entry::Write(_))).cloned().collect();
        if !writes.is_empty() {
            let n = self.rng.random_range(0..writes.len());
            self.propose(writes[n].clone(), |_| ());
        }
    }

    fn retain(&mut self) {
        self.cutoff = self.cutoff.max(START + self.rng.random_range(0..40) * HOUR);
        let entry = Entry::Retention { database: DATABASE, cutoff: Timestamp(self.cutoff) };
        self.propose(entry, |_| ());
    }

    /// A table goes, and who has not heard of it writes to it.
    fn drop_table(&mut self) {
        let table = self.first_table;
        if table + 2 > *TABLES.end() {
            return;
        }
        self.first_table += 1;
        self.propose(Entry::DropTable { table: TableId(table) }, |tables| drop(tables.remove(&table)));
        self.sequence += 1;
        let rows = Rows::from([(("late".to_owned(), START), (Some(1), None))]);
        self.propose(write(self.sequence, table, &rows), |_| ());
    }

    /// Applies up to `end` on one replica and compares outcomes.
    fn apply_until(&mut self, who: usize, end: u64) {
        let replica = &mut self.replicas[who];
        while replica.next < end {
            let index = replica.next;
            let entry = &self.log[index as usize];
            let behind = replica.shard.stats().behind;
            let outcome = apply(&replica.shard, index, entry);
            self.counts.behind += u64::from(behind == 0 && replica.shard.stats().behind > 0);
            replica.next += 1;
            let first = self.outcomes[index as usize].get_or_insert_with(|| outcome.clone());
            let replayed = index < replica.replay && matches!(entry, Entry::Manifest(_));
            assert!(replayed || outcome == *first, "entry {index} on replica {}: {outcome:?}, was {first:?}: {entry:?}", replica.id);
        }
    }

    fn apply_some(&mut self) {
        let who = self.any_replica();
        let next = self.replicas[who].next;
        let end = self.rng.random_range(next..=self.log.len() as u64);
        self.apply_until(who, end);
    }

    fn apply_all(&mut self, who: usize) {
        self.apply_until(who, self.log.len() as u64);
    }

    /// Sends a file, or something goes wrong on the way.
    fn send(&mut self, from: usize, to: usize, file: &FileMeta) -> bool {
        let (sender, receiver) = (&self.replicas[from].shard, &self.replicas[to]);
        match self.rng.random_range(0..10) {
            0 => {
                // It breaks off.
                if let Ok(sent) = sender.open_file(&file.path) {
                    let mut half = receiver.shard.receive_file(file).unwrap();
                    half.write(&sent.read(0, self.rng.random_range(0..file.bytes as usize)).unwrap()).unwrap();
                }
                false
            }
            1 => {
                receiver.disk.fail_once(self.rng.random_range(1..12), ErrorKind::Other);
                let sent = send(sender, &receiver.shard, file).is_ok();
                receiver.disk.heal();
                sent
            }
            _ => send(sender, &receiver.shard, file).is_ok(),
        }
    }

    fn propose_edit(&mut self, who: usize, edit: ManifestEdit) {
        let reached = self.rng.random_bool(0.7);
        for to in 0..self.replicas.len() {
            if to != who && (reached || self.rng.random_bool(0.3)) {
                for file in self.replicas[to].shard.missing_files(edit.files()) {
                    self.send(who, to, &file);
                }
            }
        }
        // Sometimes it gets lost, sometimes other entries come between, sometimes it comes twice.
        if self.rng.random_bool(0.9) {
            match self.rng.random_range(0..12) {
                0 => self.write(),
                1 => self.drop_table(),
                2 => self.propose(Entry::Manifest(edit.clone()), |_| ()),
                3 => self.restart(),
                _ => {}
            }
            self.propose(Entry::Manifest(edit), |_| ());
        }
    }

    fn flush(&mut self) {
        let who = self.any_replica();
        if self.rng.random_bool(0.7) {
            self.propose(Entry::Seal, |_| ());
        }
        self.apply_all(who);
        match self.replicas[who].shard.flush(&catalog()) {
            Ok(Some(edit)) => self.propose_edit(who, edit),
            Ok(None) => {}
            Err(error) => assert!(self.replicas[who].shard.stats().behind > 0, "{error}"),
        }
    }

    fn compact(&mut self) {
        let who = self.any_replica();
        self.apply_all(who);
        match self.replicas[who].shard.compact(&catalog(), None, self.rng.random_bool(0.7)) {
            Ok(Some(edit)) => {
                self.counts.compacted += 1;
                self.propose_edit(who, edit);
            }
            Ok(None) => {}
            Err(error) => assert!(self.replicas[who].shard.stats().behind > 0, "{error}"),
        }
    }

    /// The process ends, or the machine, perhaps in the middle of something; it starts again.
    fn restart(&mut self) {
        let who = self.any_replica();
        if self.rng.random_bool(0.3) {
            self.replicas[who].disk.fail_from(self.rng.random_range(1..30), ErrorKind::Other);
            let end = self.rng.random_range(self.replicas[who].next..=self.log.len() as u64);
            self.apply_until(who, end);
        }
        let replica = &mut self.replicas[who];
        let disk = match self.rng.random_bool(0.5) {
            true => replica.disk.power_loss(self.rng.random()),
            false => replica.disk.kill(),
        };
        *replica = Replica::new(replica.id, disk, replica.next.max(replica.replay));
    }

    /// A replica that is behind asks another one for what it lacks.
    fn adopt(&mut self) {
        let who = self.any_replica();
        if self.replicas[who].shard.stats().behind == 0 && self.rng.random_bool(0.9) {
            return;
        }
        let from = self.any_replica();
        let snapshot = self.replicas[from].shard.snapshot().unwrap();
        for file in self.replicas[who].shard.missing_files(snapshot.files()) {
            self.send(from, who, &file);
        }
        if let Ok(Adopted::Lacks(files)) = self.replicas[who].shard.adopt(snapshot.clone()) {
            for file in files {
                let from = self.any_replica();
                self.send(from, who, &file);
            }
            self.counts.adopted += u64::from(matches!(self.replicas[who].shard.adopt(snapshot), Ok(Adopted::Whole)));
        }
    }

    /// A replica whose log was let go of takes a snapshot, if its files all come through.
    fn install(&mut self) {
        let (who, from) = (self.any_replica(), self.any_replica());
        let snapshot = Snapshot::decode(&self.replicas[from].shard.snapshot().unwrap().encode()).unwrap();
        let Some((_, flushed)) = snapshot.flushed().filter(|(_, index)| index.0 >= self.replicas[who].next) else { return };
        for file in self.replicas[who].shard.missing_files(snapshot.files()) {
            self.send(from, who, &file);
        }
        let ahead = self.replicas[from].next.max(self.replicas[from].replay);
        let replica = &mut self.replicas[who];
        if self.rng.random_bool(0.3) {
            replica.disk.fail_once(self.rng.random_range(1..8), ErrorKind::Other);
        }
        let installed = replica.shard.install(snapshot);
        replica.disk.heal();
        if installed.is_ok() {
            self.counts.installed += 1;
            replica.next = flushed.0 + 1;
        }
        // A failure leaves open which state the disk has.
        replica.replay = replica.replay.max(ahead);
    }

    /// The disk is lost: another replica takes the place.
    fn replace(&mut self) {
        // The only one that has a file must not go: nobody could give it to the others.
        let who = self.any_replica();
        let others_sound = (0..self.replicas.len()).all(|i| i == who || (self.replicas[i].is_sound()));
        if others_sound && self.replicas.iter().all(|r| r.next == self.log.len() as u64) {
            self.replicas[who] = Replica::new(self.next_id, FaultyDisk::new(self.rng.random()), 0);
            self.next_id += 1;
        }
    }

    fn rows(&self, next: u64, cutoff: i64) -> Tables {
        let mut tables = self.tables[next as usize].clone();
        tables.values_mut().for_each(|rows| rows.retain(|(_, time), _| *time >= cutoff));
        tables
    }

    /// The cutoff that is in force before an entry.
    fn cutoff_at(&self, next: u64) -> i64 {
        let cutoffs = self.log[..next as usize].iter().filter_map(|entry| match entry {
            Entry::Retention { cutoff, .. } => Some(cutoff.0),
            _ => None,
        });
        cutoffs.max().unwrap_or(i64::MIN)
    }

    fn check(&mut self, who: usize) {
        let replica = &self.replicas[who];
        // While the log is replayed over a manifest of a later entry, drops of that entry show already.
        if replica.next >= replica.replay {
            let expected = self.rows(replica.next, self.cutoff_at(replica.next));
            let view = replica.shard.view();
            assert_shows(&view, &expected, replica.id);
            if self.rng.random_bool(0.1) {
                self.replicas[who].held.push((view, expected));
            }
        }
        if self.rng.random_bool(0.2) {
            self.replicas[who].held.truncate(1);
        }
        let replica = &self.replicas[who];
        replica.held.iter().for_each(|(view, expected)| assert_shows(view, expected, replica.id));
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..24 => self.write(),
            24..26 => self.repeat(),
            26..44 => self.apply_some(),
            44..56 => self.flush(),
            56..62 => self.compact(),
            62..68 => self.restart(),
            68..74 => self.adopt(),
            74..80 => self.install(),
            80 => self.replace(),
            81 => self.retain(),
            82 => self.drop_table(),
            83..86 => {
                let who = self.any_replica();
                self.replicas[who].shard.tidy().unwrap();
            }
            _ => {
                let who = self.any_replica();
                self.check(who);
            }
        }
    }

    /// Everybody applies everything and gets every file.
    fn settle(&mut self) {
        (0..self.replicas.len()).for_each(|who| self.apply_all(who));
        for _ in 0..200 {
            for who in 0..self.replicas.len() {
                let from = self.any_replica();
                let snapshot = self.replicas[from].shard.snapshot().unwrap();
                if let Ok(Adopted::Lacks(files)) = self.replicas[who].shard.adopt(snapshot) {
                    for file in files {
                        let from = self.any_replica();
                        self.send(from, who, &file);
                    }
                }
            }
        }
        for who in 0..self.replicas.len() {
            assert!(self.replicas[who].is_sound(), "replica {} stays behind", self.replicas[who].id);
            self.check(who);
            let state = |who: usize| self.replicas[who].shard.snapshot().unwrap();
            assert_eq!(state(who).files(), state(0).files());
            assert_eq!(state(who).encode(), state(0).encode());
        }
    }
}

fn assert_shows(view: &View, expected: &Tables, id: u128) {
    for table in TABLES {
        let expected = expected.get(&table).cloned().unwrap_or_default();
        assert_eq!(read(view, table), expected, "table {table} on replica {id}");
    }
}

#[test]
fn replicas_agree_whatever_files_they_miss() {
    let all = match std::env::var("ALLUVIUM_SEED") {
        Ok(seed) => vec![seed.parse().expect("ALLUVIUM_SEED is a number")],
        Err(_) => (0..CASES).collect::<Vec<u64>>(),
    };
    let (mut sum, mut failed) = (Counts::default(), Vec::new());
    for &seed in &all {
        let ended = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..STEPS).for_each(|_| world.step());
            world.settle();
            world.counts
        });
        match ended {
            Ok(counts) => {
                sum.behind += counts.behind;
                sum.adopted += counts.adopted;
                sum.installed += counts.installed;
                sum.compacted += counts.compacted;
            }
            Err(_) => {
                println!("ALLUVIUM_SEED={seed} failed");
                failed.push(seed);
            }
        }
    }
    println!("{sum:?}");
    assert!(failed.is_empty(), "these seeds failed: {failed:?}");
    let met = |count: u64| all.len() == 1 || count > all.len() as u64 / 6;
    assert!(met(sum.behind) && met(sum.adopted) && met(sum.installed) && met(sum.compacted), "{sum:?}");
}
