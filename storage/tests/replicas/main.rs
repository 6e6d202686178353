//! Several replicas of one shard that apply the same log, while files travel between them or do not.

mod adopt;
mod catalogs;
mod random;
mod receive;
mod split;
mod support;
