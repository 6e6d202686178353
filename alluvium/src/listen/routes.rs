//! Every path that is answered, and what its sender must show first.
//!
//! The listener knows no other path: a route of the router that is not listed here is never reached, so that none can be
//! added without a thought about who may use it.

/// What a request must show where there are access tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: whoever watches the node's health has no token.
    Nothing,
    /// A token. What it must allow depends on database and statement: ingest and query check that.
    Token,
    /// A token that administers all databases.
    AdminOfAll,
}

/// Where calls of Arrow Flight go; each has a path of its own.
pub const FLIGHT: &str = "/arrow.flight.protocol.FlightService/";

/// All paths, but for the calls of [`FLIGHT`].
pub const ROUTES: [(&str, Needs); 20] = [
    ("/write", Needs::Token),
    ("/api/v2/write", Needs::Token),
    ("/api/v3/write_lp", Needs::Token),
    ("/api/v3/query_sql", Needs::Token),
    ("/api/v3/configure/database", Needs::Token),
    ("/api/v3/configure/token", Needs::AdminOfAll),
    ("/sql", Needs::Token),
    ("/query", Needs::Token),
    ("/ping", Needs::Nothing),
    ("/health", Needs::Nothing),
    ("/ready", Needs::Nothing),
    ("/metrics", Needs::Nothing),
    // QuestDB's clients ask for it before they show anything; it tells nothing but versions.
    ("/settings", Needs::Nothing),
    ("/cluster/v1/status", Needs::AdminOfAll),
    ("/cluster/v1/move", Needs::AdminOfAll),
    ("/cluster/v1/split", Needs::AdminOfAll),
    ("/cluster/v1/drain", Needs::AdminOfAll),
    ("/cluster/v1/hand_over", Needs::AdminOfAll),
    ("/cluster/v1/recover", Needs::AdminOfAll),
    ("/", Needs::Nothing),
];

/// The path as it is listed, and what it needs.
pub fn find(path: &str) -> Option<(&'static str, Needs)> {
    let flight = || path.starts_with(FLIGHT).then_some((FLIGHT, Needs::Nothing));
    ROUTES.into_iter().find(|(listed, _)| *listed == path).or_else(flight)
}
