//! Foreign bytes are an entry or an error; an entry has one encoding.

use bytes::Bytes;
use storage::entry::Entry;

pub(crate) fn check(data: &[u8]) {
    let Ok(entry) = Entry::decode(&Bytes::copy_from_slice(data)) else { return };
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    let again = Entry::decode(&Bytes::copy_from_slice(&bytes)).expect("what was encoded is decoded");
    let mut twice = Vec::new();
    again.encode(&mut twice);
    assert_eq!(bytes, twice);
}
