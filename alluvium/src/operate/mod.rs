//! What an operator asks of a running cluster, at any of its nodes: how is it, and change this.
//!
//! [`Status`] is what `GET /cluster/v1/status` answers and `alluvium cluster status` reads. What is changed is decided
//! here, by pure functions of the status, and done by `cluster`.

pub mod http;

use serde::{Deserialize, Serialize};

/// A cluster as one of its nodes sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its number, in hexadecimal.
    pub cluster: String,
    /// Its nodes, by name.
    pub nodes: Vec<NodeStatus>,
    /// Its shards.
    pub shards: Vec<ShardStatus>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: String,
    /// `ingest,storage,query` or less.
    pub roles: String,
    /// Where it speaks HTTP.
    pub http: String,
    /// Where it speaks to other nodes.
    pub rpc: String,
    /// `active`, `draining` or `gone`.
    pub state: String,
    /// Whether it answers.
    pub answers: bool,
    /// How often it was started.
    pub incarnation: u64,
    /// Its program's version.
    pub version: String,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: u32,
    /// The node that leads it; nobody where that node does not answer.
    pub leader: Option<String>,
    /// The node that led it when it was last heard of, if that does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_leader: Option<String>,
    /// The nodes that hold it now.
    pub replicas: Vec<String>,
    /// The nodes that should hold it; where they differ, it is on its way.
    pub placed: Vec<String>,
    /// The current term.
    pub term: u64,
    /// The last entry applied.
    pub applied: Option<u64>,
    /// Rows in memory.
    pub rows_in_memory: u64,
    /// Bytes of its log.
    pub wal_bytes: u64,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
}

impl Status {
    /// A leader that does not answer leads nothing: the others have heard of no new one yet, or cannot elect one.
    pub fn unseat_silent_leaders(&mut self) {
        for shard in &mut self.shards {
            let nodes = &self.nodes;
            shard.silent_leader = shard.leader.take_if(|leader| !nodes.iter().any(|n| n.name == *leader && n.answers));
        }
    }

    /// Why a shard can not be written and read, if it cannot.
    pub fn trouble(&self, shard: &ShardStatus) -> Option<String> {
        if let Some(why) = &shard.stopped {
            return Some(format!("stopped: {why}"));
        }
        let answers = |name: &&String| self.nodes.iter().any(|n| n.name == **name && n.answers);
        let mut silent: Vec<&str> = shard.replicas.iter().filter(|name| !answers(name)).map(String::as_str).collect();
        silent.sort_unstable();
        let replicas = shard.replicas.len();
        if replicas > 0 && (replicas - silent.len()) * 2 <= replicas {
            let answer = if silent.len() == 1 { "does not answer" } else { "do not answer" };
            return Some(format!("has no majority: of {replicas} replicas {} {answer}", silent.join(" ")));
        }
        match (&shard.leader, &shard.silent_leader) {
            (None, Some(leader)) => Some(format!("has no leader: {leader} does not answer")),
            (None, None) => Some("has no leader".to_owned()),
            (Some(_), _) => None,
        }
    }

    fn storage_node(&self, name: &str) -> Result<&NodeStatus, String> {
        let node = self.nodes.iter().find(|n| n.name == name && n.state != "gone").ok_or_else(|| format!("there is no node '{name}'"))?;
        match node.roles.split(',').any(|role| role == "storage") {
            true => Ok(node),
            false => Err(format!("node '{name}' keeps no shards: its roles are {}", node.roles)),
        }
    }

    /// Where a shard's replicas should be once it has moved to `to`: a node that holds it leads it from then on, another
    /// one takes the place of `from`, or of the leader.
    pub fn moved(&self, shard: u32, to: &str, from: Option<&str>) -> Result<Vec<String>, String> {
        let shard = self.shards.iter().find(|s| s.shard == shard).ok_or_else(|| format!("there is no shard {shard}"))?;
        let target = self.storage_node(to)?;
        if target.state != "active" {
            return Err(format!("node '{to}' is {}: nothing is moved to it", target.state));
        }
        let mut placed = shard.placed.clone();
        if let Some(at) = placed.iter().position(|name| name == to) {
            if let Some(from) = from.filter(|from| *from != to) {
                return Err(format!("shard {} is on '{to}' already: it cannot come there from '{from}' too", shard.shard));
            }
            placed[..=at].rotate_right(1);
            return Ok(placed);
        }
        let leaves = from.or(shard.leader.as_deref()).or(placed.first().map(String::as_str)).unwrap_or_default();
        let at = placed.iter().position(|name| name == leaves).ok_or_else(|| format!("shard {} is not on '{leaves}'", shard.shard))?;
        placed[at] = to.to_owned();
        Ok(placed)
    }

    /// Whether a node may give away all that it holds: each shard must find as many other nodes as it has replicas.
    pub fn may_drain(&self, name: &str) -> Result<(), String> {
        let node = self.storage_node(name)?;
        let others = self
            .nodes
            .iter()
            .filter(|n| n.name != node.name && n.state == "active" && n.answers && n.roles.split(',').any(|role| role == "storage"))
            .count();
        let most = self.shards.iter().filter(|s| s.placed.contains(&node.name)).map(|s| s.placed.len()).max().unwrap_or(0);
        match others >= most {
            true => Ok(()),
            false => {
                Err(format!("draining '{name}' would leave {others} storage nodes for shards of {most} replicas: start another node first"))
            }
        }
    }

    /// Shards that a node still holds, leads or should hold.
    pub fn held_by<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ShardStatus> {
        self.shards.iter().filter(move |s| s.replicas.iter().chain(&s.placed).chain(&s.leader).any(|n| n == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, roles: &str, state: &str) -> NodeStatus {
        let (name, roles, state) = (name.to_owned(), roles.to_owned(), state.to_owned());
        let address = String::new();
        NodeStatus {
            id: name.clone(),
            name,
            roles,
            http: address.clone(),
            rpc: address.clone(),
            state,
            answers: true,
            incarnation: 1,
            version: address,
        }
    }

    fn status(placed: &[&str]) -> Status {
        let names: Vec<String> = placed.iter().map(|n| (*n).to_owned()).collect();
        let shard = ShardStatus {
            shard: 7,
            leader: Some(names[0].clone()),
            silent_leader: None,
            replicas: names.clone(),
            placed: names,
            term: 1,
            applied: None,
            rows_in_memory: 0,
            wal_bytes: 0,
            stopped: None,
        };
        let nodes = ["a", "b", "c", "d"].map(|n| node(n, "storage", "active")).to_vec();
        Status { cluster: String::new(), nodes, shards: vec![shard] }
    }

    #[test]
    fn a_node_that_does_not_answer_leads_nothing_and_half_of_the_replicas_are_no_majority() {
        let mut status = status(&["a", "b", "c"]);
        let told = |status: &mut Status, silent: &[&str]| {
            status.nodes.iter_mut().for_each(|n| n.answers = !silent.contains(&n.name.as_str()));
            status.shards[0].leader = Some("a".to_owned());
            status.unseat_silent_leaders();
            (status.shards[0].leader.clone(), status.trouble(&status.shards[0]).unwrap_or_default())
        };
        let a = || Some("a".to_owned());
        assert_eq!(told(&mut status, &[]), (a(), String::new()));
        assert_eq!(told(&mut status, &["c", "d"]), (a(), String::new()));
        assert_eq!(told(&mut status, &["a"]), (None, "has no leader: a does not answer".to_owned()));
        assert_eq!(told(&mut status, &["b", "c"]), (a(), "has no majority: of 3 replicas b c do not answer".to_owned()));
        assert_eq!(told(&mut status, &["a", "b", "c"]).0, None);
        status.shards[0].replicas = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(told(&mut status, &["b"]), (a(), "has no majority: of 2 replicas b does not answer".to_owned()));
        status.shards[0].leader = None;
        status.shards[0].replicas.clear();
        status.shards[0].silent_leader = None;
        assert_eq!(status.trouble(&status.shards[0]).as_deref(), Some("has no leader"));
    }

    #[test]
    fn a_move_replaces_the_leader_or_whom_it_is_told_to_or_makes_a_leader() {
        let status = status(&["a", "b", "c"]);
        assert_eq!(status.moved(7, "d", None).unwrap(), ["d", "b", "c"]);
        assert_eq!(status.moved(7, "d", Some("c")).unwrap(), ["a", "b", "d"]);
        assert_eq!(status.moved(7, "c", None).unwrap(), ["c", "a", "b"]);
        for (shard, to, from, says) in
            [(8, "d", None, "no shard 8"), (7, "x", None, "no node 'x'"), (7, "d", Some("x"), "not on 'x'"), (7, "b", Some("a"), "already")]
        {
            assert!(status.moved(shard, to, from).unwrap_err().contains(says));
        }
    }

    #[test]
    fn nothing_moves_to_a_node_that_keeps_nothing_or_is_leaving() {
        let mut status = status(&["a", "b", "c"]);
        status.nodes[3] = node("d", "ingest,query", "active");
        assert!(status.moved(7, "d", None).unwrap_err().contains("keeps no shards"));
        status.nodes[3] = node("d", "storage", "draining");
        assert!(status.moved(7, "d", None).unwrap_err().contains("draining"));
    }

    #[test]
    fn a_node_that_still_leads_is_not_empty() {
        let mut status = status(&["a", "b", "c"]);
        status.shards[0].leader = Some("d".to_owned());
        assert_eq!(status.held_by("d").count(), 1);
        status.shards[0].leader = Some("a".to_owned());
        assert_eq!(status.held_by("d").count(), 0);
        assert_eq!(status.held_by("b").count(), 1);
    }

    #[test]
    fn a_drain_that_leaves_too_few_replicas_is_refused() {
        let mut status = status(&["a", "b", "c"]);
        assert!(status.may_drain("a").is_ok());
        status.nodes[3].answers = false;
        assert!(status.may_drain("a").unwrap_err().contains("start another node first"));
        // It holds nothing.
        assert!(status.may_drain("d").is_ok());
    }
}
