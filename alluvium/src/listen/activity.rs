//! What a connection is doing, and whether it may go on.
//!
//! [`Timed`] notes what moves on the socket, the listener notes requests; [`Activity::verdict`] is the pure choice.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Doors, Limits};

/// Times are milliseconds since the connection began, plus one: 0 is never.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    requests: AtomicU32,
    http2: AtomicBool,
    quiet_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing; look again then.
    Again(Instant),
    /// It may go, politely.
    Idle,
    /// It has to go now.
    Cut(&'static str),
}

impl Activity {
    pub(super) fn new(began: Instant) -> Activity {
        Activity {
            began,
            requests: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            quiet_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
        }
    }

    /// A request's head is there.
    pub(super) fn began(&self, http2: bool) {
        self.requests.fetch_add(1, Relaxed);
        self.http2.store(http2, Relaxed);
        self.head_since.store(0, Relaxed);
    }

    /// A request's answer has been handed over, or given up.
    pub(super) fn ended(&self) {
        self.quiet_since.store(self.now(), Relaxed);
        self.requests.fetch_sub(1, Relaxed);
    }

    fn received(&self) {
        if self.requests.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    /// Whether something arrived that has not become a request yet.
    fn reads_a_head(&self) -> bool {
        self.head_since.load(Relaxed) != 0 && self.requests.load(Relaxed) == 0
    }

    fn wrote(&self, some: bool) {
        let stalled = self.stalled_since.load(Relaxed) != 0;
        if some == stalled {
            self.stalled_since.store(if some { 0 } else { self.now() }, Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    fn at(&self, since: &AtomicU64) -> Option<Instant> {
        let ms = since.load(Relaxed).checked_sub(1)?;
        Some(self.began + std::time::Duration::from_millis(ms))
    }

    /// When to ask for a verdict at the earliest.
    pub(super) fn next_check(&self, limits: &Limits) -> Instant {
        self.began + limits.head.min(limits.idle)
    }

    pub(super) fn verdict(&self, now: Instant, limits: &Limits) -> Verdict {
        if let Some(since) = self.at(&self.stalled_since) {
            return match since + limits.stalled {
                end if end <= now => Verdict::Cut("its client does not read"),
                end => Verdict::Again(end),
            };
        }
        let soon = now + limits.head.min(limits.stalled);
        if self.requests.load(Relaxed) > 0 {
            return Verdict::Again(soon);
        }
        // Frames of an open HTTP/2 connection (settings, signs of life) are no heads.
        if let Some(since) = self.at(&self.head_since).filter(|_| !self.http2.load(Relaxed)) {
            return match since + limits.head {
                end if end <= now => Verdict::Cut("the head of a request took too long"),
                end => Verdict::Again(end),
            };
        }
        match self.at(&self.quiet_since).expect("a connection begins quiet") + limits.idle {
            end if end <= now => Verdict::Idle,
            end => Verdict::Again(end.min(soon)),
        }
    }
}

/// A socket that notes what moves, and that puts our words into the answers which hyper gives by itself.
pub(super) struct Timed<S> {
    socket: TokioIo<S>,
    activity: Arc<Activity>,
    doors: Arc<Doors>,
    /// What is written instead of such an answer, how much of it is written, and how many bytes it stands for.
    instead: Option<(Vec<u8>, usize, usize)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Timed<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, doors: Arc<Doors>) -> Timed<S> {
        Timed { socket: TokioIo::new(stream), activity, doors, instead: None }
    }

    fn noted<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.wrote(written.is_ready());
        written
    }

    /// Gives an answer that hyper gives by itself the names and the body of every other refusal.
    fn explain(&mut self, bytes: &[u8]) {
        if self.instead.is_none()
            && self.activity.reads_a_head()
            && is_hypers_own(bytes)
            && let Ok(head) = std::str::from_utf8(bytes)
        {
            self.instead = Some((self.doors.explained(head).into_bytes(), 0, bytes.len()));
        }
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((bytes, done, stands_for)) = &mut self.instead {
            match Pin::new(&mut self.socket).poll_write(cx, &bytes[*done..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(some)) if *done + some == bytes.len() => {
                    let stands_for = *stands_for;
                    self.instead = None;
                    return Poll::Ready(Ok(stands_for));
                }
                Poll::Ready(Ok(some)) => *done += some,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        unreachable!("it is called while there is something to write instead")
    }
}

/// A whole answer without a body that no code of ours has seen: the refusal of what is no request.
fn is_hypers_own(bytes: &[u8]) -> bool {
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    bytes.starts_with(b"HTTP/1.") && bytes.get(9) == Some(&b'4') && bytes.ends_with(b"\r\n\r\n") && !has(b"\r\nx-request-id: ")
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if matches!(read, Poll::Ready(Ok(()))) {
            self.activity.received();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.explain(bytes);
        let written = match self.instead {
            Some(_) => self.poll_instead(cx),
            None => Pin::new(&mut self.socket).poll_write(cx, bytes),
        };
        self.noted(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let [piece] = pieces {
            // Small answers are one piece, and the system takes that faster than a list of one.
            return self.poll_write(cx, piece);
        }
        self.explain(pieces.first().map_or(&[], |piece| piece));
        let written = match self.instead {
            Some(_) => self.poll_instead(cx),
            None => Pin::new(&mut self.socket).poll_write_vectored(cx, pieces),
        };
        self.noted(written)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits() -> Limits {
        let s = Duration::from_secs;
        Limits { head: s(10), idle: s(120), stalled: s(60), ..Limits::default() }
    }

    /// The verdict `seconds` after the connection began.
    fn verdict_at(activity: &Activity, seconds: u64) -> Verdict {
        activity.verdict(activity.began + Duration::from_secs(seconds), &limits())
    }

    #[test]
    fn a_head_that_trickles_is_cut_and_an_idle_connection_is_kept_longer() {
        let activity = Activity::new(Instant::now());
        assert!(matches!(verdict_at(&activity, 119), Verdict::Again(_)));
        assert_eq!(verdict_at(&activity, 121), Verdict::Idle);
        activity.received();
        assert!(matches!(verdict_at(&activity, 9), Verdict::Again(_)));
        assert!(matches!(verdict_at(&activity, 11), Verdict::Cut(_)));
        activity.began(false);
        assert!(matches!(verdict_at(&activity, 1_000), Verdict::Again(_)));
        activity.ended();
        assert!(matches!(verdict_at(&activity, 100), Verdict::Again(_)));
        assert_eq!(verdict_at(&activity, 121), Verdict::Idle);
    }

    #[test]
    fn frames_between_requests_of_http2_are_no_heads() {
        let activity = Activity::new(Instant::now());
        activity.began(true);
        activity.ended();
        activity.received();
        assert!(matches!(verdict_at(&activity, 60), Verdict::Again(_)));
        assert_eq!(verdict_at(&activity, 121), Verdict::Idle);
    }

    #[test]
    fn a_client_that_reads_nothing_is_cut_even_during_a_request() {
        let activity = Activity::new(Instant::now());
        activity.began(false);
        activity.wrote(false);
        assert!(matches!(verdict_at(&activity, 59), Verdict::Again(_)));
        assert!(matches!(verdict_at(&activity, 61), Verdict::Cut(_)));
        activity.wrote(true);
        assert!(matches!(verdict_at(&activity, 61), Verdict::Again(_)));
    }
}
