use model::{ColumnType, Epoch};

use super::*;
use crate::tokens::{Permission, TokenHash};

fn found(cluster: u128, shards: u32) -> Command {
    Command::Found { cluster, shards: ShardMap::even(shards), replication: 1, nodes: Vec::new() }
}

fn create(state: &mut State, name: &str) -> Decided {
    state.apply(&Command::CreateDatabase { name: name.into(), routing_tag: None, retention_ns: None })
}

fn add(state: &mut State, table: &str, columns: &[(&str, Option<ColumnType>)]) -> Decided {
    let columns = columns.iter().map(|(name, field)| NewColumn { name: (*name).into(), field: *field }).collect();
    state.apply(&Command::AddColumns { database: "d".into(), tables: vec![(table.into(), columns)] })
}

fn refused(decided: Decided) -> Vec<SchemaError> {
    match decided {
        Decided::Added { refused } => refused,
        other => panic!("{other:?}"),
    }
}

#[test]
fn first_type_wins_and_the_others_are_still_added() {
    let mut state = State::default();
    assert_eq!(create(&mut state, "d"), Decided::Done);
    assert!(refused(add(&mut state, "t", &[("v", Some(ColumnType::F64))])).is_empty());
    let refused = refused(add(&mut state, "t", &[("v", Some(ColumnType::I64)), ("w", Some(ColumnType::I64))]));
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].to_string(), "column 'v' of table 't' is type float, not integer");
    assert!(state.catalog.databases["d"].tables["t"].column("w").is_some());
}

#[test]
fn adding_what_is_there_changes_nothing() {
    let mut state = State::default();
    create(&mut state, "d");
    add(&mut state, "t", &[("device_id", None), ("v", Some(ColumnType::F64))]);
    let before = state.clone();
    assert!(refused(add(&mut state, "t", &[("device_id", None), ("v", Some(ColumnType::F64))])).is_empty());
    assert_eq!(state, before);
}

#[test]
fn numbers_are_never_reused() {
    let mut state = State::default();
    create(&mut state, "d");
    add(&mut state, "t", &[("v", Some(ColumnType::F64))]);
    let (database, table) = (state.catalog.databases["d"].id, state.catalog.databases["d"].tables["t"].id);
    let dropped = state.apply(&Command::DropDatabase { name: "d".into(), asked: 7 });
    assert_eq!(dropped, Decided::Dropped { tables: vec![table] });
    create(&mut state, "d");
    add(&mut state, "t", &[("v", Some(ColumnType::F64))]);
    assert_ne!(state.catalog.databases["d"].id, database);
    assert_ne!(state.catalog.databases["d"].tables["t"].id, table);
}

#[test]
fn a_table_that_gets_no_column_does_not_come_into_being() {
    let mut state = State::default();
    create(&mut state, "d");
    assert_eq!(refused(add(&mut state, "t", &[("time", Some(ColumnType::F64))])).len(), 1);
    assert!(state.catalog.databases["d"].tables.is_empty());
}

#[test]
fn bad_and_reserved_names_are_refused() {
    let mut state = State::default();
    for bad in ["system", "information_schema", "", "a\nb"] {
        assert!(matches!(create(&mut state, bad), Decided::Schema(SchemaError::BadName { .. })), "{bad:?}");
    }
    let tag = Command::CreateDatabase { name: "d".into(), routing_tag: Some("time".into()), retention_ns: None };
    assert!(matches!(state.apply(&tag), Decided::Schema(_)));
    create(&mut state, "d");
    assert_eq!(refused(add(&mut state, "a\u{1}b", &[("v", None)])).len(), 1);
    assert_eq!(state.apply(&Command::DropDatabase { name: "none".into(), asked: 8 }), Decided::NoDatabase);
    let drop = Command::DropTable { database: "d".into(), table: "none".into(), asked: 9 };
    assert_eq!(state.apply(&drop), Decided::NoTable);
}

#[test]
fn limits_of_tables_and_columns_hold() {
    let mut state = State::default();
    create(&mut state, "d");
    let column = vec![NewColumn { name: "v".into(), field: Some(ColumnType::F64) }];
    let tables = (0..=MAX_TABLES_PER_DATABASE).map(|i| (Arc::from(format!("t{i}")), column.clone())).collect();
    let many = state.apply(&Command::AddColumns { database: "d".into(), tables });
    let refused = refused(many);
    assert_eq!(refused.len(), 1);
    assert!(matches!(refused[0], SchemaError::TooManyTables { .. }));
    assert_eq!(state.catalog.databases["d"].tables.len(), MAX_TABLES_PER_DATABASE);
}

#[test]
fn the_limit_of_databases_holds() {
    let mut state = State::default();
    for i in 0..MAX_DATABASES {
        assert_eq!(create(&mut state, &format!("d{i}")), Decided::Done);
    }
    let Decided::Schema(error) = create(&mut state, "one more") else { panic!("one more") };
    assert_eq!(error.to_string(), "there would be more than 10000 databases (limit max_databases, fixed)");
    assert_eq!(create(&mut state, "d7"), Decided::Done);
    state.apply(&Command::DropDatabase { name: "d7".into(), asked: 1 });
    assert_eq!(create(&mut state, "one more"), Decided::Done);
}

#[test]
fn a_table_is_found_by_its_number_after_every_command() {
    let mut state = State::default();
    create(&mut state, "d");
    let v: &[_] = &[("v", Some(ColumnType::F64))];
    let names = |state: &State| [1, 2, 3].map(|id| state.catalog.table(TableId(id)).map(|(_, table)| table.name.to_string()));
    let expect = |state: &State, expected: [Option<&str>; 3]| {
        let saved = serde_json::to_vec(&state.catalog).unwrap();
        let decoded = State { catalog: serde_json::from_slice(&saved).unwrap(), ..state.clone() };
        for state in [state, &state.clone(), &decoded] {
            assert_eq!(names(state), expected.map(|name| name.map(str::to_owned)));
        }
    };
    add(&mut state, "a", v);
    expect(&state, [Some("a"), None, None]);
    add(&mut state, "b", v);
    expect(&state, [Some("a"), Some("b"), None]);
    state.apply(&Command::DropTable { database: "d".into(), table: "a".into(), asked: 1 });
    add(&mut state, "a", v);
    expect(&state, [None, Some("b"), Some("a")]);
    state.apply(&Command::DropDatabase { name: "d".into(), asked: 2 });
    expect(&state, [None, None, None]);
}

#[test]
fn a_routing_tag_cannot_change() {
    let mut state = State::default();
    create(&mut state, "d");
    let other = Command::CreateDatabase { name: "d".into(), routing_tag: Some("host".into()), retention_ns: None };
    assert_eq!(state.apply(&other), Decided::DatabaseExists { routing_tag: DEFAULT_ROUTING_TAG.into() });
    assert_eq!(create(&mut state, "d"), Decided::Done);
}

#[test]
fn a_cutoff_never_moves_back_and_goes_with_its_database() {
    let mut state = State::default();
    create(&mut state, "d");
    let id = state.catalog.databases["d"].id;
    for (cutoff, is) in [(10, 10), (5, 10), (20, 20)] {
        state.apply(&Command::Cutoff { database: id, cutoff: Timestamp(cutoff) });
        assert_eq!(state.cutoffs[&id], Timestamp(is));
    }
    state.apply(&Command::DropDatabase { name: "d".into(), asked: 7 });
    assert!(state.cutoffs.is_empty());
}

fn token(name: &str, permission: Permission) -> Token {
    let token = Token::admin(name, TokenHash::of(name), Timestamp(1));
    Token { permissions: vec![permission], ..token }
}

#[test]
fn the_last_admin_stays_and_tokens_are_bounded() {
    let mut state = State::default();
    let create = |state: &mut State, token: &Token| state.apply(&Command::CreateToken { token: token.clone() });
    let revoke = |state: &mut State, name: &str| state.apply(&Command::RevokeToken { name: name.into() });
    let (root, device) = (token("root", Permission::Admin), token("device", Permission::Write));
    assert_eq!(create(&mut state, &root), Decided::Done);
    assert_eq!(create(&mut state, &device), Decided::Done);
    assert_eq!(create(&mut state, &device), Decided::Done);
    assert_eq!(create(&mut state, &token("root", Permission::Read)), Decided::TokenExists);
    assert_eq!(revoke(&mut state, "root"), Decided::NoAdminLeft);
    assert_eq!(revoke(&mut state, "device"), Decided::Done);
    assert_eq!(revoke(&mut state, "device"), Decided::Done);
    assert_eq!(revoke(&mut state, "root"), Decided::NoAdminLeft);
    let again = Token { hash: TokenHash::of("new"), ..root };
    assert_eq!(state.apply(&Command::ResetToken { token: again.clone() }), Decided::Done);
    assert_eq!(*state.tokens["root"], again);
    for number in state.tokens.len()..MAX_TOKENS {
        assert_eq!(create(&mut state, &token(&number.to_string(), Permission::Read)), Decided::Done);
    }
    assert_eq!(create(&mut state, &device), Decided::TooManyTokens);
}

#[test]
fn a_state_saved_before_there_were_tokens_is_read() {
    let mut saved = serde_json::to_value(State::default()).unwrap();
    saved.as_object_mut().unwrap().remove("tokens");
    assert_eq!(serde_json::from_value::<State>(saved).unwrap(), State::default());
}

#[test]
fn who_was_given_up_takes_nobodys_place() {
    let node = |id, name: &str| NodeInfo {
        given_up: false,
        id: NodeId(id),
        name: name.to_owned(),
        roles: crate::nodes::Roles::ALL,
        http: String::new(),
        rpc: String::new(),
        incarnation: 1,
        version: String::new(),
        state: NodeState::Active,
    };
    let mut state = State::default();
    state.apply(&Command::Register(node(1, "a")));
    state.apply(&Command::Register(node(2, "a")));
    assert!(state.nodes[&NodeId(1)].given_up);
    assert_eq!(state.apply(&Command::Register(node(1, "a"))), Decided::Outdated);
    assert_eq!((state.nodes[&NodeId(2)].state, state.nodes[&NodeId(2)].given_up), (NodeState::Active, false));
}

#[test]
fn a_cluster_is_founded_once() {
    let mut state = State::default();
    state.apply(&found(1, 2));
    state.apply(&found(2, 5));
    assert_eq!(state.cluster, Some(1));
    assert_eq!(state.shards.as_ref().unwrap().ranges.len(), 2);
    assert_eq!(state.shards.unwrap().epoch, Epoch(1));
}

#[test]
fn a_split_is_in_the_map_once_the_new_shard_lives() {
    let mut state = State::default();
    state.apply(&found(1, 2));
    let range = state.shards.as_ref().unwrap().ranges[1].clone();
    let at = range.start + 10;
    let split = |at, version| Command::Split { shard: ShardId(1), at, version: Epoch(version), asked: Timestamp(5) };
    for wrong in [split(range.start, 1), split(at, 2)] {
        assert_eq!(state.apply(&wrong), Decided::Outdated);
    }
    assert_eq!(state.apply(&split(at, 1)), Decided::SplitOff { child: ShardId(2) });
    assert_eq!(state.apply(&split(at, 1)), Decided::SplitOff { child: ShardId(2) }, "asked again, the answer having been lost");
    assert_eq!(state.apply(&split(at + 1, 1)), Decided::Outdated, "one at a time");
    assert_eq!(state.shards.as_ref().unwrap().ranges.len(), 2);
    let live = Command::SplitLive { shard: ShardId(1), child: ShardId(2), at: Timestamp(9) };
    assert_eq!((state.apply(&live), state.apply(&live)), (Decided::Done, Decided::Done));
    let map = state.shards.as_ref().unwrap();
    assert_eq!((map.range_of(at).shard, map.range_of(at - 1).shard, map.ranges.len()), (ShardId(2), ShardId(1), 3));
    assert_eq!(state.placements[&ShardId(2)].split_from, Some((ShardId(1), Epoch(2))));
    let line = &state.moves.lines()[0];
    assert_eq!(
        (line.kind, line.state, line.child, line.finished),
        (MoveKind::Split, MoveState::Done, Some(ShardId(2)), Some(Timestamp(9)))
    );
    let text = serde_json::to_vec(&state).unwrap();
    assert_eq!(serde_json::from_slice::<State>(&text).unwrap(), state);
}

#[test]
fn commands_and_state_survive_their_bytes() {
    let mut state = State::default();
    let commands = vec![
        found(u128::MAX, 3),
        Command::CreateDatabase { name: "d".into(), routing_tag: Some("host".into()), retention_ns: Some(5) },
        Command::AddColumns { database: "d".into(), tables: vec![("t".into(), vec![NewColumn { name: "host".into(), field: None }])] },
        Command::SetRetention { database: "d".into(), retention_ns: None },
        Command::Cutoff { database: DatabaseId(1), cutoff: Timestamp(-4) },
        Command::CreateToken { token: token("root", Permission::Admin) },
        Command::RevokeToken { name: "none".into() },
    ];
    let back = Command::decode(&Command::encode(&commands)).unwrap();
    assert_eq!(back, commands);
    back.iter().for_each(|c| {
        state.apply(c);
    });
    let text = serde_json::to_vec(&state).unwrap();
    assert_eq!(serde_json::from_slice::<State>(&text).unwrap(), state);
    assert!(Command::decode(b"\x02[]").is_err());
}
