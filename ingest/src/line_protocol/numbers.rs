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

/// Eight bytes from `at`, the first lowest; zeros behind the end.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..at + 8) {
        Some(eight) => u64::from_le_bytes(eight.try_into().expect("eight bytes")),
        None => last_word(bytes, at),
    }
}

#[cold]
fn last_word(bytes: &[u8], at: usize) -> u64 {
    bytes.iter().skip(at).take(8).rev().fold(0, |word, &b| word << 8 | u64::from(b))
}

const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
const LOW_BITS: u64 = 0x0101_0101_0101_0101;

/// The high bit of each byte of `x` that is no digit's value 0..=9; exact up to the first.
#[inline]
fn not_digits(x: u64) -> u64 {
    // Adding 0x76 carries 10 and more into the high bit.
    (x.wrapping_add(0x7676_7676_7676_7676) | x) & HIGH_BITS
}

/// Bytes of a word before the first that is below `-`: a comma, a space, the end of a line; 8 if there is none.
#[inline]
fn token_len(w: u64) -> usize {
    (w.wrapping_sub(LOW_BITS * b'-' as u64) & !w & HIGH_BITS).trailing_zeros() as usize / 8
}

/// Reads digits from `at`: how many there are, and `value` followed by them. The value is right up to 19 digits.
#[inline]
pub(super) fn digits(bytes: &[u8], mut at: usize, mut value: u64) -> (usize, u64) {
    const POWERS: [u64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    let start = at;
    loop {
        let x = word(bytes, at) ^ ZEROS;
        let n = not_digits(x).trailing_zeros() as usize / 8;
        // A step of eight is a constant to what follows: the next word need not wait for this one.
        if n == 8 {
            value = value.wrapping_mul(100_000_000).wrapping_add(eight_digits(x));
            at += 8;
            continue;
        }
        if n > 0 {
            value = value.wrapping_mul(POWERS[n]).wrapping_add(eight_digits(x << (64 - 8 * n)));
        }
        return (at + n - start, value);
    }
}

/// The number that eight digits make, the first in the lowest byte.
#[inline]
fn eight_digits(x: u64) -> u64 {
    let pairs = x.wrapping_mul(10).wrapping_add(x >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff
}

/// The float that starts at `at` and where it ends, if it is finite and spelled right.
///
/// Most are shorter than a word. What ends one is found first, so that the next field need not wait for the digits.
#[inline]
pub(super) fn plain_float(bytes: &[u8], at: usize) -> Option<(f64, usize)> {
    let w = word(bytes, at);
    let len = token_len(w);
    if len == 8 {
        return wide_float(bytes, at);
    }
    let negative = w as u8 == b'-';
    let count = len - usize::from(negative);
    let w = (w >> (8 * u32::from(negative))) & low_bytes(count);
    let dots = w ^ (LOW_BITS * b'.' as u64);
    let dot = (dots.wrapping_sub(LOW_BITS) & !dots & HIGH_BITS).trailing_zeros() as usize / 8;
    let whole = dot.min(count);
    let fraction = count - whole;
    // The dot is the first byte of the fraction; it is taken out.
    let before = low_bytes(whole);
    let digits = count - usize::from(fraction > 0);
    if whole == 0 || fraction == 1 {
        return None;
    }
    let x = (((w & before) | ((w >> 8) & !before)) ^ ZEROS) << (64 - 8 * digits);
    if not_digits(x) != 0 {
        return long_float(bytes, at);
    }
    let value = eight_digits(x) as f64 / POWERS[fraction.saturating_sub(1)];
    Some((f64::from_bits(value.to_bits() | u64::from(negative) << 63), at + len))
}

/// The same for a float of eight bytes and more.
#[inline]
fn wide_float(bytes: &[u8], at: usize) -> Option<(f64, usize)> {
    let negative = bytes.get(at) == Some(&b'-');
    let from = at + usize::from(negative);
    let (whole, mut mantissa) = digits(bytes, from, 0);
    let mut end = from + whole;
    let mut fraction = 0;
    if bytes.get(end) == Some(&b'.') {
        (fraction, mantissa) = digits(bytes, end + 1, mantissa);
        if fraction == 0 {
            return None;
        }
        end += 1 + fraction;
    }
    if whole == 0 || whole + fraction > 15 || matches!(bytes.get(end), Some(b'e' | b'E')) {
        return long_float(bytes, at);
    }
    let value = mantissa as f64 / POWERS[fraction];
    Some((if negative { -value } else { value }, end))
}

/// The integer that starts at `at` and where it ends behind its `i`, if it has at most 18 digits.
#[inline]
pub(super) fn plain_integer(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let w = word(bytes, at);
    let len = token_len(w);
    let negative = w as u8 == b'-';
    let (value, end) = if len < 8 {
        let count = len.checked_sub(1 + usize::from(negative)).filter(|&n| n > 0)?;
        let x = ((w >> (8 * u32::from(negative))) ^ ZEROS) << (64 - 8 * count);
        if (w >> (8 * (len - 1))) as u8 != b'i' || not_digits(x) != 0 {
            return None;
        }
        (eight_digits(x), at + len)
    } else {
        let from = at + usize::from(negative);
        let (count, value) = digits(bytes, from, 0);
        if count == 0 || count > 18 || bytes.get(from + count) != Some(&b'i') {
            return None;
        }
        (value, from + count + 1)
    };
    let sign = -i64::from(negative);
    Some(((value as i64 ^ sign) - sign, end))
}

/// A mask of the first `n` bytes of a word, at most eight.
#[inline]
pub(super) fn low_bytes(n: usize) -> u64 {
    if n >= 8 { u64::MAX } else { (1 << (8 * n)) - 1 }
}

#[cold]
fn long_float(bytes: &[u8], at: usize) -> Option<(f64, usize)> {
    let len = bytes[at..].iter().position(|b| matches!(b, b',' | b' ' | b'\r' | b'\n')).unwrap_or(bytes.len() - at);
    float(&bytes[at..at + len]).ok().map(|value| (value, at + len))
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
        fn a_float_in_place_is_the_same_float(text in "-?[0-9]{0,18}(\\.[0-9]{0,18})?([eE][+-]?[0-9]{0,3})?", tail in "[, \r\n]?.{0,9}") {
            let body = format!("{text}{tail}");
            match plain_float(body.as_bytes(), 0) {
                Some((value, end)) => prop_assert_eq!(float(&body.as_bytes()[..end]).map(f64::to_bits), Ok(value.to_bits())),
                None => {
                    let end = body.find([',', ' ', '\r', '\n']).unwrap_or(body.len());
                    prop_assert!(float(&body.as_bytes()[..end]).is_err());
                }
            }
        }

        #[test]
        fn an_integer_in_place_is_the_same_integer(text in "-?[0-9]{0,20}i?", tail in "[, \r\n]?.{0,9}") {
            let body = format!("{text}{tail}");
            if let Some((value, end)) = plain_integer(body.as_bytes(), 0) {
                prop_assert_eq!(integer(&body.as_bytes()[..end - 1]), Ok(value));
                prop_assert_eq!(body.as_bytes()[end - 1], b'i');
            } else if let Some(digits) = text.strip_suffix('i') && tail.starts_with([',', ' ', '\r', '\n']) {
                prop_assert!(integer(digits.as_bytes()).is_err() || digits.len() > 18);
            }
        }

        #[test]
        fn digits_are_read_in_place(before in "[a-z]{0,3}", text in "[0-9]{0,19}", tail in "([^0-9].{0,9})?") {
            let body = format!("{before}{text}{tail}");
            let expected = (text.len(), text.parse().unwrap_or(0));
            prop_assert_eq!(digits(body.as_bytes(), before.len(), 0), expected);
        }

        #[test]
        fn an_integer_is_what_the_standard_library_reads(text in "-?[0-9]{1,21}") {
            prop_assert_eq!(integer(text.as_bytes()).ok(), text.parse().ok());
            prop_assert_eq!(unsigned(text.as_bytes()).ok(), text.parse().ok());
        }
    }
}
