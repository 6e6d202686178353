//! `alluvium cluster dev`: a cluster of processes on this machine, one for each node.
//!
//! The nodes are this program's own executable and end with it. One that ends otherwise stays dead, so that one can watch
//! what the others do; `--restart ID` in another terminal asks the running `cluster dev` to start it again. Starting it on
//! the directory of an earlier cluster goes on with that cluster.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use storage::disk::DirLock;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::live::{Live, State};
use super::members::{ClusterFile, Member, Shape};
use crate::commands::ToldToEnd;
use crate::commands::serve::PARENT;
use crate::exit::Exit;
use crate::print::{Sheet, terminal_width};

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium cluster dev\n  alluvium cluster dev --ingest 1 --query 1 --shards 6 --base-port 4000\n  \
    kill -9 PID                                     and watch the others take over\n  \
    alluvium cluster dev --restart storage-2        in another terminal")]
pub(super) struct DevArgs {
    /// Ingest nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=100))]
    ingest: u16,

    /// Storage nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    storage: u16,

    /// Query nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=100))]
    query: u16,

    /// Replicas of each shard
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    replicas: u32,

    /// Shards of a new cluster [default: number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: Option<u32>,

    /// Folder that holds everything; made if it is missing
    #[arg(long, value_name = "DIR", default_value = "./alluvium-cluster")]
    data_dir: PathBuf,

    /// First of the ports, two for each node [default: free ones]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,

    /// Start a node again in the cluster that runs on this folder, and end
    #[arg(long, value_name = "ID", conflicts_with_all = ["ingest", "storage", "query", "replicas", "shards", "base_port"])]
    restart: Option<String>,
}

/// How long nodes may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long nodes may take to end once they are told to; beyond it they are killed.
const END_WITHIN: Duration = Duration::from_secs(20);
/// Nodes are looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The last lines of a node's log that are shown when it does not start.
const SHOWN_LOG_LINES: usize = 12;

const SETTINGS: &str = "# Settings of all nodes of this cluster; 'alluvium config default' prints all that there are.\n\
                        # Names, addresses, roles and data directories are given by 'alluvium cluster dev'.\n";

pub(super) async fn run(args: DevArgs) -> anyhow::Result<()> {
    if let Some(id) = &args.restart {
        return ask_for_restart(&args.data_dir, id).await;
    }
    if args.replicas > u32::from(args.storage) {
        let why = format!(
            "{} storage nodes cannot keep {} replicas: --replicas {} or --storage {}",
            args.storage, args.replicas, args.storage, args.replicas
        );
        return Err(Exit::Usage(why).into());
    }
    let mut dev = Dev::prepare(&args).await?;
    let mut signals = ToldToEnd::listen()?;
    let started = Instant::now();
    let begun = tokio::select! {
        begun = dev.start_all() => begun,
        _ = signals.next() => Err(Exit::Interrupted.into()),
    };
    let followed = match begun {
        Ok(()) => {
            dev.announce(started.elapsed())?;
            dev.follow(&mut signals).await
        }
        Err(error) => Err(error),
    };
    dev.end_all(&mut signals).await;
    followed
}

/// One node and its process.
struct Running {
    member: Member,
    child: Option<Child>,
    ended: Option<ExitStatus>,
}

/// The cluster.
struct Dev {
    dir: PathBuf,
    shape: Shape,
    program: OsString,
    nodes: Vec<Running>,
    control: TcpListener,
    _lock: DirLock,
}

impl Dev {
    async fn prepare(args: &DevArgs) -> anyhow::Result<Dev> {
        std::fs::create_dir_all(&args.data_dir).with_context(|| format!("could not make {}", args.data_dir.display()))?;
        let dir = args.data_dir.canonicalize()?;
        let lock = DirLock::take(&dir).context("is another 'alluvium cluster dev' running there?")?;
        let shape = Shape { ingest: args.ingest, storage: args.storage, query: args.query, replicas: args.replicas, shards: args.shards };
        let members = shape.members(&dir, args.base_port, ClusterFile::put_aside(&dir).as_ref())?;
        let settings = dir.join("alluvium.toml");
        if !settings.exists() {
            std::fs::write(&settings, SETTINGS)?;
        }
        let control = TcpListener::bind("127.0.0.1:0").await?;
        let nodes = members.into_iter().map(|member| Running { member, child: None, ended: None }).collect();
        Ok(Dev { dir, shape, program: std::env::current_exe()?.into(), nodes, control, _lock: lock })
    }

    async fn start_all(&mut self) -> anyhow::Result<()> {
        let waiting = indicatif::ProgressBar::new(self.nodes.len() as u64).with_style(
            indicatif::ProgressStyle::with_template("{spinner} {pos} of {len} nodes are ready · {elapsed}")
                .expect("the template is constant"),
        );
        waiting.enable_steady_tick(Duration::from_millis(100));
        for at in 0..self.nodes.len() {
            self.spawn(at)?;
        }
        let mut ready = vec![false; self.nodes.len()];
        let until = Instant::now() + READY_WITHIN;
        while ready.contains(&false) {
            for (node, ready) in self.nodes.iter_mut().zip(&mut ready) {
                *ready = *ready || node.is_ready()?;
            }
            waiting.set_position(ready.iter().filter(|ready| **ready).count() as u64);
            if Instant::now() > until {
                let late: Vec<&str> = self.nodes.iter().zip(&ready).filter(|(_, r)| !**r).map(|(n, _)| n.member.id.as_str()).collect();
                return Err(Exit::Failed(format!(
                    "not ready within {READY_WITHIN:?}: {}; their logs are in {}",
                    late.join(", "),
                    self.dir.display()
                ))
                .into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        waiting.finish_and_clear();
        self.write_file()
    }

    fn spawn(&mut self, at: usize) -> anyhow::Result<()> {
        let members: Vec<Member> = self.nodes.iter().map(|n| n.member.clone()).collect();
        let node = &mut self.nodes[at];
        let member = &mut node.member;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&member.log)
            .with_context(|| format!("could not open {}", member.log.display()))?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("ALLUVIUM_") && !name.starts_with("ALLUVIUM_LOG")
        }) {
            command.env_remove(name);
        }
        command
            .args(member.arguments(&self.dir, &self.shape, &members))
            .env(PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for this process, which then tells the nodes to end.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("could not start {}", member.id))?;
        member.pid = child.id().unwrap_or_default();
        node.child = Some(child);
        node.ended = None;
        Ok(())
    }

    fn write_file(&self) -> anyhow::Result<()> {
        let nodes = self.nodes.iter().map(|n| n.member.clone()).collect();
        ClusterFile { nodes, control: self.control.local_addr()?.to_string() }.write(&self.dir)
    }

    /// Says where everything is.
    fn announce(&self, took: Duration) -> anyhow::Result<()> {
        let here = std::env::current_dir().unwrap_or_default();
        let short = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
        let rows = self.nodes.iter().map(|node| {
            let m = &node.member;
            vec![m.id.clone(), m.role.clone(), m.pid.to_string(), format!("http://{}", m.http), m.rpc.clone(), short(&m.log)]
        });
        let mut out = std::io::stdout();
        Sheet::of_words(&["node", "role", "pid", "http", "rpc", "log"], rows.collect()).draw(&mut out, terminal_width())?;
        let first = |role: &str| self.nodes.iter().find(|n| n.member.role == role).or(self.nodes.first()).map(|n| n.member.http.clone());
        let urls = |role: &str| {
            let of: Vec<String> =
                self.nodes.iter().filter(|n| n.member.role == role).map(|n| format!("http://{}", n.member.http)).collect();
            of.join(",")
        };
        let (write, ask) = (first("ingest").unwrap_or_default(), first("query").unwrap_or_default());
        let mut err = std::io::stderr();
        writeln!(
            err,
            "ready in {:.1} s · {} nodes in {}\n  write  alluvium simulate --url {} --points 100000\n  ask    alluvium sql --url http://{ask}\n  \
             look   alluvium cluster status --url http://{write}\n  kill   kill -9 PID, and start it again with: alluvium cluster dev --data-dir {} --restart ID\n\
             Ctrl-C ends them all; their data stays.",
            took.as_secs_f64(),
            self.nodes.len(),
            short(&self.dir),
            Some(urls("ingest")).filter(|u| !u.is_empty()).unwrap_or(format!("http://{write}")),
            short(&self.dir),
        )?;
        Ok(())
    }

    /// Watches the nodes and takes orders until a signal comes.
    async fn follow(&mut self, signals: &mut ToldToEnd) -> anyhow::Result<()> {
        let mut live = Live::new();
        let mut ticks = tokio::time::interval(live.period());
        loop {
            tokio::select! {
                _ = signals.next() => {
                    live.clear();
                    return Ok(());
                }
                order = self.control.accept() => {
                    let Ok((stream, _)) = order else { continue };
                    live.clear();
                    self.take_order(stream).await;
                }
                _ = ticks.tick() => {
                    self.note_ended(&mut live)?;
                    let nodes: Vec<(Member, State)> = self.nodes.iter().map(|n| (n.member.clone(), n.state())).collect();
                    live.show(&nodes).await?;
                }
            }
        }
    }

    fn note_ended(&mut self, live: &mut Live) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if node.has_ended()? {
                live.clear();
                let how = node.ended.map(how).unwrap_or_default();
                writeln!(
                    std::io::stderr(),
                    "{} {how}; start it again with: alluvium cluster dev --data-dir {} --restart {}",
                    node.member.id,
                    self.dir.display(),
                    node.member.id
                )?;
            }
        }
        Ok(())
    }

    /// One order in one line: the name of a node to start again. The answer is one line too.
    async fn take_order(&mut self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut id = String::new();
        let read = tokio::time::timeout(Duration::from_secs(2), stream.read_line(&mut id)).await;
        if !matches!(read, Ok(Ok(_))) {
            return;
        }
        let answer = match self.restart(id.trim()).await {
            Ok(pid) => format!("ready {pid}\n"),
            Err(error) => format!("failed {}\n", crate::commands::told(&error)),
        };
        // Whoever asked may have left.
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    async fn restart(&mut self, id: &str) -> anyhow::Result<u32> {
        let Some(at) = self.nodes.iter().position(|n| n.member.id == id) else {
            let ids: Vec<&str> = self.nodes.iter().map(|n| n.member.id.as_str()).collect();
            anyhow::bail!("there is no node '{id}': {}", ids.join(", "));
        };
        self.nodes[at].end().await;
        self.spawn(at)?;
        let until = Instant::now() + READY_WITHIN;
        while !self.nodes[at].is_ready()? {
            anyhow::ensure!(
                Instant::now() < until,
                "{id} is not ready within {READY_WITHIN:?}; its log is {}",
                self.nodes[at].member.log.display()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.write_file()?;
        Ok(self.nodes[at].member.pid)
    }

    /// Tells all nodes to end, and kills those that take too long or when a second signal comes. Those that keep data are
    /// told last: until then the others can finish what they have begun.
    async fn end_all(&mut self, signals: &mut ToldToEnd) {
        let running = self.nodes.iter().filter(|n| n.child.is_some()).count();
        // Nobody may be there to read it.
        let _ = writeln!(std::io::stderr(), "stopping {running} nodes; their data stays in {}", self.dir.display());
        for role in ["ingest", "query", "storage"] {
            let of_role = self.nodes.iter_mut().filter(|n| n.member.role == role);
            let ending = futures::future::join_all(of_role.map(Running::end));
            tokio::select! {
                _ = ending => {}
                _ = signals.next() => return,
            }
        }
    }
}

impl Running {
    fn state(&self) -> State {
        match self.ended {
            Some(status) => State::Ended(how(status)),
            None => State::Running,
        }
    }

    /// Whether it has ended since it was last asked.
    fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            self.ended = Some(status);
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether its file says that it is; an error if it has ended instead.
    fn is_ready(&mut self) -> anyhow::Result<bool> {
        #[derive(Deserialize)]
        struct NodeFile {
            pid: u32,
        }
        if self.has_ended()? || self.child.is_none() {
            let how = self.ended.map(how).unwrap_or_default();
            let log = std::fs::read_to_string(&self.member.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..].join("\n  ");
            return Err(Exit::Failed(format!(
                "{} {how} before it was ready; {} ends with\n  {last}",
                self.member.id,
                self.member.log.display()
            ))
            .into());
        }
        let file = File::open(self.member.data_dir.join("node.json")).ok();
        Ok(file.and_then(|file| serde_json::from_reader::<_, NodeFile>(file).ok()).is_some_and(|node| node.pid == self.member.pid))
    }

    /// Tells it to end, and sees to it that it does.
    async fn end(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = match tokio::time::timeout(END_WITHIN, child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                let _ = child.start_kill();
                child.wait().await
            }
        };
        self.ended = ended.ok();
    }
}

/// How a process ended, in words.
fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(9), _) => "was killed".to_owned(),
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(0)) => "has stopped".to_owned(),
        (None, code) => format!("failed with exit code {}", code.unwrap_or(-1)),
    }
}

/// Asks the `cluster dev` that runs on a folder to start one of its nodes again.
async fn ask_for_restart(dir: &Path, id: &str) -> anyhow::Result<()> {
    let nobody = || Exit::Unreachable(format!("no 'alluvium cluster dev' is running on {}: start it first", dir.display()));
    let file = ClusterFile::read(dir).ok_or_else(nobody)?;
    let stream = TcpStream::connect(&file.control).await.map_err(|_| nobody())?;
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{id}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    match answer.trim().split_once(' ') {
        Some(("ready", pid)) => Ok(writeln!(std::io::stderr(), "{id} is ready, process {pid}")?),
        Some((_, why)) => Err(Exit::Failed(why.to_owned()).into()),
        None => Err(nobody().into()),
    }
}
