//! The nouns: what a point, a batch and a schema are, and how they become bytes.
//!
//! Everything here is a value. This crate does no IO, has no async and no clock, so that the parser, the log, the
//! memtable and the query leaf agree on what a row is without knowing of each other.
//!
//! | file | noun |
//! |---|---|
//! | [`ids`] | numbers that must not be mixed up |
//! | [`point`] | [`Timestamp`], [`FieldValue`], [`SeriesKey`], the hash a device is routed by |
//! | [`batch`] | [`PointBatch`]: the columns of one table on their way together, and their byte encoding |
//! | [`schema`] | [`TableSchema`], [`DatabaseSchema`], [`Catalog`], what happens when two schemas meet |
//! | [`error`] | the three kinds of trouble |

pub mod batch;
pub mod error;
pub mod ids;
pub mod point;
pub mod schema;

pub use batch::{Bitmap, FieldColumn, PointBatch, Strings, Values};
pub use error::{DecodeError, ErrorKind};
pub use ids::{ColumnId, DatabaseId, Epoch, LogIndex, NodeId, ReplicaId, ShardId, TableId, Term};
pub use point::{FieldValue, SeriesKey, Timestamp, routing_hash};
pub use schema::{Catalog, Column, ColumnKind, ColumnType, DatabaseSchema, TableSchema};
