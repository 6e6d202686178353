//! The nodes of a cluster on one machine: which there are, on which ports, and how each is started.
//!
//! ```text
//! DIR/cluster.json       {"nodes": [{"id", "role", "pid", "http", "rpc", "data_dir", "log"}], "control"}
//! DIR/alluvium.toml      settings of all nodes, for whoever wants to change some
//! DIR/ID/                a node's data directory
//! DIR/ID.log             what it says
//! ```
//!
//! Ports are kept from one start to the next, as long as nobody else has taken them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) ingest: u16,
    pub(super) storage: u16,
    pub(super) query: u16,
    pub(super) replicas: u32,
    pub(super) shards: Option<u32>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) role: String,
    pub(super) pid: u32,
    pub(super) http: String,
    pub(super) rpc: String,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
}

/// `cluster.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClusterFile {
    pub(super) nodes: Vec<Member>,
    /// Where the running `cluster dev` takes orders.
    pub(super) control: String,
}

impl ClusterFile {
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join("cluster.json")
    }

    /// That of the cluster that runs there, if it can be read.
    pub(super) fn read(dir: &Path) -> Option<ClusterFile> {
        serde_json::from_slice(&std::fs::read(ClusterFile::path(dir)).ok()?).ok()
    }

    /// What an earlier start has left. It is put aside: whoever waits for the file must not read the old one, but the
    /// ports in it are kept, also where this start comes to nothing.
    pub(super) fn put_aside(dir: &Path) -> Option<ClusterFile> {
        let aside = dir.join("cluster.json.before");
        // There is none where the start before came to nothing, or this one is the first.
        let _ = std::fs::rename(ClusterFile::path(dir), &aside);
        serde_json::from_slice(&std::fs::read(aside).ok()?).ok()
    }

    /// Whoever waits for it never reads half of it.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let (path, beside) = (ClusterFile::path(dir), dir.join("cluster.json.new"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::rename(&beside, &path))
            .with_context(|| format!("could not write {}", path.display()))
    }
}

impl Shape {
    /// The nodes' names and roles: storage first, as the others wait for it.
    fn names(&self) -> Vec<(String, &'static str)> {
        let of = |role: &'static str, count: u16| (1..=count).map(move |number| (format!("{role}-{number}"), role));
        of("storage", self.storage).chain(of("ingest", self.ingest)).chain(of("query", self.query)).collect()
    }

    /// The nodes with their ports: those from `base_port` on, or those of the start before, or free ones.
    pub(super) fn members(&self, dir: &Path, base_port: Option<u16>, before: Option<&ClusterFile>) -> anyhow::Result<Vec<Member>> {
        let mut ports = Ports { next: base_port, held: Vec::new() };
        let mut members = Vec::new();
        for (id, role) in self.names() {
            let was = before.and_then(|file| file.nodes.iter().find(|m| m.id == id)).filter(|_| base_port.is_none());
            let http = ports.take(was.map(|m| m.http.as_str()))?;
            let rpc = ports.take(was.map(|m| m.rpc.as_str()))?;
            members.push(Member {
                data_dir: dir.join(&id),
                log: dir.join(format!("{id}.log")),
                id,
                role: role.to_owned(),
                pid: 0,
                http,
                rpc,
            });
        }
        // Only now are they let go, so that none was given away twice.
        drop(ports);
        Ok(members)
    }
}

struct Ports {
    next: Option<u16>,
    held: Vec<TcpListener>,
}

impl Ports {
    fn take(&mut self, before: Option<&str>) -> anyhow::Result<String> {
        let listener = match (self.next, before.map(TcpListener::bind)) {
            (Some(port), _) => {
                self.next = Some(port.checked_add(1).context("--base-port leaves no room for all nodes")?);
                TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port} is taken (--base-port)"))?
            }
            (None, Some(Ok(listener))) => listener,
            (None, _) => free_port().context("there is no free port")?,
        };
        let address = listener.local_addr()?.to_string();
        self.held.push(listener);
        Ok(address)
    }
}

impl Member {
    /// The arguments that start it.
    pub(super) fn arguments(&self, dir: &Path, shape: &Shape, members: &[Member]) -> Vec<String> {
        let storage: Vec<&str> = members.iter().filter(|m| m.role == "storage").map(|m| m.rpc.as_str()).collect();
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut arguments = vec!["serve".to_owned()];
        let mut give = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        give("--config", path(&dir.join("alluvium.toml")));
        give("--node-id", self.id.clone());
        give("--data-dir", path(&self.data_dir));
        give("--listen", self.http.clone());
        give("--rpc-listen", self.rpc.clone());
        give("--roles", self.role.clone());
        give("--join", storage.join(","));
        if self.role == "storage" {
            give("--bootstrap-expect", shape.storage.to_string());
            give("--replicas", shape.replicas.to_string());
            if let Some(shards) = shape.shards {
                give("--shards", shards.to_string());
            }
        }
        arguments
    }
}

/// Ports that the system does not give to outgoing connections: one that is free now is not taken by the next node's
/// connection to its peers before the node that it is meant for listens on it.
const QUIET_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A free port, from a place in the range that other clusters on this machine do not begin at.
fn free_port() -> std::io::Result<TcpListener> {
    let count = u32::from(QUIET_PORTS.end - QUIET_PORTS.start);
    let first = std::process::id().wrapping_mul(97) % count;
    for i in 0..count {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", QUIET_PORTS.start + ((first + i) % count) as u16)) {
            return Ok(listener);
        }
    }
    TcpListener::bind("127.0.0.1:0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { ingest: 1, storage: 2, query: 1, replicas: 2, shards: Some(4) };

    #[test]
    fn every_node_has_ports_of_its_own_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let members = SHAPE.members(dir.path(), None, None).unwrap();
        let ids: Vec<&str> = members.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(ids, ["storage-1", "storage-2", "ingest-1", "query-1"]);
        let mut addresses: Vec<&String> = members.iter().flat_map(|m| [&m.http, &m.rpc]).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 8);
        let file = ClusterFile { nodes: members.clone(), control: String::new() };
        file.write(dir.path()).unwrap();
        for _ in 0..2 {
            let before = ClusterFile::put_aside(dir.path());
            assert_eq!(SHAPE.members(dir.path(), None, before.as_ref()).unwrap(), members);
            assert!(ClusterFile::read(dir.path()).is_none());
        }
    }

    #[test]
    fn storage_nodes_found_the_cluster_and_the_others_look_for_them() {
        let dir = Path::new("/d");
        let member = |id: &str, role: &str, port: u16| Member {
            id: id.to_owned(),
            role: role.to_owned(),
            pid: 0,
            http: format!("127.0.0.1:{port}"),
            rpc: format!("127.0.0.1:{}", port + 1),
            data_dir: dir.join(id),
            log: dir.join("log"),
        };
        let members = [member("storage-1", "storage", 1), member("storage-2", "storage", 3), member("query-1", "query", 5)];
        let storage = members[0].arguments(dir, &SHAPE, &members).join(" ");
        for part in [
            "serve --config /d/alluvium.toml --node-id storage-1 --data-dir /d/storage-1",
            "--join 127.0.0.1:2,127.0.0.1:4",
            "--bootstrap-expect 2 --replicas 2 --shards 4",
        ] {
            assert!(storage.contains(part), "{storage}");
        }
        let query = members[2].arguments(dir, &SHAPE, &members).join(" ");
        assert!(query.contains("--roles query --join 127.0.0.1:2,127.0.0.1:4") && !query.contains("bootstrap"), "{query}");
    }
}
