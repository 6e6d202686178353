//! Arrow IPC streams and Parquet files.

use std::io::{self, Write};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::writer::StreamWriter;
use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{Encoder, cannot};
use crate::Result;

/// Rows of one row group of an answer: what is held until it is written.
const ROW_GROUP_ROWS: usize = 128 << 10;

/// What a writer has written and nobody has taken yet.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct Arrow {
    written: Written,
    writer: StreamWriter<Written>,
}

impl Arrow {
    pub(super) fn new(schema: &SchemaRef) -> Result<Arrow> {
        let written = Written::default();
        let writer = StreamWriter::try_new(written.clone(), schema).map_err(|e| cannot("Arrow", &e))?;
        Ok(Arrow { written, writer })
    }
}

impl Encoder for Arrow {
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        self.writer.write(batch).map_err(|e| cannot("Arrow", &e))?;
        Ok(self.written.take())
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        self.writer.finish().map_err(|e| cannot("Arrow", &e))?;
        Ok(self.written.take())
    }
}

pub(super) struct Parquet {
    written: Written,
    writer: ArrowWriter<Written>,
}

impl Parquet {
    pub(super) fn new(schema: &SchemaRef) -> Result<Parquet> {
        let written = Written::default();
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(Default::default()))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .build();
        let writer = ArrowWriter::try_new(written.clone(), schema.clone(), Some(properties)).map_err(|e| cannot("Parquet", &e))?;
        Ok(Parquet { written, writer })
    }
}

impl Encoder for Parquet {
    fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>> {
        self.writer.write(batch).map_err(|e| cannot("Parquet", &e))?;
        Ok(self.written.take())
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        self.writer.finish().map_err(|e| cannot("Parquet", &e))?;
        Ok(self.written.take())
    }
}
