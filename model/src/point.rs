//! One point: its time, its values, the series it belongs to, and the order in which two writes of one row merge.
//!
//! A row's identity is table + [`SeriesKey`] + [`Timestamp`]. Two writes of one row merge field by field: the write with
//! the higher (shard generation, log index, position in its batch) wins each field that it carries; a field that it does
//! not carry keeps its older value. That order is given by where a write stands in its shard's log, never by a clock.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::DecodeError;
use crate::ids::DatabaseId;

/// Nanoseconds since 1970-01-01T00:00:00Z; negative before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Nanoseconds in a day.
    pub const DAY: i64 = 86_400_000_000_000;

    /// The UTC day this instant lies in, counted from 1970-01-01 (negative before).
    pub fn day(self) -> i32 {
        self.0.div_euclid(Self::DAY) as i32
    }
}

/// One field's value.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue {
    /// 64-bit float; never NaN or infinite.
    F64(f64),
    /// Signed 64-bit integer.
    I64(i64),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    Str(String),
}

/// The exact tag set of a series as one byte string whose order is the order of files: routing tag, other tags.
///
/// ```text
/// key = component(position 0) component(position 1) …            trailing absent components are left out
/// component = 0x00                                               the series has no such tag
///           | 0x01 value-bytes(0x00 written as 0x00 0xff) 0x00 0x00
/// ```
///
/// Position 0 is the routing tag, the others follow in the order in which the table got them
/// ([`ColumnKind::Tag`](crate::ColumnKind::Tag)). Comparing keys as bytes equals comparing tag by tag with absent first;
/// a tag column that a table gets later neither changes nor reorders older keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesKey(Vec<u8>);

impl SeriesKey {
    /// The key of the tag values given by position; `None` where the series lacks the tag.
    pub fn new<'a>(tags: impl IntoIterator<Item = Option<&'a str>>) -> SeriesKey {
        let mut key = Vec::with_capacity(64);
        write_key(&mut key, tags);
        SeriesKey(key)
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(KeyTags::new(&self.0)).finish()
    }
}

/// Appends the key of the tag values given by position to `out` (see [`SeriesKey`]); `out` is not cleared.
pub fn write_key<'a>(out: &mut Vec<u8>, tags: impl IntoIterator<Item = Option<&'a str>>) {
    let mut absent = 0;
    for tag in tags {
        match tag {
            None => absent += 1,
            Some(value) => {
                out.extend(std::iter::repeat_n(0u8, absent));
                absent = 0;
                write_key_component(out, value.as_bytes());
            }
        }
    }
}

/// Appends one present component to a key. The caller has written the absent ones before it as 0x00 each.
#[inline]
pub fn write_key_component(out: &mut Vec<u8>, value: &[u8]) {
    out.push(1);
    if value.contains(&0) {
        for &byte in value {
            out.push(byte);
            if byte == 0 {
                out.push(0xff);
            }
        }
    } else {
        out.extend_from_slice(value);
    }
    out.extend_from_slice(&[0, 0]);
}

/// Reads the components of a [`SeriesKey`]'s bytes in order of position.
///
/// Yields `Ok(None)` for an absent tag, `Err` once and then nothing where the bytes are no key.
#[derive(Clone, Debug)]
pub struct KeyTags<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> KeyTags<'a> {
    /// Reads `bytes` from the start.
    pub fn new(bytes: &'a [u8]) -> KeyTags<'a> {
        KeyTags { bytes, at: 0 }
    }

    fn fail(&mut self) -> DecodeError {
        let at = self.at;
        self.at = self.bytes.len();
        DecodeError { what: "series key", at }
    }
}

impl<'a> Iterator for KeyTags<'a> {
    type Item = Result<Option<std::borrow::Cow<'a, str>>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let marker = *self.bytes.get(self.at)?;
        match marker {
            0 => {
                self.at += 1;
                Some(Ok(None))
            }
            1 => {
                let start = self.at + 1;
                let rest = &self.bytes[start..];
                let mut unescaped: Option<Vec<u8>> = None;
                let mut from = 0;
                loop {
                    let Some(zero) = rest[from..].iter().position(|&b| b == 0).map(|p| p + from) else {
                        return Some(Err(self.fail()));
                    };
                    match rest.get(zero + 1) {
                        Some(0) => {
                            self.at = start + zero + 2;
                            let value = match unescaped {
                                None => std::str::from_utf8(&rest[..zero]).ok().map(std::borrow::Cow::Borrowed),
                                Some(mut bytes) => {
                                    bytes.extend_from_slice(&rest[from..zero]);
                                    String::from_utf8(bytes).ok().map(std::borrow::Cow::Owned)
                                }
                            };
                            return Some(match value {
                                Some(value) => Ok(Some(value)),
                                None => Err(self.fail()),
                            });
                        }
                        Some(0xff) => {
                            unescaped.get_or_insert_default().extend_from_slice(&rest[from..=zero]);
                            from = zero + 2;
                        }
                        _ => return Some(Err(self.fail())),
                    }
                }
            }
            _ => Some(Err(self.fail())),
        }
    }
}

/// The 64-bit hash by which a series is routed to its shard: xxh3 of the routing tag's key component, seeded with the
/// database; of the whole key where the series has no routing tag.
///
/// Hashing the encoded component rather than the bare value keeps this one pass over bytes that are already at hand.
#[inline]
pub fn routing_hash(database: DatabaseId, key: &[u8]) -> u64 {
    let seed = u64::from(database.0);
    if key.first() != Some(&1) {
        return xxh3_64_with_seed(key, seed);
    }
    let mut end = 1;
    loop {
        match key[end..].iter().position(|&b| b == 0) {
            None => return xxh3_64_with_seed(key, seed),
            Some(p) => {
                end += p + 2;
                if key.get(end - 1) != Some(&0xff) {
                    return xxh3_64_with_seed(&key[..end.min(key.len())], seed);
                }
            }
        }
    }
}

/// The hash of a routing tag value as [`routing_hash`] gives it for every series that carries it.
pub fn routing_hash_of_tag(database: DatabaseId, value: &str) -> u64 {
    let mut key = Vec::with_capacity(value.len() + 3);
    write_key_component(&mut key, value.as_bytes());
    routing_hash(database, &key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tags_of(key: &SeriesKey) -> Vec<Option<String>> {
        KeyTags::new(key.as_bytes()).map(|tag| tag.unwrap().map(|v| v.into_owned())).collect()
    }

    fn trimmed(mut tags: Vec<Option<String>>) -> Vec<Option<String>> {
        while tags.last() == Some(&None) {
            tags.pop();
        }
        tags
    }

    fn any_tags() -> impl Strategy<Value = Vec<Option<String>>> {
        prop::collection::vec(prop::option::of("[\u{0}ab\u{1}\u{ff}é]{1,4}"), 0..5)
    }

    proptest! {
        #[test]
        fn key_gives_back_its_tags(tags in any_tags()) {
            let key = SeriesKey::new(tags.iter().map(|t| t.as_deref()));
            prop_assert_eq!(tags_of(&key), trimmed(tags));
        }

        #[test]
        fn keys_order_like_their_tags_with_absent_first(a in any_tags(), b in any_tags()) {
            let (a, b) = (trimmed(a), trimmed(b));
            let keys = (SeriesKey::new(a.iter().map(|t| t.as_deref())), SeriesKey::new(b.iter().map(|t| t.as_deref())));
            prop_assert_eq!(keys.0.cmp(&keys.1), a.cmp(&b));
        }

        #[test]
        fn a_device_is_routed_alike_whatever_its_other_tags(device in "[\u{0}a-c]{1,5}", rest in any_tags()) {
            let tags = std::iter::once(Some(device.as_str())).chain(rest.iter().map(|t| t.as_deref()));
            let key = SeriesKey::new(tags);
            let database = DatabaseId(7);
            prop_assert_eq!(routing_hash(database, key.as_bytes()), routing_hash_of_tag(database, &device));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = KeyTags::new(&bytes).count();
            let _ = routing_hash(DatabaseId(1), &bytes);
        }
    }

    #[test]
    fn instants_before_1970_lie_in_negative_days() {
        assert_eq!(Timestamp(-1).day(), -1);
        assert_eq!(Timestamp(0).day(), 0);
        assert_eq!(Timestamp(i64::MIN).day(), -106_752);
    }
}
