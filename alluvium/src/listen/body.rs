//! Bodies on their way in and out, watched.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::metrics::InFlight;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that must bring some bytes in each window of time, or end. A body that is there at once never sees a timer.
#[derive(Debug)]
pub(super) struct Paced {
    body: Incoming,
    window: Duration,
    wanted: usize,
    left: usize,
    waiting: bool,
    end_of_window: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    /// `bytes` in each `window`.
    pub(super) fn new(body: Incoming, window: Duration, bytes: usize) -> Paced {
        Paced { body, window, wanted: bytes, left: bytes, waiting: false, end_of_window: None }
    }

    /// Whether the window has ended without its bytes.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let end = Instant::now() + self.window;
        let timer = self.end_of_window.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if !self.waiting {
            self.waiting = true;
            self.left = self.wanted;
            timer.as_mut().reset(end);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    self.left = self.left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                    self.waiting &= self.left > 0;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending if self.is_late(cx) => Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body; the request counts as under way until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    body: Body,
    _counted: InFlight,
}

impl Counted {
    pub(super) fn new(body: Body, counted: InFlight) -> Counted {
        Counted { body, _counted: counted }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
