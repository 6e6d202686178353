//! A watch: a heart that beats slower at night and faster in a workout, steps, and a small battery.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Kind, Moment, wander};
use crate::line::{FieldKind, FieldSpec, Value};

pub(super) const FIELDS: [FieldSpec; 10] = [
    FieldSpec { name: "heart_rate", kind: FieldKind::Int },
    FieldSpec { name: "spo2", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "skin_temp", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "hrv_ms", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "steps", kind: FieldKind::Int },
    FieldSpec { name: "calories", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "stress", kind: FieldKind::Int },
    FieldSpec { name: "altitude_m", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "battery_pct", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "workout", kind: FieldKind::Bool },
];

pub(super) const MODELS: [(&str, &str); 4] =
    [("watch-12", "watchos-13"), ("pixel-watch-5", "wear-7"), ("forerunner-975", "garmin-18"), ("band-10", "rtos-4")];

pub(super) struct Watch {
    heart: i64,
    spo2: i64,
    skin: i64,
    hrv: i64,
    steps: i64,
    calories: i64,
    stress: i64,
    altitude: i64,
    battery: i64,
    charging: bool,
    /// Reports left of a workout.
    workout: u32,
}

impl Watch {
    pub(super) fn new(rng: &mut SmallRng) -> Watch {
        Watch {
            heart: rng.random_range(55..=85),
            spo2: rng.random_range(9_500..=9_900),
            skin: rng.random_range(3_100..=3_500),
            hrv: rng.random_range(2_000..=9_000),
            steps: 0,
            calories: 0,
            stress: rng.random_range(10..=60),
            altitude: rng.random_range(0..=80_000),
            battery: rng.random_range(2_000..=10_000),
            charging: false,
            workout: 0,
        }
    }
}

impl Kind for Watch {
    fn report(&mut self, now: Moment, rng: &mut SmallRng, values: &mut [Value]) {
        if self.workout > 0 {
            self.workout -= 1;
        } else if !now.asleep() && rng.random_bool(0.002) {
            self.workout = rng.random_range(30..=400);
        }
        let rest = if now.asleep() { 52 } else { 68 };
        let goal = if self.workout > 0 { 145 } else { rest };
        self.heart = (self.heart + (goal - self.heart) / 8 + rng.random_range(-2..=2)).clamp(38, 205);
        if now.hour < 0.2 {
            self.steps = 0;
            self.calories = 0;
        }
        if self.workout > 0 || rng.random_bool(0.3 * now.daylight()) {
            self.steps += rng.random_range(2..=26);
        }
        self.calories += self.heart * 2 / 3;
        self.charging = if self.charging { self.battery < 10_000 } else { self.battery < 1_000 };
        let change = now.elapsed_s * if self.charging { 1.4 } else { -0.1 };
        self.battery = (self.battery + change as i64).clamp(0, 10_000);
        wander(&mut self.spo2, 8, 9_000, 10_000, rng);
        wander(&mut self.skin, 4, 2_900, 3_800, rng);
        wander(&mut self.hrv, 60, 1_000, 15_000, rng);
        wander(&mut self.stress, 2, 0, 100, rng);
        wander(&mut self.altitude, if self.workout > 0 { 90 } else { 6 }, -20_000, 400_000, rng);
        // On its charger a watch feels no pulse.
        let worn = !self.charging;
        values.copy_from_slice(&[
            if worn { Value::Int(self.heart) } else { Value::Missing },
            if worn { Value::Fixed(self.spo2) } else { Value::Missing },
            Value::Fixed(self.skin),
            if worn { Value::Fixed(self.hrv) } else { Value::Missing },
            Value::Int(self.steps),
            Value::Fixed(self.calories),
            Value::Int(self.stress),
            Value::Fixed(self.altitude),
            Value::Fixed(self.battery),
            Value::Bool(self.workout > 0),
        ]);
    }
}
