//! Rows on their way between nodes: an Arrow stream in an HTTP/2 body.
//!
//! A body is whole only if it ends with trailers that say so: figures at the end of an answer, or the error that cut it
//! short. A body that ends without is one whose node was lost (DESIGN rule 10).

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use cluster::peer::PeerBody;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use model::{NodeId, ShardId};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::Result;
use crate::answer::Task;
use crate::error::Error;
use crate::told::Told;

/// Frames that wait for a slow peer.
const WAITING_FRAMES: usize = 2;

const END: HeaderName = HeaderName::from_static("alluvium-end");
const TOLD: HeaderName = HeaderName::from_static("alluvium-told");

/// Figures at the end of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub rows_scanned: u64,
    pub shards: Vec<ShardId>,
    pub lag_ms: Option<u64>,
}

/// Rows as they come.
pub(crate) type Batches = Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

fn trailer(name: HeaderName, value: &impl Serialize) -> HeaderMap {
    let text = serde_json::to_string(value).expect("writing to memory");
    let value = form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    HeaderMap::from_iter([(name, HeaderValue::from_str(&value).expect("letters, digits and signs"))])
}

fn read_trailer<T: for<'a> Deserialize<'a>>(trailers: &HeaderMap, name: &HeaderName) -> Option<T> {
    let (text, _) = form_urlencoded::parse(trailers.get(name)?.as_bytes()).next()?;
    serde_json::from_str(&text).ok()
}

/// A body of rows, made on the query threads; `end` is asked once they have ended well.
pub(crate) fn body(on: &Handle, schema: &SchemaRef, rows: Batches, end: impl FnOnce() -> End + Send + 'static) -> Result<PeerBody> {
    let broken = |e: arrow::error::ArrowError| Error::Engine { message: format!("rows could not be sent to a peer: {e}") };
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).map_err(broken)?;
    let writer = StreamWriter::try_new_with_options(Vec::new(), schema, options).map_err(broken)?;
    let mut sending = Sending { writer, rows, end: Some(end), last: None };
    let (frames, mut receiver) = mpsc::channel(WAITING_FRAMES);
    let task = Task(on.spawn(async move {
        while sending.last.is_none() {
            let bytes = sending.step().await;
            if frames.send(Frame::data(bytes)).await.is_err() {
                return;
            }
        }
        let _ = frames.send(Frame::trailers(sending.last.take().unwrap_or_default())).await; // Nobody may be there.
    }));
    let frames = futures::stream::poll_fn(move |context| {
        let _running = &task;
        receiver.poll_recv(context).map(|frame| frame.map(Ok::<_, io::Error>))
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

struct Sending<F> {
    writer: StreamWriter<Vec<u8>>,
    rows: Batches,
    end: Option<F>,
    /// The trailers, once the rows have ended.
    last: Option<HeaderMap>,
}

impl<F: FnOnce() -> End> Sending<F> {
    /// The next bytes.
    async fn step(&mut self) -> Bytes {
        let written = match self.rows.next().await {
            Some(Ok(batch)) => self.writer.write(&batch),
            Some(Err(e)) => {
                self.last = Some(trailer(TOLD, &Told::of(&e)));
                Ok(())
            }
            None => {
                let end = self.end.take().expect("rows end once");
                self.last = Some(trailer(END, &end()));
                self.writer.finish()
            }
        };
        if let Err(e) = written {
            self.last = Some(trailer(TOLD, &Told::of(&Error::Engine { message: e.to_string() })));
        }
        std::mem::take(self.writer.get_mut()).into()
    }
}

/// Rows from another node.
pub(crate) struct Arriving {
    from: NodeId,
    /// Its name, for messages.
    node: String,
    body: Incoming,
    decoder: StreamDecoder,
    rest: Buffer,
    /// Rows that came with the columns.
    first: Option<RecordBatch>,
    ended: Option<End>,
    over: bool,
}

impl Arriving {
    pub(crate) fn new(from: NodeId, node: String, body: Incoming) -> Arriving {
        let decoder = StreamDecoder::new();
        Arriving { from, node, body, decoder, rest: Buffer::from(Vec::<u8>::new()), first: None, ended: None, over: false }
    }

    /// The columns; waits for them.
    pub(crate) async fn schema(&mut self) -> Result<SchemaRef> {
        loop {
            if let Some(schema) = self.decoder.schema() {
                return Ok(schema);
            }
            // An answer without rows brings its columns and its end at once.
            if self.over {
                return Err(self.lost("it sent no columns"));
            }
            self.first = self.step().await?;
            if let Some(batch) = &self.first {
                return Ok(batch.schema());
            }
        }
    }

    /// Figures, once the rows have ended.
    pub(crate) fn end(&self) -> Option<&End> {
        self.ended.as_ref()
    }

    /// The next rows; `None` once all are there.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        while !self.over {
            if let Some(batch) = self.step().await? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    async fn step(&mut self) -> Result<Option<RecordBatch>> {
        while !self.rest.is_empty() {
            let decoded = self.decoder.decode(&mut self.rest);
            let decoded = decoded.map_err(|e| Error::Engine { message: format!("rows of {} cannot be read: {e}", self.node) })?;
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
        match self.body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => self.rest = Buffer::from(bytes),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.over = true;
                    if let Some(told) = read_trailer::<Told>(&trailers, &TOLD) {
                        return Err(told.error());
                    }
                    self.ended = read_trailer(&trailers, &END);
                    if self.ended.is_none() {
                        return Err(self.lost("its answer ended early"));
                    }
                }
            },
            Some(Err(e)) => {
                self.over = true;
                return Err(self.lost(&e.to_string()));
            }
            None => {
                self.over = true;
                return Err(self.lost("its answer ended early"));
            }
        }
        Ok(None)
    }

    fn lost(&self, why: &str) -> Error {
        Error::Lost { node: Some(self.from), why: format!("{} was lost: {why}", self.node) }
    }
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arriving").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The rest as a stream; `end` gets the figures.
pub(crate) fn stream(arriving: Arriving, end: Arc<dyn Fn(&End) + Send + Sync>) -> Batches {
    Box::pin(futures::stream::try_unfold(arriving, move |mut arriving| {
        let end = end.clone();
        async move {
            let batch = arriving.next().await?;
            if batch.is_none()
                && let Some(figures) = arriving.end()
            {
                end(figures);
            }
            Ok(batch.map(|batch| (batch, arriving)))
        }
    }))
}
