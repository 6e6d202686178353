//! Foreign bytes are a record or not one; a record's bytes are those that its fields make.
//!
//! No fuzzer guesses a checksum, so the bytes are read once as they are and once with the checksum put right.

use storage::wal::record::{CRC_BYTES, HEAD_BYTES, MAX_PAYLOAD_BYTES, decode, encode, peek_size, seed};

pub(crate) fn check(data: &[u8]) {
    let Some((epoch, record)) = data.split_first_chunk::<8>() else { return };
    let seed = seed(u64::from_le_bytes(*epoch));
    read(record, seed);
    if let Ok(size) = peek_size(record)
        && let Some(record) = record.get(..size)
    {
        let mut record = record.to_vec();
        let crc = crc32c(&record[..size - CRC_BYTES], seed);
        record[size - CRC_BYTES..].copy_from_slice(&crc.to_le_bytes());
        read(&record, seed);
    }
}

fn read(bytes: &[u8], seed: u32) {
    let Ok(record) = decode(bytes, seed) else { return };
    assert!(record.size <= bytes.len() && record.payload.len() <= MAX_PAYLOAD_BYTES);
    let encoded = encode(&record.head, record.payload, seed);
    assert_eq!(encoded.len(), record.size);
    let payload_end = HEAD_BYTES + record.payload.len();
    assert_eq!(encoded[..payload_end], bytes[..payload_end]);
    assert_eq!(decode(&encoded, seed).map(|again| (again.head, again.payload)), Ok((record.head, record.payload)));
}

/// The checksum, bit by bit: a second opinion beside the hardware's.
fn crc32c(bytes: &[u8], seed: u32) -> u32 {
    !bytes
        .iter()
        .fold(!seed, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }))
}
