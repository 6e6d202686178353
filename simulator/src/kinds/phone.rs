//! A phone: its battery drains and charges at night, its owner walks by day, its radio gets better and worse.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Kind, Moment, wander};
use crate::line::{FieldKind, FieldSpec, Value};

pub(super) const FIELDS: [FieldSpec; 10] = [
    FieldSpec { name: "battery_pct", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "charging", kind: FieldKind::Bool },
    FieldSpec { name: "cpu_temp", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "cpu_load", kind: FieldKind::Fixed(2) },
    FieldSpec { name: "mem_free_mb", kind: FieldKind::Int },
    FieldSpec { name: "signal_dbm", kind: FieldKind::Int },
    FieldSpec { name: "steps", kind: FieldKind::Int },
    FieldSpec { name: "lat", kind: FieldKind::Fixed(4) },
    FieldSpec { name: "lon", kind: FieldKind::Fixed(4) },
    FieldSpec { name: "screen_on", kind: FieldKind::Bool },
];

pub(super) const MODELS: [(&str, &str); 6] = [
    ("pixel-11", "android-17"),
    ("galaxy-s27", "android-17"),
    ("galaxy-a58", "android-16"),
    ("iphone-18", "ios-20"),
    ("iphone-17", "ios-20"),
    ("fairphone-7", "android-16"),
];

pub(super) struct Phone {
    battery: i64,
    charging: bool,
    temp: i64,
    load: i64,
    memory: i64,
    signal: i64,
    steps: i64,
    lat: i64,
    lon: i64,
    screen: bool,
    /// Reports left of a walk.
    walk: u32,
}

impl Phone {
    pub(super) fn new(rng: &mut SmallRng) -> Phone {
        Phone {
            battery: rng.random_range(2_000..=10_000),
            charging: false,
            temp: rng.random_range(2_800..=3_600),
            load: rng.random_range(100..=4_000),
            memory: rng.random_range(600..=6_000),
            signal: rng.random_range(-105..=-65),
            steps: 0,
            lat: rng.random_range(-550_000..=650_000),
            lon: rng.random_range(-1_200_000..=1_500_000),
            screen: false,
            walk: 0,
        }
    }
}

impl Kind for Phone {
    fn report(&mut self, now: Moment, rng: &mut SmallRng, values: &mut [Value]) {
        let awake = !now.asleep();
        if self.walk > 0 {
            self.walk -= 1;
            self.steps += rng.random_range(8..=22) * (now.elapsed_s / 10.0).ceil() as i64;
            wander(&mut self.lat, 2, -900_000, 900_000, rng);
            wander(&mut self.lon, 2, -1_800_000, 1_800_000, rng);
        } else if awake && rng.random_bool(0.02 * now.daylight()) {
            self.walk = rng.random_range(6..=180);
        }
        if now.hour < 0.2 {
            self.steps = 0;
        }
        self.screen = if awake { rng.random_bool(0.3) } else { rng.random_bool(0.01) };
        self.charging = match self.charging {
            true => self.battery < 10_000 || now.asleep(),
            false => self.battery < 1_500 || (now.asleep() && rng.random_bool(0.02)),
        };
        let drain = if self.screen { 0.3 } else { 0.05 } * now.elapsed_s;
        let gain = 0.9 * now.elapsed_s;
        let change = if self.charging { gain } else { -drain };
        self.battery = (self.battery + (change * 2.0) as i64).clamp(0, 10_000);
        wander(&mut self.load, if self.screen { 600 } else { 80 }, 50, 10_000, rng);
        wander(&mut self.temp, 12, 2_000, 5_500, rng);
        wander(&mut self.memory, 40, 150, 8_000, rng);
        wander(&mut self.signal, 2, -120, -50, rng);
        // Indoors and asleep there is no position now and then.
        let located = awake || rng.random_bool(0.9);
        values.copy_from_slice(&[
            Value::Fixed(self.battery),
            Value::Bool(self.charging),
            Value::Fixed(self.temp),
            Value::Fixed(self.load),
            Value::Int(self.memory),
            Value::Int(self.signal),
            Value::Int(self.steps),
            if located { Value::Fixed(self.lat) } else { Value::Missing },
            if located { Value::Fixed(self.lon) } else { Value::Missing },
            Value::Bool(self.screen),
        ]);
    }
}
