//! What the values of settings look like, in a file as on the command line: what cannot be is refused where it is read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A setting that may be absent, which is written as nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maybe<T>(pub Option<T>);

impl<T: FromStr<Err: fmt::Display>> FromStr for Maybe<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Maybe<T>, String> {
        match text.trim() {
            "" => Ok(Maybe(None)),
            text => text.parse().map(|value| Maybe(Some(value))).map_err(|e: T::Err| e.to_string()),
        }
    }
}

/// Whether the text is written as `host:port`; whether the host has an address is seen when it is used.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

pub(super) fn address(text: &str) -> Result<String, String> {
    match is_address(text) {
        true => Ok(text.to_owned()),
        false => Err("no address; write it like 127.0.0.1:2558".to_owned()),
    }
}

/// A row must fit into one record of the log, with room for what stands beside it.
const LONGEST_LINE_BYTES: u64 = 8 << 20;

pub(super) fn line_bytes(text: &str) -> Result<ByteCount, String> {
    let bytes: ByteCount = text.parse()?;
    match (1..=LONGEST_LINE_BYTES).contains(&bytes.0) {
        true => Ok(bytes),
        false => Err(format!("a line has 1 byte at least and {} at most", ByteCount(LONGEST_LINE_BYTES))),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    crate::telemetry::filter(text).map(|_| text.to_owned())
}

/// Addresses, written as `host:port,host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(pub Vec<String>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Addresses, String> {
        let addresses: Vec<String> = text.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect();
        match addresses.iter().find(|a| !is_address(a)) {
            Some(wrong) => Err(format!("'{wrong}' is no address; write it like storage-0:2559")),
            None => Ok(Addresses(addresses)),
        }
    }
}

/// A number of bytes, written as `1048576`, `64MiB`, `1 GiB`, `500kB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCount(pub u64);

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteCount, String> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = (&text[..digits], text[digits..].trim());
        let factor = if unit.is_empty() {
            Some(1)
        } else {
            BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)
        };
        let count = factor.zip(number.parse::<u64>().ok()).and_then(|(factor, number)| number.checked_mul(factor));
        count.map(ByteCount).ok_or_else(|| "not a number of bytes; write it like 67108864, 64MiB or 64MB".to_owned())
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BYTE_UNITS.iter().find(|(name, factor)| name.len() == 3 && self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A span of time, written as `500ms`, `5s`, `1m 30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        humantime::parse_duration(text.trim()).map(Span).map_err(|e| format!("{e}; write it like 500ms, 5s or 1m 30s"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}
