//! retries.
