//! One node, asked: through the engine and through its doors. Then several, which must answer as one does.

mod at_random;
mod bounds;
mod doors;
mod fleet;
mod node;
mod nodes;
mod plans;
mod refusals;
mod sql;
