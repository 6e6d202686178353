//! What is and was on its way: replicas that get other places, and shards that become two. Pure: the metadata group keeps it.
//!
//! Each change has a line from when it is decided until long after it is done; the oldest lines of those that are done go.

use std::fmt;

use model::{NodeId, ShardId, Timestamp};
use serde::{Deserialize, Serialize};

/// Lines that are kept.
const MAX_MOVES: usize = 200;

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveKind {
    /// The replicas get other places, or another one of them leads.
    Move,
    /// The shard's range becomes two.
    Split,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveState {
    /// It is on its way.
    Running,
    /// It is done.
    Done,
    /// Another change of the same shard was decided before it was done.
    Replaced,
}

impl fmt::Display for MoveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MoveKind::Move => "move",
            MoveKind::Split => "split",
        })
    }
}

impl fmt::Display for MoveState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MoveState::Running => "running",
            MoveState::Done => "done",
            MoveState::Replaced => "replaced",
        })
    }
}

/// One line of `system.moves`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Its number; grows.
    pub id: u64,
    /// What it is.
    pub kind: MoveKind,
    /// The shard that moves or is split.
    pub shard: ShardId,
    /// The shard that is split off.
    pub child: Option<ShardId>,
    /// The nodes that held the replicas.
    pub from: Vec<NodeId>,
    /// The nodes that are to hold them; of a split, the new shard's.
    pub to: Vec<NodeId>,
    /// How far it is.
    pub state: MoveState,
    /// When it was decided, by the clock of whoever asked; `None`: an older program asked.
    pub started: Option<Timestamp>,
    /// When it was done, by the clock of whoever saw it.
    pub finished: Option<Timestamp>,
}

/// The lines, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moves {
    next: u64,
    lines: Vec<Move>,
}

impl Moves {
    pub(crate) fn lines(&self) -> &[Move] {
        &self.lines
    }

    /// The one of a shard that is on its way.
    pub(crate) fn running(&self, kind: MoveKind, shard: ShardId) -> Option<&Move> {
        self.lines.iter().rev().find(|line| line.kind == kind && line.shard == shard && line.state == MoveState::Running)
    }

    /// A new line; one of the same kind and shard that is on its way is replaced by it.
    pub(crate) fn begin(&mut self, mut line: Move) {
        for other in self.lines.iter_mut().filter(|l| l.kind == line.kind && l.shard == line.shard && l.state == MoveState::Running) {
            other.state = MoveState::Replaced;
            other.finished = line.started;
        }
        line.id = self.next;
        self.next += 1;
        self.lines.push(line);
        if self.lines.len() > MAX_MOVES
            && let Some(oldest) = self.lines.iter().position(|line| line.state != MoveState::Running)
        {
            self.lines.remove(oldest);
        }
    }

    /// The one of a shard that is on its way is done.
    pub(crate) fn end(&mut self, kind: MoveKind, shard: ShardId, at: Timestamp) {
        for line in self.lines.iter_mut().filter(|l| l.kind == kind && l.shard == shard && l.state == MoveState::Running) {
            line.state = MoveState::Done;
            line.finished = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(shard: u32, at: i64) -> Move {
        Move {
            id: 0,
            kind: MoveKind::Move,
            shard: ShardId(shard),
            child: None,
            from: vec![NodeId(1)],
            to: vec![NodeId(2)],
            state: MoveState::Running,
            started: Some(Timestamp(at)),
            finished: None,
        }
    }

    #[test]
    fn a_line_stays_when_it_is_done_and_the_oldest_of_those_go() {
        let mut moves = Moves::default();
        moves.begin(line(7, 0));
        for shard in 0..MAX_MOVES as u32 + 50 {
            moves.begin(line(100 + shard, 1));
            moves.end(MoveKind::Move, ShardId(100 + shard), Timestamp(2));
        }
        assert_eq!(moves.lines().len(), MAX_MOVES);
        assert_eq!(moves.running(MoveKind::Move, ShardId(7)).map(|line| line.id), Some(0), "what is on its way stays");
        assert_eq!(moves.running(MoveKind::Split, ShardId(7)), None);
        let mut moves = Moves::default();
        moves.begin(line(7, 0));
        moves.begin(line(7, 5));
        let states: Vec<_> = moves.lines().iter().map(|l| (l.state, l.finished)).collect();
        assert_eq!(states, [(MoveState::Replaced, Some(Timestamp(5))), (MoveState::Running, None)]);
    }
}
