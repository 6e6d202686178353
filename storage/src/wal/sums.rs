//! Checksums of any stretches of a segment, each told by a look at its two ends.
//!
//! What lies behind the last record may look like millions of long records that reach over each other. To hash each would
//! take hours; instead everything is hashed once, the sum so far is noted at every step, and the sum of a stretch follows
//! from the sums up to its ends, because a CRC is linear.

use std::io;
use std::ops::Range;

/// Bytes from one note to the next.
const STEP: usize = 512;
/// Bytes that are read at a time while everything is hashed.
const PIECE_BYTES: usize = 256 * STEP;

type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// The sums of a part of a segment.
pub(super) struct Sums {
    start: u64,
    /// Of everything from `start` to each step, the first of nothing.
    upto: Vec<u32>,
}

impl Sums {
    /// Reads this part of a segment, all of it.
    pub(super) fn of(part: Range<u64>, read: ReadAt<'_>) -> io::Result<Sums> {
        let mut upto = vec![0];
        let mut sum = 0;
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = part.start;
        while at < part.end {
            let bytes = &mut piece[..(part.end - at).min(PIECE_BYTES as u64) as usize];
            read(at, bytes)?;
            for step in bytes.chunks(STEP) {
                sum = crc32c::crc32c_append(sum, step);
                upto.push(sum);
            }
            at += bytes.len() as u64;
        }
        Ok(Sums { start: part.start, upto })
    }

    /// The checksum that begins with `seed` of a stretch of the part.
    pub(super) fn crc(&self, stretch: Range<u64>, seed: u32, read: ReadAt<'_>) -> io::Result<u32> {
        debug_assert!(!stretch.is_empty(), "a record has bytes");
        let (from, to) = (self.up_to(stretch.start, read)?, self.up_to(stretch.end, read)?);
        // Of both sums the part before the stretch cancels out, and the seed takes its place.
        Ok(crc32c::crc32c_combine(seed ^ from, to, (stretch.end - stretch.start) as usize))
    }

    fn up_to(&self, at: u64, read: ReadAt<'_>) -> io::Result<u32> {
        let step = (at - self.start) as usize / STEP;
        let mut rest = [0; STEP];
        let rest = &mut rest[..(at - self.start) as usize % STEP];
        read(at - rest.len() as u64, rest)?;
        Ok(crc32c::crc32c_append(self.upto[step], rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_of_a_stretch_is_what_hashing_it_gives(
            bytes in prop::collection::vec(any::<u8>(), 1..5_000),
            ends: [prop::sample::Index; 3],
            seed: u32,
        ) {
            let mut ends = ends.map(|end| end.index(bytes.len() + 1));
            ends.sort_unstable();
            let [start, from, to] = ends;
            prop_assume!(from < to);
            let read = |at: u64, buf: &mut [u8]| {
                buf.copy_from_slice(&bytes[at as usize..at as usize + buf.len()]);
                Ok(())
            };
            let sums = Sums::of(start as u64..bytes.len() as u64, &read).unwrap();
            prop_assert_eq!(sums.crc(from as u64..to as u64, seed, &read).unwrap(), crc32c::crc32c_append(seed, &bytes[from..to]));
        }
    }
}
