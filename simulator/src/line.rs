//! One point as a line of text, and the hash by which it is recognised when it is read back.
//!
//! A value with decimals is kept as a scaled integer, as a sensor has it, so that its text is short and the float that a
//! reader makes of it is exact: `m / 10^d` is correctly rounded for `|m| < 2^53`, `d <= 22`.
//!
//! A point's hash is the sum of its cells' hashes (column name and value), so the order of columns does not matter.

use std::io::Write;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The type a field is written and read back as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// A float with this many decimals in its text.
    Fixed(u8),
    /// A signed integer (`42i`).
    Int,
    /// A boolean.
    Bool,
    /// A text.
    Text,
}

/// A field of a kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// Its column.
    pub name: &'static str,
    /// Its type.
    pub kind: FieldKind,
}

/// A value as the device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The device did not measure it this time: no cell.
    Missing,
    /// A scaled integer; the field's [`FieldKind::Fixed`] tells the scale.
    Fixed(i64),
    /// An integer.
    Int(i64),
    /// A boolean.
    Bool(bool),
    /// A text.
    Text(&'static str),
}

/// The hash of one cell, given the bits of its value as 8 bytes or its text.
pub fn cell_hash(column: &str, value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64_with_seed(column.as_bytes(), 0))
}

const POWERS: [i64; 10] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// The float that a reader makes of a scaled integer's text.
pub fn fixed_to_f64(scaled: i64, decimals: u8) -> f64 {
    scaled as f64 / POWERS[decimals as usize] as f64
}

/// Appends ` name=value,…` for the values that are there; gives their hash, or `None` if there is none.
pub fn write_fields(out: &mut Vec<u8>, specs: &[FieldSpec], values: &[Value]) -> Option<u64> {
    let mut hash = 0u64;
    let mut first = true;
    for (spec, value) in specs.iter().zip(values) {
        if *value == Value::Missing {
            continue;
        }
        out.push(if first { b' ' } else { b',' });
        first = false;
        out.extend_from_slice(spec.name.as_bytes());
        out.push(b'=');
        let cell = match (*value, spec.kind) {
            (Value::Fixed(scaled), FieldKind::Fixed(decimals)) => {
                write_fixed(out, scaled, decimals);
                cell_hash(spec.name, &fixed_to_f64(scaled, decimals).to_bits().to_le_bytes())
            }
            (Value::Int(value), FieldKind::Int) => {
                write_int(out, value);
                out.push(b'i');
                cell_hash(spec.name, &value.to_le_bytes())
            }
            (Value::Bool(value), FieldKind::Bool) => {
                out.push(if value { b't' } else { b'f' });
                cell_hash(spec.name, &[u8::from(value)])
            }
            (Value::Text(value), FieldKind::Text) => {
                out.push(b'"');
                for &byte in value.as_bytes() {
                    if byte == b'"' || byte == b'\\' {
                        out.push(b'\\');
                    }
                    out.push(byte);
                }
                out.push(b'"');
                cell_hash(spec.name, value.as_bytes())
            }
            (value, kind) => unreachable!("{} is {kind:?}, got {value:?}", spec.name),
        };
        hash = hash.wrapping_add(cell);
    }
    (!first).then_some(hash)
}

/// Appends a time in nanoseconds and the end of the line.
pub fn write_time(out: &mut Vec<u8>, time_ns: i64) {
    out.push(b' ');
    write_int(out, time_ns);
    out.push(b'\n');
}

fn write_int(out: &mut Vec<u8>, value: i64) {
    write!(out, "{value}").expect("writing to memory");
}

fn write_fixed(out: &mut Vec<u8>, scaled: i64, decimals: u8) {
    if scaled < 0 {
        out.push(b'-');
    }
    let power = POWERS[decimals as usize] as u64;
    let magnitude = scaled.unsigned_abs();
    write!(out, "{}", magnitude / power).expect("writing to memory");
    if decimals > 0 {
        write!(out, ".{:0width$}", magnitude % power, width = decimals as usize).expect("writing to memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: [FieldSpec; 4] = [
        FieldSpec { name: "t", kind: FieldKind::Fixed(2) },
        FieldSpec { name: "n", kind: FieldKind::Int },
        FieldSpec { name: "b", kind: FieldKind::Bool },
        FieldSpec { name: "s", kind: FieldKind::Text },
    ];

    #[test]
    fn text_is_what_the_device_means() {
        let mut out = Vec::new();
        let values = [Value::Fixed(-7), Value::Int(-3), Value::Bool(true), Value::Text("a \"b\"")];
        assert!(write_fields(&mut out, &SPECS, &values).is_some());
        write_time(&mut out, 5);
        assert_eq!(String::from_utf8(out).unwrap(), " t=-0.07,n=-3i,b=t,s=\"a \\\"b\\\"\" 5\n");
    }

    #[test]
    fn the_float_of_a_scaled_integer_is_the_float_of_its_text() {
        for scaled in (-200_000..200_000).step_by(37) {
            let mut text = Vec::new();
            write_fixed(&mut text, scaled, 4);
            let read: f64 = std::str::from_utf8(&text).unwrap().parse().unwrap();
            // -0.0 stands for 0 in no text that a device writes
            assert_eq!(read.to_bits(), fixed_to_f64(scaled, 4).to_bits(), "{scaled}");
        }
    }

    #[test]
    fn a_missing_value_has_no_cell() {
        let mut out = Vec::new();
        assert_eq!(write_fields(&mut out, &SPECS, &[Value::Missing; 4]), None);
        assert!(out.is_empty());
    }
}
