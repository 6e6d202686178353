//! Takes lines and answers when they are safe.

pub mod line_protocol;
