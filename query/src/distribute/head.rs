//! What a request between nodes says of its query, in headers: they travel with a plan to every node that works on it.

use std::sync::Arc;
use std::time::Duration;

use cluster::Cluster;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::Timestamp;

use crate::Result;
use crate::engine::{Consistency, DEFAULT_MAX_LAG, Shortcuts};
use crate::error::Error;
use crate::scope::Scope;

const QUERY: HeaderName = HeaderName::from_static("alluvium-query");
const DATABASE: HeaderName = HeaderName::from_static("alluvium-query-database");
const SHORTCUTS: HeaderName = HeaderName::from_static("alluvium-query-shortcuts");
const CONSISTENCY: HeaderName = HeaderName::from_static("alluvium-query-consistency");
const MAX_LAG: HeaderName = HeaderName::from_static("alluvium-query-max-lag-ms");
const LEFT: HeaderName = HeaderName::from_static("alluvium-query-left-ms");
const CATALOG: HeaderName = HeaderName::from_static("alluvium-query-catalog");
const NOW: HeaderName = HeaderName::from_static("alluvium-query-now");

/// How much longer a query may take where it is not coordinated.
const GRACE: Duration = Duration::from_millis(500);

/// A query, as other nodes must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Unique among all runs of all queries of the cluster.
    pub run: Arc<str>,
    pub database: Arc<str>,
    pub shortcuts: Shortcuts,
    pub consistency: Consistency,
    /// How old stale rows may be.
    pub max_lag: Duration,
    /// How long it may take from here, and a little more: who asked ends it first, and knows why.
    pub left: Duration,
    /// The catalog that it is planned with.
    pub catalog: u64,
    /// The time that `now()` gives.
    pub now: Timestamp,
}

impl Head {
    /// Of a query of this node.
    pub(crate) fn of(scope: &Scope) -> Head {
        Head {
            run: scope.run.clone(),
            database: scope.database.clone(),
            shortcuts: scope.shortcuts,
            consistency: scope.consistency,
            max_lag: scope.max_lag,
            left: scope.stop.left() + GRACE,
            catalog: scope.catalog.version,
            now: scope.now,
        }
    }

    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut put = |name: HeaderName, value: &str| {
            let value = form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>();
            headers.insert(name, HeaderValue::from_str(&value).expect("letters, digits and signs"));
        };
        put(QUERY, &self.run);
        put(DATABASE, &self.database);
        put(SHORTCUTS, if self.shortcuts == Shortcuts::On { "on" } else { "off" });
        put(CONSISTENCY, if self.consistency == Consistency::Stale { "stale" } else { "linearizable" });
        put(MAX_LAG, &self.max_lag.as_millis().to_string());
        put(LEFT, &self.left.as_millis().to_string());
        put(CATALOG, &self.catalog.to_string());
        put(NOW, &self.now.0.to_string());
        headers
    }

    pub(crate) fn read(headers: &HeaderMap) -> Result<Head> {
        let text = |name: &HeaderName| {
            let value = headers.get(name).ok_or_else(|| bad(name))?;
            form_urlencoded::parse(value.as_bytes()).next().map(|(text, _)| text.into_owned()).ok_or_else(|| bad(name))
        };
        let number = |name: &HeaderName| text(name)?.parse::<i64>().map_err(|_| bad(name));
        Ok(Head {
            run: text(&QUERY)?.into(),
            database: text(&DATABASE)?.into(),
            shortcuts: if text(&SHORTCUTS)? == "on" { Shortcuts::On } else { Shortcuts::Off },
            consistency: if text(&CONSISTENCY)? == "stale" { Consistency::Stale } else { Consistency::Linearizable },
            // Older programs do not say.
            max_lag: match headers.contains_key(&MAX_LAG) {
                true => Duration::from_millis(number(&MAX_LAG)?.unsigned_abs()),
                false => DEFAULT_MAX_LAG,
            },
            left: Duration::from_millis(number(&LEFT)?.unsigned_abs()),
            catalog: number(&CATALOG)?.unsigned_abs(),
            now: Timestamp(number(&NOW)?),
        })
    }

    /// Returns when this node's catalog is as new as the one that the query was planned with.
    pub(crate) async fn wait_for_catalog(&self, cluster: &Cluster) -> Result<()> {
        if cluster.catalog().version < self.catalog {
            cluster.refresh().await?;
        }
        Ok(())
    }
}

fn bad(name: &HeaderName) -> Error {
    Error::Engine { message: format!("a peer's request lacks a readable {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_as_headers() {
        let head = Head {
            run: "1-2-3".into(),
            database: "häuser & gärten=1".into(),
            shortcuts: Shortcuts::Off,
            consistency: Consistency::Stale,
            max_lag: Duration::from_millis(7_500),
            left: Duration::from_millis(1_234),
            catalog: 7,
            now: Timestamp(-5),
        };
        assert_eq!(Head::read(&head.headers()).unwrap(), head);
        assert!(Head::read(&HeaderMap::new()).is_err());
    }
}
