//! What this shard answered to which request, so that a repeat is answered alike and stored only once (DESIGN rule 6).
//!
//! An old retry must not undo a newer write: a part whose (origin, sequence) is known is not applied again. What is
//! remembered is bounded in time, by the arrival times that the entries carry (of the leaders that proposed them), and in
//! number; both depend on the log alone, so all replicas remember the same. A new leader's clock may be far from the one before:
//! between two parts no more than a twelfth of a window passes, whatever their arrival times say, or what the old leader
//! stored and could not answer would be forgotten just when it is asked for again. Beyond the bounds a repeat is a new
//! write, which changes nothing unless a newer write of the same rows came between.
//!
//! ```text
//! saved  = | format u8 = 1 | origins u32 | origin u128 … | window × 2 |     recent, day; all numbers little-endian
//! window = | last arrival i64 | count u32 | answer × count |                      oldest first; i64::MIN: none
//! answer = | origin's number u32 | sequence u64 | time in the window i64 | rows u32 |
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
/// No window passes in fewer steps from one part to the next.
const MAX_STEPS: i64 = 12;
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
    /// The keys of `rows` with their time in this window, oldest entry of the log first.
    order: VecDeque<(u128, u64, i64)>,
    /// The window's time; it begins with the first arrival.
    now: i64,
    /// The last arrival; `i64::MIN` before the first.
    last: i64,
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
        window.pass(part.arrived.0);
        window.push(part.origin, part.sequence, window.now, rows);
        window.forget();
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
            out.extend_from_slice(&window.last.to_le_bytes());
            out.extend_from_slice(&(window.order.len() as u32).to_le_bytes());
            for &(origin, sequence, at) in &window.order {
                out.extend_from_slice(&origins[&origin].to_le_bytes());
                out.extend_from_slice(&sequence.to_le_bytes());
                out.extend_from_slice(&at.to_le_bytes());
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
            window.last = i64::from_le_bytes(r.take("last arrival")?);
            for _ in 0..u32::from_le_bytes(r.take("answers")?) {
                let at = r.at;
                let number = u32::from_le_bytes(r.take("origin's number")?);
                let origin = *origins.get(number as usize).ok_or(DecodeError { what: "origin's number", at })?;
                let sequence = u64::from_le_bytes(r.take("sequence")?);
                window.now = i64::from_le_bytes(r.take("time")?);
                window.push(origin, sequence, window.now, u32::from_le_bytes(r.take("rows")?));
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
        Window { max_age_ns, max_count, rows: HashMap::new(), order: VecDeque::new(), now: 0, last: i64::MIN }
    }

    /// Something arrived at this time.
    fn pass(&mut self, arrived: i64) {
        self.now = match self.last {
            i64::MIN => arrived,
            last => self.now.saturating_add(arrived.saturating_sub(last).clamp(0, self.max_age_ns / MAX_STEPS)),
        };
        self.last = arrived;
    }

    fn push(&mut self, origin: u128, sequence: u64, at: i64, rows: u32) {
        if self.rows.insert((origin, sequence), rows).is_none() {
            self.order.push_back((origin, sequence, at));
        }
    }

    /// Forgets what is too old.
    fn forget(&mut self) {
        let oldest = self.now.saturating_sub(self.max_age_ns);
        while let Some(&(origin, sequence, at)) = self.order.front()
            && (self.order.len() > self.max_count || at < oldest)
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
        // A part every second, a part every hour.
        (60..=119).for_each(|s| retries.stored(&part(1, 100 + s as u64, s, RetryWindow::Recent), 1));
        assert_eq!(retries.known(&part(1, 2, 119, RetryWindow::Recent)), Some(Outcome::Stored { rows: 9 }));
        retries.stored(&part(1, 3, 120, RetryWindow::Recent), 1);
        assert_eq!(retries.known(&part(1, 1, 120, RetryWindow::Recent)), None);
        (1..=24).for_each(|h| retries.stored(&part(3, h as u64, h * 3_600, RetryWindow::Day), 1));
        assert_eq!(retries.known(&part(2, 1, 86_400, RetryWindow::Day)), Some(Outcome::Stored { rows: 8 }));
        retries.stored(&part(3, 25, 86_401, RetryWindow::Day), 1);
        assert_eq!(retries.known(&part(2, 1, 86_401, RetryWindow::Day)), None);
    }

    #[test]
    fn a_new_leader_with_another_clock_forgets_nothing_that_was_just_stored() {
        for jump in [61, 86_400 * 400, -86_400] {
            let mut retries = Retries::default();
            retries.stored(&part(1, 1, 0, RetryWindow::Recent), 7);
            retries.stored(&part(2, 1, 0, RetryWindow::Day), 8);
            let mut retries = Retries::decode(&retries.encode()).unwrap();
            (0..9).for_each(|s| retries.stored(&part(1, 10 + s as u64, jump + s, RetryWindow::Recent), 1));
            retries.stored(&part(2, 2, jump, RetryWindow::Day), 1);
            assert_eq!(retries.known(&part(1, 1, jump, RetryWindow::Recent)), Some(Outcome::Stored { rows: 7 }), "{jump}");
            assert_eq!(retries.known(&part(2, 1, jump, RetryWindow::Day)), Some(Outcome::Stored { rows: 8 }), "{jump}");
        }
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
