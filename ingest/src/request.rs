//! What a write request asks for: which dialect it speaks, for which database, in which precision.
//!
//! The path says the dialect, but for `/write`, where a client of InfluxDB 1 always names a database and one of QuestDB
//! never does. Parameters that are empty count as absent, unknown ones are ignored: clients send many that mean nothing
//! here (`org`, `consistency`, `no_sync`). Nothing is read from a body.

use std::borrow::Cow;

use model::schema::{DEFAULT_DATABASE, check_name, is_reserved};

use crate::error::{Error, cut};
use crate::line_protocol::Precision;

/// Whose habits a request has; it decides defaults and the words of errors, never what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/write?db=`.
    InfluxV1,
    /// `/write` without `db`.
    QuestDb,
    /// `/api/v2/write`.
    InfluxV2,
    /// `/api/v3/write_lp`.
    InfluxV3,
}

impl Dialect {
    /// The dialect of a request; `None` if the path is no write endpoint.
    pub fn of(path: &str, query: &str) -> Option<Dialect> {
        match path {
            "/write" if form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "db") => Some(Dialect::InfluxV1),
            "/write" => Some(Dialect::QuestDb),
            "/api/v2/write" => Some(Dialect::InfluxV2),
            "/api/v3/write_lp" => Some(Dialect::InfluxV3),
            _ => None,
        }
    }
}

/// A write request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRequest {
    /// Whose habits it has.
    pub dialect: Dialect,
    /// The database; not known to exist.
    pub database: String,
    /// The unit of times.
    pub precision: Precision,
    /// Whether good lines are stored when others are refused.
    pub accept_partial: bool,
}

const PRECISIONS: &str = "use ns, us, ms, s, m, h, nanosecond, microsecond, millisecond, second or auto";

impl WriteRequest {
    /// Reads path and query of a `POST`; `None` if the path is no write endpoint.
    pub fn read(path: &str, query: &str) -> Option<Result<WriteRequest, (Dialect, Error)>> {
        let dialect = Dialect::of(path, query)?;
        if let Err(error) = check_encoding(query.as_bytes()) {
            return Some(Err((dialect, error)));
        }
        let mut asked = Asked::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.is_empty() {
                continue;
            }
            match &*name {
                "db" if dialect != Dialect::InfluxV2 => asked.database = Some(value),
                "bucket" if dialect == Dialect::InfluxV2 => asked.database = Some(value),
                "rp" if path == "/write" => asked.retention_policy = Some(value),
                "precision" => asked.precision = Some(value),
                "accept_partial" if dialect == Dialect::InfluxV3 => asked.accept_partial = Some(value),
                _ => {}
            }
        }
        Some(asked.request(dialect).map_err(|error| (dialect, error)))
    }
}

#[derive(Default)]
struct Asked<'a> {
    database: Option<Cow<'a, str>>,
    retention_policy: Option<Cow<'a, str>>,
    precision: Option<Cow<'a, str>>,
    accept_partial: Option<Cow<'a, str>>,
}

impl Asked<'_> {
    fn request(self, dialect: Dialect) -> Result<WriteRequest, Error> {
        let precision = match self.precision.as_deref() {
            None if dialect == Dialect::InfluxV3 => Precision::Auto,
            None => Precision::Nanosecond,
            Some(name) => Precision::named(name).ok_or_else(|| bad("precision", name, PRECISIONS))?,
        };
        let accept_partial = match self.accept_partial.as_deref() {
            None => true,
            Some(word) => parse_bool(word).ok_or_else(|| bad("accept_partial", word, "use true or false"))?,
        };
        let mut database = self.database.map_or_else(|| DEFAULT_DATABASE.to_owned(), Cow::into_owned);
        // As InfluxDB 3 does: a retention policy other than the default one is a database of its own.
        if let Some(policy) = self.retention_policy.filter(|p| !is_default_policy(p)) {
            database = format!("{database}/{policy}");
        }
        // As InfluxDB 1 calls its databases and policies where it speaks like InfluxDB 2.
        if dialect == Dialect::InfluxV2
            && let Some((plain, policy)) = database.rsplit_once('/')
            && !plain.is_empty()
            && is_default_policy(policy)
        {
            database.truncate(plain.len());
        }
        check_database_name(&database)?;
        Ok(WriteRequest { dialect, database, precision, accept_partial })
    }
}

/// Whether a retention policy is the one that every database of InfluxDB 1 begins with, or none.
fn is_default_policy(name: &str) -> bool {
    matches!(name, "autogen" | "default" | "")
}

/// Refuses parameters that name a database and are no percent-encoded UTF-8: read with replacement letters, two different
/// ones would be one database.
pub(crate) fn check_encoding(pairs: &[u8]) -> Result<(), Error> {
    let raw = pairs.split(|b| *b == b'&').filter(|pair| !pair.is_empty());
    for (raw, (name, _)) in raw.zip(form_urlencoded::parse(pairs)) {
        let Some(name) = ["db", "bucket", "rp", "q"].into_iter().find(|known| *known == name) else { continue };
        let value = raw.iter().position(|b| *b == b'=').map_or(&raw[raw.len()..], |at| &raw[at + 1..]);
        if !is_encoded(value) {
            return Err(bad(name, &String::from_utf8_lossy(value), "percent-encode its UTF-8, and a % itself as %25"));
        }
    }
    Ok(())
}

fn is_encoded(value: &[u8]) -> bool {
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return false };
        decoded.push((high * 16 + low) as u8);
    }
    std::str::from_utf8(&decoded).is_ok()
}

fn bad(name: &'static str, value: &str, allowed: &'static str) -> Error {
    Error::BadParameter { name, value: cut(value, 64).to_owned(), allowed }
}

fn parse_bool(word: &str) -> Option<bool> {
    match word {
        "true" | "True" | "TRUE" | "t" | "1" => Some(true),
        "false" | "False" | "FALSE" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// Refuses names that no database may have.
pub fn check_database_name(name: &str) -> Result<(), Error> {
    let bad = |why: &str| Error::BadDatabase { name: cut(name, 64).to_owned(), why: why.to_owned() };
    match check_name("database", name) {
        Err(model::schema::SchemaError::BadName { why, .. }) => return Err(bad(&why)),
        Err(other) => return Err(Error::Cluster(other.into())),
        Ok(()) => {}
    }
    if is_reserved(name) {
        return Err(bad("is reserved"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str, query: &str) -> WriteRequest {
        WriteRequest::read(path, query).expect("an endpoint").expect("good parameters")
    }

    fn refusal(path: &str, query: &str) -> String {
        WriteRequest::read(path, query).expect("an endpoint").expect_err("bad parameters").1.to_string()
    }

    #[test]
    fn the_path_and_db_tell_the_dialect() {
        for (path, query, dialect) in [
            ("/write", "db=x", Dialect::InfluxV1),
            ("/write", "db=", Dialect::InfluxV1),
            ("/write", "", Dialect::QuestDb),
            ("/write", "precision=n", Dialect::QuestDb),
            ("/api/v2/write", "db=x", Dialect::InfluxV2),
            ("/api/v3/write_lp", "", Dialect::InfluxV3),
        ] {
            assert_eq!(read(path, query).dialect, dialect, "{path}?{query}");
        }
        assert!(WriteRequest::read("/api/v3/write", "db=x").is_none());
    }

    #[test]
    fn empty_parameters_count_as_absent() {
        let request = read("/write", "db=&rp=&precision=&consistency=&u=&p=");
        let absent =
            WriteRequest { dialect: Dialect::InfluxV1, database: "default".into(), precision: Precision::Nanosecond, accept_partial: true };
        assert_eq!(request, absent);
        assert_eq!(read("/api/v2/write", "org=&bucket=&precision=").database, "default");
        assert_eq!(read("/api/v3/write_lp", "db=&precision=&accept_partial=&no_sync=").precision, Precision::Auto);
    }

    #[test]
    fn each_endpoint_has_its_own_name_for_the_database() {
        assert_eq!(read("/api/v2/write", "org=o&bucket=home%20office").database, "home office");
        assert_eq!(read("/api/v3/write_lp", "db=fleet&bucket=x").database, "fleet");
        assert_eq!(read("/write", "db=fleet").database, "fleet");
    }

    #[test]
    fn a_retention_policy_is_a_database_of_its_own() {
        assert_eq!(read("/write", "db=d&rp=autogen").database, "d");
        assert_eq!(read("/write", "db=d&rp=default").database, "d");
        assert_eq!(read("/write", "rp=&db=d").database, "d");
        assert_eq!(read("/write", "rp=two_weeks&db=d").database, "d/two_weeks");
        for (bucket, database) in [
            ("d/autogen", "d"),
            ("d/default", "d"),
            ("d/", "d"),
            ("d/two_weeks", "d/two_weeks"),
            ("/autogen", "/autogen"),
            ("autogen", "autogen"),
        ] {
            assert_eq!(read("/api/v2/write", &format!("bucket={bucket}")).database, database, "{bucket}");
        }
        // Elsewhere a policy has a parameter of its own, or none.
        assert_eq!(read("/write", "db=d/autogen").database, "d/autogen");
        assert_eq!(read("/api/v3/write_lp", "db=d/autogen").database, "d/autogen");
    }

    #[test]
    fn two_names_are_never_read_as_one() {
        for query in ["db=%ff", "db=%fe", "db=%zz", "db=%", "db=%4", "precision=s&db=a%c3", "&rp=%ff&db=d", "d%62=%zz"] {
            let error = refusal("/write", query);
            assert!(error.contains("percent-encode its UTF-8"), "{query}: {error}");
        }
        assert_eq!(
            refusal("/api/v2/write", "bucket=%zz"),
            "parameter 'bucket' cannot be '%zz': percent-encode its UTF-8, and a % itself as %25"
        );
        assert_eq!(read("/write", "db=%25zz").database, "%zz");
        assert_eq!(read("/write", "db=a+b%20c%C3%BC").database, "a b c\u{fc}");
        // A password is nobody's name.
        assert_eq!(read("/write", "db=d&u=any&p=100%").database, "d");
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(
            refusal("/write", "db=d&precision=d"),
            "parameter 'precision' cannot be 'd': use ns, us, ms, s, m, h, nanosecond, microsecond, millisecond, second or auto"
        );
        assert_eq!(refusal("/api/v3/write_lp", "accept_partial=maybe"), "parameter 'accept_partial' cannot be 'maybe': use true or false");
        assert_eq!(refusal("/write", "db=system"), "database name 'system' is reserved");
        assert_eq!(refusal("/write", "db=a%00b"), "database name 'a\0b' has a control character");
        let long = "x".repeat(256);
        assert_eq!(
            refusal("/api/v2/write", &format!("bucket={long}")),
            format!("database name '{}' is longer than 255 bytes (limit max_name_bytes, fixed)", "x".repeat(64))
        );
    }
}
