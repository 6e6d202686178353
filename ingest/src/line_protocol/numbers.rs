//! Numbers as line protocol writes them.
//!
//! ```text
//! float    = [-] digits [. digits] [(e|E) [+|-] digits]     finite; too small becomes 0
//! integer  = [-] digits i                                   -2^63 .. 2^63 - 1
//! unsigned = digits u                                       0 .. 2^64 - 1
//! time     = [-] digits                                     -2^63 .. 2^63 - 1, then scaled
//! ```
//!
//! No leading `+`, no bare `.5` or `5.`, no hexadecimal, no `inf`, no `nan`. A float is the double nearest to the text:
//! exact for what is a small mantissa and a power of ten (two exact doubles, one correctly rounded division), by
//! `fast-float2` for the rest.

/// Why some bytes are no number of the kind asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberError {
    /// They are not spelled like one.
    Malformed,
    /// The number does not fit.
    OutOfRange,
}

use NumberError::{Malformed, OutOfRange};

const POWERS: [f64; 23] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22];

/// A float without its type letter, for it has none.
pub(super) fn float(token: &[u8]) -> Result<f64, NumberError> {
    let (negative, digits) = sign(token);
    let whole = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let mut rest = &digits[whole..];
    if whole == 0 {
        return Err(Malformed);
    }
    let mut fraction: &[u8] = &[];
    if let [b'.', after @ ..] = rest {
        let n = after.iter().take_while(|b| b.is_ascii_digit()).count();
        if n == 0 {
            return Err(Malformed);
        }
        (fraction, rest) = after.split_at(n);
    }
    if let [b'e' | b'E', after @ ..] = rest {
        let after = match after {
            [b'+' | b'-', after @ ..] => after,
            _ => after,
        };
        if after.is_empty() || !after.iter().all(u8::is_ascii_digit) {
            return Err(Malformed);
        }
    } else if !rest.is_empty() {
        return Err(Malformed);
    } else if whole + fraction.len() <= 15 {
        // Fewer than 16 digits are below 2^53 and 10^15 is exact: the one rounding is that of the division.
        let mantissa = digits[..whole].iter().chain(fraction).fold(0u64, |m, b| m * 10 + u64::from(b - b'0'));
        let value = mantissa as f64 / POWERS[fraction.len()];
        return Ok(if negative { -value } else { value });
    }
    let value: f64 = fast_float2::parse(token).map_err(|_| Malformed)?;
    if value.is_finite() { Ok(value) } else { Err(OutOfRange) }
}

/// An integer without its `i`; also a time.
pub(super) fn integer(token: &[u8]) -> Result<i64, NumberError> {
    let (negative, digits) = sign(token);
    let value = unsigned(digits)?;
    if negative { 0i64.checked_sub_unsigned(value).ok_or(OutOfRange) } else { i64::try_from(value).map_err(|_| OutOfRange) }
}

/// An unsigned integer without its `u`.
pub(super) fn unsigned(digits: &[u8]) -> Result<u64, NumberError> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    digits.iter().try_fold(0u64, |n, b| n.checked_mul(10)?.checked_add(u64::from(b - b'0'))).ok_or(OutOfRange)
}

fn sign(token: &[u8]) -> (bool, &[u8]) {
    match token {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn floats_are_digits_with_optional_fraction_and_exponent() {
        for (text, value) in [
            ("0", 0.0),
            ("007", 7.0),
            ("71.5", 71.5),
            ("-71.50", -71.5),
            ("1e3", 1e3),
            ("1E3", 1e3),
            ("1e+3", 1e3),
            ("-1.25e-3", -1.25e-3),
            ("1e-400", 0.0),
            ("179769313486231570000000000000000000000e270", f64::MAX),
            ("123456789012345678901234567890", 1.2345678901234568e29),
            ("0.1", 0.1),
            ("9007199254740993", 9007199254740992.0),
            ("999999999999999", 999999999999999.0),
        ] {
            assert_eq!(float(text.as_bytes()), Ok(value), "{text}");
        }
        assert!(float(b"-0").unwrap().is_sign_negative());
        for text in [
            "", "-", "+1", ".5", "5.", "-.5", "1.e3", "1e", "1e+", "1e1.5", "--1", "1-", "0x10", "1_000", "nan", "NaN", "inf", "-inf",
            "Infinity", "1f", "1,5", "1 ", "١",
        ] {
            assert_eq!(float(text.as_bytes()), Err(Malformed), "{text}");
        }
        for text in ["1e309", "-1e309", "1e99999999999999999999"] {
            assert_eq!(float(text.as_bytes()), Err(OutOfRange), "{text}");
        }
    }

    #[test]
    fn integers_are_refused_out_of_range() {
        assert_eq!(integer(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer(b"-0"), Ok(0));
        assert_eq!(integer(b"00000000000000000000000042"), Ok(42));
        assert_eq!(integer(b"9223372036854775808"), Err(OutOfRange));
        assert_eq!(integer(b"-9223372036854775809"), Err(OutOfRange));
        assert_eq!(integer(b"99999999999999999999999"), Err(OutOfRange));
        assert_eq!(unsigned(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(unsigned(b"18446744073709551616"), Err(OutOfRange));
        for text in ["", "-", "+1", "1.0", "1e3", "0x1", "1i"] {
            assert_eq!(integer(text.as_bytes()), Err(Malformed), "{text}");
        }
        assert_eq!(unsigned(b"-1"), Err(Malformed));
    }

    proptest! {
        #[test]
        fn a_float_is_the_nearest_double(text in "-?[0-9]{1,25}(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?") {
            let expected: f64 = text.parse().unwrap();
            match float(text.as_bytes()) {
                Ok(value) => prop_assert_eq!(value.to_bits(), expected.to_bits()),
                Err(error) => prop_assert!(error == OutOfRange && expected.is_infinite()),
            }
        }

        #[test]
        fn an_integer_is_what_the_standard_library_reads(text in "-?[0-9]{1,21}") {
            prop_assert_eq!(integer(text.as_bytes()).ok(), text.parse().ok());
            prop_assert_eq!(unsigned(text.as_bytes()).ok(), text.parse().ok());
        }
    }
}
