//! `time_bucket(interval, time[, origin])`: `date_bin` under the name and with the interval spellings that people from
//! other time-series databases type: `'5m'`, `'1h30m'`, `'60.000s'`, `'5 minutes'`, or an `INTERVAL`.

use std::sync::Arc;

use datafusion::arrow::compute::kernels::cast_utils::parse_interval_month_day_nano;
use datafusion::arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::error::Error;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct TimeBucket {
    signature: Signature,
    date_bin: Arc<ScalarUDF>,
}

impl TimeBucket {
    pub(crate) fn new() -> TimeBucket {
        TimeBucket { signature: Signature::user_defined(Volatility::Immutable), date_bin: date_bin() }
    }
}

/// Lets a session use it.
pub(crate) fn register(session: &mut SessionState) {
    let bucket = Arc::new(ScalarUDF::new_from_impl(TimeBucket::new()));
    session.register_udf(bucket).expect("a session takes functions");
}

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        if !(2..=3).contains(&given.len()) {
            return plan_err!("time_bucket takes an interval, a time and perhaps an origin: time_bucket('5m', time)");
        }
        let interval = match &given[0] {
            DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            DataType::Interval(_) => INTERVAL,
            other => return plan_err!("time_bucket takes an interval first, such as '5m' or INTERVAL '5 minutes', not {other}"),
        };
        let time = match &given[1] {
            DataType::Timestamp(_, _) => given[1].clone(),
            DataType::Date32 | DataType::Date64 | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => {
                DataType::Timestamp(TimeUnit::Nanosecond, None)
            }
            other => return plan_err!("time_bucket takes a time second, not {other}"),
        };
        let origin = match &time {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Nanosecond, zone.clone()),
            _ => unreachable!("made above"),
        };
        Ok([interval, time, origin].into_iter().take(given.len()).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        Ok(given[1].clone())
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let interval = match &args.args[0] {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) => ScalarValue::IntervalMonthDayNano(Some(interval(text)?)),
            ColumnarValue::Scalar(interval @ ScalarValue::IntervalMonthDayNano(Some(_))) => interval.clone(),
            ColumnarValue::Scalar(_) => return Ok(ColumnarValue::Scalar(ScalarValue::try_from(args.return_field.data_type())?)),
            ColumnarValue::Array(_) => return plan_err!("time_bucket takes one interval for all rows"),
        };
        args.args[0] = ColumnarValue::Scalar(interval);
        self.date_bin.inner().invoke_with_args(args)
    }

    // Buckets rise with time, so rows in order of time are in order of bucket and GROUP BY need not sort or hash.
    fn output_ordering(&self, input: &[ExprProperties]) -> Result<SortProperties> {
        let one = |p: Option<&ExprProperties>| p.is_none_or(|p| p.sort_properties == SortProperties::Singleton);
        match one(input.first()) && one(input.get(2)) {
            true => Ok(input[1].sort_properties),
            false => Ok(SortProperties::Unordered),
        }
    }
}

/// `5m`, `1h30m`, `60.000s`; anything else as PostgreSQL's intervals.
fn interval(text: &str) -> Result<IntervalMonthDayNano> {
    // A bare number has no unit; PostgreSQL would take it for seconds, Arrow for months.
    let bare = text.trim().parse::<f64>().is_ok();
    let parsed = compact(text).or_else(|| parse_interval_month_day_nano(text).ok().filter(|_| !bare));
    match parsed {
        Some(i) if i.months < 0 || i.days < 0 || i.nanoseconds < 0 || i == IntervalMonthDayNano::new(0, 0, 0) => {
            Err(Error::sql(format!("the interval '{text}' must be longer than nothing")).inside())
        }
        Some(i) => Ok(i),
        None => Err(Error::sql(format!("'{text}' is no interval: write it as '5m', '1h30m' or '5 minutes'")).inside()),
    }
}

/// The nanoseconds of a span such as `90d` or `1h30m`; longer than nothing.
pub(crate) fn nanoseconds(text: &str) -> Option<i64> {
    compact(text).map(|i| i.nanoseconds)
}

fn compact(text: &str) -> Option<IntervalMonthDayNano> {
    let mut rest = text.trim();
    let mut nanoseconds: i128 = 0;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (digits, tail) = rest.split_at(number);
        let letters = tail.len() - tail.trim_start_matches(char::is_alphabetic).len();
        let (unit, tail) = tail.split_at(letters);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 7 * 86_400_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || whole.len() > 18 || fraction.len() > 18 || fraction.contains('.') {
            return None;
        }
        nanoseconds += whole.parse::<i128>().ok()? * unit;
        if !fraction.is_empty() {
            nanoseconds += fraction.parse::<i128>().ok()? * unit / 10i128.pow(fraction.len() as u32);
        }
        rest = tail;
    }
    (nanoseconds > 0).then_some(())?;
    Some(IntervalMonthDayNano::new(0, 0, i64::try_from(nanoseconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_in_the_spellings_people_use() {
        let second = 1_000_000_000;
        for (text, nanoseconds) in [
            ("5m", 300 * second),
            ("1h30m", 5_400 * second),
            ("60.000s", 60 * second),
            ("0.5s", second / 2),
            ("100ms", second / 10),
            ("1d", 86_400 * second),
            ("2w", 14 * 86_400 * second),
            ("5 minutes", 300 * second),
        ] {
            assert_eq!(interval(text).unwrap(), IntervalMonthDayNano::new(0, 0, nanoseconds), "{text}");
        }
        assert_eq!(interval("1 month").unwrap(), IntervalMonthDayNano::new(1, 0, 0));
    }

    #[test]
    fn what_is_no_interval_says_how_to_write_one() {
        for text in ["", "m", "5", "5x", "-5m", "1..5s", "0s", "99999999999999999999s"] {
            assert!(interval(text).is_err(), "{text}");
        }
        assert!(interval("five").unwrap_err().to_string().contains("write it as"));
    }
}
