//! Nodes as the cluster knows them: what each may be asked to do, and where.

use std::fmt;
use std::str::FromStr;

use model::NodeId;
use serde::{Deserialize, Serialize};

/// What a node can be asked to do (`--roles`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Roles {
    /// It takes writes.
    pub ingest: bool,
    /// It keeps replicas of shards.
    pub storage: bool,
    /// It answers SQL.
    pub query: bool,
}

impl Roles {
    /// Every role in one process.
    pub const ALL: Roles = Roles { ingest: true, storage: true, query: true };
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(self.ingest, "ingest"), (self.storage, "storage"), (self.query, "query")];
        let named: Vec<&str> = names.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        f.write_str(&named.join(","))
    }
}

impl FromStr for Roles {
    type Err = String;

    fn from_str(text: &str) -> Result<Roles, String> {
        let mut roles = Roles { ingest: false, storage: false, query: false };
        for name in text.split(',').map(str::trim) {
            match name {
                "ingest" => roles.ingest = true,
                "storage" => roles.storage = true,
                "query" => roles.query = true,
                other => return Err(format!("\"{other}\" is no role; write it like ingest,storage,query")),
            }
        }
        Ok(roles)
    }
}

impl From<Roles> for String {
    fn from(roles: Roles) -> String {
        roles.to_string()
    }
}

impl TryFrom<String> for Roles {
    type Error = String;

    fn try_from(text: String) -> Result<Roles, String> {
        text.parse()
    }
}

/// Whether shards may be placed on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It takes part.
    #[default]
    Active,
    /// Its shards are moving away and none comes (`cluster drain`).
    Draining,
    /// It was out of reach for too long, and its replicas are made anew elsewhere; or it was given up.
    Gone,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeState::Active => "active",
            NodeState::Draining => "draining",
            NodeState::Gone => "gone",
        })
    }
}

/// One node as the metadata group knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its number, drawn when its disk was empty: the same name on another disk is another node (DESIGN rule 13).
    pub id: NodeId,
    /// Its name (`--node-id`).
    pub name: String,
    /// What it can be asked to do.
    pub roles: Roles,
    /// Where it speaks HTTP, as others reach it.
    pub http: String,
    /// Where it speaks to peers; empty for a node that is alone.
    pub rpc: String,
    /// How often it was started.
    pub incarnation: u64,
    /// Its program's version.
    pub version: String,
    /// Whether shards may be placed on it.
    #[serde(default)]
    pub state: NodeState,
    /// Whether it is gone for ever: an operator said so, or another node took its name. No group hears it any more.
    #[serde(default)]
    pub given_up: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_written_as_they_are_given() {
        for text in ["ingest,storage,query", "storage", "ingest,query"] {
            assert_eq!(text.parse::<Roles>().unwrap().to_string(), text);
        }
        assert!("storage,clerk".parse::<Roles>().unwrap_err().contains("clerk"));
    }
}
