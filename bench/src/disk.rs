//! The controls of a run: what machine this is, and what one small synced write costs on its disk.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};
use simulator::Latencies;

/// Processor and cores.
pub(crate) fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim().to_owned()));
    json!({ "cpu": model, "cores": std::thread::available_parallelism().map_or(0, |n| n.get()) })
}

/// 4 KiB written in place and synced, over and over: the floor of every durable answer.
pub(crate) fn sync_control(dir: &Path) -> Result<Value> {
    let path = dir.join(format!("alluvium-bench-control-{}", std::process::id()));
    let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let mut latencies = Latencies::default();
    for i in 0..500u64 {
        let start = Instant::now();
        file.write_all_at(&[i as u8; 4096], i % 256 * 4096)?;
        file.sync_data()?;
        latencies.note(start.elapsed().as_micros() as u64);
    }
    std::fs::remove_file(&path)?;
    Ok(json!({ "p50_ms": latencies.quantile_us(0.5) as f64 / 1e3, "p99_ms": latencies.quantile_us(0.99) as f64 / 1e3 }))
}
