//! A body is read the same however it is cut into pieces; what is read is what was sent or deflated, and never more than
//! the limit; what it took of the server's room is given back.
//!
//! ```text
//! input = | flags u8: 1 gzip | limit in 64 B u8 | piece size u8 | the body … |
//! ```

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures::executor::block_on;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use ingest::Error;
use ingest::admission::Admission;
use ingest::body::{Encoding, read};

/// Room of the whole server; larger than any limit here.
const ROOM: u64 = 1 << 20;

pub(crate) fn check(data: &[u8]) {
    let [flags, limit, piece, body @ ..] = data else { return };
    let encoding = if flags & 1 == 1 { Encoding::Gzip } else { Encoding::Identity };
    let limit = u64::from(*limit) * 64;
    let whole = read_cut(body, body.len().max(1), encoding, limit);
    let cut = read_cut(body, usize::from(*piece).max(1), encoding, limit);
    match (&whole, &cut) {
        (Ok(whole), Ok(cut)) => assert_eq!(whole, cut),
        // Which comes first, the limit or the damage, may depend on the pieces.
        (Err(_), Err(_)) => {}
        _ => panic!("in one piece {whole:?}, in pieces of {piece} {cut:?}"),
    }
    match (encoding, whole) {
        (Encoding::Identity, Ok(read)) => assert!(read == body && read.len() as u64 <= limit),
        (Encoding::Identity, Err(error)) => assert!(matches!(error, Error::TooLarge { .. }) && body.len() as u64 > limit),
        (Encoding::Gzip, Ok(read)) => {
            assert!(read.len() as u64 <= limit);
            let mut inflated = Vec::new();
            let by_reading = MultiGzDecoder::new(body).take(limit + 1).read_to_end(&mut inflated);
            assert!(body.is_empty() || by_reading.is_ok(), "what a reader refuses was accepted");
            assert_eq!(read, inflated);
        }
        (Encoding::Gzip, Err(_)) => {}
    }
}

fn read_cut(body: &[u8], size: usize, encoding: Encoding, limit: u64) -> Result<Bytes, Error> {
    let admission = Admission::new(ROOM);
    let pieces: Vec<_> = body.chunks(size).map(|c| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(c)))).collect();
    let mut admitted = admission.admit(0).expect("there is room");
    let read = block_on(read(&mut StreamBody::new(stream::iter(pieces)), encoding, limit, &mut admitted));
    // A piece that is inflated at a time may lie above the limit.
    assert!(admission.in_flight() <= limit.max(body.len() as u64) + (64 << 10), "{} bytes are held", admission.in_flight());
    drop(admitted);
    assert_eq!(admission.in_flight(), 0);
    read
}
