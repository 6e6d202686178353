//! How long answers took: a histogram of fixed size with under 7 % error, cheap enough for every request.

/// Microseconds in buckets: 16 per power of two.
#[derive(Clone, Debug)]
pub struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max_us: u64,
}

const SUB: usize = 16;

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: vec![0; 40 * SUB], count: 0, max_us: 0 }
    }
}

impl Latencies {
    /// Notes one answer.
    pub fn note(&mut self, us: u64) {
        let bucket = Self::bucket(us).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    /// Adds another histogram's answers.
    pub fn add(&mut self, other: &Latencies) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(to, from)| *to += from);
        self.count += other.count;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many answers.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The latency in microseconds that this share (0 ..= 1) of the answers did not exceed; 0 without answers.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            below += n;
            if below >= rank && n > 0 {
                return Self::upper(bucket).min(self.max_us);
            }
        }
        self.max_us
    }

    /// The longest.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    fn bucket(us: u64) -> usize {
        if us < SUB as u64 {
            return us as usize;
        }
        let power = 63 - us.leading_zeros() as usize;
        let sub = (us >> (power - 4)) as usize & (SUB - 1);
        (power - 3) * SUB + sub
    }

    fn upper(bucket: usize) -> u64 {
        if bucket < SUB {
            return bucket as u64;
        }
        let (power, sub) = (bucket / SUB + 3, bucket % SUB);
        ((SUB + sub + 1) as u64) << (power - 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_seven_percent() {
        let mut all = Latencies::default();
        for us in 1..=100_000u64 {
            all.note(us);
        }
        for share in [0.01, 0.5, 0.99, 1.0] {
            let exact = share * 100_000.0;
            let got = all.quantile_us(share) as f64;
            assert!((got - exact).abs() <= 0.07 * exact + 1.0, "{share}: {got} for {exact}");
        }
        assert_eq!(all.max_us(), 100_000);
        assert_eq!(Latencies::default().quantile_us(0.5), 0);
    }

    #[test]
    fn every_latency_has_a_bucket() {
        let mut all = Latencies::default();
        for us in [0, 15, 16, 17, u64::from(u32::MAX), u64::MAX] {
            all.note(us);
        }
        assert_eq!(all.count(), 6);
    }
}
