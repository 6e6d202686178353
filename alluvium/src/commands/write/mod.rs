//! `alluvium write`: sends line protocol from files or standard input.
//!
//! One batch is in flight at a time, so that lines arrive in the order of the file: of two lines of one row the later
//! wins. A batch without a clear answer (503, a broken connection) is sent again with the same `Idempotency-Key`, so
//! that lines without a time are not stored twice either. Lines that the server refuses are printed with the place they
//! come from; the others of the batch are stored. Ctrl-C ends it at once and tells what was read and not sent.

mod lines;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use self::lines::{Batch, Batches};
use crate::client::{self, Client, Refused, ServerArgs};
use crate::config::Span;
use crate::exit::Exit;
use crate::print::{printable, thousands};

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium write --db home points.lp more.lp\n  \
    zcat points.lp.gz | alluvium write --db home --precision s\n  \
    alluvium simulate --points 1000 --out - | alluvium write")]
pub(super) struct WriteArgs {
    /// Files of line protocol; - or none reads standard input
    files: Vec<PathBuf>,

    /// Unit of the times in the lines
    #[arg(long, value_name = "ns|us|ms|s|auto", default_value = "ns", value_parser = ["ns", "us", "ms", "s", "auto"])]
    precision: String,

    /// Lines per request
    #[arg(long, value_name = "LINES", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,

    /// Compress request bodies
    #[arg(long)]
    gzip: bool,

    /// How long a batch without a clear answer is sent again
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    patience: Span,

    #[command(flatten)]
    server: ServerArgs,
}

/// Refused lines that are printed; the others are only counted.
const MOST_REFUSALS_PRINTED: u64 = 20;

/// What became of the lines.
#[derive(Default)]
struct Tally {
    stored: u64,
    refused: u64,
    resent: u64,
    /// Of the batch that has no answer yet.
    under_way: u64,
    /// Read, and in no batch yet.
    gathered: Arc<AtomicU64>,
}

impl Tally {
    /// What becomes of the lines that a Ctrl-C leaves behind; nothing where there are none.
    fn tell_left_behind(&self, out: &mut impl Write) -> io::Result<()> {
        let gathered = self.gathered.load(Relaxed);
        if self.under_way > 0 {
            writeln!(out, "{} lines were under way: whether they are stored is not known", thousands(self.under_way))?;
        }
        if gathered > 0 {
            writeln!(out, "{} lines were read and not sent", thousands(gathered))?;
        }
        Ok(())
    }
}

pub(super) async fn run(args: WriteArgs) -> anyhow::Result<()> {
    let mut tally = Tally::default();
    let started = Instant::now();
    let result = super::interruptible(send_all(&args, &mut tally)).await;
    let mut err = io::stderr();
    let seconds = started.elapsed().as_secs_f64();
    let rate = tally.stored as f64 / seconds.max(1e-3);
    let told = format!("stored {} lines in {seconds:.1} s · {} lines/s", thousands(tally.stored), thousands(rate as u64));
    if matches!(&result, Err(error) if matches!(error.downcast_ref(), Some(Exit::Interrupted))) {
        tally.tell_left_behind(&mut err)?;
    }
    match result {
        Ok(()) => writeln!(err, "{told}")?,
        // Where nobody ever answered there is nothing to sum up.
        Err(error) if tally.stored + tally.refused == 0 => return Err(error),
        Err(error) => {
            writeln!(err, "{told}")?;
            if matches!(error.downcast_ref(), Some(Exit::Interrupted)) {
                return Err(error);
            }
            return Err(Exit::Partly(format!("{}; what comes after the lines above was not stored", super::told(&error))).into());
        }
    }
    match (tally.stored, tally.refused) {
        (_, 0) => Ok(()),
        (0, refused) => Err(Exit::Failed(format!("all {} lines were refused", thousands(refused))).into()),
        (_, refused) => Err(Exit::Partly(format!("{} lines were refused, the others are stored", thousands(refused))).into()),
    }
}

async fn send_all(args: &WriteArgs, tally: &mut Tally) -> anyhow::Result<()> {
    let client = Client::new(&args.server)?;
    let inputs = if args.files.is_empty() { vec![PathBuf::from("-")] } else { args.files.clone() };
    let bar = progress_bar(&inputs);
    let mut sender = Sender { client, args, bar: bar.clone(), run: fresh_id(), batches: 0 };
    for input in &inputs {
        let (name, reader): (String, Box<dyn Read + Send>) = if input == Path::new("-") {
            ("standard input".to_owned(), Box::new(io::stdin()))
        } else {
            let file = File::open(input).with_context(|| format!("could not open {}", input.display()))?;
            (input.display().to_string(), Box::new(file))
        };
        let mut batches = Batches::new(reader, args.batch as usize, tally.gathered.clone());
        loop {
            // Reading may block for ever on a terminal or a pipe: not on the thread that listens for Ctrl-C.
            let next;
            (batches, next) = tokio::task::spawn_blocking(move || {
                let next = batches.next_batch();
                (batches, next)
            })
            .await?;
            match next.with_context(|| format!("could not read {name}"))? {
                Some(batch) => sender.send(&name, batch, tally).await?,
                None => break,
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

struct Sender<'a> {
    client: Client,
    args: &'a WriteArgs,
    bar: ProgressBar,
    /// Makes the idempotency keys of this run its own.
    run: u128,
    batches: u64,
}

impl Sender<'_> {
    async fn send(&mut self, name: &str, batch: Batch, tally: &mut Tally) -> anyhow::Result<()> {
        let text_bytes = batch.text.len() as u64;
        let body = if self.args.gzip { compressed(&batch.text) } else { batch.text.clone() };
        let key = format!("{:032x}-{}", self.run, self.batches);
        self.batches += 1;
        tally.under_way = batch.lines;
        let answered = self.until_answered(body, &key, tally).await;
        tally.under_way = 0;
        match answered {
            Ok(()) => tally.stored += batch.lines,
            Err(error) => {
                let client::Error::Refused(refused) = &error else { return Err(error.into()) };
                let Some(answer) = Answer::of(refused) else { return Err(error.into()) };
                self.tell_refused(name, &batch, &answer, tally);
            }
        }
        self.bar.inc(text_bytes);
        Ok(())
    }

    async fn until_answered(&self, body: Bytes, key: &str, tally: &mut Tally) -> Result<(), client::Error> {
        let parameters = [("db", self.args.server.db.as_str()), ("precision", self.args.precision.as_str())];
        let mut headers = vec![("content-type", "text/plain; charset=utf-8"), ("idempotency-key", key)];
        if self.args.gzip {
            headers.push(("content-encoding", "gzip"));
        }
        let started = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match self.client.send(Method::POST, "/api/v3/write_lp", &parameters, &headers, body.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let answered_before = self.batches > 1;
            let wait = match &error {
                client::Error::Refused(refused) if refused.status == StatusCode::SERVICE_UNAVAILABLE => {
                    refused.retry_after.unwrap_or(pause)
                }
                client::Error::Refused(refused) if refused.status == StatusCode::INTERNAL_SERVER_ERROR => pause,
                client::Error::Broke { .. } | client::Error::BrokeOff(_) => pause,
                // A server that never answered is an address typed wrong; one that has may be on its way back.
                client::Error::Unreachable { .. } if answered_before => pause,
                _ => return Err(error),
            };
            if started.elapsed() + wait > self.args.patience.0 {
                return Err(error);
            }
            tally.resent += 1;
            self.bar.set_message(format!("· sending again: {error}"));
            tokio::time::sleep(wait).await;
            self.bar.set_message("");
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn tell_refused(&self, name: &str, batch: &Batch, answer: &Answer, tally: &mut Tally) {
        for (line, told) in answer.data.iter().zip(tally.refused..) {
            if told < MOST_REFUSALS_PRINTED {
                let at = batch.first_line + line.line_number.saturating_sub(1);
                let text: String = line.original_line.chars().take(200).collect();
                self.bar.suspend(|| eprintln!("{name}:{at}: {}: {}", line.error_message, printable(&text)));
            } else if told == MOST_REFUSALS_PRINTED {
                self.bar.suspend(|| eprintln!("… and more refused lines, which are only counted"));
            }
        }
        let partly = answer.error.starts_with("partial write");
        let refused = if partly { answer.refused().min(batch.lines) } else { batch.lines };
        tally.refused += refused;
        tally.stored += batch.lines - refused;
    }
}

/// A number that no other run has.
#[expect(clippy::disallowed_methods, reason = "the command line is where chance may come from the machine")]
fn fresh_id() -> u128 {
    rand::random()
}

/// The body of a 400 about lines.
#[derive(Debug, Deserialize)]
struct Answer {
    error: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Vec<BadLine>,
}

#[derive(Debug, Deserialize)]
struct BadLine {
    line_number: u64,
    #[serde(default)]
    original_line: String,
    error_message: String,
}

impl Answer {
    /// How many lines were refused: the answer lists the first 1,000 only, its message counts them all.
    fn refused(&self) -> u64 {
        let counted = self.message.split_once(' ').and_then(|(number, rest)| rest.starts_with("line").then(|| number.parse().ok())?);
        (self.data.len() as u64).max(counted.unwrap_or(0))
    }

    fn of(refused: &Refused) -> Option<Answer> {
        if refused.status != StatusCode::BAD_REQUEST {
            return None;
        }
        serde_json::from_slice::<Answer>(&refused.body).ok().filter(|answer| !answer.data.is_empty())
    }
}

fn compressed(text: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(text.len() / 4), flate2::Compression::fast());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("writing to memory does not fail").into()
}

/// A bar with rate and remaining time where all inputs are files, a counter otherwise; hidden outside of a terminal.
fn progress_bar(inputs: &[PathBuf]) -> ProgressBar {
    let total: Option<u64> = inputs.iter().map(|path| std::fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len())).sum();
    let (bar, template) = match total {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {bytes}/{total_bytes} · {bytes_per_sec} · {eta} left {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} · {bytes_per_sec} · {elapsed} {msg}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is constant"))
}
