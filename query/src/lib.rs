//! Runs SQL over what the shards keep: DataFusion on top, views of shards below.
//!
//! `query` does not know how points arrived, nor raft. DataFusion stays in this crate; status codes stay in [`http`].
//! One query's journey is [`Engine::run`]: admit, refuse what is too large, command or plan, execute, answer.
//!
//! | file | answers |
//! |---|---|
//! | [`engine`] | what bounds queries: memory, disk, time, number; their threads |
//! | `run` | the journey of one statement, begun anew where that can help |
//! | `distribute`, `told` | queries over several nodes; errors on their way between them |
//! | [`answer`] | rows on their way to the one who asked |
//! | `limits` | is this text small and flat enough to be planned? |
//! | `command`, `carry_out` | `FLUSH`, `CREATE DATABASE`, … : what was said; having it done |
//! | `allowed` | may this plan run? (nothing that writes, nothing that touches the server's files) |
//! | `session`, `catalog`, `scope` | DataFusion's settings; tables as SQL sees them; what the scans of one query share |
//! | `sweep` | which scans can stop early when only the newest rows are wanted |
//! | `table`, `prune`, `shard_scan` | filters in, shards and spans out; the leaf that reads one shard |
//! | `latest`, `time_bucket`, `functions` | the functions that DataFusion does not have; those of its that are bounded or left out |
//! | `system_tables` | `system.shards`, `system.queries`, … |
//! | `plan_cache` | plans of point questions, ready made |
//! | `stop` | until when a query may run, asked by steps that do not yield |
//! | `running` | queries under way and the last ones: bound, `KILL QUERY`, `system.queries` |
//! | `formats` | rows to JSON, CSV, Arrow, Parquet, a drawn table |
//! | [`http`] | the doors `/sql` and `/api/v3/query_sql` |

pub mod answer;
pub mod engine;
pub mod error;
pub mod http;
pub mod metrics;
pub mod sources;

mod allowed;
mod carry_out;
mod catalog;
mod command;
mod dialect;
mod distribute;
mod formats;
mod functions;
mod latest;
mod limits;
mod opaque;
mod panics;
mod plan_cache;
mod prune;
mod run;
mod running;
mod scope;
mod session;
mod shard_scan;
mod stop;
mod subqueries;
mod sweep;
mod system_tables;
mod table;
mod time_bucket;
mod told;

pub use answer::Answer;
pub use distribute::PeerService;
pub use engine::{Consistency, DEFAULT_MAX_LAG, Engine, Parameter, Partial, QueryOptions, RunOptions, Shortcuts, Verbs};
pub use error::Error;
pub use formats::Format;
pub use metrics::Metrics;
pub use scope::Lag;
pub use sources::{Node, RefusedLine, Setting, Sources};

/// What query's functions give.
pub type Result<T, E = Error> = std::result::Result<T, E>;
