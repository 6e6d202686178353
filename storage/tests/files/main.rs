//! Parquet files from outside: written, read by us and by a stock reader, damaged, interrupted, compacted, and always
//! compared with a `BTreeMap` of rows.

mod compaction;
mod damage;
mod faults;
mod reading;
mod support;
