//! What the metadata group has decided so far, and how a command changes it. Pure: no IO, no clock.
//!
//! Numbers of databases and tables are never reused, also after a drop: a record in a shard's log names them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use model::schema::{
    DEFAULT_ROUTING_TAG, MAX_COLUMNS_PER_TABLE, MAX_DATABASES, MAX_TABLES_PER_DATABASE, NewColumn, SchemaError, TIME_COLUMN, TableIndex,
    check_name,
};
use model::{Catalog, DatabaseId, DatabaseSchema, Epoch, NodeId, ShardId, TableId, TableSchema, Timestamp};
use serde::{Deserialize, Serialize};

use super::command::{Command, Decided};
use crate::moves::{Move, MoveKind, MoveState, Moves};
use crate::nodes::{NodeInfo, NodeState};
use crate::placement;
use crate::shard_map::ShardMap;
use crate::tokens::{MAX_TOKENS, Token};

/// Drops that are remembered: they are asked for again within seconds.
const MAX_DROPS: usize = 64;
/// Names that SQL keeps for itself: no database may have them.
const RESERVED: [&str; 2] = ["system", "information_schema"];

/// Everything decided, as of one entry of the group's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The cluster's number, once it is founded.
    pub(crate) cluster: Option<u128>,
    /// The shards, once it is founded.
    pub(crate) shards: Option<Arc<ShardMap>>,
    /// Databases, tables and columns.
    pub(crate) catalog: Arc<Catalog>,
    /// By database: the first instant that is kept.
    pub(crate) cutoffs: Arc<BTreeMap<DatabaseId, Timestamp>>,
    /// Access tokens by name; absent in states saved before there were any.
    #[serde(default)]
    pub(crate) tokens: Arc<BTreeMap<Arc<str>, Arc<Token>>>,
    /// The nodes, those that are gone included.
    #[serde(default)]
    pub(crate) nodes: Arc<BTreeMap<NodeId, NodeInfo>>,
    /// Where each shard's replicas should be.
    #[serde(default)]
    pub(crate) placements: Arc<BTreeMap<ShardId, Placement>>,
    /// Replicas that a shard should have, where there are so many storage nodes.
    #[serde(default)]
    pub(crate) replication: u32,
    /// Shards whose range is to become two, by the one that is split.
    #[serde(default)]
    pub(crate) splits: Arc<BTreeMap<ShardId, Splitting>>,
    /// What is and was on its way.
    #[serde(default)]
    pub(crate) moves: Arc<Moves>,
    /// The last drops, by the number that their asker drew, oldest first.
    #[serde(default)]
    drops: Arc<VecDeque<(u128, Vec<TableId>)>>,
    next_database: u32,
    next_table: u32,
}

/// Where a shard's replicas should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// The members its group was founded with, but for those that have left: only they may found it, and the group knows
    /// their replicas by the numbers that founders have.
    pub(crate) founders: Vec<NodeId>,
    /// Where the replicas should be now; the first should lead.
    pub(crate) replicas: Vec<NodeId>,
    /// Whether it was ever placed elsewhere: then the group is there, and nobody founds it.
    #[serde(default)]
    pub(crate) has_moved: bool,
    /// The shard that it was split from, and the version of its own first range: nobody founds it, it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) split_from: Option<(ShardId, Epoch)>,
}

/// A range that is to become two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Splitting {
    /// The shard to be split off.
    pub(crate) child: ShardId,
    /// First hash of the range.
    pub(crate) start: u64,
    /// First hash of the new shard.
    pub(crate) at: u64,
    /// Last hash of the range, inclusive.
    pub(crate) last: u64,
    /// The version of the range that is split.
    pub(crate) version: Epoch,
}

impl Default for State {
    fn default() -> State {
        State {
            cluster: None,
            shards: None,
            catalog: Arc::new(Catalog { next_table: 1, ..Catalog::default() }),
            cutoffs: Arc::default(),
            tokens: Arc::default(),
            nodes: Arc::default(),
            placements: Arc::default(),
            replication: 1,
            splits: Arc::default(),
            moves: Arc::default(),
            drops: Arc::default(),
            next_database: 1,
            next_table: 1,
        }
    }
}

impl State {
    /// A state that was saved, or came from another node: perhaps by a program that did not note in the catalog what it has
    /// forgotten.
    pub(crate) fn taken_up(mut self) -> State {
        if self.catalog.next_table < self.next_table {
            Arc::make_mut(&mut self.catalog).next_table = self.next_table;
            // It knew no other way of being gone.
            Arc::make_mut(&mut self.nodes).values_mut().filter(|n| n.state == NodeState::Gone).for_each(|n| n.given_up = true);
        }
        self
    }

    /// Decides one command.
    pub(crate) fn apply(&mut self, command: &Command) -> Decided {
        match command {
            Command::Found { cluster, shards, replication, nodes } => {
                if self.cluster.is_none() {
                    self.cluster = Some(*cluster);
                    self.replication = *replication;
                    let storage: Vec<NodeId> = nodes.iter().filter(|n| n.roles.storage).map(|n| n.id).collect();
                    self.placements = Arc::new(placement::found(shards, &storage, *replication));
                    self.nodes = Arc::new(nodes.iter().map(|node| (node.id, node.clone())).collect());
                    self.shards = Some(Arc::new(shards.clone()));
                }
                Decided::Done
            }
            Command::Register(node) => self.register(node),
            Command::SetNodeState { node, state } => match Arc::make_mut(&mut self.nodes).get_mut(node) {
                Some(known) if known.given_up => Decided::Outdated,
                Some(known) => {
                    known.state = *state;
                    self.forget_gone();
                    Decided::Done
                }
                None => Decided::Outdated,
            },
            Command::GiveUp { node } => match Arc::make_mut(&mut self.nodes).get_mut(node) {
                Some(known) => {
                    (known.state, known.given_up) = (NodeState::Gone, true);
                    self.forget_gone();
                    Decided::Done
                }
                None => Decided::Outdated,
            },
            Command::SetReplication { replication } => {
                self.replication = *replication;
                Decided::Done
            }
            Command::Place { shard, were, replicas, asked } => self.place(*shard, were, replicas, *asked),
            Command::Placed { shard, replicas, at } => {
                if self.placements.get(shard).is_some_and(|placement| placement.replicas == *replicas) {
                    Arc::make_mut(&mut self.moves).end(MoveKind::Move, *shard, *at);
                }
                Decided::Done
            }
            Command::Split { shard, at, version, asked } => self.split(*shard, *at, *version, *asked),
            Command::SplitLive { shard, child, at } => self.split_live(*shard, *child, *at),
            Command::CreateDatabase { name, routing_tag, retention_ns } => self.create_database(name, routing_tag.as_ref(), *retention_ns),
            Command::AddColumns { database, tables } => self.add_columns(database, tables),
            Command::DropDatabase { asked, .. } | Command::DropTable { asked, .. } if self.dropped(*asked).is_some() => {
                Decided::Dropped { tables: self.dropped(*asked).expect("just seen").to_vec() }
            }
            Command::DropDatabase { name, asked } => {
                let Some(database) = self.catalog.databases.get(name) else { return Decided::NoDatabase };
                let tables: Vec<TableId> = database.tables.values().map(|t| t.id).collect();
                let id = database.id;
                self.change().databases.remove(name);
                Arc::make_mut(&mut self.cutoffs).remove(&id);
                self.note_drop(*asked, &tables);
                Decided::Dropped { tables }
            }
            Command::DropTable { database, table, asked } => {
                match self.catalog.databases.get(database) {
                    None => return Decided::NoDatabase,
                    Some(d) if !d.tables.contains_key(table) => return Decided::NoTable,
                    Some(_) => {}
                }
                let dropped = self.database_mut(database).tables.remove(table).expect("it was there");
                self.note_drop(*asked, &[dropped.id]);
                Decided::Dropped { tables: vec![dropped.id] }
            }
            Command::SetRetention { database, retention_ns } => {
                let Some(is) = self.catalog.databases.get(database) else { return Decided::NoDatabase };
                if is.retention_ns != *retention_ns {
                    self.database_mut(database).retention_ns = *retention_ns;
                }
                Decided::Done
            }
            Command::Cutoff { database, cutoff } => {
                if !self.catalog.databases.values().any(|d| d.id == *database) {
                    return Decided::NoDatabase;
                }
                let now = Arc::make_mut(&mut self.cutoffs).entry(*database).or_insert(*cutoff);
                *now = (*now).max(*cutoff);
                Decided::Done
            }
            Command::CreateToken { token } => match self.tokens.get(&token.name) {
                Some(existing) if **existing == *token => Decided::Done,
                Some(_) => Decided::TokenExists,
                None => self.put_token(token),
            },
            Command::ResetToken { token } => self.put_token(token),
            Command::RevokeToken { name } => self.revoke_token(name),
        }
    }

    /// What was answered to a drop that was asked for before.
    fn dropped(&self, asked: u128) -> Option<&[TableId]> {
        // 0: an older program asked, which does not number its drops.
        self.drops.iter().find(|(before, _)| *before == asked && asked != 0).map(|(_, tables)| &tables[..])
    }

    fn note_drop(&mut self, asked: u128, tables: &[TableId]) {
        let drops = Arc::make_mut(&mut self.drops);
        drops.push_back((asked, tables.to_vec()));
        if drops.len() > MAX_DROPS {
            drops.pop_front();
        }
    }

    fn place(&mut self, shard: ShardId, were: &[NodeId], replicas: &[NodeId], asked: Option<Timestamp>) -> Decided {
        match Arc::make_mut(&mut self.placements).get_mut(&shard) {
            // Asked again because the answer was lost.
            Some(placement) if placement.replicas == replicas => return Decided::Done,
            Some(placement) if placement.replicas == were && !replicas.is_empty() => {
                if !replicas.iter().all(|node| were.contains(node)) || replicas.len() != were.len() {
                    // Whoever comes back comes back with nothing, and is none of those who may found the group.
                    placement.founders.retain(|founder| replicas.contains(founder));
                    placement.has_moved = true;
                }
                placement.replicas = replicas.to_vec();
            }
            _ => return Decided::Outdated,
        }
        let (from, to) = (were.to_vec(), replicas.to_vec());
        self.begin_move(Move {
            id: 0,
            kind: MoveKind::Move,
            shard,
            child: None,
            from,
            to,
            state: MoveState::Running,
            started: asked,
            finished: None,
        });
        Decided::Done
    }

    fn begin_move(&mut self, line: Move) {
        Arc::make_mut(&mut self.moves).begin(line);
    }

    /// The new shard gets a number; the map stays as it is until it lives.
    fn split(&mut self, shard: ShardId, at: u64, version: Epoch, asked: Timestamp) -> Decided {
        let Some(range) = self.shards.as_ref().and_then(|map| map.range_of_shard(shard)) else { return Decided::Outdated };
        if let Some(going) = self.splits.get(&shard) {
            return if going.at == at { Decided::SplitOff { child: going.child } } else { Decided::Outdated };
        }
        if range.version != version || at <= range.start || at > range.last {
            return Decided::Outdated;
        }
        let (start, last) = (range.start, range.last);
        let taken = self.shards.iter().flat_map(|map| map.ranges.iter().map(|r| r.shard)).chain(self.splits.values().map(|s| s.child));
        let child = ShardId(taken.map(|shard| shard.0).max().map_or(0, |most| most + 1));
        Arc::make_mut(&mut self.splits).insert(shard, Splitting { child, start, at, last, version });
        let to = self.placements.get(&shard).map(|placement| placement.replicas.clone()).unwrap_or_default();
        let (kind, from, state) = (MoveKind::Split, to.clone(), MoveState::Running);
        self.begin_move(Move { id: 0, kind, shard, child: Some(child), from, to, state, started: Some(asked), finished: None });
        Decided::SplitOff { child }
    }

    fn split_live(&mut self, shard: ShardId, child: ShardId, at: Timestamp) -> Decided {
        let Some(going) = self.splits.get(&shard).copied().filter(|going| going.child == child) else { return Decided::Done };
        Arc::make_mut(&mut self.splits).remove(&shard);
        let map = self.shards.as_mut().expect("a shard of the map is split");
        Arc::make_mut(map).split(shard, child, going.at);
        let mut replicas = self.placements.get(&shard).map(|placement| placement.replicas.clone()).unwrap_or_default();
        if !replicas.is_empty() {
            // Another node leads it, so that two shards are more than one.
            replicas.rotate_left(1);
        }
        let split_from = Some((shard, Epoch(going.version.0 + 1)));
        Arc::make_mut(&mut self.placements).insert(child, Placement { founders: replicas.clone(), replicas, split_from, has_moved: false });
        Arc::make_mut(&mut self.moves).end(MoveKind::Split, shard, at);
        Decided::Done
    }

    fn put_token(&mut self, token: &Token) -> Decided {
        if self.tokens.keys().filter(|name| **name != token.name).count() >= MAX_TOKENS {
            return Decided::TooManyTokens;
        }
        Arc::make_mut(&mut self.tokens).insert(token.name.clone(), Arc::new(token.clone()));
        Decided::Done
    }

    /// The last admin stays: with none but small ones nobody could make tokens any more.
    fn revoke_token(&mut self, name: &Arc<str>) -> Decided {
        let Some(token) = self.tokens.get(name) else { return Decided::Done };
        if token.is_admin_of_all() && !self.tokens.values().any(|other| other.name != *name && other.is_admin_of_all()) {
            return Decided::NoAdminLeft;
        }
        Arc::make_mut(&mut self.tokens).remove(name);
        Decided::Done
    }

    /// Takes a node in, or its new addresses. Another node with its name is gone: its disk was lost (DESIGN rule 13). One that
    /// was given up comes back with an old disk: it takes nobody's place.
    fn register(&mut self, node: &NodeInfo) -> Decided {
        if self.nodes.get(&node.id).is_some_and(|known| known.given_up) {
            return Decided::Outdated;
        }
        if self.placements.is_empty()
            && node.roles.storage
            && let Some(shards) = &self.shards
        {
            // A data directory from before nodes were registered: this node holds all there is.
            self.placements = Arc::new(placement::found(shards, &[node.id], 1));
        }
        let nodes = Arc::make_mut(&mut self.nodes);
        for other in nodes.values_mut().filter(|other| other.name == node.name && other.id != node.id) {
            (other.state, other.given_up) = (NodeState::Gone, true);
        }
        let state = match nodes.get(&node.id) {
            // One that is gone was only out of reach.
            Some(known) if known.state != NodeState::Gone => known.state,
            _ => NodeState::Active,
        };
        nodes.insert(node.id, NodeInfo { state, given_up: false, ..node.clone() });
        self.forget_gone();
        Decided::Done
    }

    /// Forgets nodes that are gone and never kept anything. Those with the role of storage stay: replicas may name them.
    fn forget_gone(&mut self) {
        Arc::make_mut(&mut self.nodes).retain(|_, node| node.roles.storage || node.state != NodeState::Gone);
    }

    fn create_database(&mut self, name: &Arc<str>, routing_tag: Option<&Arc<str>>, retention_ns: Option<i64>) -> Decided {
        if let Some(existing) = self.catalog.databases.get(name) {
            return match routing_tag {
                Some(asked) if *asked != existing.routing_tag => Decided::DatabaseExists { routing_tag: existing.routing_tag.clone() },
                _ => Decided::Done,
            };
        }
        let routing_tag = routing_tag.cloned().unwrap_or_else(|| DEFAULT_ROUTING_TAG.into());
        if let Err(error) = check_database_name(name).and_then(|()| check_routing_tag(&routing_tag)) {
            return Decided::Schema(error);
        }
        if self.catalog.databases.len() >= MAX_DATABASES {
            return Decided::Schema(SchemaError::TooManyDatabases { limit: MAX_DATABASES });
        }
        let id = DatabaseId(self.next_database);
        self.next_database += 1;
        let database = DatabaseSchema { id, name: name.clone(), routing_tag, retention_ns, tables: BTreeMap::new() };
        self.change().databases.insert(name.clone(), Arc::new(database));
        Decided::Done
    }

    fn add_columns(&mut self, database: &Arc<str>, tables: &[(Arc<str>, Vec<NewColumn>)]) -> Decided {
        let Some(before) = self.catalog.databases.get(database) else { return Decided::NoDatabase };
        if missing(before, tables).is_empty() {
            return Decided::Added { refused: Vec::new() };
        }
        let (id, routing_tag) = (before.id, before.routing_tag.clone());
        let mut refused = Vec::new();
        let mut next_table = self.next_table;
        let schema = self.database_mut(database);
        for (name, columns) in tables {
            let count = schema.tables.len();
            if !schema.tables.contains_key(name) {
                let checked = check_name("table", name).and_then(|()| match count < MAX_TABLES_PER_DATABASE {
                    true => Ok(()),
                    false => Err(SchemaError::TooManyTables { database: database.clone(), limit: MAX_TABLES_PER_DATABASE }),
                });
                if let Err(error) = checked {
                    refused.push(error);
                    continue;
                }
            }
            let existing = schema.tables.get(name);
            let mut table = existing.map_or_else(|| TableSchema::new(TableId(next_table), id, name.clone()), |t| TableSchema::clone(t));
            let mut changed = false;
            for column in columns {
                match table.add(column, &routing_tag, MAX_COLUMNS_PER_TABLE) {
                    Ok(added) => changed |= added,
                    Err(error) => refused.push(error),
                }
            }
            if changed {
                next_table += u32::from(existing.is_none());
                schema.tables.insert(name.clone(), Arc::new(table));
            }
        }
        self.next_table = next_table;
        self.change().next_table = next_table;
        Decided::Added { refused }
    }

    fn change(&mut self) -> &mut Catalog {
        let catalog = Arc::make_mut(&mut self.catalog);
        catalog.version += 1;
        catalog.index = TableIndex::default();
        catalog
    }

    fn database_mut(&mut self, name: &str) -> &mut DatabaseSchema {
        Arc::make_mut(self.change().databases.get_mut(name).expect("the caller has seen it"))
    }
}

/// Of the columns asked for, those that the database does not have alike yet: what there is to decide.
pub(crate) fn missing(database: &DatabaseSchema, tables: &[(Arc<str>, Vec<NewColumn>)]) -> Vec<(Arc<str>, Vec<NewColumn>)> {
    let has = |table: &TableSchema, new: &NewColumn| {
        table.column(&new.name).is_some_and(|column| match (column.kind, new.field) {
            (model::ColumnKind::Tag { .. }, None) => true,
            (model::ColumnKind::Field(is), Some(asked)) => is == asked,
            _ => false,
        })
    };
    let mut missing = Vec::new();
    for (name, columns) in tables {
        let left: Vec<NewColumn> = match database.tables.get(name) {
            Some(table) => columns.iter().filter(|c| !has(table, c)).cloned().collect(),
            None => columns.clone(),
        };
        if !left.is_empty() {
            missing.push((name.clone(), left));
        }
    }
    missing
}

fn check_database_name(name: &str) -> Result<(), SchemaError> {
    check_name("database", name)?;
    match RESERVED.contains(&name) {
        true => Err(bad_name("database", name, "is reserved")),
        false => Ok(()),
    }
}

fn check_routing_tag(name: &str) -> Result<(), SchemaError> {
    check_name("column", name)?;
    match name == TIME_COLUMN {
        true => Err(bad_name("column", name, "is every table's time and cannot be the routing tag")),
        false => Ok(()),
    }
}

fn bad_name(what: &str, name: &str, why: &str) -> SchemaError {
    SchemaError::BadName { what: what.to_owned(), name: name.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests;
