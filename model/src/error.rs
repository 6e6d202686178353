//! The three kinds of trouble, by what the caller can do about them.

use thiserror::Error;

/// What the one who gets an error can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request can never succeed as it stands (4xx).
    YourRequest,
    /// The same request may succeed later (503 with `Retry-After`).
    TryAgain,
    /// The shard is damaged and takes no part until it is repaired (500).
    Broken,
}

/// Bytes that are not what they should be: a cut off, foreign or damaged batch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("malformed {what} at byte {at}")]
pub struct DecodeError {
    /// The part of the encoding that did not make sense.
    pub what: &'static str,
    /// Where in the input the decoder stood.
    pub at: usize,
}
