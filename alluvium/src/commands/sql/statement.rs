//! Where a statement ends: at a `;` that is not inside a string, a name or a comment.

/// The statements of a script without their `;`; comments and blanks alone are none.
pub(super) fn split(script: &str) -> Vec<&str> {
    let mut statements = Vec::new();
    let mut start = 0;
    let ends = ends(script);
    for end in ends.into_iter().chain([script.len()]) {
        let statement = script[start..end].trim();
        if has_words(statement) {
            statements.push(statement);
        }
        start = (end + 1).min(script.len());
    }
    statements
}

/// Whether the text ends with a finished statement, so that Enter means "run it".
pub(super) fn is_complete(text: &str) -> bool {
    let after_last = ends(text).last().map_or(0, |end| end + 1);
    after_last > 0 && !has_words(&text[after_last..])
}

/// Positions of the `;` that end statements.
fn ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    while let Some((at, byte)) = scanner.next_plain() {
        if byte == b';' {
            ends.push(at);
        }
    }
    ends
}

fn has_words(text: &str) -> bool {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    std::iter::from_fn(|| scanner.next_plain()).any(|(_, byte)| !byte.is_ascii_whitespace())
}

/// Walks over the bytes outside of comments; a string or a quoted name counts as its opening quote.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn next_plain(&mut self) -> Option<(usize, u8)> {
        loop {
            let at = self.at;
            let byte = *self.bytes.get(at)?;
            self.at += 1;
            match (byte, self.bytes.get(self.at)) {
                (b'\'' | b'"', _) => {
                    // A doubled quote inside closes and opens again, which comes to the same.
                    self.skip_past(&[byte]);
                    return Some((at, byte));
                }
                (b'-', Some(b'-')) => self.skip_past(b"\n"),
                (b'/', Some(b'*')) => {
                    self.at += 1;
                    self.skip_past(b"*/");
                }
                _ => return Some((at, byte)),
            }
        }
    }

    fn skip_past(&mut self, end: &[u8]) {
        let found = self.bytes[self.at..].windows(end.len()).position(|window| window == end);
        self.at = found.map_or(self.bytes.len(), |p| self.at + p + end.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_cut_at_the_semicolons_that_end_statements() {
        for (script, statements) in [
            ("", vec![]),
            (" ;; -- nothing\n;", vec![]),
            ("SELECT 1", vec!["SELECT 1"]),
            ("SELECT 1; SELECT 2;\n", vec!["SELECT 1", "SELECT 2"]),
            ("SELECT ';', 'it''s;', \"a;b\"; x", vec!["SELECT ';', 'it''s;', \"a;b\"", "x"]),
            ("SELECT 1 -- a; b\n; y", vec!["SELECT 1 -- a; b", "y"]),
            ("SELECT /* ; */ 1;", vec!["SELECT /* ; */ 1"]),
        ] {
            assert_eq!(split(script), statements, "{script:?}");
        }
    }

    #[test]
    fn enter_runs_only_a_finished_statement() {
        for (text, complete) in [
            ("SELECT 1", false),
            ("SELECT 1;", true),
            ("SELECT 1; -- done", true),
            ("SELECT ';", false),
            ("SELECT 1; SELECT", false),
            ("-- x;", false),
            ("/* x;", false),
        ] {
            assert_eq!(is_complete(text), complete, "{text:?}");
        }
    }
}
