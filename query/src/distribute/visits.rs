//! Queries that have work on this node: one scope each, whoever coordinates them (DESIGN rule 9).
//!
//! All parts of one run of a query that work here share its scope: one read point per shard, one end. The scope lives as
//! long as a part of the run does. When the node that coordinates it goes away, the run is over.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::Result;
use crate::distribute::head::Head;
use crate::engine::Inner;
use crate::error::Error;
use crate::scope::Scope;

/// Runs with work here at once.
const MAX_VISITS: usize = 4_096;

/// The runs.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    scopes: Mutex<HashMap<Arc<str>, Weak<Scope>>>,
}

impl Visits {
    /// Notes a run that this node coordinates, so that its parts here share its read points.
    pub(crate) fn host(&self, scope: &Arc<Scope>) {
        let mut scopes = self.scopes.lock();
        scopes.retain(|_, scope| scope.strong_count() > 0);
        scopes.insert(scope.run.clone(), Arc::downgrade(scope));
    }

    /// The scope of a run, a new one where this is its first part here.
    pub(crate) async fn enter(&self, engine: &Inner, head: Head) -> Result<Arc<Scope>> {
        head.wait_for_catalog(&engine.cluster).await?;
        let mut scopes = self.scopes.lock();
        if let Some(scope) = scopes.get(&head.run).and_then(Weak::upgrade) {
            return Ok(scope);
        }
        scopes.retain(|_, scope| scope.strong_count() > 0);
        if scopes.len() >= MAX_VISITS {
            return Err(Error::TooMany { limit: MAX_VISITS });
        }
        let scope = Arc::new(Scope::visiting(engine.cluster.clone(), &head));
        scopes.insert(head.run, Arc::downgrade(&scope));
        Ok(scope)
    }

    /// Nobody waits for this run any more.
    pub(crate) fn over(&self, scope: &Scope) {
        scope.stop.abandon();
        scope.release();
        self.scopes.lock().remove(&scope.run);
    }
}
