//! The program: starts a node, and is the command line.
//!
//! It wires the other crates and holds no logic of theirs. The clock, the environment, flags and the process itself
//! (signals, exit codes, standard error) are known here and nowhere else.
//!
//! | file | answers |
//! |---|---|
//! | [`node`] | what a running node is made of, in which order it starts and stops |
//! | [`listen`] | the accept loop: time limits and sizes of connections, who may come in |
//! | [`tokens`], [`tls`] | access tokens at a node; certificates from files |
//! | [`config`] | the settings: flag, environment, file, default, and which of them won |
//! | [`shards`] | figures of this node's shards, for `/metrics` |
//! | [`telemetry`], [`traces`] | logs on standard error, `/metrics`; spans to a collector |
//! | [`client`] | the little HTTP client of the commands |
//! | [`operate`] | what an operator asks of a running cluster |
//! | [`print`] | rows as a table for eyes |
//! | [`exit`] | how a command ends: the exit codes |
//! | [`commands`] | one file per command: flags, work, printing |

pub mod client;
pub mod commands;
pub mod config;
pub mod exit;
mod huge_pages;
pub mod listen;
pub mod node;
pub mod operate;
pub mod print;
pub mod shards;
pub mod telemetry;
pub mod tls;
pub mod tokens;
pub mod traces;
