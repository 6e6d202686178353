//! What clients ask around their writes.

mod node;

use node::Node;
use serde_json::json;

#[tokio::test]
async fn probes_are_answered_as_each_client_expects() {
    let node = Node::start().await;
    for method in ["GET", "HEAD", "POST"] {
        let answer = node.send(&format!("{method} /ping"), &[], b"").await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{method}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(node.send("GET /ping?verbose=true", &[], b"").await.json(), json!({"version": version}));
    let health = node.send("GET /health", &["Accept: application/json"], b"").await;
    assert_eq!(health.status, 200);
    let expected =
        json!({"name": "alluvium", "message": "ready for queries and writes", "status": "pass", "version": version, "checks": []});
    assert_eq!(health.json(), expected);
    assert_eq!(node.send("GET /health", &["Accept: text/plain"], b"").await.text(), "OK");
    assert_eq!(node.send("GET /health", &[], b"").await.json()["status"], "pass");
    assert_eq!(node.send("GET /ready", &[], b"").await.json()["status"], "ready");
    let settings = node.send("GET /settings", &[], b"").await;
    assert_eq!((settings.status, settings.header("content-type")), (200, Some("application/json")));
    assert_eq!(settings.json()["config"]["line.proto.support.versions"], json!([1]));
}

#[tokio::test]
async fn influxql_creates_databases_and_shows_what_is_there() {
    let node = Node::start().await;
    let created = json!({"results": [{"statement_id": 0}]});
    let answer = node.send("POST /query?q=CREATE+DATABASE+%22db1%22", &[], b"").await;
    assert_eq!((answer.status, answer.json()), (200, created.clone()));
    let form = ["Content-Type: application/x-www-form-urlencoded"];
    let answer = node.send("POST /query", &form, b"q=CREATE+DATABASE+%22telegraf%22&chunked=false").await;
    assert_eq!((answer.status, answer.json()), (200, created.clone()));
    assert_eq!(node.send("GET /query?q=CREATE%20DATABASE%20db1&epoch=&db=&rp=&params=%7B%7D", &[], b"").await.json(), created);
    let databases = json!({"results": [{"statement_id": 0, "series": [
        {"name": "databases", "columns": ["name"], "values": [["db1"], ["telegraf"]]},
    ]}]});
    assert_eq!(node.send("GET /query?q=SHOW+DATABASES", &[], b"").await.json(), databases);
    node.stored("/write?db=db1", "cpu,host=a usage=1.5,n=2i 1\nmem free=1u 1").await;
    let answer = node.send("GET /query?db=db1&q=SHOW+MEASUREMENTS%3B+SHOW+TAG+KEYS%3B+SHOW+FIELD+KEYS+FROM+cpu", &[], b"").await;
    let expected = json!({"results": [
        {"statement_id": 0, "series": [{"name": "measurements", "columns": ["name"], "values": [["cpu"], ["mem"]]}]},
        {"statement_id": 1, "series": [{"name": "cpu", "columns": ["tagKey"], "values": [["host"]]}]},
        {"statement_id": 2, "series": [
            {"name": "cpu", "columns": ["fieldKey", "fieldType"], "values": [["usage", "float"], ["n", "integer"]]},
        ]},
    ]});
    assert_eq!(answer.json(), expected);
    let answer = node.send("GET /query?db=nope&q=SHOW+MEASUREMENTS", &[], b"").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"results": [{"statement_id": 0, "error": "database not found: nope"}]})));
    assert_eq!(node.send("GET /query?q=SHOW+MEASUREMENTS", &[], b"").await.json(), created);
}

#[tokio::test]
async fn tag_values_are_asked_of_whoever_can_read_points() {
    let node = Node::start().await;
    node.stored("/write?db=d", "cpu,host=a v=1 1").await;
    node.ingest
        .ask_tag_values(std::sync::Arc::new(|database, table, tag| Box::pin(async move { Ok(vec![format!("{database}/{table}/{tag}")]) })));
    let answer = node.send("GET /query?db=d&q=SHOW+TAG+VALUES+WITH+KEY+%3D+%22host%22", &[], b"").await;
    let series = json!([{"name": "cpu", "columns": ["key", "value"], "values": [["host", "d/cpu/host"]]}]);
    assert_eq!(answer.json(), json!({"results": [{"statement_id": 0, "series": series}]}));
}

#[tokio::test]
async fn any_other_influxql_points_to_sql() {
    let node = Node::start().await;
    let answer = node.send("GET /query?db=d&q=SELECT+*+FROM+cpu", &[], b"").await;
    assert_eq!(answer.status, 400);
    let error = answer.error();
    assert!(error["error"].as_str().expect("a sentence").contains("POST /sql"), "{error}");
    let answer = node.send("GET /query?db=d", &[], b"").await;
    assert_eq!((answer.status, &answer.error()["error"]), (400, &json!("missing required parameter \"q\"")));
}

#[tokio::test]
async fn databases_are_configured_as_in_influxdb_3() {
    let node = Node::start().await;
    let json_type = ["Content-Type: application/json"];
    let path = "/api/v3/configure/database";
    let create = async |body: &str| node.send(&format!("POST {path}"), &json_type, body.as_bytes()).await;
    assert_eq!(create("{\"db\":\"fleet\"}").await.status, 200);
    let again = create("{\"db\":\"fleet\"}").await;
    assert_eq!((again.status, &again.error()["code"]), (409, &json!("conflict")));
    assert_eq!(create("{\"db\":\"system\"}").await.status, 400);
    let nonsense = create("fleet").await;
    let sentence = "could not read the body: expected {\"db\": \"name\"}, with \"retention_period\": \"7d\" where rows expire";
    assert_eq!((nonsense.status, &nonsense.error()["message"]), (400, &json!(sentence)));
    let listed = node.send(&format!("GET {path}?format=json"), &[], b"").await;
    assert_eq!(listed.json(), json!([{"iox::database": "fleet"}]));
    assert_eq!(node.send(&format!("DELETE {path}?db=fleet"), &[], b"").await.status, 200);
    assert_eq!(node.send(&format!("DELETE {path}?db=fleet"), &[], b"").await.status, 404);
    assert_eq!(node.send(&format!("GET {path}"), &[], b"").await.json(), json!([]));
}

#[tokio::test]
async fn a_retention_period_is_kept_and_no_key_is_swallowed() {
    let node = Node::start().await;
    let create =
        async |body: &str| node.send("POST /api/v3/configure/database", &["Content-Type: application/json"], body.as_bytes()).await;
    const DAY: i64 = 86_400_000_000_000;
    for (name, period, kept) in [
        ("week", "\"7d\"", Some(7 * DAY)),
        ("hours", "\"1h 30m\"", Some(5_400_000_000_000)),
        ("words", "\"2 weeks\"", Some(14 * DAY)),
        ("ever", "\"none\"", None),
        ("null", "null", None),
    ] {
        let answer = create(&format!("{{\"db\":\"{name}\",\"retention_period\":{period}}}")).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(node.cluster.catalog().database(name).expect("it is there").retention_ns, kept, "{name}");
    }
    for (rest, says) in [
        ("\"retention_period\":\"soon\"", "parameter 'retention_period' cannot be 'soon': write a span of time such as 7d"),
        ("\"retention_period\":\"0s\"", "cannot be '0s'"),
        ("\"retention_period\":\"600y\"", "cannot be '600y'"),
        ("\"retention_period\":7", "invalid type: integer `7`"),
        ("\"retention\":\"7d\"", "unknown field `retention`"),
    ] {
        let answer = create(&format!("{{\"db\":\"no\",{rest}}}")).await;
        let message = answer.error()["message"].as_str().expect("a sentence").to_owned();
        assert!(answer.status == 400 && message.contains(says), "{rest}: {message}");
    }
    assert!(node.cluster.catalog().database("no").is_none());
}
