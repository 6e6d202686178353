//! Sends a fleet's lines until each batch has an answer, and reads everything back.
//!
//! A batch without a clear answer (no connection, 503, 5xx) is sent again with the same bytes, as the server asks, until
//! it is answered or nothing has been answered for `patience`. Nothing is dropped: what has no answer stays *unknown*.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::time::Instant;

use crate::connect::{Connector, certificate_advice, reason};
use crate::fleet::{Fleet, FleetOptions, Sent};
use crate::kinds::KindName;
use crate::latency::Latencies;
use crate::ledger::{Answer, Check, Ledger, Verdict};
use crate::read_back::check_line;

/// With a rate a batch holds the lines of so many seconds at most: the rate is kept, not only its average.
const BATCH_SECONDS: f64 = 0.1;
/// Nothing waits longer for its turn.
const LONGEST_PAUSE_S: f64 = 1e9;

/// A question without an answer is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How to send.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// Addresses such as `http://127.0.0.1:2558`, used in turn.
    pub urls: Vec<String>,
    /// The database.
    pub database: String,
    /// Sent as `Authorization: Bearer …`.
    pub token: Option<String>,
    /// Whom connections to `https` addresses trust.
    pub tls: Option<Arc<ClientConfig>>,
    /// Lines per request; fewer where `rate` makes fewer in a tenth of a second.
    pub batch_lines: usize,
    /// Requests in flight.
    pub connections: usize,
    /// Compress bodies.
    pub gzip: bool,
    /// Lines per second; `None` as fast as they are acknowledged.
    pub rate: Option<f64>,
    /// Real time after which no more points are made.
    pub duration: Option<Duration>,
    /// Gives up when nothing was answered for so long.
    pub patience: Duration,
}

/// Figures that grow while a run goes on; read them from anywhere.
#[derive(Debug, Default)]
pub struct Progress {
    /// Lines with an answer of any kind.
    pub answered: AtomicU64,
    /// Lines acknowledged.
    pub acknowledged: AtomicU64,
    /// Lines refused.
    pub refused: AtomicU64,
    /// Bytes of text sent (each body once).
    pub bytes: AtomicU64,
    /// Requests sent again.
    pub retries: AtomicU64,
    /// Rows read back.
    pub checked: AtomicU64,
}

/// What a run did; times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Lines made, duplicates included.
    pub points: u64,
    /// Lines acknowledged.
    pub acknowledged: u64,
    /// Lines refused.
    pub refused: u64,
    /// Lines whose outcome is not known.
    pub unknown: u64,
    /// The server's words for the first refusal.
    pub first_refusal: Option<String>,
    /// Requests that got an answer.
    pub requests: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Real seconds.
    pub seconds: f64,
    /// Acknowledged lines per second.
    pub points_per_second: f64,
    /// Half of the answers came within this.
    pub p50_us: u64,
    /// 99 of 100 answers came within this.
    pub p99_us: u64,
    /// The longest answer.
    pub max_us: u64,
    /// The longest time without any acknowledgement.
    pub longest_gap_us: u64,
    /// What reading back has shown, where asked.
    pub verdict: Option<Verdict>,
}

/// Why a run or its check could not be carried through.
#[derive(Debug, Error)]
pub enum SendError {
    /// An address that is none.
    #[error("'{url}' is no address: write it like http://127.0.0.1:2558")]
    BadUrl {
        /// The text.
        url: String,
    },
    /// Nobody answers.
    #[error(
        "could not reach {url}: {why} (tried for {seconds} s)\n  is a server running there? 'alluvium serve' starts one; --url or \
         ALLUVIUM_URL names another"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// How long.
        seconds: u64,
        /// The last failure.
        why: String,
    },
    /// Its certificate is not accepted.
    #[error("could not trust {url}: {why}\n  {advice}")]
    Untrusted {
        /// The address.
        url: String,
        /// What is wrong with the certificate.
        why: String,
        /// What helps.
        advice: &'static str,
    },
    /// Somebody answers, and takes nothing.
    #[error("{url} took nothing for {seconds} s: {why}")]
    TookNothing {
        /// The address.
        url: String,
        /// How long.
        seconds: u64,
        /// The last answer, or what became of it.
        why: String,
    },
    /// The fleet would have to report after the end of time.
    #[error("the simulated time ends before all points are made: let it start earlier, or ask for fewer points or a shorter interval")]
    OutOfTime,
    /// A question was not answered as it should be.
    #[error("reading back failed: {0}")]
    ReadBack(String),
}

type HttpClient = Client<Connector, Full<Bytes>>;

fn client(options: &SendOptions) -> HttpClient {
    Client::builder(TokioExecutor::new()).build(Connector::new(options.tls.clone()))
}

struct Batch {
    body: Bytes,
    start: usize,
    end: usize,
}

struct Run {
    options: SendOptions,
    uris: Vec<Uri>,
    client: HttpClient,
    ledger: Mutex<Ledger>,
    progress: Arc<Progress>,
    first_refusal: Mutex<Option<String>>,
    last_answer: Mutex<LastAnswer>,
}

struct LastAnswer {
    at: Instant,
    longest_gap: Duration,
}

/// Makes the fleet's lines and sends them all. Gives the ledger for [`verify`].
pub async fn run(fleet: FleetOptions, options: SendOptions, progress: Arc<Progress>) -> Result<(Report, Ledger), SendError> {
    let uris = options
        .urls
        .iter()
        .map(|url| uri(url, &format!("/api/v3/write_lp?db={}&precision=ns", encode(&options.database))))
        .collect::<Result<_, _>>()?;
    let connections = options.connections.max(1);
    let (batches, queue) = mpsc::channel::<Batch>(connections * 2);
    let started = Instant::now();
    let run = Arc::new(Run {
        client: client(&options),
        uris,
        ledger: Mutex::new(Ledger::default()),
        progress,
        first_refusal: Mutex::new(None),
        last_answer: Mutex::new(LastAnswer { at: started, longest_gap: Duration::ZERO }),
        options,
    });
    let queue = Arc::new(AsyncMutex::new(queue));
    let senders: Vec<_> = (0..connections)
        .map(|number| {
            let (run, queue) = (run.clone(), queue.clone());
            tokio::spawn(async move { run.send_all(number, &queue).await })
        })
        .collect();
    drop(queue);
    let (made, ran_out) = make_batches(&run, Fleet::new(fleet), batches, started).await;
    let mut latencies = Latencies::default();
    let mut failure = None;
    for sender in senders {
        match sender.await.expect("a sender does not panic") {
            Ok(own) => latencies.add(&own),
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure.or(ran_out.then_some(SendError::OutOfTime)) {
        return Err(error);
    }
    let seconds = started.elapsed().as_secs_f64();
    let run = Arc::into_inner(run).expect("all senders have ended");
    let ledger = run.ledger.into_inner().expect("no sender panicked");
    let acknowledged = ledger.count(Answer::Acknowledged);
    let report = Report {
        points: made,
        acknowledged,
        refused: ledger.count(Answer::Refused),
        unknown: ledger.count(Answer::Unknown),
        first_refusal: run.first_refusal.into_inner().expect("no sender panicked"),
        requests: latencies.count(),
        retries: run.progress.retries.load(Relaxed),
        bytes: run.progress.bytes.load(Relaxed),
        seconds,
        points_per_second: acknowledged as f64 / seconds.max(1e-9),
        p50_us: latencies.quantile_us(0.5),
        p99_us: latencies.quantile_us(0.99),
        max_us: latencies.max_us(),
        longest_gap_us: run.last_answer.into_inner().expect("no sender panicked").longest_gap.as_micros() as u64,
        verdict: None,
    };
    Ok((report, ledger))
}

/// How many lines go out at a time, and when.
struct Pace {
    batch_lines: usize,
    rate: Option<f64>,
    duration: Option<Duration>,
}

impl Pace {
    fn of(options: &SendOptions) -> Pace {
        let most = options.rate.map_or(usize::MAX, |rate| (rate * BATCH_SECONDS) as usize);
        Pace { batch_lines: options.batch_lines.min(most).max(1), rate: options.rate, duration: options.duration }
    }

    /// How long after the start the next batch goes out, once `made` lines are on their way.
    fn due(&self, made: u64) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64((made as f64 / rate).min(LONGEST_PAUSE_S)))
    }

    /// Whether no more points are made so long after the start.
    fn is_over(&self, after: Duration) -> bool {
        self.duration.is_some_and(|duration| after >= duration)
    }
}

/// Fills batches from the fleet at the asked rate; gives the number of lines, and whether the fleet ran out of time. Ends early
/// when all senders have given up.
async fn make_batches(run: &Run, mut fleet: Fleet, batches: mpsc::Sender<Batch>, started: Instant) -> (u64, bool) {
    let pace = Pace::of(&run.options);
    let mut made = 0u64;
    let mut finished = false;
    loop {
        let mut due = pace.due(made);
        if let Some(duration) = pace.duration.filter(|_| !finished) {
            due = due.min(duration);
        }
        tokio::time::sleep_until(started + due).await;
        if !finished && pace.is_over(started.elapsed()) {
            // What devices still hold back follows, no faster than the rest.
            finished = true;
            fleet.finish();
            continue;
        }
        let mut body = Vec::with_capacity(pace.batch_lines * 256);
        let mut lines: Vec<Sent> = Vec::with_capacity(pace.batch_lines);
        while lines.len() < pace.batch_lines {
            match fleet.next_line(&mut body) {
                Some(sent) => lines.push(sent),
                None => break,
            }
        }
        if lines.is_empty() {
            return (made, fleet.ran_out_of_time());
        }
        let (start, end) = {
            let mut ledger = run.ledger.lock().expect("no sender panicked");
            let start = ledger.len();
            lines.iter().for_each(|&sent| {
                ledger.sent(sent);
            });
            (start, ledger.len())
        };
        made += lines.len() as u64;
        if batches.send(Batch { body: body.into(), start, end }).await.is_err() {
            return (made, false);
        }
    }
}

impl Run {
    async fn send_all(&self, number: usize, queue: &AsyncMutex<mpsc::Receiver<Batch>>) -> Result<Latencies, SendError> {
        let mut latencies = Latencies::default();
        let mut turn = number;
        loop {
            let Some(batch) = queue.lock().await.recv().await else { return Ok(latencies) };
            self.send(&batch, &mut turn, &mut latencies).await?;
        }
    }

    /// Sends one batch until it is answered.
    async fn send(&self, batch: &Batch, turn: &mut usize, latencies: &mut Latencies) -> Result<(), SendError> {
        let body = if self.options.gzip { compress(&batch.body) } else { batch.body.clone() };
        self.progress.bytes.fetch_add(batch.body.len() as u64, Relaxed);
        let mut wait = Duration::from_millis(20);
        let first_try = Instant::now();
        loop {
            let uri = &self.uris[*turn % self.uris.len()];
            *turn += 1;
            let asked = Instant::now();
            let (failed, retry_after) = match self.post(uri, body.clone()).await {
                Ok((status, retry_after, answer)) => match self.understand(status, &answer, batch) {
                    Understood::Settled => {
                        latencies.note(asked.elapsed().as_micros() as u64);
                        return Ok(());
                    }
                    Understood::TryAgain => {
                        (Failed { why: format!("{status}: {}", String::from_utf8_lossy(&answer)), at: At::Answer }, retry_after)
                    }
                },
                Err(failed) => (failed, None),
            };
            tracing::debug!(%uri, why = failed.why, "sending a batch again");
            let silent = self.last_answer.lock().expect("no sender panicked").at.max(first_try).elapsed();
            if silent > self.options.patience {
                return Err(failed.for_good(uri, silent.as_secs()));
            }
            self.progress.retries.fetch_add(1, Relaxed);
            tokio::time::sleep(retry_after.unwrap_or(wait).min(Duration::from_secs(2))).await;
            wait = (wait * 2).min(Duration::from_millis(500));
        }
    }

    async fn post(&self, uri: &Uri, body: Bytes) -> Result<(StatusCode, Option<Duration>, Bytes), Failed> {
        let mut request = Request::builder().method(Method::POST).uri(uri).header("content-type", "text/plain; charset=utf-8");
        if self.options.gzip {
            request = request.header("content-encoding", "gzip");
        }
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let broken = |why: String| Failed { why, at: At::Answer };
        let request = request.body(Full::new(body)).map_err(|e| broken(e.to_string()))?;
        let answer = tokio::time::timeout(Duration::from_secs(60), self.client.request(request));
        let answer = answer.await.map_err(|_| broken("no answer within 60 s".to_owned()))?.map_err(|e| Failed::of(&e))?;
        let status = answer.status();
        let retry_after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let body = answer.into_body().collect().await.map_err(|e| broken(e.to_string()))?.to_bytes();
        Ok((status, retry_after, body))
    }

    fn understand(&self, status: StatusCode, answer: &[u8], batch: &Batch) -> Understood {
        let lines = (batch.end - batch.start) as u64;
        match status.as_u16() {
            200..=299 => {
                self.settle(batch.start, batch.end, Answer::Acknowledged);
                self.progress.acknowledged.fetch_add(lines, Relaxed);
            }
            400 | 422 => {
                let refused = refused_lines(answer);
                self.note_refusal(status, answer);
                match refused {
                    // The others are kept: that is what a partial write says.
                    Some(numbers) => {
                        self.settle(batch.start, batch.end, Answer::Acknowledged);
                        let inside: Vec<usize> = numbers.into_iter().filter(|&n| n >= 1 && n as u64 <= lines).collect();
                        for n in &inside {
                            self.settle(batch.start + n - 1, batch.start + n, Answer::Refused);
                        }
                        self.progress.acknowledged.fetch_add(lines - inside.len() as u64, Relaxed);
                        self.progress.refused.fetch_add(inside.len() as u64, Relaxed);
                    }
                    None => {
                        self.settle(batch.start, batch.end, Answer::Refused);
                        self.progress.refused.fetch_add(lines, Relaxed);
                    }
                }
            }
            429 | 500..=599 => return Understood::TryAgain,
            _ => {
                self.note_refusal(status, answer);
                self.settle(batch.start, batch.end, Answer::Refused);
                self.progress.refused.fetch_add(lines, Relaxed);
            }
        }
        self.progress.answered.fetch_add(lines, Relaxed);
        let mut last = self.last_answer.lock().expect("no sender panicked");
        last.longest_gap = last.longest_gap.max(last.at.elapsed());
        last.at = Instant::now();
        Understood::Settled
    }

    fn settle(&self, start: usize, end: usize, answer: Answer) {
        self.ledger.lock().expect("no sender panicked").answer(start, end, answer);
    }

    fn note_refusal(&self, status: StatusCode, answer: &[u8]) {
        let mut text = String::from_utf8_lossy(answer).into_owned();
        text.truncate(text.floor_char_boundary(400));
        self.first_refusal.lock().expect("no sender panicked").get_or_insert_with(|| format!("{status}: {text}"));
    }
}

/// Why a request has no answer that settles it.
struct Failed {
    why: String,
    at: At,
}

/// How far it came.
enum At {
    /// There is no connection.
    Connection,
    /// The server's certificate is not accepted; with what helps.
    Certificate(&'static str),
    /// There was one.
    Answer,
}

impl Failed {
    fn of(error: &hyper_util::client::legacy::Error) -> Failed {
        let at = match certificate_advice(error) {
            Some(advice) => At::Certificate(advice),
            None if error.is_connect() => At::Connection,
            None => At::Answer,
        };
        Failed { why: reason(error), at }
    }

    /// The error once there is no patience left.
    fn for_good(self, uri: &Uri, seconds: u64) -> SendError {
        let Failed { why, at } = self;
        let url = format!("{}://{}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", |a| a.as_str()));
        match at {
            At::Connection => SendError::Unreachable { url, seconds, why },
            At::Certificate(advice) => SendError::Untrusted { url, why, advice },
            At::Answer => SendError::TookNothing { url, seconds, why },
        }
    }
}

enum Understood {
    Settled,
    TryAgain,
}

/// The numbers of the refused lines if the rest was kept; `None` if nothing was.
fn refused_lines(answer: &[u8]) -> Option<Vec<usize>> {
    let body: serde_json::Value = serde_json::from_slice(answer).ok()?;
    if !body["error"].as_str()?.starts_with("partial write") {
        return None;
    }
    Some(body["data"].as_array()?.iter().filter_map(|line| line["line_number"].as_u64().map(|n| n as usize)).collect())
}

/// Reads every row of the fleet's tables back and compares it with the ledger. The database should hold nothing else.
pub async fn verify(options: &SendOptions, kinds: &[KindName], ledger: &mut Ledger, progress: &Progress) -> Result<Verdict, SendError> {
    let client = client(options);
    let path = format!("/sql?db={}&format=jsonl&timeout=3600s", encode(&options.database));
    let uris: Vec<Uri> = options.urls.iter().map(|url| uri(url, &path)).collect::<Result<_, _>>()?;
    let mut check = ledger.check();
    let mut kinds = kinds.to_vec();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        if !check.expects(kind) {
            continue;
        }
        let mut broken: Option<Instant> = None;
        while let Err(why) =
            read_table(&mut check, kind, ask(&client, options, &uris, &format!("SELECT * FROM {kind}")).await?, progress).await?
        {
            // A node that is killed breaks its answers off: they say so, and are asked for again.
            if broken.get_or_insert_with(Instant::now).elapsed() > options.patience {
                return Err(SendError::ReadBack(format!("the answer for {kind} broke off: {why}")));
            }
            progress.checked.fetch_sub(check.begin_again(kind), Relaxed);
        }
    }
    Ok(check.finish())
}

/// Compares the rows of an answer; what broke it off, if it did.
async fn read_table(
    check: &mut Check<'_>,
    kind: KindName,
    mut body: Incoming,
    progress: &Progress,
) -> Result<Result<(), String>, SendError> {
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        let whole = rest.iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1);
        let mut rows = 0;
        for line in rest[..whole].split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
            check_line(check, kind, line).map_err(SendError::ReadBack)?;
            rows += 1;
        }
        progress.checked.fetch_add(rows, Relaxed);
        rest.drain(..whole);
    }
    if !rest.is_empty() {
        check_line(check, kind, &rest).map_err(SendError::ReadBack)?;
    }
    Ok(Ok(()))
}

/// Asks the servers in turn until one answers, for `patience` at most: one of them may be on its way back.
async fn ask(client: &HttpClient, options: &SendOptions, uris: &[Uri], sql: &str) -> Result<Incoming, SendError> {
    let started = Instant::now();
    let mut turn = 0;
    loop {
        let uri = uris.get(turn % uris.len().max(1)).ok_or_else(|| SendError::ReadBack("no address given".to_owned()))?;
        turn += 1;
        let mut request = Request::builder().method(Method::POST).uri(uri).header("content-type", "application/sql");
        if let Some(token) = &options.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(sql.to_owned()))).map_err(|e| SendError::ReadBack(e.to_string()))?;
        let (why, again) = match client.request(request).await {
            Ok(answer) if answer.status().is_success() => return Ok(answer.into_body()),
            Ok(answer) => {
                let status = answer.status();
                let text = answer.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                (format!("{status}: {}", String::from_utf8_lossy(&text)), status.is_server_error())
            }
            Err(error) => (reason(&error), true),
        };
        if !again || started.elapsed() > options.patience {
            return Err(SendError::ReadBack(why));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn uri(url: &str, path: &str) -> Result<Uri, SendError> {
    let base = url.trim_end_matches('/');
    let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
    format!("{base}{path}").parse().map_err(|_| SendError::BadUrl { url: url.to_owned() })
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn compress(body: &[u8]) -> Bytes {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
    encoder.write_all(body).expect("writing to memory");
    encoder.finish().expect("writing to memory").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_write_names_its_lines_and_a_full_refusal_none() {
        let partial = br#"{"error":"partial write of line protocol occurred","data":[{"line_number":2},{"line_number":7}]}"#;
        assert_eq!(refused_lines(partial), Some(vec![2, 7]));
        assert_eq!(refused_lines(br#"{"error":"parsing failed for write_lp endpoint","data":[{"line_number":1}]}"#), None);
        assert_eq!(refused_lines(b"no json"), None);
    }

    #[test]
    fn a_rate_is_kept_in_small_steps_and_ends_with_the_duration() {
        let pace = |batch_lines, rate| {
            let duration = Some(Duration::from_secs(2));
            Pace::of(&SendOptions {
                urls: Vec::new(),
                database: String::new(),
                token: None,
                tls: None,
                batch_lines,
                connections: 1,
                gzip: false,
                rate,
                duration,
                patience: Duration::ZERO,
            })
        };
        for (batch, rate, lines) in [
            (5_000, None, 5_000),
            (5_000, Some(100.0), 10),
            (5, Some(100.0), 5),
            (5_000, Some(0.5), 1),
            (5_000, Some(1e6), 5_000),
            (0, None, 1),
        ] {
            assert_eq!(pace(batch, rate).batch_lines, lines, "{batch} {rate:?}");
        }
        let slow = pace(5_000, Some(100.0));
        assert_eq!((slow.due(0), slow.due(10), slow.due(200)), (Duration::ZERO, Duration::from_millis(100), Duration::from_secs(2)));
        assert!(!slow.is_over(slow.due(190)) && slow.is_over(slow.due(200)));
        assert_eq!(pace(5_000, None).due(1_000_000), Duration::ZERO);
        assert_eq!(pace(1, Some(f64::MIN_POSITIVE)).due(1), Duration::from_secs_f64(LONGEST_PAUSE_S));
    }

    #[test]
    fn addresses_with_and_without_scheme_are_fine() {
        assert_eq!(uri("127.0.0.1:1", "/x").unwrap().to_string(), "http://127.0.0.1:1/x");
        assert_eq!(uri("http://a:1/", "/x").unwrap().to_string(), "http://a:1/x");
        assert!(uri("http://a b", "/x").is_err());
        assert_eq!(encode("a b/ü"), "a%20b%2F%C3%BC");
    }
}
