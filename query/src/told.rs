//! An error on its way from one node of a query to another.
//!
//! DataFusion carries its errors between nodes as text, and what carries them may quote it. Ours keep their kind and their
//! nouns in it: a mark, then JSON in signs that nobody quotes.

use model::{ErrorKind, NodeId, ShardId};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Stands before the JSON.
const MARK: &str = "alluvium-told-";

/// What is kept of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    kind: Kind,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<ShardId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    YourRequest,
    NoDatabase,
    OverMemory,
    TryAgain,
    Broken,
    /// The shard is not read where it was thought to be.
    Elsewhere,
    /// The shard has another range than the question was planned with.
    RangeChanged,
    /// The question was planned with an older schema than the rows have.
    StaleSchema,
    /// A replica's rows are older than the asker allows.
    TooOld,
    /// A node went away.
    Lost,
    Ended,
}

impl Told {
    /// What there is to tell.
    pub(crate) fn of(e: &Error) -> Told {
        let (kind, shard) = match e {
            Error::NoDatabase { .. } => (Kind::NoDatabase, None),
            Error::OverMemory { .. } => (Kind::OverMemory, None),
            Error::Deadline { .. } | Error::Killed { .. } => (Kind::Ended, None),
            Error::Elsewhere { shard, .. } => (Kind::Elsewhere, Some(*shard)),
            Error::Cluster(cluster::Error::NotHere { shard, .. } | cluster::Error::NoLeader { shard }) => (Kind::Elsewhere, Some(*shard)),
            Error::Cluster(cluster::Error::RangeChanged { shard }) => (Kind::RangeChanged, Some(*shard)),
            Error::TooOld { shard, .. } => (Kind::TooOld, Some(*shard)),
            Error::StaleSchema { .. } | Error::Storage(storage::Error::StaleSchema { .. }) => (Kind::StaleSchema, None),
            // To whoever asked, a node that stops is one that went away.
            Error::Lost { .. } | Error::ShuttingDown => (Kind::Lost, None),
            other => match other.kind() {
                ErrorKind::YourRequest => (Kind::YourRequest, None),
                ErrorKind::TryAgain => (Kind::TryAgain, None),
                ErrorKind::Broken => (Kind::Broken, None),
            },
        };
        let message = match e {
            Error::NoDatabase { name } => name.clone(),
            Error::OverMemory { message } | Error::Engine { message } => message.clone(),
            other => other.to_string(),
        };
        let node = if let Error::Lost { node, .. } = e { *node } else { None };
        Told { kind, message, shard, node }
    }

    /// The error on this side.
    pub(crate) fn error(self) -> Error {
        let message = self.message;
        match self.kind {
            Kind::YourRequest => Error::sql(message),
            Kind::NoDatabase => Error::NoDatabase { name: message },
            Kind::OverMemory => Error::OverMemory { message },
            Kind::TryAgain => Error::Later { why: message },
            Kind::Broken => Error::Engine { message },
            Kind::Elsewhere => Error::Elsewhere { shard: self.shard.unwrap_or(ShardId(0)), why: message },
            Kind::TooOld => Error::TooOld { shard: self.shard.unwrap_or(ShardId(0)), why: message },
            Kind::RangeChanged => cluster::Error::RangeChanged { shard: self.shard.unwrap_or(ShardId(0)) }.into(),
            Kind::StaleSchema => Error::StaleSchema { message },
            Kind::Lost => Error::Lost { node: self.node, why: message },
            Kind::Ended => Error::Ended { why: message },
        }
    }

    /// As text that [`find`](Told::find) finds in whatever is put around it.
    pub(crate) fn text(&self) -> String {
        let json = serde_json::to_vec(self).expect("writing to memory");
        format!("{MARK}{}", form_urlencoded::byte_serialize(&json).collect::<String>())
    }

    /// What is told somewhere in a text.
    pub(crate) fn find(text: &str) -> Option<Told> {
        let (_, rest) = text.split_once(MARK)?;
        let quoted = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '%' | '+' | '*' | '-' | '.' | '_'));
        let (json, _) = form_urlencoded::parse(rest.split(quoted).next()?.as_bytes()).next()?;
        serde_json::from_str(&json).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_survives_as_text() {
        for e in [
            Error::NoDatabase { name: "x \"y\"".to_owned() },
            Error::Elsewhere { shard: ShardId(7), why: "led by another".to_owned() },
            Error::too_old(ShardId(7), Duration::from_secs(75), Duration::from_secs(10)),
            Error::StaleSchema { message: "old".to_owned() },
            cluster::Error::RangeChanged { shard: ShardId(4) }.into(),
            Error::Lost { node: Some(NodeId(3)), why: "node s1 was lost".to_owned() },
            Error::sql("no such column"),
            Error::Later { why: "full".to_owned() },
        ] {
            let told = Told::of(&e);
            let text = format!("status {:?}", format!("Execution error: {}, backtrace {{", told.text()));
            assert_eq!(Told::find(&text).as_ref(), Some(&told));
            assert_eq!(Told::of(&told.clone().error()), told, "{e:?}");
        }
        assert_eq!(Told::find("nothing here"), None);
    }
}
