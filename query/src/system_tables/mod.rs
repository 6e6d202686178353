//! The `system` schema: what the node knows about itself, as tables, in every database.
//!
//! Rows are made when a query names the table; who may see one database only sees nothing of the others here either. `devices` is a question over the database's own tables in disguise.

mod columns;
mod devices;

use std::sync::Arc;

use cluster::NodeState;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::{DataFusionError, Result};
use futures::future::join_all;

use crate::distribute::calls;
use crate::engine::Inner;
use crate::error::Error;
use crate::running::Seen;
use crate::scope::Scope;
use crate::sources::Node;

/// All of them.
pub(crate) const NAMES: [&str; 11] =
    ["nodes", "shards", "files", "databases", "tables", "columns", "queries", "moves", "refused_lines", "settings", "devices"];

/// The system table of this name.
pub(crate) async fn table(name: &str, scope: &Scope, engine: &Inner) -> Result<Option<Arc<dyn TableProvider>>> {
    let columns = match name {
        "nodes" => columns::nodes(&nodes(engine).await),
        "shards" => columns::shards(&engine.cluster.figures().await.0),
        "files" => {
            let (_, mut files) = engine.cluster.figures().await;
            files.retain(|(_, file)| scope.only.is_none() || scope.catalog.table(file.table).is_some());
            columns::files(&files, &scope.catalog)
        }
        "databases" => columns::databases(&scope.catalog),
        "tables" => columns::tables(&scope.catalog),
        "columns" => columns::columns(&scope.catalog),
        "queries" => {
            let mut queries = vec![(engine.cluster.this_node().name.clone(), engine.running.seen())];
            queries.extend(calls::queries(&engine.cluster).await);
            // Of a database's queries, whoever may see only that sees the words of its own: others may name more in theirs.
            let hidden = |query: Seen| match scope.only.is_none() || query.token.as_deref() == Some(&*scope.asker) {
                true => query,
                false => query.without_words(),
            };
            for (_, queries) in &mut queries {
                let seen = std::mem::take(queries).into_iter().filter(|query| scope.sees(&query.database));
                *queries = seen.map(hidden).collect();
            }
            columns::queries(&queries)
        }
        "moves" => {
            // What was decided a moment ago is in the table.
            if engine.cluster.refresh().await.is_err() {
                tracing::info!("the moves are shown as this node knew them last: the metadata group has no leader");
            }
            let named = |node| engine.cluster.node(node).map_or_else(|| node.to_string(), |info| info.name);
            columns::moves(&engine.cluster.moves(), named)
        }
        "refused_lines" => {
            let mut lines = (engine.sources.refused_lines)();
            lines.retain(|line| scope.sees(&line.database));
            columns::refused_lines(&lines)
        }
        // They are the whole node's.
        "settings" if scope.only.is_some() => columns::settings(&[]),
        "settings" => columns::settings(&(engine.sources.settings)()),
        "devices" => return devices::view(scope).map(Some),
        "ledger" => return Err(Error::NotYet { what: "the table system.ledger".to_owned() }.inside()),
        _ => return Ok(None),
    };
    rows(columns).map(|t| Some(Arc::new(t) as Arc<dyn TableProvider>))
}

/// This node as it knows itself, and the others as the cluster knows them: `down` is one that does not answer.
async fn nodes(engine: &Inner) -> Vec<Node> {
    let mut nodes = (engine.sources.nodes)();
    let me = engine.cluster.node_id();
    let others = engine.cluster.nodes().into_iter().filter(|n| n.id != me);
    let others = others.map(|node| async move {
        let state = match node.state {
            NodeState::Gone => "gone".to_owned(),
            _ if !engine.cluster.is_alive(node.id).await => "down".to_owned(),
            NodeState::Draining => "draining".to_owned(),
            NodeState::Active => "ready".to_owned(),
        };
        Node {
            node_id: node.name,
            roles: node.roles.to_string(),
            http: node.http,
            rpc: Some(node.rpc).filter(|rpc| !rpc.is_empty()),
            version: node.version,
            state,
            started: None,
        }
    });
    nodes.extend(join_all(others).await);
    nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    nodes
}

/// A table of columns that are at hand.
fn rows(columns: Vec<(&'static str, ArrayRef)>) -> Result<MemTable> {
    let fields: Vec<Field> = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(DataFusionError::from)?;
    MemTable::try_new(schema, vec![vec![batch]])
}
