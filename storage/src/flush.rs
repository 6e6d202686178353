//! flush.
