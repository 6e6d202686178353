//! Where a Parquet file lies and what it is called.
//!
//! ```text
//! <shard folder>/parquet/<database>/<table>/day=2026-11-23/<level>-<from>-<to>-<replica uuid>-<n>.parquet
//! <shard folder>/parquet/<database>/<table>/late/<level>-<from>-<to>-<replica uuid>-<n>.parquet
//! ```
//!
//! The name says whose file it is and which log indexes it covers, so that two replicas, or one replica twice, never
//! write the same name with different rows. The manifest alone decides which files count; nothing is read out of names.

use chrono::DateTime;
use model::{LogIndex, ReplicaId};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

/// The folder below a shard's folder that holds its Parquet files.
pub const FOLDER: &str = "parquet";

/// Bytes that one name may have in a path: with the longest suffix it stays below the 255 of common file systems.
const MAX_ENCODED_BYTES: usize = 200;

/// A database's or table's name as a folder's name: bytes outside `A-Za-z0-9_-` as `%XX`. A name that would be too long
/// is cut and gets `~` and its hash, which no encoded name contains.
pub fn encode_name(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => encoded.push(char::from(byte)),
            _ => {
                use std::fmt::Write;
                write!(encoded, "%{byte:02X}").expect("a string takes everything");
            }
        }
    }
    if encoded.len() > MAX_ENCODED_BYTES {
        let cut = encoded[..MAX_ENCODED_BYTES].rfind('%').filter(|&p| p + 3 > MAX_ENCODED_BYTES).unwrap_or(MAX_ENCODED_BYTES);
        encoded.truncate(cut);
        encoded.push_str(&format!("~{:016x}", xxh3_64(name.as_bytes())));
    }
    encoded
}

/// The folder of a partition below the shard's folder; `None` is `late/`.
pub fn folder(database: &str, table: &str, day: Option<i32>) -> String {
    let base = format!("{FOLDER}/{}/{}", encode_name(database), encode_name(table));
    match day {
        Some(day) => format!("{base}/day={}", day_name(day)),
        None => format!("{base}/late"),
    }
}

/// The day as `YYYY-MM-DD`.
pub fn day_name(day: i32) -> String {
    match DateTime::from_timestamp(i64::from(day) * 86_400, 0) {
        Some(date) => date.format("%Y-%m-%d").to_string(),
        None => day.to_string(),
    }
}

/// The name of a file in its folder.
pub fn file_name(level: u8, from: LogIndex, to: LogIndex, replica: ReplicaId, n: u64) -> String {
    format!("{level}-{from}-{to}-{}-{n}.parquet", Uuid::from_u128(replica.0).simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_bounded() {
        assert_eq!(encode_name("phone_2-a"), "phone_2-a");
        assert_eq!(encode_name("a/b.ü"), "a%2Fb%2E%C3%BC");
        assert_eq!(encode_name(".."), "%2E%2E");
        let long = "ü".repeat(127);
        let encoded = encode_name(&long);
        assert!(encoded.len() <= MAX_ENCODED_BYTES + 17, "{}", encoded.len());
        assert!(encoded.contains('~'));
        assert_ne!(encode_name(&format!("{long}a")), encode_name(&format!("{long}b")));
        for cut in 0..4 {
            let name = format!("{}{}", "a".repeat(196 + cut), "ü".repeat(20));
            let encoded = encode_name(&name);
            let head = encoded.split('~').next().unwrap();
            assert!(head.rfind('%').is_none_or(|p| p + 3 <= head.len()), "{encoded}");
        }
    }

    #[test]
    fn days_are_calendar_days() {
        assert_eq!(folder("default", "phone", Some(0)), "parquet/default/phone/day=1970-01-01");
        assert_eq!(folder("default", "phone", Some(-1)), "parquet/default/phone/day=1969-12-31");
        assert_eq!(folder("default", "phone", Some(20_780)), "parquet/default/phone/day=2026-11-23");
        assert_eq!(folder("default", "phone", None), "parquet/default/phone/late");
    }

    #[test]
    fn a_file_name_tells_level_span_and_writer() {
        let name = file_name(1, LogIndex(7), LogIndex(90), ReplicaId(0xabc), 3);
        assert_eq!(name, "1-7-90-00000000000000000000000000000abc-3.parquet");
    }
}
