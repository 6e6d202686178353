//! Which format an `Accept` header asks for: the one of the highest quality; among equals one that is named before one that a
//! wildcard lets in, then the first named. A quality of 0 excludes. Pure.

use super::Format;

/// What is sent where a wildcard leaves the choice, first the usual.
const ALL: [Format; 6] = [Format::Json, Format::JsonLines, Format::Csv, Format::Table, Format::Arrow, Format::Parquet];
/// A quality of 1, in thousandths: it has three digits behind the point.
const FULL: u16 = 1_000;

/// A part of the header.
struct Range {
    media_type: String,
    quality: u16,
}

impl Range {
    fn read(text: &str) -> Range {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        let quality =
            quality.and_then(|(_, value)| value.trim().parse::<f32>().ok()).map_or(FULL, |q| (q.clamp(0.0, 1.0) * f32::from(FULL)) as u16);
        Range { media_type, quality }
    }

    /// How closely it names the format, if it does.
    fn names(&self, format: Format) -> Option<u8> {
        if Format::accepted(&self.media_type) == Some(format) {
            return Some(2);
        }
        match self.media_type.split_once('/')? {
            ("*", "*") => Some(0),
            (kind, "*") if format.media_type().split_once('/').is_some_and(|(own, _)| own == kind) => Some(1),
            _ => None,
        }
    }
}

/// The format that suits the header best; the usual one where it names none that there is.
pub(crate) fn preferred(accept: &str) -> Format {
    let ranges: Vec<Range> = accept.split(',').map(Range::read).collect();
    // Of several parts that name a format the closest counts, and of those the first.
    let said = |format: Format| {
        let named = ranges.iter().enumerate().filter_map(|(at, range)| Some((range.names(format)?, at)));
        named.min_by_key(|(closeness, at)| (std::cmp::Reverse(*closeness), *at))
    };
    let wanted = ALL.into_iter().filter_map(|format| said(format).map(|(closeness, at)| (format, ranges[at].quality, closeness, at)));
    let best = wanted
        .filter(|(_, quality, ..)| *quality > 0)
        .min_by_key(|(_, quality, closeness, at)| (std::cmp::Reverse(*quality), std::cmp::Reverse(*closeness), *at));
    let unsaid = || ALL.into_iter().find(|format| said(*format).is_none());
    best.map(|(format, ..)| format).or_else(unsaid).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_quality_wins_then_the_closest_then_the_first() {
        for (accept, format) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("text/csv", Format::Csv),
            ("Text/CSV ; Q=0.5", Format::Csv),
            ("application/json;q=0.2, text/csv;q=0.9", Format::Csv),
            ("application/json;q=0.9, text/csv;q=0.2", Format::Json),
            ("text/csv, application/json", Format::Csv),
            ("application/x-ndjson;q=0.501, text/csv;q=0.5", Format::JsonLines),
            ("*/*, text/csv", Format::Csv),
            ("text/csv;q=0.5, */*", Format::Json),
            ("text/html, application/xml;q=0.9, */*;q=0.8", Format::Json),
            ("text/html", Format::Json),
            ("application/json;q=0", Format::JsonLines),
            ("application/json;q=0, */*", Format::JsonLines),
            ("application/json;q=0.1, */*;q=0.5", Format::JsonLines),
            ("application/*;q=0, */*", Format::Csv),
            ("text/*", Format::Csv),
            ("text/*, text/csv;q=0.0", Format::Table),
            ("*/*;q=0", Format::Json),
            ("text/csv;q=nonsense", Format::Csv),
            ("text/csv;q=7, application/json", Format::Csv),
        ] {
            assert_eq!(preferred(accept), format, "{accept}");
        }
    }
}
