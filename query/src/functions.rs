//! Which of DataFusion's functions a statement may call.
//!
//! A function allocates what it gives before any memory pool is asked, some while the plan is made. Those that make a large
//! value from a small number are not there (`range`, `generate_series` as a value, `array_repeat`, `array_resize`), or are
//! bounded here ([`Bounded`]): what a call needs is told from its arguments first. In FROM, `generate_series` and `range`
//! give their rows one batch after the other and stay.

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
/// Bytes of the longest character that a text may be filled up with.
const CHARACTER_BYTES: u64 = 4;
/// Functions that nobody needs for telemetry.
const LEFT_OUT: [&str; 4] = ["range", "generate_series", "array_repeat", "array_resize"];

/// Gives a session our functions and bounds DataFusion's.
pub(crate) fn register(session: &mut SessionState) {
    time_bucket::register(session);
    opaque::register(session);
    for name in LEFT_OUT {
        session.deregister_udf(name).expect("a session forgets functions");
    }
    for (name, unit) in [("repeat", Unit::Text), ("lpad", Unit::Character), ("rpad", Unit::Character)] {
        let Ok(inner) = session.udf(name) else { continue };
        let bounded = ScalarUDF::new_from_impl(Bounded { inner, unit });
        session.register_udf(Arc::new(bounded)).expect("a session takes functions");
    }
}

/// What the second argument counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    /// The first argument.
    Text,
    /// Characters.
    Character,
}

/// A function that refuses to give too much.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    unit: Unit,
}

impl Bounded {
    /// Bytes that a call gives at most.
    fn bytes(&self, args: &ScalarFunctionArgs) -> Result<u64> {
        let [text, count, ..] = args.args.as_slice() else { return Ok(0) };
        let rows = match (text, count) {
            (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)) => 1,
            _ => args.number_rows,
        };
        let counts = numbers(count.to_array(rows)?)?;
        let units = match self.unit {
            Unit::Text => Some(numbers(length(&text.to_array(rows)?)?)?),
            Unit::Character => None,
        };
        let bytes = |row: usize| {
            let count = if counts.is_null(row) { 0 } else { counts.as_primitive::<Int64Type>().value(row).max(0).unsigned_abs() };
            let unit = units.as_ref().map_or(CHARACTER_BYTES, |units| units.as_primitive::<Int64Type>().value(row).unsigned_abs());
            count.saturating_mul(unit)
        };
        Ok((0..rows).map(bytes).fold(0, u64::saturating_add))
    }
}

fn numbers(array: ArrayRef) -> Result<ArrayRef> {
    Ok(cast(&array, &DataType::Int64)?)
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
        let bytes = self.bytes(&args)?;
        if bytes > MAX_BYTES {
            let message = format!("one call of {} would give {bytes} bytes, the limit is {MAX_BYTES}", self.name());
            return Err(Error::OverMemory { message }.inside());
        }
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
