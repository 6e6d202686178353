//! A TV: off most of the time and then nearly silent, on in the evening, its channel zapped through.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Kind, Moment};
use crate::line::{FieldKind, FieldSpec, Value};

pub(super) const FIELDS: [FieldSpec; 5] = [
    FieldSpec { name: "on", kind: FieldKind::Bool },
    FieldSpec { name: "source", kind: FieldKind::Text },
    FieldSpec { name: "volume", kind: FieldKind::Int },
    FieldSpec { name: "bitrate_mbps", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "dropped_frames", kind: FieldKind::Int },
];

pub(super) const MODELS: [(&str, &str); 3] = [("bravia-9", "android-tv-16"), ("oled-c7", "webos-26"), ("frame-55", "tizen-9")];

const SOURCES: [&str; 6] = ["tuner 1", "tuner 2", "hdmi 1", "stream: films", "stream: sport, live", "aerial \\ cable"];

pub(super) struct Tv {
    on: bool,
    source: usize,
    volume: i64,
    dropped: i64,
}

impl Tv {
    pub(super) fn new(rng: &mut SmallRng) -> Tv {
        Tv { on: false, source: rng.random_range(0..SOURCES.len()), volume: rng.random_range(5..=40), dropped: 0 }
    }
}

impl Kind for Tv {
    fn report(&mut self, now: Moment, rng: &mut SmallRng, values: &mut [Value]) {
        let evening = (18.0..23.5).contains(&now.hour);
        self.on =
            if self.on { rng.random_bool(if evening { 0.995 } else { 0.95 }) } else { rng.random_bool(if evening { 0.1 } else { 0.01 }) };
        if !self.on {
            values[0] = Value::Bool(false);
            return;
        }
        if rng.random_bool(0.05) {
            self.source = rng.random_range(0..SOURCES.len());
        }
        self.volume = (self.volume + rng.random_range(-1..=1)).clamp(0, 100);
        self.dropped += i64::from(rng.random_bool(0.02));
        values.copy_from_slice(&[
            Value::Bool(true),
            Value::Text(SOURCES[self.source]),
            Value::Int(self.volume),
            Value::Fixed(rng.random_range(300..=2_400)),
            Value::Int(self.dropped),
        ]);
    }

    fn pause(&self, _rng: &mut SmallRng) -> f64 {
        if self.on { 1.0 } else { 30.0 }
    }
}
