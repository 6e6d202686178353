//! What each kind of device measures, and when.
//!
//! A kind is a small state machine: given the local time of day and its own dice it moves a little and reports. Each has
//! its own traffic: a phone reports every interval, a parked car hardly ever, a fridge when its door opens.

mod car;
mod fridge;
mod phone;
mod tv;
mod watch;

use std::fmt;
use std::str::FromStr;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::line::{FieldSpec, Value};

/// A kind's name: its table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KindName {
    /// Battery, radio, position.
    Phone,
    /// Heart, steps, workouts.
    Watch,
    /// Journeys.
    Car,
    /// Temperature and door.
    Fridge,
    /// What is on.
    Tv,
}

impl KindName {
    /// All kinds.
    pub const ALL: [KindName; 5] = [KindName::Phone, KindName::Watch, KindName::Car, KindName::Fridge, KindName::Tv];

    /// The table its points go to.
    pub fn table(self) -> &'static str {
        match self {
            KindName::Phone => "phone",
            KindName::Watch => "watch",
            KindName::Car => "car",
            KindName::Fridge => "fridge",
            KindName::Tv => "tv",
        }
    }

    /// Its fields, in the order in which it writes them.
    pub fn fields(self) -> &'static [FieldSpec] {
        match self {
            KindName::Phone => &phone::FIELDS,
            KindName::Watch => &watch::FIELDS,
            KindName::Car => &car::FIELDS,
            KindName::Fridge => &fridge::FIELDS,
            KindName::Tv => &tv::FIELDS,
        }
    }

    /// The models and their operating systems that are sold.
    fn models(self) -> &'static [(&'static str, &'static str)] {
        match self {
            KindName::Phone => &phone::MODELS,
            KindName::Watch => &watch::MODELS,
            KindName::Car => &car::MODELS,
            KindName::Fridge => &fridge::MODELS,
            KindName::Tv => &tv::MODELS,
        }
    }

    fn build(self, rng: &mut SmallRng) -> Box<dyn Kind> {
        match self {
            KindName::Phone => Box::new(phone::Phone::new(rng)),
            KindName::Watch => Box::new(watch::Watch::new(rng)),
            KindName::Car => Box::new(car::Car::new(rng)),
            KindName::Fridge => Box::new(fridge::Fridge::new(rng)),
            KindName::Tv => Box::new(tv::Tv::new(rng)),
        }
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.table())
    }
}

impl FromStr for KindName {
    type Err = String;

    fn from_str(text: &str) -> Result<KindName, String> {
        KindName::ALL
            .into_iter()
            .find(|k| k.table() == text)
            .ok_or_else(|| format!("no kind of device is called '{text}': use phone, watch, car, fridge or tv"))
    }
}

/// The moment a device reports at, as it sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Hour of the local day, 0.0 ..< 24.0.
    pub(crate) hour: f64,
    /// Seconds since its last report.
    pub(crate) elapsed_s: f64,
}

impl Moment {
    /// 0 in the dead of night, 1 at midday.
    fn daylight(self) -> f64 {
        0.5 - 0.5 * ((self.hour - 2.0) / 24.0 * std::f64::consts::TAU).cos()
    }

    fn asleep(self) -> bool {
        !(7.0..23.0).contains(&self.hour)
    }
}

/// A device's behaviour.
pub(crate) trait Kind: Send {
    /// Moves on to `now` and fills one value per field of the kind.
    fn report(&mut self, now: Moment, rng: &mut SmallRng, values: &mut [Value]);

    /// How many of the fleet's intervals pass until the next report.
    fn pause(&self, rng: &mut SmallRng) -> f64 {
        let _ = rng;
        1.0
    }
}

/// Regions and their hours ahead of UTC.
const REGIONS: [(&str, f64); 8] = [
    ("eu-north", 1.0),
    ("eu-south", 2.0),
    ("us-east", -5.0),
    ("us-west", -8.0),
    ("sa-east", -3.0),
    ("ap-south", 5.5),
    ("ap-east", 8.0),
    ("af-south", 2.0),
];

/// One device: who it is, and its state.
pub(crate) struct Device {
    pub(crate) kind: KindName,
    /// `table,device_id=…,model=…,os=…,region=…`
    pub(crate) head: Vec<u8>,
    /// Sum of the tags' cell hashes.
    pub(crate) tags_hash: u64,
    /// How far its clock is off, nanoseconds.
    pub(crate) skew_ns: i64,
    pub(crate) rng: SmallRng,
    offset_hours: f64,
    behaviour: Box<dyn Kind>,
}

impl Device {
    pub(crate) fn new(kind: KindName, index: u32, seed: u64) -> Device {
        let mut rng = SmallRng::seed_from_u64(seed ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (model, os) = kind.models()[rng.random_range(0..kind.models().len())];
        let (region, offset_hours) = REGIONS[rng.random_range(0..REGIONS.len())];
        let id = format!("{}-{index:06}", kind.table());
        let head = format!("{},device_id={id},model={model},os={os},region={region}", kind.table()).into_bytes();
        let tags = [("device_id", id.as_str()), ("model", model), ("os", os), ("region", region)];
        let tags_hash = tags.iter().fold(0u64, |sum, (name, value)| sum.wrapping_add(crate::line::cell_hash(name, value.as_bytes())));
        // One clock in ten is off by up to two seconds.
        let skew_ns = if rng.random_bool(0.1) { rng.random_range(-2_000..=2_000) * 1_000_000 } else { 0 };
        let behaviour = kind.build(&mut rng);
        Device { kind, head, tags_hash, skew_ns, rng, offset_hours, behaviour }
    }

    pub(crate) fn report(&mut self, at_ns: i64, elapsed_s: f64, values: &mut [Value]) {
        let hour = (at_ns as f64 / 3.6e12 + self.offset_hours).rem_euclid(24.0);
        self.behaviour.report(Moment { hour, elapsed_s }, &mut self.rng, values);
    }

    pub(crate) fn pause(&mut self) -> f64 {
        self.behaviour.pause(&mut self.rng)
    }
}

/// A number that wanders: by up to `step` each time, within `low ..= high`.
pub(crate) fn wander(value: &mut i64, step: i64, low: i64, high: i64, rng: &mut SmallRng) {
    *value = (*value + rng.random_range(-step..=step)).clamp(low, high);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_fills_its_fields_through_a_day() {
        for kind in KindName::ALL {
            let mut device = Device::new(kind, 7, 1);
            let mut values = vec![Value::Missing; kind.fields().len()];
            let mut seen = vec![false; values.len()];
            for minute in 0..3 * 1440 {
                values.fill(Value::Missing);
                device.report(crate::DEFAULT_START_NS + minute * 60_000_000_000, 60.0, &mut values);
                let mut line = Vec::new();
                assert!(crate::line::write_fields(&mut line, kind.fields(), &values).is_some(), "{kind} reported nothing");
                seen.iter_mut().zip(&values).for_each(|(seen, value)| *seen |= *value != Value::Missing);
                assert!(device.pause() > 0.0);
            }
            assert!(seen.iter().all(|&s| s), "{kind} never measured one of its fields: {seen:?}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for kind in KindName::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("toaster".parse::<KindName>().unwrap_err().contains("use phone"));
    }
}
