//! A fleet of devices that behave like devices: it writes, keeps a ledger of what it was told, and checks every point.
//!
//! The same seed gives the same bytes, whatever the machine, the number of connections or the answers. Nothing here
//! knows how points are stored: it speaks line protocol and SQL over HTTP like everybody else.
//!
//! | file | what |
//! |---|---|
//! | [`fleet`] | seeded devices in simulated time: cadence, clock skew, duplicates, late and buffered lines, reconnect storms |
//! | [`kinds`] | what a phone, a watch, a car, a fridge and a TV measure, and when |
//! | [`line`] | one point as text, and the hash by which it is recognised |
//! | [`connect`] | connections: plain or TLS |
//! | [`send`] | batches over HTTP until each has an answer |
//! | [`latency`] | how long answers took |
//! | [`ledger`] | what was sent, what was answered; read back and compare |

pub mod connect;
pub mod fleet;
pub mod kinds;
pub mod latency;
pub mod ledger;
pub mod line;
mod read_back;
pub mod send;

pub use fleet::{Fleet, FleetOptions};
pub use kinds::KindName;
pub use latency::Latencies;
pub use ledger::{Ledger, Verdict};
pub use send::{Progress, Report, SendError, SendOptions, run, verify};

/// When a simulation starts unless told otherwise: 2026-01-01T00:00:00Z. A fixed instant, so that the bytes are too.
pub const DEFAULT_START_NS: i64 = 1_767_225_600_000_000_000;
