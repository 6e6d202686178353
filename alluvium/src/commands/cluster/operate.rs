//! `alluvium cluster status|move|split|drain|hand-over|recover`: what an operator asks of a running cluster, at any of its nodes.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use cluster::Recovered;
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::client::{self, Client, ServerArgs, whole};
use crate::commands::rows::{self, Format};
use crate::config::Span;
use crate::exit::Exit;
use crate::operate::{NodeStatus, ShardStatus, Status};

/// A drain is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where a node of the cluster is.
#[derive(Args, Debug)]
struct Asked {
    /// Any node of the cluster
    #[arg(long, env = "ALLUVIUM_URL", value_name = "URL", default_value = "http://127.0.0.1:2558")]
    url: String,

    /// An admin token, where the cluster wants one
    #[arg(long, env = "ALLUVIUM_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Authorities that may vouch for an https server, PEM [default: the system's]
    #[arg(long, env = "ALLUVIUM_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Asked {
    fn client(self) -> Result<Client, client::Error> {
        Client::new(&ServerArgs { url: self.url, db: String::new(), token: self.token, ca_file: self.ca_file })
    }
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium cluster status\n  alluvium cluster status --format json --url http://storage-1:2558")]
pub(super) struct StatusArgs {
    /// How it is printed: table, csv, json, jsonl [default: table on a terminal, csv otherwise]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium cluster move 3 storage-4                      in the place of the node that leads it\n  \
    alluvium cluster move 3 storage-4 --from storage-2\n  \
    alluvium cluster move 3 storage-2                      which holds it already: it leads from now on")]
pub(super) struct MoveArgs {
    /// The shard's number
    shard: u32,

    /// The node that it goes to
    node: String,

    /// The node that it leaves [default: the one that leads it]
    #[arg(long, value_name = "NODE")]
    from: Option<String>,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium cluster split 3 --wait                    in the middle\n  \
    alluvium cluster split 3 --at 6148914691236517205  devices whose routing hash is this or more get the new shard")]
pub(super) struct SplitArgs {
    /// The shard's number
    shard: u32,

    /// The first routing hash of the new shard [default: the middle of the shard's range]
    #[arg(long, value_name = "HASH")]
    at: Option<u64>,

    /// Return once both halves are shards of their own
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  alluvium cluster drain storage-3 --wait\n  alluvium cluster drain storage-3 --stop            it stays after all"
)]
pub(super) struct DrainArgs {
    /// The node that gives away what it holds
    node: String,

    /// Return once it holds nothing any more
    #[arg(long)]
    wait: bool,

    /// Let the node take part again instead
    #[arg(long, conflicts_with = "wait")]
    stop: bool,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium cluster hand-over --timeout 60s        the node at --url; on Kubernetes before its pod ends")]
pub(super) struct HandOverArgs {
    /// Gives up after so long; what the node still leads is then led by others once it has stopped
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    timeout: Span,

    #[command(flatten)]
    server: Asked,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium cluster recover --accept-loss 3\n\n\
    Of the replicas that are left the one with the most of its log goes on alone and is replicated anew; where none is left the\n\
    shard begins empty. The nodes that are given up are gone for good: they are not heard if they come back.")]
pub(super) struct RecoverArgs {
    /// The shard's number
    shard: u32,

    /// What only the lost replicas had is lost, and you know that their nodes never come back
    #[arg(long, required = true)]
    accept_loss: bool,

    #[command(flatten)]
    server: Asked,
}

async fn status_at(client: &Client) -> anyhow::Result<(Status, Bytes)> {
    let text = whole(client.send(Method::GET, "/cluster/v1/status", &[], &[], "").await?).await?;
    Ok((serde_json::from_slice(&text)?, text))
}

async fn post(client: &Client, path: &str, body: serde_json::Value) -> anyhow::Result<Bytes> {
    let headers = [("content-type", "application/json")];
    Ok(whole(client.send(Method::POST, path, &[], &headers, body.to_string()).await?).await?)
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let format = Format::or_usual(args.format);
    if matches!(format, Format::Parquet | Format::Arrow) {
        let why = "a status is two tables, of nodes and of shards, and such a file holds one: choose another format, or ask for one of \
                   them with alluvium sql 'SELECT * FROM system.shards' --format parquet";
        return Err(Exit::Usage(why.to_owned()).into());
    }
    let client = args.server.client()?;
    let (status, text) = status_at(&client).await?;
    let mut out = std::io::stdout();
    if format == Format::Json {
        out.write_all(&text)?;
        writeln!(out)?;
    } else {
        rows::print(&mut out, format, &NODE, &nodes_of(&status))?;
        if format == Format::Csv {
            writeln!(out)?;
        }
        rows::print(&mut out, format, &SHARD, &shards_of(&status))?;
    }
    let troubled = status.shards.iter().filter(|s| status.trouble(s).is_some()).count();
    match troubled {
        0 => Ok(()),
        some => Err(Exit::Failed(format!("{some} of {} shards cannot be written or read", status.shards.len())).into()),
    }
}

/// The columns of a status' two tables.
const NODE: [&str; 8] = ["node", "roles", "state", "leads", "holds", "http", "rpc", "version"];
const SHARD: [&str; 7] = ["shard", "leader", "replicas", "term", "applied", "rows_in_memory", "state"];

fn nodes_of(status: &Status) -> Vec<Value> {
    let shown = |node: &NodeStatus| match (node.state.as_str(), node.answers) {
        ("gone", _) => "gone".to_owned(),
        ("active", true) => "ready".to_owned(),
        (state, true) => state.to_owned(),
        (_, false) => "does not answer".to_owned(),
    };
    let row = |n: &NodeStatus| {
        let keeps = n.roles.split(',').any(|role| role == "storage");
        let leads = status.shards.iter().filter(|s| s.leader.as_deref() == Some(&n.name)).count();
        let holds = status.shards.iter().filter(|s| s.replicas.contains(&n.name)).count();
        json!({
            "node": n.name, "roles": n.roles, "state": shown(n), "leads": keeps.then_some(leads), "holds": keeps.then_some(holds),
            "http": n.http, "rpc": n.rpc, "version": n.version,
        })
    };
    status.nodes.iter().map(row).collect()
}

fn shards_of(status: &Status) -> Vec<Value> {
    let row = |s: &ShardStatus| {
        let mut placed = s.placed.clone();
        placed.sort();
        let mut replicas = s.replicas.clone();
        replicas.sort();
        let state = match (status.trouble(s), &s.leader) {
            (Some(trouble), _) => trouble,
            (None, Some(leader)) if placed != replicas || !placed.contains(leader) => format!("moves to {}", s.placed.join(" ")),
            (None, _) => "fine".to_owned(),
        };
        json!({
            "shard": s.shard, "leader": s.leader, "replicas": replicas.join(" "), "term": s.term, "applied": s.applied,
            "rows_in_memory": s.rows_in_memory, "state": state,
        })
    };
    status.shards.iter().map(row).collect()
}

pub(super) async fn move_shard(args: MoveArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let asked = serde_json::json!({"shard": args.shard, "to": args.node, "from": args.from});
    post(&client, "/cluster/v1/move", asked).await?;
    Ok(writeln!(std::io::stderr(), "shard {} is on its way to {}: 'alluvium cluster status' shows it", args.shard, args.node)?)
}

pub(super) async fn split(args: SplitArgs) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Answer {
        new_shard: u32,
    }
    let client = args.server.client()?;
    let mut err = std::io::stderr();
    let asked = serde_json::json!({"shard": args.shard, "at": args.at.map(|at| at.to_string())});
    let Answer { new_shard } = serde_json::from_slice(&post(&client, "/cluster/v1/split", asked).await?)?;
    if !args.wait {
        return Ok(writeln!(err, "shard {} gives a part to shard {new_shard}: 'alluvium cluster status' shows it", args.shard)?);
    }
    let bar = ProgressBar::new_spinner().with_message(format!("shard {} gives a part to shard {new_shard}", args.shard));
    bar.enable_steady_tick(LOOK_AGAIN / 4);
    while !status_at(&client).await?.0.shards.iter().any(|s| s.shard == new_shard && s.leader.is_some()) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    bar.finish_and_clear();
    Ok(writeln!(err, "shard {} has given a part to shard {new_shard}", args.shard)?)
}

pub(super) async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let mut err = std::io::stderr();
    post(&client, "/cluster/v1/drain", serde_json::json!({"node": args.node, "stop": args.stop})).await?;
    if args.stop {
        return Ok(writeln!(err, "{} takes part again", args.node)?);
    }
    if !args.wait {
        return Ok(writeln!(err, "{} gives away what it holds: 'alluvium cluster status' shows how far it is", args.node)?);
    }
    let mut bar: Option<ProgressBar> = None;
    loop {
        let (status, _) = status_at(&client).await?;
        let left = status.held_by(&args.node).count() as u64;
        let bar = bar.get_or_insert_with(|| {
            let template = "{prefix} {wide_bar} {pos} of {len} shards have left · {elapsed}";
            ProgressBar::new(left)
                .with_prefix(args.node.clone())
                .with_style(ProgressStyle::with_template(template).expect("the template is constant"))
        });
        bar.set_position(bar.length().unwrap_or(left).saturating_sub(left));
        if left == 0 {
            bar.finish_and_clear();
            return Ok(writeln!(err, "{} holds nothing any more: it can be taken out", args.node)?);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(super) async fn hand_over(args: HandOverArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let timeout_ms = u64::try_from(args.timeout.0.as_millis())?;
    post(&client, "/cluster/v1/hand_over", serde_json::json!({"timeout_ms": timeout_ms})).await?;
    Ok(writeln!(std::io::stderr(), "other nodes lead what this one led")?)
}

pub(super) async fn recover(args: RecoverArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let asked = serde_json::json!({"shard": args.shard, "accept_loss": args.accept_loss});
    let recovered: Recovered = serde_json::from_slice(&post(&client, "/cluster/v1/recover", asked).await?)?;
    Ok(writeln!(std::io::stdout(), "{}", told(&recovered))?)
}

/// What was lost, in words.
fn told(recovered: &Recovered) -> String {
    let Recovered { shard, hash_start, hash_last, lost, node, held } = recovered;
    let range = format!("routing hashes {hash_start:016x} to {hash_last:016x}");
    let lost = lost.join(", ");
    match held {
        None => format!("shard {shard}: given up on {lost}\nlost: every row of {range}\nit begins empty on {node}"),
        Some(held) => {
            let until = match held.arrived_ns {
                Some(ns) => {
                    let time = std::time::UNIX_EPOCH + Duration::from_nanos(ns.max(0).unsigned_abs());
                    format!("entry {} of its log, whose last write arrived at {}", held.index, humantime::format_rfc3339_nanos(time))
                }
                None => format!("entry {} of its log", held.index),
            };
            format!("shard {shard}: given up on {lost}\nlost: what came after {until}, of {range}\nit goes on with what {node} has")
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::Held;

    use super::*;

    #[test]
    fn what_is_lost_is_told_exactly() {
        let held = Some(Held { index: 42, arrived_ns: Some(1_780_000_000_000_000_007) });
        let mut recovered =
            Recovered { shard: 3, hash_start: 0, hash_last: u64::MAX / 2, lost: vec!["s1".into(), "s2".into()], node: "s3".into(), held };
        assert_eq!(
            told(&recovered),
            "shard 3: given up on s1, s2\nlost: what came after entry 42 of its log, whose last write arrived at \
             2026-05-28T20:26:40.000000007Z, of routing hashes 0000000000000000 to 7fffffffffffffff\nit goes on with what s3 has"
        );
        recovered.held = None;
        assert!(told(&recovered).contains("lost: every row of routing hashes 0000000000000000 to 7fffffffffffffff\nit begins empty on s3"));
    }
}
