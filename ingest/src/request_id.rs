//! The number by which a request is found again: in `X-Request-Id`, in error bodies, in logs and in `system.refused_lines`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where request ids come from: a number of this process and a count.
#[derive(Debug)]
pub struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// `process` tells processes apart; take it at random.
    pub fn new(process: u64) -> RequestIds {
        RequestIds { process, next: AtomicU64::new(1) }
    }

    /// An id that nobody else gets.
    pub fn next(&self) -> RequestId {
        let mut text = [0; 32];
        hex(self.process, &mut text[..16]);
        hex(self.next.fetch_add(1, Relaxed), &mut text[16..]);
        RequestId(text)
    }
}

fn hex(number: u64, text: &mut [u8]) {
    for (i, digit) in text.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (60 - 4 * i)) as usize & 15];
    }
}

/// One request's id, 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits are ASCII")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_count_up_behind_the_process() {
        let ids = RequestIds::new(0xdead_beef);
        assert_eq!(ids.next().to_string(), "00000000deadbeef0000000000000001");
        assert_eq!(ids.next().to_string(), "00000000deadbeef0000000000000002");
    }
}
