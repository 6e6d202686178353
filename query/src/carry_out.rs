//! Has a command done. What was said is `command`.

use std::sync::Arc;

use model::schema::is_reserved;
use model::{DatabaseSchema, TableId};

use crate::Result;
use crate::command::{Command, TableName};
use crate::distribute::calls;
use crate::engine::Inner;
use crate::error::Error;

/// Does it, and says in a few words what was done. `only`: the one database that its sender may touch, if it is not all.
pub(crate) async fn carry_out(command: Command, database: &str, only: Option<&Arc<str>>, engine: &Inner) -> Result<String> {
    let cluster = &engine.cluster;
    match command {
        Command::Flush { table } => {
            for table in tables(engine, database, only, table.as_ref()).await? {
                cluster.flush(table).await?;
            }
            Ok("flushed".to_owned())
        }
        Command::Compact { table } => {
            for table in tables(engine, database, only, table.as_ref()).await? {
                cluster.compact(table).await?;
            }
            Ok("compacted".to_owned())
        }
        Command::CreateDatabase { name, if_not_exists, routing_tag, retention_ns } => {
            if is_reserved(&name) {
                return Err(Error::sql(format!("the name {name} is reserved")));
            }
            if cluster.catalog().database(&name).is_some() {
                return match if_not_exists {
                    true => Ok(format!("database {name} exists")),
                    false => Err(Error::sql(format!("database {name} exists already: CREATE DATABASE IF NOT EXISTS is content with that"))),
                };
            }
            cluster.create_database(&name, routing_tag.as_deref(), retention_ns).await?;
            Ok(format!("created database {name}"))
        }
        Command::DropDatabase { name, if_exists } => {
            match find_database(engine, &name).await {
                Err(Error::NoDatabase { .. }) if if_exists => return Ok(format!("there is no database {name}")),
                found => found?,
            };
            cluster.drop_database(&name).await?;
            Ok(format!("dropped database {name}"))
        }
        Command::DropTable { name, if_exists } => {
            let of = name.database.as_deref().unwrap_or(database);
            match find_table(engine, database, &name).await {
                Err(Error::Sql { .. } | Error::NoDatabase { .. }) if if_exists => return Ok(format!("there is no table {}", name.table)),
                found => found?,
            };
            cluster.drop_table(of, &name.table).await?;
            Ok(format!("dropped table {}", name.table))
        }
        Command::SetRetention { database, retention_ns } => {
            find_database(engine, &database).await?;
            cluster.set_retention(&database, retention_ns).await?;
            Ok(format!("set retention of database {database}"))
        }
        Command::KillQuery { id } => {
            match engine.running.kill(id) {
                Err(e) if !calls::kill(cluster, id).await => return Err(e),
                _ => {}
            }
            Ok(format!("killed query {id}"))
        }
        Command::Show { .. } => unreachable!("SHOW is planned as a query"),
    }
}

/// The tables that are meant, `None` for all: the one that is named, else all that the sender may touch.
async fn tables(engine: &Inner, database: &str, only: Option<&Arc<str>>, named: Option<&TableName>) -> Result<Vec<Option<TableId>>> {
    Ok(match (named, only) {
        (Some(table), _) => vec![Some(find_table(engine, database, table).await?)],
        (None, None) => vec![None],
        (None, Some(only)) => find_database(engine, only).await?.tables.values().map(|table| Some(table.id)).collect(),
    })
}

/// Another node may have made it just now, so what is not known here is asked for once more.
async fn find_database(engine: &Inner, name: &str) -> Result<Arc<DatabaseSchema>> {
    if engine.cluster.catalog().database(name).is_none() && engine.cluster.peers().is_some() {
        engine.cluster.refresh().await?;
    }
    engine.cluster.catalog().database(name).cloned().ok_or_else(|| Error::NoDatabase { name: name.to_owned() })
}

/// The same of a table.
async fn find_table(engine: &Inner, database: &str, name: &TableName) -> Result<TableId> {
    let mut database = find_database(engine, name.database.as_deref().unwrap_or(database)).await?;
    if !database.tables.contains_key(&*name.table) && engine.cluster.peers().is_some() {
        engine.cluster.refresh().await?;
        database = find_database(engine, &database.name).await?;
    }
    match database.tables.get(&*name.table) {
        Some(table) => Ok(table.id),
        None => Err(Error::sql(format!("table '{}.{}' not found", database.name, name.table))),
    }
}
