//! A raft entry as a record of the log, and what is kept beside the log.
//!
//! ```text
//! kind 1 (normal)      the proposal's own bytes: a shard's entry or metadata commands
//! kind 2 (blank)       nothing
//! kind 3 (membership)  | format u8 = 1 | JSON {"configs": [[node, …], …], "nodes": {node: {name, replica, rpc?}}} |
//!
//! hard state           | format u8 = 1 | flags u8: 1 voted, 2 vote committed, 4 purged | vote term u64 | vote node u64 |
//!                      | purged term u64 | purged index u64 |
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use model::{LogIndex, ReplicaId, Term};
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};
use storage::wal::Record;

use crate::group::{GroupKind, LogId, Member, Membership, Proposal, RaftEntry, StoredMembership, Vote, log_id};

pub(crate) const NORMAL: u8 = 1;
pub(crate) const BLANK: u8 = 2;
pub(crate) const MEMBERSHIP: u8 = 3;

const MEMBERSHIP_FORMAT: u8 = 1;
const HARD_STATE_FORMAT: u8 = 1;
const HARD_STATE_BYTES: usize = 34;

#[derive(Serialize, Deserialize)]
struct MemberText {
    name: String,
    replica: ReplicaId,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    rpc: String,
}

#[derive(Serialize, Deserialize)]
struct MembershipText {
    /// Where the membership stands in the log; in a record of the log its own place says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    at: Option<(Term, LogIndex)>,
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, MemberText>,
}

/// Bytes of a membership, with its place in the log where it is kept outside the log.
pub(crate) fn encode_membership(at: Option<&LogId>, membership: &Membership) -> Vec<u8> {
    let text = MembershipText {
        at: at.map(|id| (Term(id.leader_id.term), LogIndex(id.index))),
        configs: membership.get_joint_config().clone(),
        nodes: membership
            .nodes()
            .map(|(id, m)| (*id, MemberText { name: m.name.clone(), replica: m.replica, rpc: m.rpc.clone() }))
            .collect(),
    };
    let mut bytes = vec![MEMBERSHIP_FORMAT];
    serde_json::to_writer(&mut bytes, &text).expect("writing to memory");
    bytes
}

/// Reads a membership back.
pub(crate) fn decode_membership(bytes: &[u8]) -> io::Result<StoredMembership> {
    let text = match bytes {
        [MEMBERSHIP_FORMAT, json @ ..] => serde_json::from_slice::<MembershipText>(json).map_err(io::Error::other)?,
        _ => return Err(newer("membership", bytes.first().copied(), MEMBERSHIP_FORMAT)),
    };
    let nodes: BTreeMap<u64, Member> =
        text.nodes.into_iter().map(|(id, m)| (id, Member { name: m.name, replica: m.replica, rpc: m.rpc })).collect();
    let membership =
        if text.configs.is_empty() { Membership::default() } else { Membership::new(text.configs, nodes).map_err(io::Error::other)? };
    Ok(StoredMembership::new(text.at.map(|(term, index)| log_id(term, index)), membership))
}

/// The record's entry.
pub(crate) fn decode_entry(kind: GroupKind, record: Record) -> io::Result<RaftEntry> {
    let payload = match record.kind {
        NORMAL => EntryPayload::Normal(Proposal::decode(kind, record.payload, record.index.0)?),
        BLANK => EntryPayload::Blank,
        MEMBERSHIP => EntryPayload::Membership(decode_membership(&record.payload)?.membership().clone()),
        other => {
            let what = format!("entry {} of the log has kind {other}, which this program does not know", record.index);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    };
    Ok(RaftEntry { log_id: log_id(record.term, record.index), payload })
}

/// The kind and bytes of an entry's record.
pub(crate) fn encode_payload(payload: &EntryPayload<Proposal, u64, Member>) -> (u8, Bytes) {
    match payload {
        EntryPayload::Normal(proposal) => (NORMAL, proposal.bytes().clone()),
        EntryPayload::Blank => (BLANK, Bytes::new()),
        EntryPayload::Membership(membership) => (MEMBERSHIP, encode_membership(None, membership).into()),
    }
}

/// What is kept durably beside a log: raft's vote, and the last entry purged (its record is gone, its term is asked for).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HardState {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
}

impl HardState {
    pub(crate) fn encode(&self) -> [u8; HARD_STATE_BYTES] {
        let mut bytes = [0; HARD_STATE_BYTES];
        bytes[0] = HARD_STATE_FORMAT;
        if let Some(vote) = &self.vote {
            bytes[1] |= 1 | if vote.committed { 2 } else { 0 };
            bytes[2..10].copy_from_slice(&vote.leader_id.term.to_le_bytes());
            bytes[10..18].copy_from_slice(&vote.leader_id.node_id().to_le_bytes());
        }
        if let Some(purged) = &self.purged {
            bytes[1] |= 4;
            bytes[18..26].copy_from_slice(&purged.leader_id.term.to_le_bytes());
            bytes[26..34].copy_from_slice(&purged.index.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> io::Result<HardState> {
        if bytes.first() != Some(&HARD_STATE_FORMAT) || bytes.len() != HARD_STATE_BYTES {
            return Err(newer("hard state", bytes.first().copied(), HARD_STATE_FORMAT));
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let flags = bytes[1];
        let vote = (flags & 1 != 0).then(|| match flags & 2 != 0 {
            true => Vote::new_committed(number(2), number(10)),
            false => Vote::new(number(2), number(10)),
        });
        let purged = (flags & 4 != 0).then(|| log_id(Term(number(18)), LogIndex(number(26))));
        Ok(HardState { vote, purged })
    }
}

fn newer(what: &str, found: Option<u8>, known: u8) -> io::Error {
    let found = found.map_or_else(|| "none".to_owned(), |f| f.to_string());
    let text = format!("{what} has format {found}, this program knows {known}: start a newer alluvium");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_voter() -> Membership {
        let member = Member { name: "n1".to_owned(), replica: ReplicaId(u128::MAX - 7), rpc: "n1:2559".to_owned() };
        Membership::new(vec![BTreeSet::from([3])], BTreeMap::from([(3, member)])).unwrap()
    }

    #[test]
    fn a_membership_survives_its_bytes() {
        let at = log_id(Term(4), LogIndex(9));
        let back = decode_membership(&encode_membership(Some(&at), &one_voter())).unwrap();
        assert_eq!(back, StoredMembership::new(Some(at), one_voter()));
        let none = decode_membership(&encode_membership(None, &Membership::default())).unwrap();
        assert_eq!(none, StoredMembership::default());
    }

    #[test]
    fn hard_state_survives_its_bytes() {
        let vote = Some(Vote::new_committed(7, 3));
        let purged = Some(log_id(Term(6), LogIndex(41)));
        for state in [
            HardState::default(),
            HardState { vote, purged: None },
            HardState { vote: Some(Vote::new(7, 3)), purged },
            HardState { vote, purged },
        ] {
            assert_eq!(HardState::decode(&state.encode()).unwrap(), state);
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_number() {
        let mut bytes = HardState::default().encode();
        bytes[0] = 9;
        assert!(HardState::decode(&bytes).unwrap_err().to_string().contains("format 9"));
        assert!(decode_membership(b"\x09{}").unwrap_err().to_string().contains("format 9"));
        assert!(decode_membership(b"").is_err());
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_refused() {
        let record = Record { kind: 77, term: Term(1), index: LogIndex(5), payload: Bytes::new() };
        assert!(decode_entry(GroupKind::Shard, record).unwrap_err().to_string().contains("kind 77"));
    }
}
