//! A server of our own for one case: started, measured from outside by `/proc`, asked over HTTP, stopped.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Ticks per second in `/proc/PID/stat` (USER_HZ, fixed at 100 for user space on Linux).
const USER_HZ: f64 = 100.0;

/// A running server and its data directory; both go when it is dropped.
pub(crate) struct Server {
    child: Child,
    address: String,
    dir: PathBuf,
}

/// What the server's process has used so far.
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
}

impl Server {
    pub(crate) fn start(program: Option<PathBuf>, dir: &Path, flags: &[String]) -> Result<Server> {
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("alluvium"),
        };
        let dir = dir.join(format!("alluvium-bench-{}", std::process::id()));
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        let child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"])
            .arg(&dir)
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("could not start {}: build it with `cargo build --release`", program.display()))?;
        let mut server = Server { child, address: String::new(), dir };
        let started = Instant::now();
        while server.address.is_empty() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended at once: {status}");
            }
            if started.elapsed() > Duration::from_secs(30) {
                bail!("the server was not ready within 30 s");
            }
            if let Ok(text) = std::fs::read(server.dir.join("node.json"))
                && let Ok(node) = serde_json::from_slice::<serde_json::Value>(&text)
                && let Some(http) = node["http"].as_str()
            {
                server.address = http.trim_start_matches("http://").trim_end_matches('/').to_owned();
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(server)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(Usage { cpu_s: ticks / USER_HZ })
    }

    /// Waits until the process has used less than 5 % of one core for a second; at most two minutes.
    pub(crate) fn wait_until_idle(&self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(120) {
            let before = self.usage()?.cpu_s;
            std::thread::sleep(Duration::from_secs(1));
            if self.usage()?.cpu_s - before < 0.05 {
                return Ok(());
            }
        }
        eprintln!("the server is still busy two minutes after the load");
        Ok(())
    }

    /// Samples the process's memory until stopped.
    pub(crate) fn watch(&self) -> MemoryWatch {
        let pid = self.child.id();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !stopped.load(Relaxed) {
                samples.extend(rss_mb(pid));
                std::thread::sleep(Duration::from_millis(100));
            }
            samples
        });
        MemoryWatch { stop, thread }
    }

    /// Runs a statement and gives the answer's text.
    pub(crate) fn sql(&self, statement: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "POST /sql?db=bench&format=csv&timeout=600s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{statement}",
            statement.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if !answer.starts_with("HTTP/1.1 20") {
            bail!("{statement}: {answer}");
        }
        Ok(answer)
    }

    pub(crate) fn count(&self, table: &str) -> Result<u64> {
        let answer = self.sql(&format!("SELECT count(*) AS n FROM {table}"))?;
        let digits = answer.lines().rev().find_map(|l| l.trim().parse().ok());
        digits.with_context(|| format!("no count in {answer}"))
    }

    /// Bytes of all Parquet files of the data directory.
    pub(crate) fn parquet_bytes(&self) -> Result<u64> {
        fn walk(dir: &Path, sum: &mut u64) -> Result<()> {
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    walk(&entry.path(), sum)?;
                } else if entry.path().extension().is_some_and(|e| e == "parquet") {
                    *sum += entry.metadata()?.len();
                }
            }
            Ok(())
        }
        let mut sum = 0;
        walk(&self.dir, &mut sum)?;
        Ok(sum)
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After an error the child may still run; after `stop` it is gone and both calls fail harmlessly.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Memory over a load.
pub(crate) struct MemoryWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
}

/// Largest resident megabytes: of all, of the first and of the second half of the load.
pub(crate) struct Memory {
    pub(crate) peak_mb: f64,
    pub(crate) first_half_mb: f64,
    pub(crate) second_half_mb: f64,
}

impl MemoryWatch {
    pub(crate) fn stop(self) -> Memory {
        self.stop.store(true, Relaxed);
        let samples = self.thread.join().unwrap_or_default();
        let (first, second) = samples.split_at(samples.len() / 2);
        let max = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
        Memory { peak_mb: max(&samples), first_half_mb: max(first), second_half_mb: max(second) }
    }
}

fn rss_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
