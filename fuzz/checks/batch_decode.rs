//! Foreign bytes are a batch or an error; a batch can be asked anything and has one encoding.

use model::PointBatch;
use model::point::KeyTags;

pub(crate) fn check(data: &[u8]) {
    let Ok((batch, taken)) = PointBatch::decode(data) else { return };
    assert!(taken <= data.len());
    for series in 0..batch.series() {
        let _ = KeyTags::new(batch.key(series)).count();
    }
    let mut bytes = Vec::new();
    batch.encode(&mut bytes);
    assert!(bytes.len() <= batch.encoded_len_bound());
    let (again, len) = PointBatch::decode(&bytes).expect("what was encoded is decoded");
    assert_eq!(len, bytes.len());
    let mut twice = Vec::new();
    again.encode(&mut twice);
    assert_eq!(bytes, twice);
    let owners: Vec<u32> = (0..batch.series() as u32).map(|s| s % 3).collect();
    let parts = batch.split(&owners);
    assert_eq!(parts.iter().map(|(_, part)| part.rows()).sum::<usize>(), batch.rows());
    assert_eq!(batch.slice(0, batch.rows()).times, batch.times);
}
