//! Raft's messages as bytes: what two nodes say to each other on behalf of one group.
//!
//! ```text
//! vote      | term u64 | node u64 | committed u8 |
//! log id    | there u8 | term u64 | index u64 |
//! append    | length u32 | vote | previous log id | commit log id | entries u32 | entry … |
//! entry     | kind u8 | term u64 | index u64 | length u32 | trace length u8 | trace … | payload … |
//!             kind and payload as in the log (`log_record.rs`), the trace as a `traceparent` names it
//! answer    | kind u8: 0 kept up to, 1 conflict at, 2 higher vote, 3 broken | log id or vote, padded to 17 bytes |
//! ask       | vote | last log id | leadership transfer u8 |                   for a vote, or before asking for one
//! granted   | vote | last log id | granted u8 |
//! ```
//!
//! Numbers are little-endian. A peer's bytes are checked like any other bytes from outside.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderValue;
use model::{LogIndex, Term};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use openraft::vote::RaftLeaderId;
use storage::wal::Record;

use crate::group::{GroupKind, LogId, RaftEntry, Types, Vote, log_id};
use crate::log_record::{decode_entry, encode_payload};
use crate::log_store::trace_of;

/// An append message carries entries of a few megabytes at most; beyond this it is none.
pub(crate) const MAX_APPEND_BYTES: usize = 64 << 20;
/// Payloads up to this many bytes are copied into the message, larger ones are sent as they are.
const COPY_BYTES: usize = 4 << 10;
const VOTE_BYTES: usize = 17;
const LOG_ID_BYTES: usize = 17;
/// Of an entry before its trace and payload.
const ENTRY_HEAD_BYTES: usize = 22;
/// Bytes of one [`put_answer`].
pub(crate) const ANSWER_BYTES: usize = 1 + VOTE_BYTES;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a peer sent {what}"))
}

fn need(bytes: &impl Buf, count: usize, what: &str) -> io::Result<()> {
    if bytes.remaining() < count { Err(invalid(&format!("a message that ends within its {what}"))) } else { Ok(()) }
}

fn put_vote(out: &mut impl BufMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(*vote.leader_id.node_id());
    out.put_u8(u8::from(vote.committed));
}

fn take_vote(bytes: &mut impl Buf) -> io::Result<Vote> {
    need(bytes, VOTE_BYTES, "vote")?;
    let (term, node, committed) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u8() != 0);
    Ok(if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) })
}

fn put_log_id(out: &mut impl BufMut, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    out.put_u64_le(id.map_or(0, |id| id.leader_id.term));
    out.put_u64_le(id.map_or(0, |id| id.index));
}

fn take_log_id(bytes: &mut impl Buf) -> io::Result<Option<LogId>> {
    need(bytes, LOG_ID_BYTES, "log id")?;
    let (there, term, index) = (bytes.get_u8() != 0, bytes.get_u64_le(), bytes.get_u64_le());
    Ok(there.then(|| log_id(Term(term), LogIndex(index))))
}

/// The chunks of an append message, in order; large payloads are not copied.
pub(crate) fn append_chunks(request: &AppendEntriesRequest<Types>) -> Vec<Bytes> {
    let payloads: Vec<(u8, Bytes)> = request.entries.iter().map(|entry| encode_payload(&entry.payload)).collect();
    let length = VOTE_BYTES
        + 2 * LOG_ID_BYTES
        + 4
        + payloads.iter().map(|(_, payload)| ENTRY_HEAD_BYTES + payload.len()).sum::<usize>()
        + request.entries.iter().map(|entry| trace_bytes(entry).len()).sum::<usize>();
    let mut chunks = Vec::new();
    let mut head = BytesMut::with_capacity(128);
    head.put_u32_le(length as u32);
    put_vote(&mut head, &request.vote);
    put_log_id(&mut head, request.prev_log_id.as_ref());
    put_log_id(&mut head, request.leader_commit.as_ref());
    head.put_u32_le(request.entries.len() as u32);
    for (entry, (kind, payload)) in request.entries.iter().zip(payloads) {
        head.put_u8(kind);
        head.put_u64_le(entry.log_id.leader_id.term);
        head.put_u64_le(entry.log_id.index);
        head.put_u32_le(payload.len() as u32);
        let trace = trace_bytes(entry);
        head.put_u8(trace.len() as u8);
        head.extend_from_slice(trace);
        if payload.len() <= COPY_BYTES {
            head.extend_from_slice(&payload);
        } else {
            chunks.push(head.split().freeze());
            chunks.push(payload);
        }
    }
    if !head.is_empty() {
        chunks.push(head.freeze());
    }
    chunks
}

/// What an entry says of its trace; one that is too long to be a trace is not told.
fn trace_bytes(entry: &RaftEntry) -> &[u8] {
    trace_of(entry).map(HeaderValue::as_bytes).filter(|trace| u8::try_from(trace.len()).is_ok()).unwrap_or_default()
}

/// Takes the next whole append message off the front of `bytes`, if it is there.
pub(crate) fn take_append(kind: GroupKind, bytes: &mut BytesMut) -> io::Result<Option<AppendEntriesRequest<Types>>> {
    let Some(length) = bytes.get(..4) else { return Ok(None) };
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if length > MAX_APPEND_BYTES {
        return Err(invalid("an append message that is too long"));
    }
    if bytes.len() < 4 + length {
        bytes.reserve(4 + length - bytes.len());
        return Ok(None);
    }
    bytes.advance(4);
    let mut message = bytes.split_to(length).freeze();
    let vote = take_vote(&mut message)?;
    let prev_log_id = take_log_id(&mut message)?;
    let leader_commit = take_log_id(&mut message)?;
    need(&message, 4, "number of entries")?;
    let count = message.get_u32_le() as usize;
    let mut entries: Vec<RaftEntry> = Vec::with_capacity(count.min(message.remaining()));
    for _ in 0..count {
        need(&message, ENTRY_HEAD_BYTES, "entry")?;
        let (of, term, index) = (message.get_u8(), message.get_u64_le(), message.get_u64_le());
        let (length, trace) = (message.get_u32_le() as usize, usize::from(message.get_u8()));
        need(&message, trace, "trace")?;
        let trace = message.split_to(trace);
        need(&message, length, "payload")?;
        let record = Record { kind: of, term: Term(term), index: LogIndex(index), payload: message.split_to(length) };
        let mut entry = decode_entry(kind, record)?;
        if !trace.is_empty()
            && let EntryPayload::Normal(proposal) = entry.payload
        {
            let trace = HeaderValue::from_maybe_shared(trace).map_err(|_| invalid("a trace that is none"))?;
            entry.payload = EntryPayload::Normal(proposal.traced(Some(trace)));
        }
        entries.push(entry);
    }
    if message.has_remaining() {
        return Err(invalid("an append message with more than its entries"));
    }
    Ok(Some(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit }))
}

/// What a follower says to one append message; `None`: its group has ended.
pub(crate) fn put_answer(out: &mut BytesMut, answer: Option<&StreamAppendResult<Types>>) {
    let end = out.len() + ANSWER_BYTES;
    match answer {
        Some(Ok(upto)) => {
            out.put_u8(0);
            put_log_id(out, upto.as_ref());
        }
        Some(Err(StreamAppendError::Conflict(at))) => {
            out.put_u8(1);
            put_log_id(out, Some(at));
        }
        Some(Err(StreamAppendError::HigherVote(vote))) => {
            out.put_u8(2);
            put_vote(out, vote);
        }
        None => {
            out.put_u8(3);
            out.put_bytes(0, VOTE_BYTES);
        }
    }
    debug_assert_eq!(out.len(), end, "answers have one length");
}

/// Takes the next answer off the front of `bytes`, if it is there.
pub(crate) fn take_answer(bytes: &mut BytesMut) -> io::Result<Option<StreamAppendResult<Types>>> {
    if bytes.len() < ANSWER_BYTES {
        return Ok(None);
    }
    let mut answer = bytes.split_to(ANSWER_BYTES);
    match answer.get_u8() {
        0 => Ok(Some(Ok(take_log_id(&mut answer)?))),
        1 => Ok(Some(Err(StreamAppendError::Conflict(take_log_id(&mut answer)?.ok_or_else(|| invalid("a conflict without a place"))?)))),
        2 => Ok(Some(Err(StreamAppendError::HigherVote(take_vote(&mut answer)?)))),
        3 => Err(io::Error::other("the group has ended at the peer")),
        _ => Err(invalid("an answer of an unknown kind")),
    }
}

pub(crate) fn encode_ask(request: &VoteRequest<Types>) -> Bytes {
    let mut out = BytesMut::with_capacity(VOTE_BYTES + LOG_ID_BYTES + 1);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn decode_ask(mut bytes: Bytes) -> io::Result<VoteRequest<Types>> {
    let mut request = VoteRequest::new(take_vote(&mut bytes)?, take_log_id(&mut bytes)?);
    need(&bytes, 1, "flags")?;
    request.leadership_transfer = bytes.get_u8() != 0;
    Ok(request)
}

pub(crate) fn encode_granted(response: &VoteResponse<Types>) -> Bytes {
    let mut out = BytesMut::with_capacity(VOTE_BYTES + LOG_ID_BYTES + 1);
    put_vote(&mut out, &response.vote);
    put_log_id(&mut out, response.last_log_id.as_ref());
    out.put_u8(u8::from(response.vote_granted));
    out.freeze()
}

pub(crate) fn decode_granted(mut bytes: Bytes) -> io::Result<VoteResponse<Types>> {
    let (vote, last_log_id) = (take_vote(&mut bytes)?, take_log_id(&mut bytes)?);
    need(&bytes, 1, "flags")?;
    Ok(VoteResponse { vote, vote_granted: bytes.get_u8() != 0, last_log_id })
}

/// A vote alone: what a snapshot is sent under and answered with.
pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(VOTE_BYTES);
    put_vote(&mut out, vote);
    out.freeze()
}

pub(crate) fn decode_vote(bytes: &mut Bytes) -> io::Result<Vote> {
    take_vote(bytes)
}

/// A log id alone.
pub(crate) fn encode_log_id(id: Option<&LogId>) -> Bytes {
    let mut out = BytesMut::with_capacity(LOG_ID_BYTES);
    put_log_id(&mut out, id);
    out.freeze()
}

pub(crate) fn decode_log_id(bytes: &mut Bytes) -> io::Result<Option<LogId>> {
    take_log_id(bytes)
}

#[cfg(test)]
mod tests {
    use storage::entry::Entry;

    use super::*;
    use crate::group::Proposal;

    fn request(sizes: &[usize]) -> AppendEntriesRequest<Types> {
        let entry = |(i, &rows): (usize, &usize)| {
            let mut bytes = Vec::new();
            let entry = match rows {
                0 => Entry::Seal,
                _ => Entry::Write(vec![wide_part(rows)]),
            };
            entry.encode(&mut bytes);
            RaftEntry {
                log_id: log_id(Term(3), LogIndex(8 + i as u64)),
                payload: EntryPayload::Normal(Proposal::shard(bytes.into(), entry).traced((i == 1).then(|| TRACE.clone()))),
            }
        };
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 77),
            prev_log_id: Some(log_id(Term(2), LogIndex(7))),
            entries: sizes.iter().enumerate().map(entry).collect(),
            leader_commit: None,
        }
    }

    fn wide_part(rows: usize) -> storage::WritePart {
        let mut batch = model::PointBatch::new(model::TableId(1), 1);
        let series = batch.push_series(model::SeriesKey::new([Some("phone-1")]).as_bytes());
        batch.row_series = vec![series; rows];
        batch.times = (0..rows as i64).map(|i| i * 7919 % 1_000_003).collect();
        let values = model::Values::F64((0..rows).map(|i| (i * 31 % 97) as f64 / 7.0).collect());
        batch.columns = vec![model::FieldColumn { id: model::ColumnId(1), values, valid: None }];
        storage::WritePart {
            origin: 1,
            sequence: 2,
            arrived: model::Timestamp(3),
            range_version: model::Epoch(1),
            retry_window: storage::entry::RetryWindow::Recent,
            batches: vec![batch],
        }
    }

    const TRACE: HeaderValue = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");

    fn bytes_of(entries: &[RaftEntry]) -> Vec<(LogId, Bytes, Option<HeaderValue>)> {
        entries.iter().map(|e| (e.log_id, encode_payload(&e.payload).1, trace_of(e).cloned())).collect()
    }

    #[test]
    fn append_messages_survive_their_bytes_in_pieces_of_any_size() {
        for sizes in [vec![], vec![0, 0], vec![2_000, 0, 3_000], vec![1, 2, 3]] {
            let request = request(&sizes);
            let whole: Vec<u8> = append_chunks(&request).concat();
            for piece in [1, 5, 1_000, whole.len().max(1)] {
                let mut received = BytesMut::new();
                let mut found = None;
                for chunk in whole.chunks(piece) {
                    assert!(found.is_none(), "a message is whole only at its end");
                    received.extend_from_slice(chunk);
                    found = take_append(GroupKind::Shard, &mut received).unwrap();
                }
                let found = found.expect("the message is whole");
                assert_eq!((found.vote, found.prev_log_id, found.leader_commit), (request.vote, request.prev_log_id, None));
                assert_eq!(bytes_of(&found.entries), bytes_of(&request.entries));
            }
        }
    }

    #[test]
    fn broken_messages_are_errors_and_never_panics() {
        let whole: Vec<u8> = append_chunks(&request(&[3, 0])).concat();
        for cut in 4..whole.len() {
            let mut bytes = BytesMut::from(&whole[..cut]);
            bytes[..4].copy_from_slice(&(cut as u32 - 4).to_le_bytes());
            assert!(take_append(GroupKind::Shard, &mut bytes).is_err(), "cut at {cut}");
        }
        let mut huge = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(take_append(GroupKind::Shard, &mut huge).is_err());
    }

    #[test]
    fn answers_survive_their_bytes() {
        let answers: Vec<StreamAppendResult<Types>> = vec![
            Ok(None),
            Ok(Some(log_id(Term(1), LogIndex(2)))),
            Err(StreamAppendError::Conflict(log_id(Term(1), LogIndex(2)))),
            Err(StreamAppendError::HigherVote(Vote::new(9, 4))),
        ];
        let mut bytes = BytesMut::new();
        answers.iter().for_each(|a| put_answer(&mut bytes, Some(a)));
        for answer in &answers {
            assert_eq!(take_answer(&mut bytes).unwrap().as_ref(), Some(answer));
        }
        assert_eq!(take_answer(&mut bytes).unwrap(), None);
        put_answer(&mut bytes, None);
        assert!(take_answer(&mut bytes).is_err());
    }

    #[test]
    fn votes_survive_their_bytes() {
        let mut ask = VoteRequest::new(Vote::new(9, 4), Some(log_id(Term(1), LogIndex(2))));
        ask.leadership_transfer = true;
        assert_eq!(decode_ask(encode_ask(&ask)).unwrap(), ask);
        let granted = VoteResponse { vote: Vote::new_committed(9, 4), vote_granted: true, last_log_id: None };
        assert_eq!(decode_granted(encode_granted(&granted)).unwrap(), granted);
        assert!(decode_granted(Bytes::from_static(b"short")).is_err());
    }
}
