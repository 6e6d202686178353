//! Reads a body whole, inflating it, within its limits.
//!
//! A body that came in one piece is given as that piece, without a copy: most requests of devices are that small. The
//! limit holds before and after inflation and is checked while bytes come, so a gzip bomb costs at most the limit. What a
//! body holds is counted by [`Admitted`] as it grows.

use std::error::Error as StdError;
use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzDecoder;
use http_body_util::BodyExt;
use hyper::body::Body;

use crate::admission::Admitted;
use crate::error::{Error, cut};

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// One or several gzip members.
    Gzip,
}

impl Encoding {
    /// What `Content-Encoding` says; encodings of encodings are not supported.
    pub(crate) fn named(header: &str) -> Result<Encoding, Error> {
        match header.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Encoding::Identity),
            "gzip" | "x-gzip" => Ok(Encoding::Gzip),
            other => Err(Error::Encoding { encoding: cut(other, 64).to_owned() }),
        }
    }
}

/// Room that is made at once for a body that announces its size; more is made as bytes come. Until they come it is a promise
/// of the system and takes no memory.
const FIRST_ROOM_BYTES: usize = 4 << 20;
/// Inflated bytes after which other tasks of the thread get their turn.
const BYTES_PER_TURN: usize = 1 << 20;
/// A compressed byte counts in a turn as so many inflated ones: some cost much and become nothing.
const BYTES_PER_COMPRESSED: usize = 64;
/// Compressed bytes that are inflated at a time: at gzip's utmost ratio they become one turn.
const INFLATE_PIECE_BYTES: usize = 1 << 10;
/// Members that a gzip body may have, and so many more as it has times so many compressed bytes: each costs a fresh decoder,
/// and one that holds nothing has 20 bytes. Writers of lines flush members of kilobytes.
const FREE_MEMBERS: u64 = 1_000;
const BYTES_PER_MEMBER: u64 = 256;

/// Reads `body` to its end.
pub async fn read<B>(body: &mut B, encoding: Encoding, limit: u64, admitted: &mut Admitted) -> Result<Bytes, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > limit) {
        return Err(as_sent(limit));
    }
    match encoding {
        Encoding::Identity => plain(body, announced, limit, admitted).await,
        Encoding::Gzip => inflated(body, limit, admitted).await,
    }
}

async fn plain<B>(body: &mut B, announced: Option<u64>, limit: u64, admitted: &mut Admitted) -> Result<Bytes, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let Some(first) = next(body).await? else { return Ok(Bytes::new()) };
    grow(admitted, first.len(), limit)?;
    if body.is_end_stream() {
        return Ok(first);
    }
    let room = announced.map_or(first.len() * 2, |bytes| bytes as usize).min(FIRST_ROOM_BYTES.max(first.len()));
    let mut whole = Vec::with_capacity(room);
    whole.extend_from_slice(&first);
    drop(first);
    while let Some(piece) = next(body).await? {
        grow(admitted, whole.len() + piece.len(), limit)?;
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

fn grow(admitted: &mut Admitted, bytes: usize, limit: u64) -> Result<(), Error> {
    if bytes as u64 > limit {
        return Err(as_sent(limit));
    }
    admitted.hold(bytes as u64)
}

async fn inflated<B>(body: &mut B, limit: u64, admitted: &mut Admitted) -> Result<Bytes, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut members = Members::new(Inflated { bytes: Vec::new(), limit, admitted, refusal: None });
    let mut sent = 0;
    let mut turn = 0;
    while let Some(piece) = next(body).await? {
        sent += piece.len() as u64;
        if sent > limit {
            return Err(as_sent(limit));
        }
        for small in piece.chunks(INFLATE_PIECE_BYTES) {
            let before = members.inflated();
            if let Err(error) = members.write_all(small, sent) {
                return Err(why_not(members.refusal(), &error));
            }
            turn += members.inflated() - before + small.len() * BYTES_PER_COMPRESSED;
            if turn >= BYTES_PER_TURN {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
    }
    if sent == 0 {
        return Ok(Bytes::new());
    }
    members.finish().map(Bytes::from)
}

/// The gzip members of a body, one after the other into one text.
struct Members<'a> {
    /// Of the member at hand; `None` only between two.
    decoder: Option<GzDecoder<Inflated<'a>>>,
    /// How many there are.
    count: u64,
}

impl<'a> Members<'a> {
    fn new(text: Inflated<'a>) -> Members<'a> {
        Members { decoder: Some(GzDecoder::new(text)), count: 1 }
    }

    fn decoder(&mut self) -> &mut GzDecoder<Inflated<'a>> {
        self.decoder.as_mut().expect("there is one but between two members")
    }

    fn inflated(&mut self) -> usize {
        self.decoder().get_ref().bytes.len()
    }

    fn refusal(&mut self) -> Option<Error> {
        self.decoder().get_mut().refusal.take()
    }

    /// Inflates the next bytes of a body of which `sent` have come.
    fn write_all(&mut self, mut bytes: &[u8], sent: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.decoder().write(bytes)? {
                // The member has ended; what is left is another.
                0 => self.next_member(sent)?,
                taken => bytes = &bytes[taken..],
            }
        }
        Ok(())
    }

    fn next_member(&mut self, sent: u64) -> io::Result<()> {
        self.decoder().try_finish()?;
        self.count += 1;
        if self.count > FREE_MEMBERS + sent / BYTES_PER_MEMBER {
            let limit =
                format!("more than {FREE_MEMBERS} members and one for every {BYTES_PER_MEMBER} bytes (limit max_gzip_members, fixed)");
            return Err(io::Error::other(limit));
        }
        let text = self.decoder.take().expect("there is one but between two members").finish()?;
        self.decoder = Some(GzDecoder::new(text));
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, Error> {
        if let Err(error) = self.decoder().try_finish() {
            return Err(why_not(self.refusal(), &error));
        }
        Ok(std::mem::take(&mut self.decoder().get_mut().bytes))
    }
}

fn why_not(refusal: Option<Error>, error: &io::Error) -> Error {
    refusal.unwrap_or_else(|| Error::BadBody { why: format!("gzip: {error}") })
}

async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers say nothing about points.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                let error: Box<dyn StdError + Send + Sync> = error.into();
                return Err(broken_off(&*error));
            }
        }
    }
}

fn broken_off(error: &(dyn StdError + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => return Error::SlowBody,
            // Chunks that are none.
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => return Error::BadBody { why: error.to_string() },
            _ => cause = error.source(),
        }
    }
    Error::BrokenOff { why: error.to_string() }
}

fn as_sent(limit: u64) -> Error {
    Error::TooLarge { limit, when: "as sent" }
}

/// Takes what the decoder gives, up to the limit.
struct Inflated<'a> {
    bytes: Vec<u8>,
    limit: u64,
    admitted: &'a mut Admitted,
    refusal: Option<Error>,
}

impl Write for Inflated<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let size = (self.bytes.len() + piece.len()) as u64;
        let held =
            if size > self.limit { Err(Error::TooLarge { limit: self.limit, when: "when inflated" }) } else { self.admitted.hold(size) };
        if let Err(refusal) = held {
            self.refusal = Some(refusal);
            return Err(io::Error::other("no room"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures::stream;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;
    use crate::admission::Admission;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn pieces(bytes: &[u8], size: usize) -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
        let pieces: VecDeque<_> = bytes.chunks(size).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
        StreamBody::new(stream::iter(pieces))
    }

    async fn read_pieces(bytes: &[u8], size: usize, encoding: Encoding, limit: u64) -> Result<Bytes, Error> {
        let mut admitted = Admission::new(1 << 30).admit(0).unwrap();
        read(&mut pieces(bytes, size), encoding, limit, &mut admitted).await
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied() {
        let sent = Bytes::from_static(b"cpu v=1");
        let mut admitted = Admission::new(100).admit(7).unwrap();
        let read = read(&mut Full::new(sent.clone()), Encoding::Identity, 100, &mut admitted).await.unwrap();
        assert_eq!(read.as_ptr(), sent.as_ptr());
        assert_eq!(read, sent);
    }

    #[tokio::test]
    async fn pieces_become_one_body_however_they_are_cut() {
        let text = b"cpu,host=a v=1 1\ncpu,host=b v=2 2\n".repeat(50);
        for size in [1, 7, 1_000, 100_000] {
            assert_eq!(read_pieces(&text, size, Encoding::Identity, 1 << 20).await.unwrap(), text, "{size}");
            let mut members = gzip(&text[..100]);
            members.extend(gzip(&text[100..]));
            assert_eq!(read_pieces(&members, size, Encoding::Gzip, 1 << 20).await.unwrap(), text, "{size}");
        }
    }

    #[tokio::test]
    async fn the_limit_holds_before_and_after_inflation() {
        assert_eq!(read_pieces(&[b'x'; 100], 10, Encoding::Identity, 100).await.unwrap().len(), 100);
        let error = read_pieces(&[b'x'; 101], 10, Encoding::Identity, 100).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 100, when: "as sent" }));
        let bomb = gzip(&vec![0; 10_000_000]);
        assert!(bomb.len() < 20_000);
        let admission = Admission::new(1 << 30);
        let mut admitted = admission.admit(0).unwrap();
        let error = read(&mut pieces(&bomb, 4096), Encoding::Gzip, 1_000_000, &mut admitted).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 1_000_000, when: "when inflated" }));
        assert!(admission.in_flight() <= 1_000_000 + 65_536, "{} bytes were held", admission.in_flight());
    }

    /// The body as if it were sent at once, and how often other tasks got their turn.
    async fn read_beside_others(bytes: &[u8]) -> (Result<Bytes, Error>, usize) {
        let mut turns = 0;
        let mut admitted = Admission::new(1 << 30).admit(0).unwrap();
        let mut body = Full::new(Bytes::copy_from_slice(bytes));
        let mut reading = std::pin::pin!(read(&mut body, Encoding::Gzip, 1 << 30, &mut admitted));
        let read = std::future::poll_fn(|context| {
            turns += 1;
            reading.as_mut().poll(context)
        });
        (read.await, turns)
    }

    #[tokio::test]
    async fn a_body_of_very_many_members_is_refused_and_others_get_their_turn() {
        let empty = gzip(b"");
        assert_eq!(empty.len(), 20);
        for members in [1_000, 1_080] {
            assert_eq!(read_beside_others(&empty.repeat(members)).await.0.unwrap(), Bytes::new(), "{members} members");
        }
        let (refused, turns) = read_beside_others(&empty.repeat(50_000)).await;
        let expected = "could not read the body: gzip: more than 1000 members and one for every 256 bytes (limit max_gzip_members, fixed)";
        assert_eq!(refused.unwrap_err().to_string(), expected);
        assert!(turns >= 1);
        // Members of some lines each are as many as their bytes.
        let (mut text, mut members) = (Vec::new(), Vec::new());
        let mut random = 1u64;
        for _ in 0..2_000 {
            let lines: String = (0..30)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    format!("cpu,host=a v={random} {random}\n")
                })
                .collect();
            text.extend_from_slice(lines.as_bytes());
            members.extend(gzip(lines.as_bytes()));
        }
        let (read, turns) = read_beside_others(&members).await;
        assert_eq!(read.unwrap(), text);
        assert!(turns >= members.len() / (16 << 10), "{turns} turns for {} bytes", members.len());
    }

    #[tokio::test]
    async fn bytes_that_inflate_to_nothing_take_turns_too() {
        // Stored blocks without a byte.
        let mut body = gzip(b"")[..10].to_vec();
        body.extend([0, 0, 0, 0xff, 0xff].repeat(100_000));
        body.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        let (read, turns) = read_beside_others(&body).await;
        assert_eq!(read.unwrap(), Bytes::new());
        assert!(turns >= body.len() / (16 << 10), "{turns} turns for {} bytes", body.len());
    }

    #[tokio::test]
    async fn a_full_server_refuses_while_a_body_grows() {
        let admission = Admission::new(100_000);
        let mut first = admission.admit(0).unwrap();
        first.hold(50_000).unwrap();
        for (bytes, encoding) in [(vec![b'x'; 60_000], Encoding::Identity), (gzip(&[b'x'; 60_000]), Encoding::Gzip)] {
            let mut admitted = admission.admit(0).unwrap();
            let error = read(&mut pieces(&bytes, 1_000), encoding, 1 << 20, &mut admitted).await.unwrap_err();
            assert!(matches!(error, Error::Overloaded { limit: 100_000 }), "{error}");
        }
        assert_eq!(admission.in_flight(), 50_000);
    }

    #[tokio::test]
    async fn broken_gzip_is_the_clients_mistake() {
        let whole = gzip(b"cpu v=1");
        let mut wrong_sum = whole.clone();
        let crc = wrong_sum.len() - 8;
        wrong_sum[crc] ^= 1;
        for bad in [&b"cpu v=1"[..], &whole[..whole.len() - 1], &whole[..5], &wrong_sum] {
            let error = read_pieces(bad, 3, Encoding::Gzip, 1 << 20).await.unwrap_err();
            assert!(error.to_string().starts_with("could not read the body: gzip: "), "{error}");
        }
        assert_eq!(read_pieces(b"", 1, Encoding::Gzip, 10).await.unwrap(), Bytes::new());
    }

    #[test]
    fn unknown_encodings_are_named() {
        for (header, encoding) in [("", Encoding::Identity), ("identity", Encoding::Identity), ("GZip", Encoding::Gzip)] {
            assert_eq!(Encoding::named(header).unwrap(), encoding);
        }
        for header in ["br", "zstd", "deflate", "gzip, gzip"] {
            let text = Encoding::named(header).unwrap_err().to_string();
            assert_eq!(text, format!("content encoding '{header}' is not supported: send gzip or no encoding"));
        }
    }
}
