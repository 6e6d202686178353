//! One row of an answer (a JSON object) back into device, time and hash.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::kinds::KindName;
use crate::ledger::Check;
use crate::line::{FieldKind, cell_hash};

/// Compares one line of a JSON-lines answer; an error says what is no row of such a table.
pub(crate) fn check_line(check: &mut Check<'_>, kind: KindName, line: &[u8]) -> Result<(), String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let row = json.deserialize_map(RowVisitor { kind }).map_err(|e| format!("{e} in {}", String::from_utf8_lossy(line)))?;
    let time = row.time_ns.ok_or_else(|| format!("a row without time: {}", String::from_utf8_lossy(line)))?;
    check.row(kind, row.device, time, row.hash);
    Ok(())
}

struct Row {
    device: Option<u32>,
    time_ns: Option<i64>,
    hash: u64,
}

struct RowVisitor {
    kind: KindName,
}

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row of table {}", self.kind)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        let mut row = Row { device: None, time_ns: None, hash: 0 };
        while let Some(column) = map.next_key::<Text<'de>>()? {
            let column = &*column.0;
            let cell = match column {
                "time" => {
                    let text = map.next_value::<Text<'de>>()?;
                    let time = chrono::DateTime::parse_from_rfc3339(&text.0).map_err(serde::de::Error::custom)?;
                    row.time_ns = time.timestamp_nanos_opt();
                    continue;
                }
                "device_id" | "model" | "os" | "region" => {
                    let Some(text) = map.next_value::<Option<Text<'de>>>()? else { continue };
                    if column == "device_id" {
                        row.device = text.0.strip_prefix(self.kind.table()).and_then(|t| t.strip_prefix('-')).and_then(|n| n.parse().ok());
                    }
                    cell_hash(column, text.0.as_bytes())
                }
                _ => match self.kind.fields().iter().find(|f| f.name == column).map(|f| f.kind) {
                    Some(FieldKind::Fixed(_)) => match map.next_value::<Option<f64>>()? {
                        Some(value) => cell_hash(column, &value.to_bits().to_le_bytes()),
                        None => continue,
                    },
                    Some(FieldKind::Int) => match map.next_value::<Option<i64>>()? {
                        Some(value) => cell_hash(column, &value.to_le_bytes()),
                        None => continue,
                    },
                    Some(FieldKind::Bool) => match map.next_value::<Option<bool>>()? {
                        Some(value) => cell_hash(column, &[u8::from(value)]),
                        None => continue,
                    },
                    Some(FieldKind::Text) => match map.next_value::<Option<Text<'de>>>()? {
                        Some(text) => cell_hash(column, text.0.as_bytes()),
                        None => continue,
                    },
                    // A column that no device writes: whatever it holds was not sent.
                    None => {
                        map.next_value::<IgnoredAny>()?;
                        1
                    }
                },
            };
            row.hash = row.hash.wrapping_add(cell);
        }
        Ok(row)
    }
}

struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'de>, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Fleet, FleetOptions};
    use crate::ledger::{Answer, Ledger};

    /// A line of the fleet as a server would give it back, by the plainest means.
    fn as_json(line: &str) -> String {
        let (head, rest) = line.split_once(' ').unwrap();
        let (fields, time) = rest.trim_end().rsplit_once(' ').unwrap();
        let mut cells = Vec::new();
        for tag in head.split(',').skip(1) {
            let (name, value) = tag.split_once('=').unwrap();
            cells.push(format!("\"{name}\":\"{value}\""));
        }
        for field in fields.split(',') {
            let (name, value) = field.split_once('=').unwrap();
            let value = match value {
                "t" => "true".to_owned(),
                "f" => "false".to_owned(),
                v => v.trim_end_matches('i').to_owned(),
            };
            cells.push(format!("\"{name}\":{value}"));
        }
        let time = chrono::DateTime::from_timestamp_nanos(time.parse().unwrap()).to_rfc3339();
        cells.push(format!("\"time\":\"{time}\""));
        format!("{{{}}}", cells.join(","))
    }

    #[test]
    fn what_was_sent_is_recognised_and_a_changed_cell_is_not() {
        let mut fleet = Fleet::new(FleetOptions {
            devices: 10,
            kinds: vec![KindName::Phone, KindName::Watch],
            points: Some(500),
            interval_ns: 10_000_000_000,
            start_ns: crate::DEFAULT_START_NS,
            seed: 5,
            late_pct: 0.0,
            duplicate_pct: 0.0,
            offline_pct: 0.0,
        });
        let mut ledger = Ledger::default();
        let mut rows = Vec::new();
        let mut text = Vec::new();
        while let Some(sent) = fleet.next_line(&mut text) {
            ledger.sent(sent);
            rows.push((sent.kind, as_json(std::str::from_utf8(&text).unwrap())));
            text.clear();
        }
        ledger.answer(0, rows.len(), Answer::Acknowledged);
        let mut check = ledger.check();
        for (kind, row) in &rows {
            check_line(&mut check, *kind, row.as_bytes()).unwrap();
        }
        assert!(check.finish().holds());

        let mut check = ledger.check();
        for (i, (kind, row)) in rows.iter().enumerate() {
            let changed = if i == 3 { row.replacen("\"battery_pct\":", "\"battery_pct\":1", 1) } else { row.clone() };
            check_line(&mut check, *kind, changed.as_bytes()).unwrap();
        }
        assert_eq!(check.finish().altered, 1);
    }
}
