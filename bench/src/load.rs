//! The client: bodies made beforehand, written to keep-alive connections with as little work as possible.
//!
//! It speaks just enough HTTP/1.1 to send a body and read a 204, so that the machine is left to the server. All
//! connections of a load share one thread.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use simulator::{Fleet, FleetOptions, Latencies};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Requests, ready to be written: head and body in one piece each.
pub(crate) struct Bodies {
    bytes: Vec<u8>,
    requests: Vec<Range<usize>>,
    lines: u64,
    text_bytes: u64,
}

impl Bodies {
    /// Plays the fleet to its end.
    pub(crate) fn make(fleet: FleetOptions, lines_per_request: usize) -> Bodies {
        let mut fleet = Fleet::new(fleet);
        let mut bodies = Bodies { bytes: Vec::new(), requests: Vec::new(), lines: 0, text_bytes: 0 };
        let mut text = Vec::new();
        loop {
            text.clear();
            let mut lines = 0;
            while lines < lines_per_request && fleet.next_line(&mut text).is_some() {
                lines += 1;
            }
            if lines == 0 {
                return bodies;
            }
            let start = bodies.bytes.len();
            let head = format!(
                "POST /api/v2/write?bucket=bench&precision=ns HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n",
                text.len()
            );
            bodies.bytes.extend_from_slice(head.as_bytes());
            bodies.bytes.extend_from_slice(&text);
            bodies.requests.push(start..bodies.bytes.len());
            bodies.lines += lines as u64;
            bodies.text_bytes += text.len() as u64;
        }
    }

    /// The first `n` requests.
    pub(crate) fn first(&self, n: usize) -> Part<'_> {
        Part { bodies: self, requests: &self.requests[..n.min(self.requests.len())] }
    }

    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.text_bytes
    }
}

/// Some of the requests.
pub(crate) struct Part<'a> {
    bodies: &'a Bodies,
    requests: &'a [Range<usize>],
}

/// Something that can be sent.
pub(crate) trait Requests {
    fn part(&self) -> Part<'_>;
}

impl Requests for &Bodies {
    fn part(&self) -> Part<'_> {
        self.first(self.requests.len())
    }
}

impl Requests for Part<'_> {
    fn part(&self) -> Part<'_> {
        Part { bodies: self.bodies, requests: self.requests }
    }
}

/// Requests over a number of connections, each sending its next when its last was answered.
pub(crate) struct Load<R> {
    pub(crate) connections: usize,
    pub(crate) bodies: R,
}

/// What a load measured.
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) latencies: Latencies,
    pub(crate) client_cpu_s: f64,
    pub(crate) failed: u64,
}

impl<R: Requests> Load<R> {
    pub(crate) fn run(&self, address: &str) -> Result<Measured> {
        let part = self.bodies.part();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cpu_before = thread_cpu_s();
        let next = Cell::new(0usize);
        let failed = Cell::new(0u64);
        let latencies = Rc::new(RefCell::new(Latencies::default()));
        let started = Instant::now();
        runtime.block_on(async {
            let connections = (0..self.connections).map(|_| async {
                let mut stream = TcpStream::connect(address).await.with_context(|| format!("could not connect to {address}"))?;
                stream.set_nodelay(true)?;
                let mut answer = Vec::with_capacity(4096);
                loop {
                    let number = next.get();
                    let Some(request) = part.requests.get(number) else { return anyhow::Ok(()) };
                    next.set(number + 1);
                    let asked = Instant::now();
                    stream.write_all(&part.bodies.bytes[request.clone()]).await?;
                    if read_answer(&mut stream, &mut answer).await? != 204 {
                        failed.set(failed.get() + 1);
                    }
                    latencies.borrow_mut().note(asked.elapsed().as_micros() as u64);
                }
            });
            futures::future::try_join_all(connections).await
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let latencies = latencies.borrow().clone();
        Ok(Measured { seconds, latencies, client_cpu_s: thread_cpu_s() - cpu_before, failed: failed.get() })
    }
}

/// Reads one answer and gives its status.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<u16> {
    answer.clear();
    loop {
        if stream.read_buf(answer).await? == 0 {
            bail!("the server closed the connection");
        }
        let Some(head_end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..head_end])?;
        let status: u16 = head.get(9..12).context("a short status line")?.parse()?;
        let length = head
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())?;
        let whole = head_end + 4 + length;
        while answer.len() < whole {
            if stream.read_buf(answer).await? == 0 {
                bail!("the server closed the connection");
            }
        }
        if status != 204 {
            eprintln!("{}", String::from_utf8_lossy(&answer[..answer.len().min(600)]));
        }
        return Ok(status);
    }
}

/// CPU time of this thread, from the scheduler's own account.
fn thread_cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
