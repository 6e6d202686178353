//! The fleet against a running server: rows/s, bytes/s, the server's CPU seconds per million rows, how long answers took,
//! bytes per row on disk. Prints JSON.
//!
//! Lines are made before the clock starts, so the client costs little; it shares the machine with the server all the
//! same. Every figure stands beside a control of the same run (a plain write and sync of this disk), because machines
//! differ and change. Nothing here passes or fails.

mod disk;
mod load;
mod server;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use simulator::{FleetOptions, KindName};

use crate::load::{Bodies, Load};
use crate::server::Server;

/// Drives a server with lines made beforehand and prints figures as JSON.
#[derive(Parser)]
#[command(after_help = "Examples:
  bench --case bulk                          10 million rows, 5,000 lines a request, 2 connections
  bench --case one --rows 500000             one line a request, 64 connections
  bench --case all --server target/release/alluvium")]
struct Arguments {
    /// bulk, one, ten, hundred, or all
    #[arg(long, default_value = "all")]
    case: String,
    /// Rows of the bulk case; the others take less
    #[arg(long, default_value_t = 10_000_000)]
    rows: u64,
    /// Devices of the fleet
    #[arg(long, default_value_t = 10_000)]
    devices: u32,
    /// The alluvium program; by default the one beside this program
    #[arg(long)]
    server: Option<PathBuf>,
    /// Where data directories are made; by default the system's folder for temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// More flags for `alluvium serve`, for example --serve-flag=--shards=1
    #[arg(long)]
    serve_flag: Vec<String>,
}

/// One way of writing.
struct Case {
    name: &'static str,
    connections: usize,
    lines: usize,
    rows: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cases: Vec<Case> = [
        Case { name: "hundred", connections: 1, lines: 100, rows: (arguments.rows / 20).min(300_000) },
        Case { name: "one", connections: 64, lines: 1, rows: (arguments.rows / 10).min(500_000) },
        Case { name: "ten", connections: 64, lines: 10, rows: (arguments.rows / 5).min(2_000_000) },
        Case { name: "bulk", connections: 2, lines: 5_000, rows: arguments.rows },
    ]
    .into_iter()
    .filter(|c| arguments.case == "all" || arguments.case == c.name)
    .collect();
    anyhow::ensure!(!cases.is_empty(), "no case is called '{}': use bulk, one, ten, hundred or all", arguments.case);
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut results = serde_json::Map::new();
    results.insert("machine".into(), disk::machine());
    results.insert("control_sync_4k".into(), disk::sync_control(&dir)?);
    for case in cases {
        eprintln!("{}: {} rows, {} lines a request, {} connections", case.name, case.rows, case.lines, case.connections);
        results.insert(case.name.into(), run(&case, &arguments, &dir).with_context(|| format!("case {}", case.name))?);
    }
    println!("{}", serde_json::to_string_pretty(&Value::Object(results))?);
    Ok(())
}

fn run(case: &Case, arguments: &Arguments, dir: &std::path::Path) -> Result<Value> {
    let bodies = Bodies::make(
        FleetOptions {
            devices: arguments.devices,
            kinds: vec![KindName::Phone, KindName::Watch],
            points: Some(case.rows),
            interval_ns: 10_000_000_000,
            start_ns: simulator::DEFAULT_START_NS,
            seed: 1,
            late_pct: 0.0,
            duplicate_pct: 0.0,
            offline_pct: 0.0,
        },
        case.lines,
    );
    let server = Server::start(arguments.server.clone(), dir, &arguments.serve_flag)?;
    // The tables and their columns exist before the clock starts, as they do on every day but the first.
    Load { connections: 1, bodies: bodies.first(1) }.run(server.address())?;
    let before = server.usage()?;
    let watch = server.watch();
    let load = Load { connections: case.connections, bodies: &bodies }.run(server.address())?;
    let loaded = server.usage()?;
    server.wait_until_idle()?;
    let idle = server.usage()?;
    let memory = watch.stop();
    let rows = bodies.lines() as f64;
    server.sql("COMPACT")?;
    let compacted = server.usage()?;
    let found: u64 = ["phone", "watch"].iter().map(|t| server.count(t)).sum::<Result<u64>>()?;
    let disk_bytes = server.parquet_bytes()?;
    let result = json!({
        "rows": bodies.lines(),
        "rows_found": found,
        "lines_per_request": case.lines,
        "connections": case.connections,
        "seconds": load.seconds,
        "rows_per_s": (rows / load.seconds).round(),
        "requests_per_s": (bodies.len() as f64 / load.seconds).round(),
        "text_bytes_per_s": (bodies.bytes() as f64 / load.seconds).round(),
        "text_bytes_per_row": bodies.bytes() as f64 / rows,
        "ack_p50_ms": load.latencies.quantile_us(0.5) as f64 / 1e3,
        "ack_p99_ms": load.latencies.quantile_us(0.99) as f64 / 1e3,
        "ack_max_ms": load.latencies.max_us() as f64 / 1e3,
        "server_cpu_s_per_million_rows": (loaded.cpu_s - before.cpu_s) / rows * 1e6,
        "server_cpu_s_per_million_rows_until_idle": (idle.cpu_s - before.cpu_s) / rows * 1e6,
        "server_cpu_s_per_million_rows_with_full_compaction": (compacted.cpu_s - before.cpu_s) / rows * 1e6,
        "client_cpu_s_per_million_rows": load.client_cpu_s / rows * 1e6,
        "server_rss_peak_mb": memory.peak_mb,
        "server_rss_first_half_mb": memory.first_half_mb,
        "server_rss_second_half_mb": memory.second_half_mb,
        "parquet_bytes_per_row": disk_bytes as f64 / found.max(1) as f64,
        "refused_or_failed_requests": load.failed,
    });
    server.stop()?;
    Ok(result)
}
