//! Keeps DataFusion from taking a column for constant that is not.
//!
//! A filter such as `CAST(time AS DATE) = …` makes DataFusion cast the literal back and take `time` for that one value; it then
//! leaves out the sort of an `ORDER BY time` above (datafusion-physical-expr 55.2, `CastExpr::propagate_constraints`). The same
//! with a division of integers. It does not look into functions: an expression that gives one value for several of a
//! column is wrapped into one that does nothing.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr::{Cast, ScalarFunction};
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Filter, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// Its name in plans; no statement can spell it without quotes.
const NAME: &str = "alluvium.opaque";

/// Gives a session the function; the rule comes with [`HideManyToOne`].
pub(crate) fn register(session: &mut SessionState) {
    session.register_udf(Arc::new(ScalarUDF::new_from_impl(Opaque::new()))).expect("a session takes functions");
}

/// Gives what it gets.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Opaque {
    signature: Signature,
}

impl Opaque {
    fn new() -> Opaque {
        Opaque { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Opaque {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        Ok(given[0].clone())
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.swap_remove(0))
    }
}

/// Wraps what gives one value for several, in filters.
#[derive(Debug)]
pub(crate) struct HideManyToOne {
    opaque: Arc<ScalarUDF>,
}

impl HideManyToOne {
    pub(crate) fn new() -> HideManyToOne {
        HideManyToOne { opaque: Arc::new(ScalarUDF::new_from_impl(Opaque::new())) }
    }

    fn hide(&self, predicate: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        predicate.transform_down(|step| {
            if matches!(&step, Expr::ScalarFunction(f) if f.name() == NAME) {
                return Ok(Transformed::new(step, false, TreeNodeRecursion::Jump));
            }
            if !gives_one_for_several(&step, schema)? || step.column_refs().is_empty() {
                return Ok(Transformed::no(step));
            }
            let hidden = Expr::ScalarFunction(ScalarFunction::new_udf(self.opaque.clone(), vec![step]));
            Ok(Transformed::new(hidden, true, TreeNodeRecursion::Jump))
        })
    }
}

impl OptimizerRule for HideManyToOne {
    fn name(&self) -> &str {
        "hide_many_to_one"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = plan else { return Ok(Transformed::no(plan)) };
        let hidden = self.hide(filter.predicate, filter.input.schema())?;
        let (changed, input) = (hidden.transformed, filter.input);
        let plan = LogicalPlan::Filter(Filter::try_new(hidden.data, input)?);
        Ok(Transformed::new(plan, changed, TreeNodeRecursion::Continue))
    }
}

fn gives_one_for_several(step: &Expr, schema: &DFSchema) -> Result<bool> {
    Ok(match step {
        Expr::Cast(Cast { expr, field }) => !keeps_apart(&expr.get_type(schema)?, field.data_type()),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Divide, right }) => {
            left.get_type(schema)?.is_integer() && right.get_type(schema)?.is_integer()
        }
        _ => false,
    })
}

/// Whether different values stay different in a cast, as far as numbers and times are concerned: of others DataFusion
/// draws no conclusions.
fn keeps_apart(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    let fineness = |unit: &TimeUnit| match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    };
    if from == to || !(to.is_numeric() || to.is_temporal() || matches!(to, Boolean)) {
        return true;
    }
    match (from, to) {
        (Timestamp(a, _) | Duration(a), Timestamp(b, _) | Duration(b)) => fineness(a) <= fineness(b),
        (Timestamp(..) | Duration(_) | Date64, Int64)
        | (Int64, Timestamp(..) | Duration(_) | Date64)
        | (Date32, Timestamp(..) | Date64) => true,
        (Boolean, _) => to.is_numeric(),
        (Int8, Int16 | Int32 | Int64 | Float32 | Float64)
        | (UInt8, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64 | Float32 | Float64) => true,
        (Int16, Int32 | Int64 | Float32 | Float64) | (UInt16, UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64) => true,
        (Int32, Int64 | Float64) | (UInt32, UInt64 | Int64 | Float64) | (Float32, Float64) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_that_lose_something_are_known() {
        use DataType::*;
        let ns = Timestamp(TimeUnit::Nanosecond, None);
        for (from, to, apart) in [
            (ns.clone(), Date32, false),
            (ns.clone(), Timestamp(TimeUnit::Second, None), false),
            (Timestamp(TimeUnit::Second, None), ns.clone(), true),
            (ns, Utf8, true),
            (Float64, Int64, false),
            (Int64, Float64, false),
            (Int32, Int64, true),
            (Int64, UInt64, false),
            (Float64, Boolean, false),
        ] {
            assert_eq!(keeps_apart(&from, &to), apart, "{from} to {to}");
        }
    }
}
