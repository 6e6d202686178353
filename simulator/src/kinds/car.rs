//! A car: parked most of the day and then silent, on journeys at rush hour and then talkative.

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Kind, Moment, wander};
use crate::line::{FieldKind, FieldSpec, Value};

pub(super) const FIELDS: [FieldSpec; 9] = [
    FieldSpec { name: "speed_kmh", kind: FieldKind::Fixed(1) },
    FieldSpec { name: "heading_deg", kind: FieldKind::Int },
    FieldSpec { name: "lat", kind: FieldKind::Fixed(5) },
    FieldSpec { name: "lon", kind: FieldKind::Fixed(5) },
    FieldSpec { name: "charge_pct", kind: FieldKind::Fixed(1) },
    FieldSpec { name: "motor_temp", kind: FieldKind::Fixed(1) },
    FieldSpec { name: "odometer_m", kind: FieldKind::Int },
    FieldSpec { name: "moving", kind: FieldKind::Bool },
    FieldSpec { name: "fault", kind: FieldKind::Text },
];

pub(super) const MODELS: [(&str, &str); 4] = [("id-4", "car-os-6"), ("zoe-3", "car-os-5"), ("model-y", "mcu-4"), ("ioniq-7", "ccnc-3")];

const FAULTS: [&str; 4] = ["tyre pressure, front left", "door \"rear right\" ajar", "washer fluid low", "camera blocked"];

pub(super) struct Car {
    speed: i64,
    heading: i64,
    lat: i64,
    lon: i64,
    charge: i64,
    temp: i64,
    odometer: i64,
    /// Reports left of a journey.
    journey: u32,
}

impl Car {
    pub(super) fn new(rng: &mut SmallRng) -> Car {
        Car {
            speed: 0,
            heading: rng.random_range(0..360),
            lat: rng.random_range(-5_500_000..=6_500_000),
            lon: rng.random_range(-12_000_000..=15_000_000),
            charge: rng.random_range(200..=1_000),
            temp: 200,
            odometer: rng.random_range(0..=200_000_000),
            journey: 0,
        }
    }
}

impl Kind for Car {
    fn report(&mut self, now: Moment, rng: &mut SmallRng, values: &mut [Value]) {
        let rush = (7.0..9.5).contains(&now.hour) || (16.0..19.0).contains(&now.hour);
        if self.journey > 0 {
            self.journey -= 1;
            wander(&mut self.speed, 80, 0, 1_400, rng);
            wander(&mut self.heading, 12, 0, 359, rng);
            let metres = (self.speed as f64 / 36.0 * now.elapsed_s.min(60.0)) as i64;
            self.odometer += metres;
            let angle = (self.heading as f64).to_radians();
            self.lat = (self.lat + (metres as f64 * 0.9 * angle.cos()) as i64).clamp(-9_000_000, 9_000_000);
            self.lon = (self.lon + (metres as f64 * 1.2 * angle.sin()) as i64).clamp(-18_000_000, 18_000_000);
            self.charge = (self.charge - rng.random_range(0..=1)).max(0);
            wander(&mut self.temp, 9, 150, 1_100, rng);
            if self.journey == 0 {
                self.speed = 0;
            }
        } else {
            self.charge = (self.charge + 12).min(1_000);
            if !now.asleep() && rng.random_bool(if rush { 0.25 } else { 0.05 }) {
                self.journey = rng.random_range(20..=600);
                self.speed = 150;
            }
        }
        values.copy_from_slice(&[
            Value::Fixed(self.speed),
            Value::Int(self.heading),
            Value::Fixed(self.lat),
            Value::Fixed(self.lon),
            Value::Fixed(self.charge),
            Value::Fixed(self.temp),
            Value::Int(self.odometer),
            Value::Bool(self.journey > 0),
            if rng.random_bool(0.01) { Value::Text(FAULTS[rng.random_range(0..FAULTS.len())]) } else { Value::Missing },
        ]);
    }

    fn pause(&self, rng: &mut SmallRng) -> f64 {
        if self.journey > 0 { 0.1 } else { rng.random_range(10.0..30.0) }
    }
}
