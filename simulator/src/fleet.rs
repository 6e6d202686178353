//! Seeded devices in simulated time: who reports when, and which of those lines arrive late, twice or in a burst.
//!
//! Lines come out in the order in which a server would see them. A device's own points have strictly growing times (in
//! milliseconds, as device clocks have them), so each line that is not a duplicate is a row of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::kinds::{Device, KindName};
use crate::line::{Value, write_fields, write_time};

const MS: i64 = 1_000_000;
/// How long a device stays offline, in intervals, on average.
const OFFLINE_INTERVALS: f64 = 30.0;
/// Lines that a device buffers while it is offline; older ones are lost in the device, as real firmware does.
const BUFFERED_LINES: usize = 1_000;
/// Simulated time between two reconnect storms, and the share of the fleet that each one takes offline.
const STORM_EVERY_NS: i64 = 1_800_000 * MS;
const STORM_SHARE: f64 = 0.1;

/// What fleet to simulate. Percentages are 0 ..= 100.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Number of devices, spread evenly over `kinds`.
    pub devices: u32,
    /// The kinds of device.
    pub kinds: Vec<KindName>,
    /// Lines to make, duplicates included; `None` for as long as asked.
    pub points: Option<u64>,
    /// Simulated nanoseconds between two reports of a phone.
    pub interval_ns: i64,
    /// Simulated start, nanoseconds since 1970.
    pub start_ns: i64,
    /// Same seed, same bytes.
    pub seed: u64,
    /// Lines that arrive minutes to hours after their time.
    pub late_pct: f64,
    /// Lines that are sent a second time later.
    pub duplicate_pct: f64,
    /// Devices that are silent at any time, and then send what they buffered.
    pub offline_pct: f64,
}

/// One line on its way, as the ledger needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The kind of device: the table.
    pub kind: KindName,
    /// The device's number in the fleet.
    pub device: u32,
    /// The point's time.
    pub time_ns: i64,
    /// The point's hash, tags and fields.
    pub hash: u64,
}

/// The fleet as a stream of lines.
pub struct Fleet {
    options: FleetOptions,
    devices: Vec<State>,
    /// What happens next, earliest first; ties in order of scheduling.
    events: BinaryHeap<Reverse<(i64, u64, Event)>>,
    scheduled: u64,
    late: Vec<Option<Line>>,
    free: Vec<usize>,
    ready: VecDeque<Line>,
    rng: SmallRng,
    made: u64,
    draining: bool,
    /// Some event would have been beyond the last instant that there is.
    time_ended: bool,
    now_ns: i64,
    values: Vec<Value>,
    text: Vec<u8>,
}

struct State {
    device: Device,
    last_report_ns: i64,
    last_time_ms: i64,
    offline_until_ns: i64,
    buffered: VecDeque<Line>,
}

#[derive(Clone)]
struct Line {
    sent: Sent,
    text: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Report(u32),
    Deliver(usize),
}

impl Fleet {
    /// A fleet at its start.
    pub fn new(options: FleetOptions) -> Fleet {
        assert!(options.devices > 0 && !options.kinds.is_empty(), "a fleet has devices of some kind");
        let mut rng = SmallRng::seed_from_u64(options.seed);
        let mut events = BinaryHeap::with_capacity(options.devices as usize);
        let mut time_ended = false;
        let devices = (0..options.devices)
            .map(|i| {
                let kind = options.kinds[i as usize % options.kinds.len()];
                let first = options.start_ns.checked_add(rng.random_range(0..options.interval_ns.max(1)));
                match first {
                    Some(first) => events.push(Reverse((first, u64::from(i), Event::Report(i)))),
                    None => time_ended = true,
                }
                State {
                    device: Device::new(kind, i, options.seed),
                    last_report_ns: options.start_ns,
                    last_time_ms: i64::MIN,
                    offline_until_ns: i64::MIN,
                    buffered: VecDeque::new(),
                }
            })
            .collect();
        let scheduled = u64::from(options.devices);
        let now_ns = options.start_ns;
        Fleet {
            options,
            devices,
            events,
            scheduled,
            late: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            rng,
            made: 0,
            draining: false,
            time_ended,
            now_ns,
            values: Vec::new(),
            text: Vec::new(),
        }
    }

    /// The simulated time, nanoseconds since 1970.
    pub fn now_ns(&self) -> i64 {
        self.now_ns
    }

    /// Whether the fleet ended before it had made what it was asked for, because there is no time after the last nanosecond
    /// of 64 bits. Known once [`next_line`](Fleet::next_line) gives none.
    pub fn ran_out_of_time(&self) -> bool {
        self.time_ended && !self.draining
    }

    /// Appends the next line to `out`; `None` when all points were made and delivered.
    pub fn next_line(&mut self, out: &mut Vec<u8>) -> Option<Sent> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                out.extend_from_slice(&line.text);
                return Some(line.sent);
            }
            if !self.draining && self.options.points.is_some_and(|points| self.made >= points) {
                self.draining = true;
            }
            let Some(Reverse((at, _, event))) = self.events.pop() else {
                self.empty_buffers()?;
                continue;
            };
            self.now_ns = self.now_ns.max(at);
            match event {
                Event::Deliver(slot) => {
                    let line = self.late[slot].take().expect("a line is delivered once");
                    self.free.push(slot);
                    out.extend_from_slice(&line.text);
                    return Some(line.sent);
                }
                Event::Report(_) if self.draining => {}
                Event::Report(device) => {
                    if let Some(sent) = self.report(device, at, out) {
                        return Some(sent);
                    }
                }
            }
        }
    }

    /// Ends the making of new points: what is buffered or late still comes.
    pub fn finish(&mut self) {
        self.draining = true;
    }

    /// One device reports. Gives the line if it goes out at once.
    fn report(&mut self, index: u32, at: i64, out: &mut Vec<u8>) -> Option<Sent> {
        let state = &mut self.devices[index as usize];
        let kind = state.device.kind;
        let elapsed_s = at.saturating_sub(state.last_report_ns) as f64 / 1e9;
        state.last_report_ns = at;
        self.values.clear();
        self.values.resize(kind.fields().len(), Value::Missing);
        state.device.report(at, elapsed_s, &mut self.values);
        let time_ms = (at.saturating_add(state.device.skew_ns) / MS).max(state.last_time_ms + 1);
        let Some(time_ns) = time_ms.checked_mul(MS) else {
            self.time_ended = true;
            return None;
        };
        state.last_time_ms = time_ms;

        self.text.clear();
        self.text.extend_from_slice(&state.device.head);
        let fields_hash = write_fields(&mut self.text, kind.fields(), &self.values).expect("a report has a value");
        write_time(&mut self.text, time_ns);
        let sent = Sent { kind, device: index, time_ns, hash: state.device.tags_hash.wrapping_add(fields_hash) };
        self.made += 1;

        let pause = state.device.pause();
        let jitter = self.rng.random_range(0.995..1.005);
        match at.checked_add(((self.options.interval_ns as f64 * pause * jitter) as i64).max(MS)) {
            Some(next) => self.schedule(next, Event::Report(index)),
            None => self.time_ended = true,
        }

        if self.rng.random_bool((self.options.duplicate_pct / 100.0).clamp(0.0, 1.0)) && self.room_for_another() {
            self.made += 1;
            let line = Line { sent, text: self.text.as_slice().into() };
            let later = at.saturating_add(self.rng.random_range(1_000..120_000) * MS);
            self.deliver_later(later, line);
        }
        if self.offline(index, at) {
            let state = &mut self.devices[index as usize];
            if state.buffered.len() == BUFFERED_LINES {
                // The device forgets its oldest line: nobody was told of it, so it was never made.
                state.buffered.pop_front();
                self.made -= 1;
            }
            state.buffered.push_back(Line { sent, text: self.text.as_slice().into() });
            return None;
        }
        let state = &mut self.devices[index as usize];
        if !state.buffered.is_empty() {
            // Back online: what was buffered goes first, then this line.
            self.ready.extend(state.buffered.drain(..));
            self.ready.push_back(Line { sent, text: self.text.as_slice().into() });
            return None;
        }
        if self.rng.random_bool((self.options.late_pct / 100.0).clamp(0.0, 1.0)) {
            let line = Line { sent, text: self.text.as_slice().into() };
            let later = at.saturating_add(self.rng.random_range(60_000..3 * 3_600_000) * MS);
            self.deliver_later(later, line);
            return None;
        }
        out.extend_from_slice(&self.text);
        Some(sent)
    }

    fn room_for_another(&self) -> bool {
        self.options.points.is_none_or(|points| self.made < points)
    }

    /// Whether the device is offline now; it may just have become so, by itself or in a storm.
    fn offline(&mut self, index: u32, at: i64) -> bool {
        let share = (self.options.offline_pct / 100.0).clamp(0.0, 0.95);
        if share == 0.0 {
            return false;
        }
        let since = at.saturating_sub(self.options.start_ns);
        let storm = since / STORM_EVERY_NS;
        let storm_ends = (at - since % STORM_EVERY_NS).saturating_add(240_000 * MS);
        let state = &mut self.devices[index as usize];
        if at < state.offline_until_ns {
            return true;
        }
        let mut storm_dice = SmallRng::seed_from_u64(self.options.seed ^ (storm as u64) << 32 ^ u64::from(index));
        if storm > 0 && at < storm_ends && storm_dice.random_bool(STORM_SHARE) {
            state.offline_until_ns = storm_ends;
            return true;
        }
        let enters = share / (OFFLINE_INTERVALS * (1.0 - share));
        if self.rng.random_bool(enters.min(1.0)) {
            let intervals = self.rng.random_range(1.0..2.0 * OFFLINE_INTERVALS);
            state.offline_until_ns = at.saturating_add((intervals * self.options.interval_ns as f64) as i64);
            return true;
        }
        false
    }

    fn schedule(&mut self, at: i64, event: Event) {
        self.events.push(Reverse((at, self.scheduled, event)));
        self.scheduled += 1;
    }

    fn deliver_later(&mut self, at: i64, line: Line) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.late.push(None);
            self.late.len() - 1
        });
        self.late[slot] = Some(line);
        self.schedule(at, Event::Deliver(slot));
    }

    /// At the end every device comes online once more. `None` if no line was left anywhere.
    fn empty_buffers(&mut self) -> Option<()> {
        for state in &mut self.devices {
            self.ready.extend(state.buffered.drain(..));
        }
        (!self.ready.is_empty()).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn options() -> FleetOptions {
        FleetOptions {
            devices: 50,
            kinds: KindName::ALL.to_vec(),
            points: Some(20_000),
            interval_ns: 10_000 * MS,
            start_ns: crate::DEFAULT_START_NS,
            seed: 42,
            late_pct: 3.0,
            duplicate_pct: 2.0,
            offline_pct: 5.0,
        }
    }

    fn all(options: FleetOptions) -> (Vec<u8>, Vec<Sent>) {
        let mut fleet = Fleet::new(options);
        let (mut text, mut sent) = (Vec::new(), Vec::new());
        while let Some(line) = fleet.next_line(&mut text) {
            sent.push(line);
        }
        (text, sent)
    }

    #[test]
    fn a_fleet_that_runs_out_of_time_says_so_and_does_not_overflow() {
        for start_ns in [i64::MAX - 1_000, i64::MAX - 30_000_000_000, i64::MAX - 3_600_000 * MS, i64::MIN] {
            let mut fleet = Fleet::new(FleetOptions {
                start_ns,
                points: Some(100_000),
                late_pct: 5.0,
                duplicate_pct: 5.0,
                offline_pct: 20.0,
                ..options()
            });
            let mut text = Vec::new();
            let made = std::iter::from_fn(|| fleet.next_line(&mut text)).count();
            assert_eq!(fleet.ran_out_of_time(), start_ns > 0, "{start_ns}: {made} lines");
            assert_eq!(made == 100_000, start_ns < 0, "{start_ns}: {made} lines");
        }
    }

    #[test]
    fn same_seed_gives_the_same_bytes() {
        assert_eq!(all(options()), all(options()));
        assert_ne!(all(options()).0, all(FleetOptions { seed: 43, ..options() }).0);
    }

    #[test]
    fn as_many_lines_as_asked() {
        let (text, sent) = all(options());
        assert_eq!(sent.len(), 20_000);
        assert_eq!(text.iter().filter(|&&b| b == b'\n').count(), 20_000);
    }

    #[test]
    fn only_duplicates_share_device_and_time() {
        let (_, sent) = all(FleetOptions { duplicate_pct: 0.0, ..options() });
        let keys: HashSet<_> = sent.iter().map(|s| (s.device, s.time_ns)).collect();
        assert_eq!(keys.len(), sent.len());

        let (_, sent) = all(options());
        let mut seen = std::collections::HashMap::new();
        let mut twice = 0;
        for s in sent {
            if let Some(hash) = seen.insert((s.device, s.time_ns), s.hash) {
                assert_eq!(hash, s.hash);
                twice += 1;
            }
        }
        assert!((150..=700).contains(&twice), "{twice} duplicates of 20,000");
    }

    #[test]
    fn some_lines_come_late_and_in_bursts_when_asked_and_none_otherwise() {
        let out_of_order = |options| {
            let (_, sent) = all(options);
            let mut newest = i64::MIN;
            let behind = |s: &Sent| {
                newest = newest.max(s.time_ns);
                s.time_ns + 30_000 * MS < newest
            };
            sent.iter().map(behind).filter(|&b| b).count()
        };
        let calm = FleetOptions { late_pct: 0.0, duplicate_pct: 0.0, offline_pct: 0.0, ..options() };
        assert_eq!(out_of_order(calm.clone()), 0);
        assert!(out_of_order(FleetOptions { late_pct: 3.0, ..calm.clone() }) > 100);
        assert!(out_of_order(FleetOptions { offline_pct: 5.0, ..calm }) > 100);
    }
}
