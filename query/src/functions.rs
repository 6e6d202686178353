//! Which of DataFusion's functions a statement may call.
//!
//! A function allocates what it gives before any memory pool is asked, some while the plan is made. Those that make a large
//! value from a small number are not there (`range`, `generate_series` as a value, `array_repeat`, `array_resize`). Those that
//! give more than they get are bounded here ([`Bounded`]): what a call needs is told from its arguments first. In FROM,
//! `generate_series` and `range` give their rows one batch after the other and stay.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::{cast, kernels::length::length};
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature};

use crate::error::Error;
use crate::{opaque, time_bucket};

/// Bytes that one call may give, of one batch of rows.
const MAX_BYTES: u64 = 64 << 20;
/// The same where only the worst case can be told.
const MAX_WORST_BYTES: u64 = 512 << 20;
/// Bytes that a call may give whose arguments are no columns: it may be repeated for each row of a batch.
const MAX_CONSTANT_BYTES: u64 = 128 << 10;
/// Bytes of the longest character that a text may be filled up with.
const CHARACTER_BYTES: u64 = 4;
/// Bytes of a value that is no text, in a list or as text.
const VALUE_BYTES: u64 = 32;
/// Functions that nobody needs for telemetry.
const LEFT_OUT: [&str; 4] = ["range", "generate_series", "array_repeat", "array_resize"];

/// Gives a session our functions and bounds DataFusion's.
pub(crate) fn register(session: &mut SessionState) {
    time_bucket::register(session);
    opaque::register(session);
    for name in LEFT_OUT {
        session.deregister_udf(name).expect("a session forgets functions");
    }
    for (name, growth) in BOUNDED {
        let Ok(inner) = session.udf(name) else { continue };
        let bounded = ScalarUDF::new_from_impl(Bounded { inner, growth });
        session.register_udf(Arc::new(bounded)).expect("a session takes functions");
    }
}

/// How the bytes that a function gives follow from those that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Growth {
    /// The first argument, as often as the second says.
    Times,
    /// As many characters as the second argument says.
    Characters,
    /// The first argument, and the third wherever the second stands in it.
    Replaced,
    /// The same where the second is a pattern.
    Matched,
    /// All arguments together, or twice as much.
    Sum,
}

/// Functions that give more than they get.
const BOUNDED: [(&str, Growth); 9] = [
    ("repeat", Growth::Times),
    ("lpad", Growth::Characters),
    ("rpad", Growth::Characters),
    ("replace", Growth::Replaced),
    ("regexp_replace", Growth::Matched),
    ("translate", Growth::Sum),
    ("concat", Growth::Sum),
    ("concat_ws", Growth::Sum),
    ("encode", Growth::Sum),
];

/// A function that refuses to give too much.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

impl Bounded {
    /// Bytes that a call gives at most, and may give.
    fn bytes(&self, args: &ScalarFunctionArgs) -> Result<(u64, u64)> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let limit = match (constant, self.growth) {
            (true, _) => MAX_CONSTANT_BYTES,
            (false, Growth::Matched | Growth::Sum) => MAX_WORST_BYTES,
            (false, _) => MAX_BYTES,
        };
        let bytes = match (self.growth, args.args.as_slice()) {
            (Growth::Times, [text, count, ..]) => {
                let (texts, counts) = (lengths(text, rows)?, numbers(count, rows)?);
                texts.iter().zip(&counts).map(|(text, count)| text.saturating_mul(*count)).fold(0, u64::saturating_add)
            }
            (Growth::Characters, [_, count, ..]) => {
                numbers(count, rows)?.iter().map(|count| count.saturating_mul(CHARACTER_BYTES)).fold(0, u64::saturating_add)
            }
            (Growth::Replaced, [text, what, with, ..]) => {
                let (texts, whats, withs) = (text.to_array(rows)?, what.to_array(rows)?, lengths(with, rows)?);
                let (texts, whats) = (cast(&texts, &DataType::LargeUtf8)?, cast(&whats, &DataType::LargeUtf8)?);
                let given = || texts.as_string::<i64>().iter().zip(whats.as_string::<i64>().iter()).zip(&withs);
                let most = given().map(|((text, what), with)| replaced(text, what, *with, at_most)).fold(0, u64::saturating_add);
                match most <= limit {
                    true => most,
                    false => given().map(|((text, what), with)| replaced(text, what, *with, places)).fold(0, u64::saturating_add),
                }
            }
            (Growth::Matched, [text, _, with, rest @ ..]) => {
                let everywhere =
                    rest.first().is_some_and(|flags| !matches!(flags, ColumnarValue::Scalar(f) if !f.to_string().contains('g')));
                let (texts, withs) = (lengths(text, rows)?, lengths(with, rows)?);
                // A reference to what was matched gives no more than that again, and is two signs long at least.
                let refers = !matches!(with, ColumnarValue::Scalar(with) if !with.to_string().contains(['\\', '$']));
                let of = |(text, with): (&u64, &u64)| {
                    let places = if everywhere { text + 1 } else { 1 };
                    let matched = if refers { text.saturating_mul(with / 2) } else { 0 };
                    text.saturating_add(places.saturating_mul(*with)).saturating_add(matched)
                };
                texts.iter().zip(&withs).map(of).fold(0, u64::saturating_add)
            }
            (Growth::Sum, args) => {
                let all = args.iter().map(|arg| Ok(lengths(arg, rows)?.into_iter().fold(0, u64::saturating_add)));
                all.sum::<Result<u64>>()?
            }
            _ => 0,
        };
        Ok((bytes, limit))
    }
}

/// Bytes of each row's value.
fn lengths(values: &ColumnarValue, rows: usize) -> Result<Vec<u64>> {
    let of = |array: &ArrayRef| -> Result<Vec<u64>> {
        Ok(match array.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let lengths = cast(&length(array)?, &DataType::Int64)?;
                lengths.as_primitive::<Int64Type>().iter().map(|length| length.unwrap_or(0).unsigned_abs()).collect()
            }
            DataType::Dictionary(..) => {
                let lengths = cast(&length(&cast(array, &DataType::Utf8View)?)?, &DataType::Int64)?;
                lengths.as_primitive::<Int64Type>().iter().map(|length| length.unwrap_or(0).unsigned_abs()).collect()
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::List(_) | DataType::LargeList(_) => {
                let all = array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size());
                let mut each = vec![0; array.len()];
                if let Some(first) = each.first_mut() {
                    *first = all as u64;
                }
                each
            }
            _ => vec![VALUE_BYTES; array.len()],
        })
    };
    match values {
        ColumnarValue::Array(array) => of(array),
        ColumnarValue::Scalar(_) => Ok(vec![of(&values.to_array(1)?)?.first().copied().unwrap_or(0); rows]),
    }
}

/// Each row's number; less than nothing is nothing.
fn numbers(values: &ColumnarValue, rows: usize) -> Result<Vec<u64>> {
    let numbers = cast(&values.to_array(rows)?, &DataType::Int64)?;
    Ok(numbers.as_primitive::<Int64Type>().iter().map(|n| n.unwrap_or(0).max(0).unsigned_abs()).collect())
}

/// Bytes of a text in which something is replaced by so many bytes, wherever `places` says.
fn replaced(text: Option<&str>, what: Option<&str>, with: u64, places: impl Fn(&str, &str) -> u64) -> u64 {
    match (text, what) {
        (Some(text), Some(what)) if !what.is_empty() => (text.len() as u64).saturating_add(places(text, what).saturating_mul(with)),
        (Some(text), _) => text.len() as u64,
        (None, _) => 0,
    }
}

fn at_most(text: &str, what: &str) -> u64 {
    (text.len() / what.len()) as u64
}

fn places(text: &str, what: &str) -> u64 {
    text.matches(what).count() as u64
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.inner.return_type(given)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(given)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (bytes, limit) = self.bytes(&args)?;
        if bytes > limit {
            let message = format!("one call of {} might give {bytes} bytes, the limit is {limit}", self.name());
            return Err(Error::OverMemory { message }.inside());
        }
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
