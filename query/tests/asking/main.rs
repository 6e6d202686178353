//! One node, asked: through the engine and through its doors.

mod at_random;
mod bounds;
mod doors;
mod node;
mod plans;
mod refusals;
mod sql;
