//! What the metadata group agrees on, and that it stays agreed.

use cluster::{Error, Permission, Token, TokenHash};
use model::schema::SchemaError;
use model::{ColumnKind, ErrorKind, Timestamp};

use super::*;

fn field(name: &str, kind: ColumnType) -> NewColumn {
    NewColumn { name: name.into(), field: Some(kind) }
}

#[tokio::test]
async fn of_two_types_asked_at_once_one_wins_and_the_other_learns_why() {
    let disk = FaultyDisk::new(1);
    let node = start(&disk).await;
    node.create_database(DATABASE, None, None).await.unwrap();
    let ask = |kind| node.add_columns(DATABASE, vec![(TABLE.into(), vec![field("v", kind), field("w", ColumnType::Bool)])]);
    let (a, b) = tokio::join!(ask(ColumnType::F64), ask(ColumnType::I64));
    let (a, b) = (a.unwrap(), b.unwrap());
    let won = table(&node).column("v").unwrap().kind;
    let (winner, loser) = if won == ColumnKind::Field(ColumnType::F64) { (a, b) } else { (b, a) };
    assert!(winner.refused.is_empty());
    assert!(matches!(&loser.refused[..], [SchemaError::Conflict { column, .. }] if &**column == "v"));
    assert!(loser.catalog.database(DATABASE).unwrap().tables[TABLE].column("w").is_some());
}

#[tokio::test]
async fn many_who_ask_for_the_same_get_the_same() {
    let disk = FaultyDisk::new(2);
    let node = start(&disk).await;
    node.create_database(DATABASE, None, None).await.unwrap();
    let ask = || node.add_columns(DATABASE, vec![(TABLE.into(), vec![field("v", ColumnType::F64)])]);
    let agreed = futures::future::join_all((0..500).map(|_| ask())).await;
    let id = table(&node).id;
    for agreed in agreed {
        let agreed = agreed.unwrap();
        assert!(agreed.refused.is_empty());
        assert_eq!(agreed.catalog.database(DATABASE).unwrap().tables[TABLE].id, id);
    }
    assert_eq!(table(&node).columns().len(), 1);
}

#[tokio::test]
async fn the_catalog_survives_restarts_and_a_log_that_was_let_go_of() {
    let disk = FaultyDisk::new(3);
    let mut node = start(&disk).await;
    node.create_database(DATABASE, Some("host"), Some(5)).await.unwrap();
    for round in 0..3 {
        for i in 0..700 {
            let name = format!("c{}", (round * 700 + i) % 990);
            let table = format!("t{round}");
            node.add_columns(DATABASE, vec![(table.as_str().into(), vec![field(&name, ColumnType::F64)])]).await.unwrap();
        }
        let before = node.catalog();
        node.shutdown().await;
        node = start(&disk).await;
        assert_eq!(node.catalog(), before);
    }
    let saved = disk.files().into_iter().any(|(path, _)| path.ends_with("meta/snapshot"));
    assert!(saved, "2,100 entries do not all stay in the log");
    let database = node.catalog().database(DATABASE).unwrap().clone();
    assert_eq!((&*database.routing_tag, database.retention_ns), ("host", Some(5)));
}

#[tokio::test]
async fn what_is_unknown_or_reserved_is_told_by_name() {
    let disk = FaultyDisk::new(4);
    let node = start(&disk).await;
    let unknown = node.add_columns("nowhere", vec![]).await.unwrap_err();
    assert_eq!(unknown.to_string(), "database not found: \"nowhere\"");
    for name in ["system", "information_schema"] {
        let refused = node.create_database(name, None, None).await.unwrap_err();
        assert!(matches!(refused, Error::Schema(SchemaError::BadName { .. })));
        assert_eq!(refused.kind(), ErrorKind::YourRequest);
    }
    node.create_database(DATABASE, None, None).await.unwrap();
    let other = node.create_database(DATABASE, Some("host"), None).await.unwrap_err();
    assert!(matches!(other, Error::DatabaseExists { .. }));
    assert!(matches!(node.drop_table(DATABASE, "none").await, Err(Error::NoTable { .. })));
    assert!(matches!(node.drop_database("none").await, Err(Error::NoDatabase { .. })));
}

#[tokio::test]
async fn a_dropped_table_takes_its_rows_and_never_gives_them_to_the_next_of_its_name() {
    let disk = FaultyDisk::new(5);
    let (node, old) = start_with_table(&disk).await;
    node.write(SHARD, part(&old, 1, "d", &[(1, 1.0)])).await.unwrap();
    node.flush(None).await.unwrap();
    node.write(SHARD, part(&old, 2, "d", &[(2, 2.0)])).await.unwrap();
    node.drop_table(DATABASE, TABLE).await.unwrap();
    // Whoever has not heard of it is told, and nothing is kept that no query would ever show.
    assert_eq!(node.write(SHARD, part(&old, 3, "d", &[(3, 3.0)])).await.unwrap().outcome(), &cluster::Outcome::Dropped);
    assert!(node.catalog().database(DATABASE).unwrap().tables.is_empty());
    assert!(rows(&node, &old).await.is_empty());
    let columns = vec![NewColumn { name: "device_id".into(), field: None }, field("celsius", ColumnType::F64)];
    node.add_columns(DATABASE, vec![(TABLE.into(), columns)]).await.unwrap();
    let new = table(&node);
    assert_ne!(new.id, old.id);
    assert!(rows(&node, &new).await.is_empty());
    node.shutdown().await;
    assert!(rows(&*start(&disk).await, &new).await.is_empty());
}

#[tokio::test]
async fn a_retention_has_effect_at_once_and_stays_when_the_clock_goes_back() {
    let disk = FaultyDisk::new(6);
    let (node, schema) = start_with_table(&disk).await;
    let hour = 3_600_000_000_000;
    node.write(SHARD, part(&schema, 1, "d", &[(-2 * hour, 1.0), (0, 2.0)])).await.unwrap();
    let database = node.catalog().database(DATABASE).unwrap().clone();
    assert_eq!(node.cutoff(&database), None);
    node.set_retention(DATABASE, Some(hour)).await.unwrap();
    let cutoff = node.cutoff(&database).unwrap();
    assert!((NOW.0 - hour..NOW.0).contains(&cutoff.0));
    assert_eq!(rows(&node, &schema).await, Rows::from([row("d", 0, 2.0)]));
    node.shutdown().await;
    let mut earlier = options(&disk);
    earlier.clock = Arc::new(move || Timestamp(NOW.0 - 100 * hour));
    let node = Cluster::start(earlier).await.unwrap();
    assert_eq!(node.cutoff(&database), Some(cutoff));
    assert_eq!(rows(&node, &schema).await, Rows::from([row("d", 0, 2.0)]));
}

#[tokio::test]
async fn tokens_are_made_found_revoked_and_survive_a_restart() {
    let disk = FaultyDisk::new(6);
    let mut node = start(&disk).await;
    assert!(!node.has_tokens());
    let root = Token::admin("root", TokenHash::of("secret of root"), Timestamp(7));
    let device = Token { permissions: vec![Permission::Write], ..Token::admin("device", TokenHash::of("secret of device"), Timestamp(8)) };
    node.create_token(root.clone()).await.unwrap();
    node.create_token(device.clone()).await.unwrap();
    for name in ["", "a\nb", &"x".repeat(256)] {
        let bad = Token { name: name.into(), ..device.clone() };
        assert!(matches!(node.create_token(bad).await, Err(Error::BadTokenName)), "{name:?}");
    }
    node.shutdown().await;
    node = start(&disk).await;
    assert!(node.has_tokens());
    assert_eq!(*node.authorize("secret of device").unwrap(), device);
    assert!(node.authorize("secret of dev").is_none());
    node.revoke_token("device").await.unwrap();
    assert!(node.authorize("secret of device").is_none());
    assert!(matches!(node.revoke_token("device").await, Err(Error::NoToken { .. })));
    assert!(matches!(node.revoke_token("root").await, Err(Error::NoAdminLeft)));
    node.reset_token(Token { hash: TokenHash::of("new"), ..root }).await.unwrap();
    assert!(node.authorize("secret of root").is_none());
    assert_eq!(&*node.authorize("new").unwrap().name, "root");
}
