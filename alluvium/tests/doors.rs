//! Who may do what: every route and method, with every kind of token that is not enough, and with those that are.

mod program;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use alluvium::listen::routes::{Needs, ROUTES, find};
use cluster::{Clock, Cluster, ClusterOptions};
use ingest::{Ingest, IngestOptions};
use model::Timestamp;
use program::{RunningNode, alluvium, run};
use query::{Engine, QueryOptions, Sources};
use storage::disk::RealDisk;
use tempfile::TempDir;

const ROOT: &str = "root-0123456789abcdef0123456789abcdef";
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// A request about the database `home` for each route and method that does something there: what it says, what its sender
/// must be allowed to do.
const REQUESTS: [(&str, &str, &str, &str, &str); 22] = [
    ("POST", "/write", "db=home", "m v=1", "write"),
    ("POST", "/api/v2/write", "bucket=home", "m v=1", "write"),
    ("POST", "/api/v3/write_lp", "db=home", "m v=1", "write"),
    ("GET", "/api/v3/query_sql", "db=home&q=SELECT%201", "", "read"),
    ("POST", "/api/v3/query_sql", "", r#"{"db":"home","q":"SELECT 1"}"#, "read"),
    ("POST", "/api/v3/configure/database", "", r#"{"db":"home"}"#, "write"),
    ("DELETE", "/api/v3/configure/database", "db=home", "", "admin"),
    ("POST", "/api/v3/configure/token", "", r#"{"name":"x","permissions":["read"]}"#, "all"),
    ("GET", "/api/v3/configure/token", "", "", "all"),
    ("DELETE", "/api/v3/configure/token", "name=none", "", "all"),
    ("GET", "/sql", "db=home&q=SELECT%201", "", "read"),
    ("POST", "/sql", "db=home", "SELECT 1", "read"),
    ("POST", "/sql", "db=home", "SHOW TABLES", "read"),
    ("POST", "/sql", "db=home", "FLUSH", "write"),
    ("POST", "/sql", "db=other", "FLUSH TABLE home.m", "write"),
    ("POST", "/sql", "db=other", "CREATE DATABASE IF NOT EXISTS home", "write"),
    ("POST", "/sql", "db=home", "DROP TABLE IF EXISTS none", "admin"),
    ("POST", "/sql", "db=other", "ALTER DATABASE home SET retention = none", "admin"),
    ("POST", "/sql", "db=home", "KILL QUERY 1", "all"),
    ("GET", "/query", "db=home&q=SHOW%20MEASUREMENTS", "", "read"),
    ("POST", "/query", "q=CREATE%20DATABASE%20home", "", "write"),
    ("GET", "/cluster/v1/status", "", "", "all"),
];

struct Answer {
    status: u16,
    text: String,
}

/// Sends one request on a connection of its own.
fn ask(node: &RunningNode, method: &str, path: &str, query: &str, body: &str, token: Option<&str>) -> Answer {
    let address = node.url.trim_start_matches("http://");
    let authorization = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: elsewhere.example\r\n{authorization}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).expect("the node listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("the request is read");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer ends properly");
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{method} {target}: {text:?}"));
    Answer { status, text }
}

/// A node with an admin from outside and a database `home`.
fn start(dir: &TempDir) -> RunningNode {
    let node = RunningNode::start(dir.path(), &["--admin-token", ROOT]);
    assert_eq!(ask(&node, "POST", "/write", "db=home", "m v=1 1", Some(ROOT)).status, 204);
    assert_eq!(ask(&node, "POST", "/write", "db=other", "n v=1 1", Some(ROOT)).status, 204);
    node
}

fn create(node: &RunningNode, name: &str, can: &str, database: Option<&str>) -> String {
    let mut arguments = vec!["token", "create", name, "--can", can, "--url", &node.url, "--token", ROOT];
    arguments.extend(database.iter().flat_map(|name| ["--db", *name]));
    run(&arguments).done().trim().to_owned()
}

#[test]
fn every_route_asks_for_a_token_that_is_enough() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = start(&dir);
    let everything = create(&node, "admin", "admin", None);
    let tokens = [
        ("read", create(&node, "reader", "read", Some("home"))),
        ("write", create(&node, "writer", "write", Some("home"))),
        ("admin", create(&node, "keeper", "admin", Some("home"))),
    ];
    let elsewhere = create(&node, "elsewhere", "read,write,admin", Some("other"));
    let short = &everything[..everything.len() - 1];
    for (path, needs) in ROUTES {
        for method in METHODS {
            for token in [None, Some("wrong"), Some(short), Some("")] {
                let Answer { status, text } = ask(&node, method, path, "", "", token);
                match needs {
                    Needs::Nothing => assert!(![401, 403].contains(&status), "{method} {path} {token:?}: {text}"),
                    _ => assert_eq!(status, 401, "{method} {path} {token:?}: {text}"),
                }
            }
            let status = ask(&node, method, path, "", "", Some(&everything)).status;
            assert!(![401, 403].contains(&status), "{method} {path}: an admin of all databases may come in everywhere, not {status}");
            if needs == Needs::AdminOfAll {
                for token in [&tokens[0].1, &tokens[1].1, &tokens[2].1, &elsewhere] {
                    assert_eq!(ask(&node, method, path, "", "", Some(token)).status, 403, "{method} {path}");
                }
            }
        }
    }
    for (method, path, query, body, enough) in REQUESTS {
        let answer = ask(&node, method, path, query, body, Some(&elsewhere));
        assert_eq!(answer.status, 403, "{method} {path} {body} with a token of another database: {}", answer.text);
        for (can, token) in &tokens {
            let Answer { status, text } = ask(&node, method, path, query, body, Some(token));
            let may = *can == enough || (*can == "admin" && enough != "all");
            assert_eq!(status == 403, !may, "{method} {path} {query} {body} by one who can {can}: {text}");
        }
        let Answer { status, text } = ask(&node, method, path, query, body, Some(&everything));
        assert!(![401, 403].contains(&status), "{method} {path} {query} {body} by an admin of all: {text}");
    }
    for (path, needs) in ROUTES.iter().filter(|(_, needs)| *needs == Needs::Token) {
        assert!(REQUESTS.iter().any(|(_, listed, ..)| listed == path), "no request shows what {path} asks for ({needs:?})");
    }
}

#[test]
fn a_token_of_one_database_sees_nothing_of_the_others() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = start(&dir);
    let reader = create(&node, "reader", "read", Some("home"));
    let sql = |sql: &str, token: &str| ask(&node, "POST", "/sql", "db=home&format=csv", sql, Some(token));
    // The same text by one who may see both: its plan must not answer the other.
    let across = "SELECT v FROM other.n";
    assert_eq!(sql(across, ROOT).status, 200);
    assert_eq!(sql(across, ROOT).status, 200);
    let answer = sql(across, &reader);
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert_eq!(sql("SELECT v FROM m", &reader).status, 200);
    for question in [
        "SELECT * FROM latest(other.n)",
        "SELECT database FROM system.databases",
        "SELECT * FROM system.tables",
        "SELECT * FROM system.columns",
        "SELECT * FROM system.files",
        "SELECT database FROM system.queries",
        "SELECT * FROM system.refused_lines",
        "SELECT * FROM system.settings",
        "SELECT table_schema FROM information_schema.tables",
        "SHOW DATABASES",
    ] {
        let answer = sql(question, &reader);
        let body = answer.text.split("\r\n\r\n").nth(1).expect("a body");
        assert!(answer.status == 400 || !body.contains("other"), "{question}: {body}");
    }
    let list = ask(&node, "GET", "/api/v3/configure/database", "", "", Some(&reader));
    assert!(list.text.contains("home") && !list.text.contains("other"), "{}", list.text);
    let list = ask(&node, "GET", "/query", "q=SHOW%20DATABASES", "", Some(&reader));
    assert!(list.text.contains("home") && !list.text.contains("other"), "{}", list.text);
}

#[test]
fn what_is_refused_says_so_in_the_words_of_its_endpoint() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = start(&dir);
    let reader = create(&node, "reader", "read", None);
    let questdb = ask(&node, "POST", "/write", "", "m v=1", None);
    assert_eq!(questdb.status, 401);
    assert!(questdb.text.contains("\r\nwww-authenticate: Bearer "), "{}", questdb.text);
    let body: serde_json::Value = serde_json::from_str(questdb.text.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    let keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "errorId", "line", "message"]);
    let v3 = ask(&node, "POST", "/api/v3/write_lp", "db=home", "m v=1", Some(&reader));
    assert!(v3.text.contains(r#""code":"forbidden","message":"token 'reader' may not write to database 'home'""#), "{}", v3.text);
    let v1 = ask(&node, "POST", "/write", &format!("db=home&u=any&p={ROOT}"), "m v=1 2", None);
    assert_eq!(v1.status, 204, "{}", v1.text);
    let v1 = ask(&node, "POST", "/write", &format!("db=home&u=any&p={ROOT}"), "m v=1 2", Some("wrong"));
    assert_eq!(v1.status, 204, "the parameter goes before the header: {}", v1.text);
}

#[test]
fn every_error_has_the_number_of_its_request() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = start(&dir);
    for (method, path, query, body) in [
        ("POST", "/sql", "", "SELECT * FROM nowhere"),
        ("PUT", "/sql", "", "SELECT 1"),
        ("GET", "/api/v3/query_sql", "q=SELECT%20rate(1)", ""),
        ("POST", "/api/v3/write_lp", "db=home", "m"),
        ("POST", "/write", "", "m"),
    ] {
        let answer = ask(&node, method, path, query, body, Some(ROOT));
        let (head, body) = answer.text.split_once("\r\n\r\n").expect("a head and a body");
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("a number");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["errorId"], id, "{method} {path}");
        assert!(answer.status >= 400 && body["line"].is_u64(), "{method} {path}: {body}");
    }
}

/// Runs `alluvium token` against a node.
fn token(node: &RunningNode, arguments: &[&str]) -> program::Ran {
    let all: Vec<&str> = ["token"].iter().chain(arguments).chain(&["--url", node.url.as_str()]).copied().collect();
    run(&all)
}

#[test]
fn tokens_are_made_listed_revoked_and_reset_at_the_command_line() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = RunningNode::start(dir.path(), &[]);
    assert!(node.said.contains("auth  off (loopback only)"), "{}", node.said);
    let refused = token(&node, &["create", "device", "--can", "write"]);
    assert!(refused.code == 1 && refused.err.contains("must be an admin of all databases"), "{refused:#?}");
    let secret = token(&node, &["create", "root", "--can", "admin"]).done();
    let secret = secret.trim();
    assert!(secret.starts_with("alluvium_") && secret.len() == 73, "{secret}");
    let refused = node.ask(&["sql", "SELECT 1"]);
    assert!(refused.code == 1 && refused.err.contains("access token"), "{refused:#?}");
    assert_eq!(node.ask(&["sql", "SELECT 1 AS one", "--token", secret]).done(), "one\n1\n");
    token(&node, &["create", "gate", "--can", "write", "--db", "home", "--token", secret]).done();
    let list = token(&node, &["list", "--token", secret]).done();
    assert!(list.starts_with("name,permissions,database,created\ngate,write,home,20"), "{list}");
    token(&node, &["revoke", "gate", "--token", secret]).done();
    let last = token(&node, &["revoke", "root", "--token", secret]);
    assert!(last.code == 1 && last.err.contains("admin of all databases") && !last.err.contains("   "), "{last:#?}");
    let running = run(&["token", "reset", "--data-dir", dir.path().to_str().expect("a plain name")]);
    assert_eq!(running.code, 1, "a running node's directory is not touched: {running:#?}");
    node.terminate();
    let fresh = run(&["token", "reset", "--name", "root", "--data-dir", dir.path().to_str().expect("a plain name")]).done();
    let node = RunningNode::start(dir.path(), &[]);
    assert!(node.said.contains("auth  on"), "{}", node.said);
    assert_eq!(node.ask(&["sql", "SELECT 1 AS one", "--token", fresh.trim()]).done(), "one\n1\n");
    node.terminate();
    let node = RunningNode::start(dir.path(), &[]);
    assert_eq!(node.ask(&["sql", "SELECT 1 AS one", "--token", fresh.trim()]).done(), "one\n1\n");
    assert_eq!(node.ask(&["sql", "SELECT 1", "--token", secret]).code, 1);
}

#[test]
fn nobody_listens_beyond_loopback_without_a_token() {
    let dir = TempDir::new().expect("a temporary directory");
    let data_dir = dir.path().join("data");
    let start = ["serve", "--listen", "0.0.0.0:0", "--data-dir", data_dir.to_str().expect("a plain name")];
    let ran = run(&start);
    assert_eq!(ran.code, 1, "{ran:#?}");
    for way_out in ["ALLUVIUM_ADMIN_TOKEN", "--admin-token-file", "127.0.0.1", "token create"] {
        assert!(ran.err.contains(way_out), "{ran:#?}");
    }
    assert!(!data_dir.exists(), "nothing is made by a start that is refused");
    let short = alluvium(&start).env("ALLUVIUM_ADMIN_TOKEN", "guess").output().expect("the program starts");
    assert!(String::from_utf8_lossy(&short.stderr).contains("fewer than 16 letters"));
    let named = alluvium(&start).env("ALLUVIUM_ADMIN_TOKEN", format!("root:{ROOT}")).output().expect("the program starts");
    assert!(String::from_utf8_lossy(&named.stderr).contains("':'"), "{named:?}");
    let node = RunningNode::start(&data_dir, &["--admin-token", ROOT]);
    let shown = node.ask(&["sql", "SELECT value FROM system.settings WHERE name = 'admin_token'", "--token", ROOT]).done();
    assert_eq!(shown, "value\n***\n");
}

#[tokio::test]
async fn every_route_of_the_router_has_a_rule() {
    let dir = TempDir::new().expect("a temporary directory");
    let clock: Clock = Arc::new(|| Timestamp(1));
    let cluster = Cluster::start(ClusterOptions {
        node: "test".into(),
        data_dir: dir.path().join("data"),
        disk: Arc::new(RealDisk),
        shards: 1,
        clock: clock.clone(),
        seed: 7,
        flush_bytes: 64 << 20,
        last_rows_bytes: 1 << 20,
        max_waiting_bytes: 64 << 20,
        peers: None,
    })
    .await
    .expect("the node starts");
    let options = IngestOptions {
        auto_create_databases: true,
        max_body_bytes: 1 << 20,
        max_line_bytes: 1 << 20,
        max_in_flight_bytes: 64 << 20,
        clock: clock.clone(),
        origin: 1,
    };
    let ingest = Ingest::new(cluster.clone(), options);
    let sources = Sources { settings: Box::new(Vec::new), refused_lines: Box::new(Vec::new), nodes: Box::new(Vec::new) };
    let engine = Engine::new(cluster.clone(), QueryOptions::new(dir.path().join("spill"), clock.clone()), sources).expect("an engine");
    let router = alluvium::node::router(ingest, engine, cluster, clock, false, alluvium::telemetry::registry(), String::new());
    let drawn = format!("{router:?}");
    // What axum tells of a router: its paths between quotes.
    let paths: Vec<&str> = drawn.split('"').filter(|text| text.starts_with('/') && !text.starts_with("/{*__private")).collect();
    assert!(paths.contains(&"/sql") && paths.contains(&"/metrics"), "axum tells its paths in another way: {drawn}");
    for path in paths {
        assert!(find(path).is_some(), "{path} is answered but listed in no rule (listen/routes.rs)");
    }
}

#[test]
fn what_is_not_there_says_so_in_the_words_of_every_other_error() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = start(&dir);
    for (method, path, query, status) in [
        ("GET", "/nothing", "", 404),
        ("GET", "/", "", 501),
        ("POST", "/arrow.flight.protocol.FlightService/DoGet", "", 501),
        ("PUT", "/write", "db=home", 405),
        ("DELETE", "/metrics", "", 405),
        ("DELETE", "/api/v3/configure/database", "", 400),
    ] {
        let answer = ask(&node, method, path, query, "", Some(ROOT));
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        let body = answer.text.rsplit("\r\n\r\n").next().expect("a body");
        for key in ["\"code\":", "\"message\":", "\"error\":", "\"line\":", "\"errorId\":", "\"data\":"] {
            assert!(body.starts_with('{') && body.contains(key), "{method} {path} lacks {key}: {}", answer.text);
        }
    }
    assert_eq!(ask(&node, "GET", "/ping", "verbose=1&verbose=0", "", None).status, 204);
}

#[test]
fn a_token_of_one_database_reads_no_statement_of_others() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = start(&dir);
    let token = create(&node, "reader", "read", Some("home"));
    assert_eq!(ask(&node, "POST", "/sql", "db=home", "SELECT v FROM other.n", Some(ROOT)).status, 200);
    assert_eq!(ask(&node, "POST", "/sql", "db=home", "SELECT v AS mine FROM m", Some(&token)).status, 200);
    let seen = ask(&node, "POST", "/sql", "db=home&format=csv", "SELECT database, sql FROM system.queries", Some(&token));
    assert!(seen.text.contains("home,SELECT v AS mine FROM m") && !seen.text.contains("other.n"), "{}", seen.text);
    let all = ask(&node, "POST", "/sql", "db=home&format=csv", "SELECT database, sql FROM system.queries", Some(ROOT));
    assert!(all.text.contains("SELECT v FROM other.n") && all.text.contains("AS mine"), "{}", all.text);
}
