//! A fridge: a compressor that cycles, a door that opens at meal times, a report every six intervals.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Kind, Moment};
use crate::line::{FieldKind, FieldSpec, Value};

pub(super) const FIELDS: [FieldSpec; 6] = [
    FieldSpec { name: "inside_temp", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "freezer_temp", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "compressor", kind: FieldKind::Bool },
    FieldSpec { name: "door_open", kind: FieldKind::Bool },
    FieldSpec { name: "door_count", kind: FieldKind::Int },
    FieldSpec { name: "power_w", kind: FieldKind::Fixed(1) },
];

pub(super) const MODELS: [(&str, &str); 3] = [("coolbox-300", "rtos-4"), ("arctic-l", "rtos-5"), ("smartfrost-2", "tizen-9")];

pub(super) struct Fridge {
    inside: f64,
    freezer: f64,
    compressor: bool,
    door: bool,
    doors: i64,
}

impl Fridge {
    pub(super) fn new(rng: &mut SmallRng) -> Fridge {
        Fridge { inside: rng.random_range(3.0..6.0), freezer: rng.random_range(-21.0..-17.0), compressor: false, door: false, doors: 0 }
    }
}

impl Kind for Fridge {
    fn report(&mut self, now: Moment, rng: &mut SmallRng, values: &mut [Value]) {
        let meal = [7.5, 12.5, 19.0].iter().any(|m| (now.hour - m).abs() < 1.0);
        self.door = rng.random_bool(if meal { 0.15 } else { 0.01 });
        self.doors += i64::from(self.door);
        let minutes = (now.elapsed_s / 60.0).min(30.0);
        self.inside += if self.door { 0.9 } else { 0.04 } * minutes - if self.compressor { 0.12 * minutes } else { 0.0 };
        self.freezer += 0.02 * minutes - if self.compressor { 0.06 * minutes } else { 0.0 };
        self.inside = self.inside.clamp(1.0, 22.0);
        self.freezer = self.freezer.clamp(-24.0, 0.0);
        self.compressor = if self.compressor { self.inside > 3.5 } else { self.inside > 5.5 };
        let power = if self.compressor { 850 + rng.random_range(-40..=40) } else { 21 };
        values.copy_from_slice(&[
            Value::Fixed((self.inside * 100.0).round() as i64),
            Value::Fixed((self.freezer * 100.0).round() as i64),
            Value::Bool(self.compressor),
            Value::Bool(self.door),
            Value::Int(self.doors),
            Value::Fixed(power),
        ]);
    }

    fn pause(&self, _rng: &mut SmallRng) -> f64 {
        if self.door { 1.0 } else { 6.0 }
    }
}
