//! Where a statement about one device goes, without planning it here.
//!
//! A statement that was planned and sent whole to the node of its one shard is remembered by its form, and with it which
//! of its values may be the device. The next statement of that form goes to the node of that value's shard and is planned
//! there only. A wrong guess is no wrong answer: whoever is asked plans the statement itself and refuses it if it is
//! about shards that it has not; then the statement is planned here after all.

use std::collections::HashMap;

use model::ShardId;
use model::point::routing_hash_of_tag;
use parking_lot::Mutex;

use crate::plan_cache::{Form, Values};
use crate::scope::Scope;

/// Forms remembered; beyond that all are forgotten, which costs each one planning.
const REMEMBERED: usize = 1_024;

/// The forms of statements that went whole to one node.
#[derive(Default)]
pub(crate) struct WentWhole {
    /// The values, by their place, that may be the device.
    forms: Mutex<HashMap<Form, Vec<usize>>>,
}

impl WentWhole {
    /// The shard that a statement is about, if that is known by its form.
    pub(crate) fn shard(&self, scope: &Scope, form: &Form, values: &Values) -> Option<ShardId> {
        let device = match self.forms.lock().get(form)?.as_slice() {
            [device] => *device,
            _ => return None,
        };
        shard_of(scope, values.get(device)?)
    }

    /// Takes note of what planning has shown: the one shard that the statement goes whole to, or that there is none.
    pub(crate) fn note(&self, scope: &Scope, form: Form, values: &Values, shard: Option<ShardId>) {
        let mut forms = self.forms.lock();
        let Some(shard) = shard else {
            forms.remove(&form);
            return;
        };
        if forms.len() >= REMEMBERED {
            forms.clear();
        }
        let fits = |value: &String| shard_of(scope, value) == Some(shard);
        let all = || (0..values.len()).collect();
        forms.entry(form).or_insert_with(all).retain(|place| values.get(*place).is_some_and(fits));
    }
}

fn shard_of(scope: &Scope, device: &str) -> Option<ShardId> {
    let database = scope.catalog.database(&scope.database)?;
    Some(scope.cluster.shard_map().range_of(routing_hash_of_tag(database.id, device)).shard)
}
