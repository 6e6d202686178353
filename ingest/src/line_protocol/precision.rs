//! What one step of a written time is worth, and how a number becomes nanoseconds.

use model::Timestamp;

/// The unit of the times in a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nanoseconds.
    #[default]
    Nanosecond,
    /// Microseconds.
    Microsecond,
    /// Milliseconds.
    Millisecond,
    /// Seconds.
    Second,
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// By magnitude, each line for itself, as InfluxDB 3 does: below 5 × 10⁹ seconds, below 5 × 10¹² milliseconds, below
    /// 5 × 10¹⁵ microseconds, else nanoseconds.
    Auto,
}

impl Precision {
    /// The precision that a request names; `None` if there is no such.
    pub fn named(name: &str) -> Option<Precision> {
        Some(match name {
            "n" | "ns" | "nanosecond" => Precision::Nanosecond,
            "u" | "us" | "microsecond" => Precision::Microsecond,
            "ms" | "millisecond" => Precision::Millisecond,
            "s" | "second" => Precision::Second,
            "m" => Precision::Minute,
            "h" => Precision::Hour,
            "auto" => Precision::Auto,
            _ => return None,
        })
    }

    /// The instant that `written` means; `None` where nanoseconds cannot say it.
    ///
    /// The very last nanosecond is refused too: ranges of time are half open everywhere, and no range could hold it.
    #[inline]
    pub(super) fn instant(self, written: i64) -> Option<Timestamp> {
        let unit = match self {
            Precision::Nanosecond => 1,
            Precision::Microsecond => 1_000,
            Precision::Millisecond => 1_000_000,
            Precision::Second => 1_000_000_000,
            Precision::Minute => 60_000_000_000,
            Precision::Hour => 3_600_000_000_000,
            Precision::Auto => match written.unsigned_abs() {
                0..5_000_000_000 => 1_000_000_000,
                5_000_000_000..5_000_000_000_000 => 1_000_000,
                5_000_000_000_000..5_000_000_000_000_000 => 1_000,
                _ => 1,
            },
        };
        written.checked_mul(unit).filter(|&ns| ns != i64::MAX).map(Timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_interface_is_known() {
        for (names, precision) in [
            (&["n", "ns", "nanosecond"][..], Precision::Nanosecond),
            (&["u", "us", "microsecond"], Precision::Microsecond),
            (&["ms", "millisecond"], Precision::Millisecond),
            (&["s", "second"], Precision::Second),
            (&["m"], Precision::Minute),
            (&["h"], Precision::Hour),
            (&["auto"], Precision::Auto),
        ] {
            for name in names {
                assert_eq!(Precision::named(name), Some(precision), "{name}");
            }
        }
        for name in ["", "NS", "nanoseconds", "d", "sec"] {
            assert_eq!(Precision::named(name), None, "{name}");
        }
    }

    #[test]
    fn times_scale_to_nanoseconds_or_are_refused() {
        let cases = [
            (Precision::Nanosecond, 7, Some(7)),
            (Precision::Nanosecond, i64::MIN, Some(i64::MIN)),
            (Precision::Nanosecond, i64::MAX - 1, Some(i64::MAX - 1)),
            (Precision::Nanosecond, i64::MAX, None),
            (Precision::Microsecond, -7, Some(-7_000)),
            (Precision::Millisecond, 9_223_372_036_854, Some(9_223_372_036_854_000_000)),
            (Precision::Millisecond, 9_223_372_036_855, None),
            (Precision::Second, -9_223_372_036, Some(-9_223_372_036_000_000_000)),
            (Precision::Second, 9_223_372_037, None),
            (Precision::Minute, 2, Some(120_000_000_000)),
            (Precision::Hour, -1, Some(-3_600_000_000_000)),
            (Precision::Hour, i64::MAX, None),
        ];
        for (precision, written, ns) in cases {
            assert_eq!(precision.instant(written).map(|t| t.0), ns, "{precision:?} {written}");
        }
    }

    #[test]
    fn auto_goes_by_magnitude() {
        let second = 1_700_000_000_000_000_000;
        for (written, ns) in [
            (0, 0),
            (1_700_000_000, second),
            (1_700_000_000_000, second),
            (1_700_000_000_000_000, second),
            (1_700_000_000_000_000_000, second),
            (-1_700_000_000, -second),
            (4_999_999_999, 4_999_999_999_000_000_000),
            (5_000_000_000, 5_000_000_000_000_000),
            (4_999_999_999_999, 4_999_999_999_999_000_000),
            (5_000_000_000_000, 5_000_000_000_000_000),
            (4_999_999_999_999_999, 4_999_999_999_999_999_000),
            (5_000_000_000_000_000, 5_000_000_000_000_000),
            (i64::MIN, i64::MIN),
        ] {
            assert_eq!(Precision::Auto.instant(written).map(|t| t.0), Some(ns), "{written}");
        }
    }
}
