//! What this shard answered to which request, so that a repeat is answered alike and stored only once (DESIGN rule 6).
//!
//! An old retry must not undo a newer write: a part whose (origin, sequence) is known is not applied again. What is
//! remembered is bounded in time, by the arrival times that the entries carry (of the leaders that proposed them), and in
//! number; both depend on the log alone, so all replicas remember the same. Beyond the bounds a repeat is a new write, which changes nothing unless a
//! newer write of the same rows came between.
//!
//! ```text
//! saved  = | format u8 = 1 | origins u32 | origin u128 … | window × 2 |     recent, day; all numbers little-endian
//! window = | last arrival i64 | count u32 | answer × count |                      oldest first
//! answer = | origin's number u32 | sequence u64 | arrived i64 | rows u32 |
//! ```

use std::collections::VecDeque;

use hashbrown::HashMap;
use model::{DecodeError, Timestamp};

use crate::entry::{Outcome, RetryWindow, WritePart};

/// How long, and how many, answers to ingest nodes are remembered: they retry within seconds.
const RECENT_NS: i64 = 60_000_000_000;
const RECENT_COUNT: usize = 1 << 17;
/// How long, and how many, answers to requests with an `Idempotency-Key` are remembered.
const DAY_NS: i64 = Timestamp::DAY;
const DAY_COUNT: usize = 1 << 20;
const FORMAT: u8 = 1;

/// The remembered answers of one shard.
#[derive(Clone, Debug)]
pub struct Retries {
    recent: Window,
    day: Window,
}

#[derive(Clone, Debug)]
struct Window {
    max_age_ns: i64,
    max_count: usize,
    rows: HashMap<(u128, u64), u32>,
    /// The keys of `rows` with their arrival, oldest entry of the log first.
    order: VecDeque<(u128, u64, i64)>,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries { recent: Window::new(RECENT_NS, RECENT_COUNT), day: Window::new(DAY_NS, DAY_COUNT) }
    }
}

impl Retries {
    /// The first outcome of this part, if it is a repeat.
    pub fn known(&self, part: &WritePart) -> Option<Outcome> {
        let window = match part.retry_window {
            RetryWindow::Recent => &self.recent,
            RetryWindow::Day => &self.day,
        };
        window.rows.get(&(part.origin, part.sequence)).map(|&rows| Outcome::Stored { rows })
    }

    /// Remembers that a part was stored, and forgets what is out of bounds now.
    pub fn stored(&mut self, part: &WritePart, rows: u32) {
        let window = match part.retry_window {
            RetryWindow::Recent => &mut self.recent,
            RetryWindow::Day => &mut self.day,
        };
        window.push(part.origin, part.sequence, part.arrived.0, rows);
        window.forget(part.arrived.0);
    }

    /// How many answers are remembered.
    pub fn len(&self) -> usize {
        self.recent.order.len() + self.day.order.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes drawn in the module's header.
    pub fn encode(&self) -> Vec<u8> {
        let mut origins: HashMap<u128, u32> = HashMap::new();
        let mut list = Vec::new();
        for (origin, ..) in self.recent.order.iter().chain(&self.day.order) {
            origins.entry(*origin).or_insert_with(|| {
                list.push(*origin);
                list.len() as u32 - 1
            });
        }
        let mut out = Vec::with_capacity(32 + list.len() * 16 + self.len() * 24);
        out.push(FORMAT);
        out.extend_from_slice(&(list.len() as u32).to_le_bytes());
        list.iter().for_each(|origin| out.extend_from_slice(&origin.to_le_bytes()));
        for window in [&self.recent, &self.day] {
            let last = window.order.back().map_or(i64::MIN, |(_, _, arrived)| *arrived);
            out.extend_from_slice(&last.to_le_bytes());
            out.extend_from_slice(&(window.order.len() as u32).to_le_bytes());
            for &(origin, sequence, arrived) in &window.order {
                out.extend_from_slice(&origins[&origin].to_le_bytes());
                out.extend_from_slice(&sequence.to_le_bytes());
                out.extend_from_slice(&arrived.to_le_bytes());
                out.extend_from_slice(&window.rows[&(origin, sequence)].to_le_bytes());
            }
        }
        out
    }

    /// Reads them back; no bytes are no answers. Never panics on foreign bytes.
    pub fn decode(bytes: &[u8]) -> Result<Retries, DecodeError> {
        let mut retries = Retries::default();
        if bytes.is_empty() {
            return Ok(retries);
        }
        let mut r = Reader { bytes, at: 0 };
        if r.take::<1>("retry table's format")? != [FORMAT] {
            return Err(DecodeError { what: "retry table's format (a newer alluvium wrote it)", at: 0 });
        }
        let count = u32::from_le_bytes(r.take("origins")?);
        let mut origins = Vec::with_capacity((count as usize).min(bytes.len() / 16));
        for _ in 0..count {
            origins.push(u128::from_le_bytes(r.take("origin")?));
        }
        for window in [&mut retries.recent, &mut retries.day] {
            r.take::<8>("last arrival")?;
            for _ in 0..u32::from_le_bytes(r.take("answers")?) {
                let at = r.at;
                let number = u32::from_le_bytes(r.take("origin's number")?);
                let origin = *origins.get(number as usize).ok_or(DecodeError { what: "origin's number", at })?;
                let sequence = u64::from_le_bytes(r.take("sequence")?);
                let arrived = i64::from_le_bytes(r.take("arrival")?);
                window.push(origin, sequence, arrived, u32::from_le_bytes(r.take("rows")?));
            }
        }
        match r.at == bytes.len() {
            true => Ok(retries),
            false => Err(DecodeError { what: "retry table's end", at: r.at }),
        }
    }
}

impl Window {
    fn new(max_age_ns: i64, max_count: usize) -> Window {
        Window { max_age_ns, max_count, rows: HashMap::new(), order: VecDeque::new() }
    }

    fn push(&mut self, origin: u128, sequence: u64, arrived: i64, rows: u32) {
        if self.rows.insert((origin, sequence), rows).is_none() {
            self.order.push_back((origin, sequence, arrived));
        }
    }

    /// Forgets what is too old for what arrived last: not for the newest arrival ever, or one clock that was ahead once
    /// would have everything forgotten from then on.
    fn forget(&mut self, now: i64) {
        let oldest = now.saturating_sub(self.max_age_ns);
        while let Some(&(origin, sequence, arrived)) = self.order.front()
            && (self.order.len() > self.max_count || arrived < oldest)
        {
            self.order.pop_front();
            self.rows.remove(&(origin, sequence));
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let taken = self.bytes.get(self.at..self.at + N).ok_or(DecodeError { what, at: self.at })?;
        self.at += N;
        Ok(taken.try_into().expect("as long as asked"))
    }
}

#[cfg(test)]
mod tests {
    use model::Epoch;
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn part(origin: u128, sequence: u64, arrived_s: i64, retry_window: RetryWindow) -> WritePart {
        let arrived = Timestamp(arrived_s * SECOND);
        WritePart { origin, sequence, arrived, range_version: Epoch(1), retry_window, batches: Vec::new() }
    }

    #[test]
    fn a_repeat_gets_the_first_outcome_whenever_it_arrives_within_its_window() {
        let mut retries = Retries::default();
        retries.stored(&part(1, 1, 0, RetryWindow::Recent), 7);
        retries.stored(&part(2, 1, 0, RetryWindow::Day), 8);
        retries.stored(&part(1, 2, 59, RetryWindow::Recent), 9);
        assert_eq!(retries.known(&part(1, 1, 59, RetryWindow::Recent)), Some(Outcome::Stored { rows: 7 }));
        retries.stored(&part(1, 3, 61, RetryWindow::Recent), 1);
        assert_eq!(retries.known(&part(1, 1, 61, RetryWindow::Recent)), None);
        retries.stored(&part(3, 1, 86_399, RetryWindow::Day), 1);
        assert_eq!(retries.known(&part(2, 1, 86_399, RetryWindow::Day)), Some(Outcome::Stored { rows: 8 }));
        retries.stored(&part(3, 2, 86_401, RetryWindow::Day), 1);
        assert_eq!(retries.known(&part(2, 1, 86_401, RetryWindow::Day)), None);
    }

    #[test]
    fn a_clock_that_was_ahead_once_does_not_have_later_answers_forgotten() {
        let mut retries = Retries::default();
        retries.stored(&part(1, 1, 10 * 86_400, RetryWindow::Day), 1);
        let mut retries = Retries::decode(&retries.encode()).unwrap();
        retries.stored(&part(1, 2, 0, RetryWindow::Day), 5);
        retries.stored(&part(1, 3, 1, RetryWindow::Day), 6);
        assert_eq!(retries.known(&part(1, 2, 2, RetryWindow::Day)), Some(Outcome::Stored { rows: 5 }));
    }

    #[test]
    fn many_writes_without_a_key_push_out_no_answer_that_has_one() {
        let mut retries = Retries::default();
        retries.stored(&part(9, 0, 0, RetryWindow::Day), 3);
        for sequence in 0..RECENT_COUNT as u64 + 10 {
            retries.stored(&part(1, sequence, 0, RetryWindow::Recent), 1);
        }
        assert_eq!(retries.len(), RECENT_COUNT + 1);
        assert_eq!(retries.known(&part(1, 9, 0, RetryWindow::Recent)), None);
        assert_eq!(retries.known(&part(9, 0, 0, RetryWindow::Day)), Some(Outcome::Stored { rows: 3 }));
    }

    #[test]
    fn a_newer_format_is_refused() {
        let mut bytes = Retries::default().encode();
        bytes[0] = 2;
        assert!(Retries::decode(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn what_was_saved_answers_alike(parts in prop::collection::vec((0u128..3, 0u64..9, 0i64..200, any::<bool>()), 0..60)) {
            let mut retries = Retries::default();
            let part = |&(origin, sequence, arrived, day): &(u128, u64, i64, bool)| {
                part(origin, sequence, arrived, if day { RetryWindow::Day } else { RetryWindow::Recent })
            };
            for p in &parts {
                if retries.known(&part(p)).is_none() {
                    retries.stored(&part(p), p.2 as u32);
                }
            }
            let restored = Retries::decode(&retries.encode()).unwrap();
            prop_assert_eq!(restored.encode(), retries.encode());
            for p in &parts {
                prop_assert_eq!(restored.known(&part(p)), retries.known(&part(p)));
            }
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            let _ = Retries::decode(&bytes);
        }
    }
}
