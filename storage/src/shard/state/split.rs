//! The shard's range becomes narrower, and what that splits off is kept until it is a shard of its own.

use super::*;

impl State {
    /// The range becomes the lower half. Rows of the upper half stay where they are, hidden, until compactions leave them out.
    pub(in crate::shard) fn split(&mut self, term: Term, index: LogIndex, split: &Split) -> Outcome {
        self.begin(index);
        // Replayed from before the end of an earlier split, whose end the manifest knows already.
        let was_splitting = self.manifest.split_done.is_some_and(|at| index <= at);
        if !split.fits(&self.range) || self.is_splitting() || was_splitting {
            return Outcome::Ignored;
        }
        self.narrow(term, index, split.lower(), Some(*split));
        Outcome::Done
    }

    /// The range is what the shard map says, without anything being split off.
    pub(in crate::shard) fn take_range(&mut self, term: Term, index: LogIndex, range: HashRange) -> Outcome {
        self.begin(index);
        if range.version <= self.range.version {
            return Outcome::Ignored;
        }
        self.narrow(term, index, range, None);
        Outcome::Done
    }

    pub(in crate::shard) fn narrow(&mut self, term: Term, index: LogIndex, range: HashRange, split: Option<Split>) {
        let before = self.range.version;
        self.range = range;
        self.close_memtable(term, index, before, split);
        // Newest rows that are at hand may be other shards'.
        self.last_rows = LastRows::default();
        self.expected = None;
        self.unsure = self.live.keys().copied().filter(|table| !self.too_large.contains(table)).collect();
    }

    /// What was split off has a shard of its own that keeps it.
    pub(in crate::shard) fn split_done(&mut self, index: LogIndex, child: ShardId) -> Outcome {
        self.begin(index);
        if self.has_effect_of(index) {
            return Outcome::Done;
        }
        if self.manifest.split.take_if(|split| split.child == child).is_none() {
            return Outcome::Ignored;
        }
        self.manifest.split_done = Some(index);
        self.changed();
        Outcome::Done
    }

    /// Whether a part was split off that this shard still has to keep.
    pub(in crate::shard) fn is_splitting(&self) -> bool {
        // While behind, memtables stay that the manifest has in files already.
        let flushed = self.manifest.flushed.map(|(_, index)| index);
        self.manifest.split.is_some() || self.sealed.iter().any(|sealed| sealed.split.is_some() && Some(sealed.end.1) > flushed)
    }

    /// What was split off, once it is in files and these are here.
    pub(in crate::shard) fn split_off(&self) -> Option<&SplitOff> {
        self.manifest.split.as_deref().filter(|_| self.behind.is_none())
    }

    pub(in crate::shard) fn range(&self) -> HashRange {
        self.range
    }
}
