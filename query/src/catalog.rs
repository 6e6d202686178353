//! Databases and tables as SQL sees them: a database is a schema of the one catalog, `system` and `information_schema`
//! are schemas beside them, reachable from every database. Names keep their case.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::TableType;
use model::DatabaseSchema;

use crate::engine::Inner;
use crate::scope::Scope;
use crate::system_tables;
use crate::table::{Table, Which};

/// The one catalog's name.
pub(crate) const CATALOG: &str = "alluvium";
/// The schema of system tables.
pub(crate) const SYSTEM: &str = "system";

/// All catalogs: one.
pub(crate) struct Catalogs {
    pub scope: Arc<Scope>,
    pub engine: Arc<Inner>,
}

impl std::fmt::Debug for Catalogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.scope.fmt(f)
    }
}

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _name: String, _catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG)
            .then(|| Arc::new(Databases { scope: self.scope.clone(), engine: self.engine.clone() }) as Arc<dyn CatalogProvider>)
    }
}

struct Databases {
    scope: Arc<Scope>,
    engine: Arc<Inner>,
}

impl std::fmt::Debug for Databases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.scope.fmt(f)
    }
}

impl CatalogProvider for Databases {
    fn schema_names(&self) -> Vec<String> {
        self.scope.catalog.databases.keys().map(|n| n.to_string()).chain([SYSTEM.to_owned()]).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == SYSTEM {
            return Some(Arc::new(System { scope: self.scope.clone(), engine: self.engine.clone() }));
        }
        let database = self.scope.catalog.database(name)?.clone();
        Some(Arc::new(Tables(database)))
    }
}

/// The tables of one database.
#[derive(Debug)]
struct Tables(Arc<DatabaseSchema>);

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.0.tables.keys().map(|n| n.to_string()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = self.0.tables.get(name).cloned();
        Ok(table.map(|t| Arc::new(Table::new(self.0.clone(), t, Which::Every)) as Arc<dyn TableProvider>))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.tables.contains_key(name)
    }
}

struct System {
    scope: Arc<Scope>,
    engine: Arc<Inner>,
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.scope.fmt(f)
    }
}

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        system_tables::NAMES.iter().map(|n| (*n).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        system_tables::table(name, &self.scope, &self.engine).await
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        system_tables::NAMES.contains(&name)
    }
}
