//! What other parts of the program know and SQL shows: settings, refused lines, nodes. Given as functions when the engine
//! is made; called when a query reads the system table.

use model::Timestamp;

/// Where the rows of some system tables come from.
pub struct Sources {
    /// `system.settings`.
    pub settings: Box<dyn Fn() -> Vec<Setting> + Send + Sync>,
    /// `system.refused_lines`, oldest first.
    pub refused_lines: Box<dyn Fn() -> Vec<RefusedLine> + Send + Sync>,
    /// `system.nodes`.
    pub nodes: Box<dyn Fn() -> Vec<Node> + Send + Sync>,
}

/// One line of `system.settings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key in `alluvium.toml`.
    pub name: String,
    /// Its value; secrets are masked by whoever gives it.
    pub value: String,
    /// `flag`, `environment`, `file` or `default`.
    pub origin: String,
}

/// One line of `system.refused_lines`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLine {
    /// When it was refused.
    pub time: Timestamp,
    /// The database that it was meant for.
    pub database: String,
    /// Its number in the request's body.
    pub line_number: u64,
    /// The line, cut.
    pub original_line: String,
    /// Why.
    pub error_message: String,
}

/// One line of `system.nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub node_id: String,
    /// Comma separated.
    pub roles: String,
    /// Where it speaks HTTP.
    pub http: String,
    /// Where it speaks to other nodes, if it does.
    pub rpc: Option<String>,
    /// The program's version.
    pub version: String,
    /// `ready`, `draining`, `down`.
    pub state: String,
    /// When it started, where that is known.
    pub started: Option<Timestamp>,
}
