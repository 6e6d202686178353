//! Which series pass a request's tag filters, told from their keys; and which files can hold such series.

use model::ColumnKind;
use model::point::{KeyTags, write_key_component};

use super::ScanRequest;

/// The tag filters of a request, as they look at series keys.
#[derive(Debug)]
pub(crate) struct KeyFilter<'a> {
    /// How the keys begin that have one of the wanted routing tags; `None`: any will do.
    beginnings: Option<Beginnings>,
    /// Filters of other tags: place in the key, wanted values.
    others: Vec<(usize, &'a [Option<String>])>,
}

#[derive(Debug, Default)]
struct Beginnings {
    /// The encoded routing tags, sorted.
    components: Vec<Vec<u8>>,
    /// Whether series without the routing tag pass.
    absent: bool,
}

impl<'a> KeyFilter<'a> {
    pub(crate) fn new(request: &'a ScanRequest) -> KeyFilter<'a> {
        let mut filter = KeyFilter { beginnings: None, others: Vec::new() };
        for tag in &request.tags {
            let column = request.table.column_by_id(tag.column).expect("a request names columns of its own table");
            match column.kind {
                ColumnKind::Tag { position: 0 } if filter.beginnings.is_none() => {
                    filter.beginnings = Some(Beginnings::of(&tag.values));
                }
                ColumnKind::Tag { position } => filter.others.push((position as usize, &tag.values)),
                ColumnKind::Field(_) => unreachable!("a tag filter names a tag"),
            }
        }
        filter
    }

    /// Whether every series passes.
    pub(crate) fn is_empty(&self) -> bool {
        self.beginnings.is_none() && self.others.is_empty()
    }

    /// Whether the series with this key passes.
    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        if let Some(beginnings) = &self.beginnings
            && !beginnings.matches(key)
        {
            return false;
        }
        self.others.iter().all(|(position, values)| {
            let tag = KeyTags::new(key).nth(*position).and_then(|tag| tag.expect("keys are whole"));
            values.iter().any(|v| v.as_deref() == tag.as_deref())
        })
    }

    /// Whether a series that passes can lie in `min..=max`. May be wrong in saying yes.
    pub(crate) fn may_lie_in(&self, min: &[u8], max: &[u8]) -> bool {
        let Some(beginnings) = &self.beginnings else { return true };
        // Keys without the routing tag come before all others.
        let absent = beginnings.absent && min.first() != Some(&1);
        absent || beginnings.components.iter().any(|c| max >= c.as_slice() && (min <= c.as_slice() || min.starts_with(c)))
    }
}

impl Beginnings {
    fn of(values: &[Option<String>]) -> Beginnings {
        let mut beginnings = Beginnings::default();
        for value in values {
            match value {
                None => beginnings.absent = true,
                Some(value) => {
                    let mut component = Vec::with_capacity(value.len() + 3);
                    write_key_component(&mut component, value.as_bytes());
                    beginnings.components.push(component);
                }
            }
        }
        beginnings.components.sort_unstable();
        beginnings
    }

    fn matches(&self, key: &[u8]) -> bool {
        if key.first() != Some(&1) {
            return self.absent;
        }
        // No component begins another, so the only candidate is the last that is not after the key.
        let after = self.components.partition_point(|c| c.as_slice() <= key);
        after > 0 && key.starts_with(&self.components[after - 1])
    }
}
