//! Decides which files of a shard to merge next, if any.
//!
//! A pure function of the live files. Within a partition (a table's day) only neighbours in the order of writes are merged,
//! so that the order of what is left stays the order of writes (DESIGN rule 2). Files are merged when there are enough of
//! about one size: a row is then rewritten about log6(rows of its day / rows of a flush) times, once or twice in practice.
//!
//! `late/` files hold rows of several days. They are merged with each other while they are small and cut into days once
//! that pays. The invariant which makes this safe: the files that hold rows of one day have disjoint spans of the log.
//! Every plan keeps it (`tests::every_plan_keeps_the_order_of_writes`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use model::{DatabaseId, LogIndex, TableId};

use crate::manifest::FileMeta;
use crate::range::HashRange;

/// Files of about one size that are worth a merge.
const FAN_IN: usize = 6;
/// Files that one merge reads at most: each costs a decoder's memory.
const MAX_INPUTS: usize = 32;
/// Rows that the output of a merge has at most, unless everything is to be merged: a file beyond is good enough.
const MAX_ROWS: u64 = 256 << 20;
/// Bytes that the files of one merge have at most, unless everything is to be merged: they stand twice while it runs.
const MAX_BYTES: u64 = 32 << 30;
/// A file weighs as many rows as it has, or as it would have if each took so many bytes: rows of usual size take less.
const LARGE_ROW_BYTES: u64 = 1 << 10;
/// Rows a day from which a `late/` file is cut into days.
const CUT_ROWS_PER_DAY: u64 = 64 << 10;
/// Rows from which a `late/` file is cut whatever its days.
const CUT_ROWS: u64 = 4 << 20;

/// What to do with some neighbouring files of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The table.
    pub table: TableId,
    /// The files that leave, oldest first.
    pub inputs: Vec<FileMeta>,
    /// What takes their place.
    pub step: Step,
}

/// What takes the place of a plan's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: all their rows are older than the retention cutoff.
    Expire,
    /// One file of this day.
    Merge(i32),
    /// One `late/` file.
    MergeLate,
    /// A file for each day.
    Cut,
}

impl Plan {
    /// The span of the log that the outputs cover.
    pub fn span(&self) -> (LogIndex, LogIndex) {
        span(&self.inputs)
    }

    /// The outputs' level.
    pub fn level(&self) -> u8 {
        self.inputs.iter().map(|f| f.level).max().unwrap_or(0).saturating_add(1)
    }

    /// All days that the inputs have rows of.
    pub fn days(&self) -> Vec<i32> {
        self.inputs.iter().flat_map(|f| f.days().iter().copied()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn span(files: &[FileMeta]) -> (LogIndex, LogIndex) {
    let from = files.iter().map(|f| f.from).min().unwrap_or_default();
    (from, files.iter().map(|f| f.to).max().unwrap_or_default())
}

/// How eagerly files are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eagerness {
    /// Only what pays.
    WhenItPays,
    /// Until each row stands once, in a file of its day, packed richly.
    UntilEachRowStandsOnce,
}

/// The next thing to do with the live files of one shard (of `table`, or of all); `None`: nothing is worth it.
pub fn plan<'a>(
    files: impl IntoIterator<Item = &'a FileMeta>,
    cutoffs: &BTreeMap<u32, i64>,
    range: &HashRange,
    table: Option<TableId>,
    eagerness: Eagerness,
) -> Option<Plan> {
    let mut tables: BTreeMap<TableId, Vec<&FileMeta>> = BTreeMap::new();
    for file in files.into_iter().filter(|f| table.is_none_or(|t| f.table == t)) {
        tables.entry(file.table).or_default().push(file);
    }
    tables.into_iter().find_map(|(table, mut files)| {
        files.sort_by_key(|f| (f.from, f.to));
        let chosen = expired(&files, cutoffs).or_else(|| late(&files, eagerness)).or_else(|| days(&files, eagerness));
        chosen.or_else(|| wide(&files, range)).map(|(inputs, step)| Plan { table, inputs, step })
    })
}

type Chosen = (Vec<FileMeta>, Step);

fn owned(files: &[&FileMeta]) -> Vec<FileMeta> {
    files.iter().map(|&f| f.clone()).collect()
}

/// Files that were flushed when the cutoff had passed them already (others leave with the retention entry itself).
fn expired(files: &[&FileMeta], cutoffs: &BTreeMap<u32, i64>) -> Option<Chosen> {
    let cutoff = |database: DatabaseId| cutoffs.get(&database.0).copied().unwrap_or(i64::MIN);
    let expired: Vec<&FileMeta> = files.iter().copied().filter(|f| f.max_time < cutoff(f.database)).collect();
    (!expired.is_empty()).then(|| (owned(&expired), Step::Expire))
}

/// A file that holds rows of other shards since a split: it is rewritten by itself, which gives their place back.
fn wide(files: &[&FileMeta], range: &HashRange) -> Option<Chosen> {
    let file = files.iter().copied().find(|f| range.is_narrower_than(f.range_version))?;
    Some((owned(&[file]), file.day.map_or(Step::MergeLate, Step::Merge)))
}

fn late(files: &[&FileMeta], eagerness: Eagerness) -> Option<Chosen> {
    let late: Vec<&FileMeta> = files.iter().copied().filter(|f| f.day.is_none()).collect();
    let worth_cutting = |f: &&&FileMeta| f.rows >= CUT_ROWS || f.rows / f.days.len().max(1) as u64 >= CUT_ROWS_PER_DAY;
    let cut = match eagerness {
        Eagerness::UntilEachRowStandsOnce => late.first(),
        Eagerness::WhenItPays => late.iter().find(worth_cutting),
    };
    if let Some(file) = cut {
        return Some((owned(&[*file]), Step::Cut));
    }
    if late.len() < FAN_IN {
        return None;
    }
    let run = neighbours_of_a_size(&late, FAN_IN)?;
    let chosen = owned(&late[run]);
    if can_merge_late(files, &chosen) {
        Some((chosen, Step::MergeLate))
    } else {
        // A day's own file was written between them: only cut do their rows find their place.
        Some((chosen[..1].to_vec(), Step::Cut))
    }
}

/// Whether no other file with a day of these was written between them.
fn can_merge_late(files: &[&FileMeta], chosen: &[FileMeta]) -> bool {
    let (from, to) = span(chosen);
    let days: BTreeSet<i32> = chosen.iter().flat_map(|f| f.days().iter().copied()).collect();
    let others = files.iter().filter(|f| chosen.iter().all(|c| c.path != f.path));
    others.filter(|f| f.from <= to && f.to >= from).all(|f| !f.days().iter().any(|day| days.contains(day)))
}

fn days(files: &[&FileMeta], eagerness: Eagerness) -> Option<Chosen> {
    let days: BTreeSet<i32> = files.iter().filter_map(|f| f.day).collect();
    days.into_iter().find_map(|day| {
        let of_day: Vec<&FileMeta> = files.iter().copied().filter(|f| f.has_day(day)).collect();
        // A late file between two files of the day keeps them from being neighbours.
        let runs = of_day.split(|f| f.day.is_none());
        runs.filter(|run| !run.is_empty()).find_map(|run| {
            let chosen = match eagerness {
                Eagerness::WhenItPays => neighbours_of_a_size(run, FAN_IN)?,
                Eagerness::UntilEachRowStandsOnce if run.len() > 1 || run[0].level == 0 => 0..run.len().min(MAX_INPUTS),
                Eagerness::UntilEachRowStandsOnce => return None,
            };
            Some((owned(&run[chosen]), Step::Merge(day)))
        })
    })
}

/// What it costs to merge a file, in rows of usual size.
fn weight(file: &FileMeta) -> u64 {
    file.rows.max(file.bytes / LARGE_ROW_BYTES)
}

/// A size class: files of one class differ by less than [`FAN_IN`] times.
fn class(rows: u64) -> u32 {
    const SMALLEST: u64 = 1 << 12;
    (rows / SMALLEST).max(1).ilog(FAN_IN as u64)
}

/// The first run of neighbours with at least `enough` of one class, in which none outweighs all others, smallest classes
/// first. Smaller ones between and behind them go along.
fn neighbours_of_a_size(files: &[&FileMeta], enough: usize) -> Option<Range<usize>> {
    let largest = files.iter().map(|f| class(weight(f))).max()?;
    (0..=largest).find_map(|limit| {
        let mut start = 0;
        while start < files.len() {
            let (mut weighs, mut bytes) = (0, 0);
            let mut end = start;
            while let Some(file) = files.get(end).filter(|f| end - start < MAX_INPUTS && class(weight(f)) <= limit) {
                if weighs + weight(file) > MAX_ROWS || bytes + file.bytes > MAX_BYTES {
                    break;
                }
                weighs += weight(file);
                bytes += file.bytes;
                end += 1;
            }
            let heaviest = files[start..end].iter().map(|f| weight(f)).max().unwrap_or(0);
            let peers = files[start..end].iter().filter(|f| class(weight(f)) == limit).count();
            if peers >= enough && heaviest * 2 <= weighs {
                return Some(start..end);
            }
            // Only past the run: a shorter run inside it that is worth a merge is one of a smaller class.
            start = end.max(start + 1);
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use model::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::tests::file;

    fn sized(name: &str, day: i32, span: std::ops::RangeInclusive<u64>, rows: u64) -> FileMeta {
        FileMeta { rows, ..file(name, day, span) }
    }

    fn late_file(name: &str, days: &[i32], span: std::ops::RangeInclusive<u64>, rows: u64) -> FileMeta {
        FileMeta { rows, day: None, days: days.to_vec(), path: format!("parquet/default/phone/late/{name}.parquet"), ..file(name, 0, span) }
    }

    fn next(files: &[FileMeta], eagerness: Eagerness) -> Option<(Vec<u64>, Step)> {
        let plan = plan(files, &BTreeMap::new(), &HashRange::default(), None, eagerness)?;
        Some((plan.inputs.iter().map(|f| f.from.0).collect(), plan.step))
    }

    /// Files of one day, in order of writes, by their rows.
    fn day_of(rows: &[u64]) -> Vec<FileMeta> {
        rows.iter().enumerate().map(|(i, &rows)| sized(&format!("f{i}"), 1, i as u64 * 10..=i as u64 * 10 + 9, rows)).collect()
    }

    const M: u64 = 1 << 20;

    #[test]
    fn files_are_merged_when_enough_of_a_size_stand_together() {
        let cases: [(&[u64], Option<&[u64]>); 8] = [
            (&[M; 5], None),
            (&[M; 6], Some(&[0, 10, 20, 30, 40, 50])),
            // A large old file is not rewritten for six small new ones.
            (&[40 * M, M, M, M, M, M, M], Some(&[10, 20, 30, 40, 50, 60])),
            (&[40 * M, M, M, M, M, M], None),
            // A small one between large ones goes along.
            (&[M, M, M, 5, M, M, M], Some(&[0, 10, 20, 30, 40, 50, 60])),
            // One that outweighs the others waits until they have grown.
            (&[5, 5, 5, 4_000, 5, 5], None),
            // Files that are large enough are left alone.
            (&[MAX_ROWS / 4; 6], None),
            (
                &[100; 40],
                Some(&[
                    0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200, 210, 220, 230, 240, 250,
                    260, 270, 280, 290, 300, 310,
                ]),
            ),
        ];
        for (rows, expected) in cases {
            let expected = expected.map(|from| (from.to_vec(), Step::Merge(1)));
            assert_eq!(next(&day_of(rows), Eagerness::WhenItPays), expected, "{rows:?}");
        }
    }

    #[test]
    fn a_full_compaction_ends_with_one_rich_file_a_day() {
        let eager = Eagerness::UntilEachRowStandsOnce;
        assert_eq!(next(&day_of(&[5, 1_000_000]), eager), Some((vec![0, 10], Step::Merge(1))));
        // A single flushed file is packed richly, once.
        assert_eq!(next(&day_of(&[5]), eager), Some((vec![0], Step::Merge(1))));
        let rich = FileMeta { level: 1, ..file("a", 1, 0..=9) };
        assert_eq!(next(std::slice::from_ref(&rich), eager), None);
        let other_day = FileMeta { level: 1, ..file("b", 2, 0..=9) };
        assert_eq!(next(&[rich, other_day], eager), None);
    }

    #[test]
    fn late_files_are_merged_while_small_and_cut_once_it_pays() {
        let many: Vec<i32> = (0..20).collect();
        let small: Vec<FileMeta> = (0..6).map(|i| late_file(&format!("l{i}"), &many, i * 10..=i * 10 + 9, 100)).collect();
        let pays = Eagerness::WhenItPays;
        assert_eq!(next(&small[..5], pays), None);
        assert_eq!(next(&small, pays), Some((vec![0, 10, 20, 30, 40, 50], Step::MergeLate)));
        assert_eq!(next(&small[..1], Eagerness::UntilEachRowStandsOnce), Some((vec![0], Step::Cut)));
        let dense = late_file("d", &[1, 2], 70..=79, 2 * CUT_ROWS_PER_DAY);
        assert_eq!(next(&[dense], pays), Some((vec![70], Step::Cut)));
        let huge = late_file("h", &many, 70..=79, CUT_ROWS);
        assert_eq!(next(&[huge], pays), Some((vec![70], Step::Cut)));
        // Day 3 has a file of its own in between: merged, the late rows would lose their place.
        let mut between = small.clone();
        between.push(file("own", 3, 25..=25));
        assert_eq!(next(&between, pays), Some((vec![0], Step::Cut)));
    }

    #[test]
    fn a_late_file_between_keeps_a_days_files_apart() {
        let mut files = day_of(&[M; 8]);
        files[3] = late_file("l", &[0, 1], 30..=39, 10);
        assert_eq!(next(&files, Eagerness::WhenItPays), None);
        files[3] = late_file("l", &[0, 2], 30..=39, 10);
        assert_eq!(next(&files, Eagerness::WhenItPays), Some((vec![0, 10, 20, 40, 50, 60, 70], Step::Merge(1))));
    }

    #[test]
    fn expired_files_go_first_and_only_those_of_their_database() {
        let files = [file("a", 1, 0..=9), file("b", 3, 10..=19)];
        let cutoffs = |database: u32| BTreeMap::from([(database, 2 * Timestamp::DAY)]);
        let plan_with = |cutoffs| plan(&files, &cutoffs, &HashRange::default(), None, Eagerness::WhenItPays);
        assert_eq!(plan_with(cutoffs(2)), None);
        let expired = plan_with(cutoffs(1)).unwrap();
        assert_eq!((expired.step, expired.inputs), (Step::Expire, vec![files[0].clone()]));
    }

    #[test]
    fn files_of_large_rows_weigh_what_their_bytes_do() {
        let of = |rows: u64, bytes: &[u64]| -> Vec<FileMeta> {
            let files = day_of(&vec![rows; bytes.len()]);
            files.into_iter().zip(bytes).map(|(file, &bytes)| FileMeta { bytes, ..file }).collect()
        };
        let next = |files: &[FileMeta]| next(files, Eagerness::WhenItPays).map(|(inputs, _)| inputs.len());
        const G: u64 = 1 << 30;
        // A few large rows stand in a file of some GiB: it is not rewritten for small ones.
        assert_eq!(next(&of(1_000, &[G, 9_000, 9_000, 9_000, 9_000, 9_000])), None);
        assert_eq!(next(&of(1_000, &[G; 6])), Some(6));
        // What one merge would have to write twice has an end.
        assert_eq!(next(&of(1_000, &[G; 40])), Some(32));
        assert_eq!(next(&of(1_000, &[5 * G; 20])), Some(6));
        assert_eq!(next(&of(1_000, &[7 * G; 20])), None);
    }

    #[test]
    fn only_the_asked_table_is_looked_at() {
        let files = day_of(&[M; 6]);
        let of = |table| plan(&files, &BTreeMap::new(), &HashRange::default(), Some(TableId(table)), Eagerness::WhenItPays);
        assert!(of(1).is_some());
        assert!(of(2).is_none());
    }

    /// The outputs that a plan would give, without any rows.
    fn outputs(plan: &Plan, number: usize) -> Vec<FileMeta> {
        let (from, to) = plan.span();
        let rows: u64 = plan.inputs.iter().map(|f| f.rows).sum();
        let base = |name: String, day: i32| FileMeta { level: plan.level(), rows, ..file(&name, day, from.0..=to.0) };
        match plan.step {
            Step::Expire => Vec::new(),
            Step::Merge(day) => vec![base(format!("o{number}"), day)],
            Step::MergeLate => vec![late_file(&format!("o{number}"), &plan.days(), from.0..=to.0, rows)],
            Step::Cut => plan.days().into_iter().map(|day| base(format!("o{number}-{day}"), day)).collect(),
        }
    }

    /// What one flush brings: a file for some days, a late file for others.
    fn any_flush() -> impl Strategy<Value = (BTreeMap<i32, u64>, BTreeSet<i32>, u64)> {
        (prop::collection::btree_map(0..4i32, 1..3 * M, 0..3), prop::collection::btree_set(0..5i32, 0..4), 1..200_000u64)
    }

    proptest! {
        #[test]
        fn every_plan_keeps_the_order_of_writes(flushes in prop::collection::vec(any_flush(), 1..40), full_at_end: bool) {
            let mut live: Vec<FileMeta> = Vec::new();
            let mut number = 0;
            for (i, (own, late, late_rows)) in flushes.iter().enumerate() {
                let span = i as u64 * 10..=i as u64 * 10 + 9;
                live.extend(own.iter().map(|(&day, &rows)| sized(&format!("f{i}"), day, span.clone(), rows)));
                let late: Vec<i32> = late.iter().copied().filter(|day| !own.contains_key(day)).collect();
                if late.len() > 1 {
                    live.push(late_file(&format!("f{i}"), &late, span, *late_rows));
                }
                let last = i + 1 == flushes.len();
                let eagerness =
                    if last && full_at_end { Eagerness::UntilEachRowStandsOnce } else { Eagerness::WhenItPays };
                let mut steps = 0;
                while let Some(plan) = plan(&live, &BTreeMap::new(), &HashRange::default(), None, eagerness) {
                    steps += 1;
                    prop_assert!(steps < 1_000, "planning comes to an end");
                    number += 1;
                    let new = outputs(&plan, number);
                    live.retain(|f| plan.inputs.iter().all(|input| input.path != f.path));
                    live.extend(new);
                    for day in 0..5 {
                        let mut spans: Vec<_> = live.iter().filter(|f| f.has_day(day)).map(|f| (f.from, f.to)).collect();
                        spans.sort();
                        prop_assert!(spans.windows(2).all(|w| w[0].1 < w[1].0), "day {}: {:?} after {:?}", day, spans, plan.step);
                    }
                }
                if last && full_at_end {
                    for day in 0..5 {
                        prop_assert!(live.iter().filter(|f| f.has_day(day)).count() <= 1);
                    }
                    prop_assert!(live.iter().all(|f| f.day.is_some()));
                }
            }
        }

        #[test]
        fn a_row_is_rewritten_twice_at_most_in_a_busy_day(flushes in 1usize..200) {
            let mut live: Vec<FileMeta> = Vec::new();
            let (mut written, mut rewritten) = (0, 0);
            for i in 0..flushes {
                live.push(sized(&format!("f{i}"), 1, i as u64 * 10..=i as u64 * 10 + 9, M));
                written += M;
                while let Some(plan) = plan(&live, &BTreeMap::new(), &HashRange::default(), None, Eagerness::WhenItPays) {
                    rewritten += plan.inputs.iter().map(|f| f.rows).sum::<u64>();
                    let new = outputs(&plan, i);
                    live.retain(|f| plan.inputs.iter().all(|input| input.path != f.path));
                    live.extend(new);
                }
            }
            prop_assert!(rewritten <= 2 * written, "{} of {}", rewritten, written);
            prop_assert!(live.len() <= 3 * FAN_IN, "{} files", live.len());
        }
    }
}
