//! What waits in a queue and goes together: a group of one entry, a message to another node.

use std::collections::VecDeque;

/// Something that waits for its turn.
pub(crate) trait Waits {
    /// Bytes that it adds.
    fn bytes(&self) -> usize;

    /// Whether somebody still waits for what becomes of it.
    fn is_wanted(&self) -> bool;
}

/// Takes what may go together off the front: as much as fits, and the first in any case. What nobody waits for any more is left
/// out, for its writer was told that it may not be stored, and may have written something newer since. Also gives the bytes of
/// what was left out.
pub(crate) fn take_together<W: Waits>(waiting: &mut VecDeque<W>, max_bytes: usize) -> (Vec<W>, usize) {
    let (mut together, mut bytes, mut abandoned) = (Vec::with_capacity(waiting.len().min(32)), 0, 0);
    while let Some(next) = waiting.pop_front() {
        let more = next.bytes();
        if !next.is_wanted() {
            abandoned += more;
        } else if together.is_empty() || bytes + more <= max_bytes {
            bytes += more;
            together.push(next);
        } else {
            waiting.push_front(next);
            break;
        }
    }
    (together, abandoned)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Waits for (usize, bool) {
        fn bytes(&self) -> usize {
            self.0
        }

        fn is_wanted(&self) -> bool {
            self.1
        }
    }

    #[test]
    fn what_fits_goes_together_in_order_and_what_nobody_wants_goes_nowhere() {
        let mut waiting = VecDeque::from([(9, false), (8, true), (3, false), (2, true), (1, true), (5, true), (7, false)]);
        assert_eq!(take_together(&mut waiting, 10), (vec![(8, true), (2, true)], 12));
        assert_eq!(take_together(&mut waiting, 5), (vec![(1, true)], 0));
        assert_eq!(take_together(&mut waiting, 1), (vec![(5, true)], 7), "one that is too large goes alone");
        assert_eq!(take_together(&mut waiting, 1), (vec![], 0));
    }
}
