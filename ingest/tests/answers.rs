//! What the write endpoints answer, to the letter, and that it is true.

mod node;

use node::Node;
use serde_json::json;

const ENDPOINTS: [&str; 4] = ["/write?db=d", "/write", "/api/v2/write?org=o&bucket=d", "/api/v3/write_lp?db=d"];

fn database_of(endpoint: &str) -> &'static str {
    if endpoint == "/write" { "default" } else { "d" }
}

#[tokio::test]
async fn points_of_every_endpoint_are_there_once_204_is_answered() {
    for endpoint in ENDPOINTS {
        let node = Node::start().await;
        node.stored(endpoint, "cpu,device_id=a v=1.5 1700000000000000000\ncpu,device_id=b v=2 1700000000000000001").await;
        let rows = ["2023-11-14T22:13:20 a 1.5", "2023-11-14T22:13:20.000000001 b 2.0"];
        assert_eq!(node.rows(database_of(endpoint), "cpu").await, rows, "{endpoint}");
    }
}

#[tokio::test]
async fn precision_has_the_default_of_the_endpoint() {
    let node = Node::start().await;
    for (endpoint, time, shown) in [
        ("/write?db=d&precision=s", "1700000000", "2023-11-14T22:13:20"),
        ("/write?db=d&precision=", "1700000000", "1970-01-01T00:00:01.700"),
        ("/write?precision=n", "5", "1970-01-01T00:00:00.000000005"),
        ("/api/v2/write?bucket=d&precision=ms", "1700000000000", "2023-11-14T22:13:20"),
        ("/api/v2/write?bucket=d", "1700000000", "1970-01-01T00:00:01.700"),
        ("/api/v3/write_lp?db=d", "1700000000", "2023-11-14T22:13:20"),
        ("/api/v3/write_lp?db=d&precision=nanosecond&no_sync=true", "7", "1970-01-01T00:00:00.000000007"),
    ] {
        let table = format!("t{}", time.len() * 100 + endpoint.len());
        node.stored(endpoint, &format!("{table} v=1 {time}")).await;
        let database = if endpoint.starts_with("/write?p") { "default" } else { "d" };
        assert_eq!(node.rows(database, &table).await, [format!("{shown} 1.0")], "{endpoint}");
    }
}

#[tokio::test]
async fn good_lines_are_stored_and_each_bad_one_is_named() {
    let body = "# lines\ncpu,device_id=a v=1 1\ncpu\n\ncpu,device_id=a v=x 2\ncpu,device_id=b v=2 3\n";
    let data = json!([
        {"line_number": 3, "original_line": "cpu", "error_message": "no field: expected ' field=value' at column 4"},
        {"line_number": 5, "original_line": "cpu,device_id=a v=x 2", "error_message": "invalid field value 'x' at column 19"},
    ]);
    let message = "2 lines refused, the others are stored; line 3: no field: expected ' field=value' at column 4";
    for endpoint in ENDPOINTS {
        let node = Node::start().await;
        let answer = node.write(&format!("{endpoint}{}precision=ns", if endpoint.contains('?') { '&' } else { '?' }), body).await;
        assert_eq!(answer.status, 400, "{endpoint}");
        let expected = match endpoint {
            "/write" => json!({"code": "invalid", "message": message, "line": 3}),
            "/write?db=d" => json!({
                "code": "invalid", "message": message, "line": 3, "data": data,
                "error": "partial write: unable to parse 'cpu': no field: expected ' field=value' at column 4 dropped=2",
            }),
            _ => json!({
                "code": "invalid", "message": message, "line": 3, "data": data,
                "error": "partial write of line protocol occurred",
            }),
        };
        assert_eq!(answer.error(), expected, "{endpoint}");
        let rows = node.rows(database_of(endpoint), "cpu").await;
        assert_eq!(rows, ["1970-01-01T00:00:00.000000001 a 1.0", "1970-01-01T00:00:00.000000003 b 2.0"], "{endpoint}");
    }
}

#[tokio::test]
async fn questdbs_clients_get_exactly_four_keys() {
    let node = Node::start().await;
    let answer = node.write("/write", "cpu").await;
    let body = answer.json();
    let keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "errorId", "line", "message"]);
    assert!(answer.text().starts_with("{\"code\":\"invalid\",\"message\":\""), "{}", answer.text());
}

#[tokio::test]
async fn nothing_is_stored_where_nothing_could_be_parsed() {
    let message = "1 line refused, nothing is stored; line 1: no field: expected ' field=value' at column 4";
    for endpoint in ENDPOINTS {
        let node = Node::start().await;
        let answer = node.write(endpoint, "cpu").await;
        assert_eq!(answer.status, 400, "{endpoint}");
        let error = answer.error();
        assert_eq!(error["message"], message, "{endpoint}");
        let sentence = match endpoint {
            "/write" => json!(null),
            "/write?db=d" => json!("unable to parse 'cpu': no field: expected ' field=value' at column 4 dropped=1"),
            _ => json!("parsing failed for write_lp endpoint"),
        };
        assert_eq!(error.get("error").unwrap_or(&json!(null)), &sentence, "{endpoint}");
        assert!(node.rows(database_of(endpoint), "cpu").await.is_empty(), "{endpoint}");
    }
}

#[tokio::test]
async fn a_type_conflict_is_a_partial_write_in_influxdb_1s_words() {
    let node = Node::start().await;
    node.stored("/write?db=d", "cpu v=1 1").await;
    let answer = node.write("/write?db=d", "cpu v=2i 2").await;
    assert_eq!(answer.status, 400);
    let error = answer.error();
    assert_eq!(error["error"], "partial write: field type conflict: column 'v' of table 'cpu' is type float, not integer dropped=1");
    assert_eq!(error["data"][0]["error_message"], "column 'v' of table 'cpu' is type float, not integer");
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 1.0"]);
    // The first kind wins within one body too.
    let answer = node.write("/write?db=d", "mem v=t 1\nmem v=1 2\nmem,v=x w=1 3").await;
    assert_eq!(answer.error()["data"].as_array().map(Vec::len), Some(2), "{}", answer.text());
    assert_eq!(node.rows("d", "mem").await, ["1970-01-01T00:00:00.000000001 true"]);
}

#[tokio::test]
async fn accept_partial_false_is_decided_before_anything_is_stored() {
    let node = Node::start().await;
    let answer = node.write("/api/v3/write_lp?db=d&accept_partial=false&precision=ns", "cpu v=1 1\ncpu\nmem v=1 1").await;
    assert_eq!(answer.status, 400);
    let message = "1 line refused, nothing is stored because of accept_partial=false; \
                   line 2: no field: expected ' field=value' at column 4";
    let expected = json!({
        "code": "invalid", "message": message, "error": "parsing failed for write_lp endpoint", "line": 2,
        "data": [{"line_number": 2, "original_line": "cpu", "error_message": "no field: expected ' field=value' at column 4"}],
    });
    assert_eq!(answer.error()["message"], expected["message"]);
    assert_eq!(answer.error(), expected);
    assert!(node.rows("d", "cpu").await.is_empty());
    // A conflict that shows only once columns are agreed on counts as well.
    node.stored("/api/v3/write_lp?db=d&accept_partial=false&precision=ns", "cpu v=1 1").await;
    let answer = node.write("/api/v3/write_lp?db=d&accept_partial=false&precision=ns", "cpu v=5 5\ncpu v=2i 2").await;
    assert_eq!((answer.status, &answer.error()["error"]), (400, &json!("parsing failed for write_lp endpoint")));
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 1.0"]);
}

#[tokio::test]
async fn a_thousand_bad_lines_are_named_and_all_are_counted() {
    let node = Node::start().await;
    let answer = node.write("/api/v2/write?bucket=d", &"bad\n".repeat(1_500)).await;
    let error = answer.error();
    assert_eq!(error["data"].as_array().map(Vec::len), Some(1_000));
    assert_eq!(error["data"][999]["line_number"], 1_000);
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with("1500 lines refused, nothing is stored; line 1: "), "{message}");
}

#[tokio::test]
async fn refused_lines_are_kept_for_whoever_runs_the_server() {
    let node = Node::start().await;
    let answer = node.write("/write?db=d", "cpu v=1 1\nbad").await;
    let kept = node.ingest.refused_lines();
    assert_eq!(kept.len(), 1);
    assert_eq!((&*kept[0].database, kept[0].line_number, &*kept[0].line), ("d", 2, "bad"));
    assert_eq!((kept[0].time.0, &*kept[0].request_id), (node::NOW, answer.json()["errorId"].as_str().expect("an id")));
}

#[tokio::test]
async fn an_unknown_database_is_created_or_is_a_404() {
    let node = Node::start_with(|options| options.auto_create_databases = false).await;
    let answer = node.write("/write?db=nope", "cpu v=1").await;
    assert_eq!(answer.status, 404);
    let sentence = "database not found: \"nope\"";
    assert_eq!(answer.error(), json!({"code": "not found", "message": sentence, "error": sentence, "line": 0, "data": []}));
    assert!(node.cluster.catalog().databases.is_empty());
    // Questions find the default one on a new node, so writes do too.
    for endpoint in ["/write", "/write?db=", "/api/v2/write?bucket=default"] {
        let node = Node::start_with(|options| options.auto_create_databases = false).await;
        assert_eq!(node.write(endpoint, "cpu v=").await.status, 400, "{endpoint}");
        assert!(node.cluster.catalog().databases.is_empty(), "{endpoint}");
        node.stored(endpoint, "cpu v=1").await;
        assert_eq!(node.rows("default", "cpu").await.len(), 1, "{endpoint}");
    }
}

#[tokio::test]
async fn a_write_of_which_nothing_is_stored_leaves_no_database_behind() {
    let node = Node::start().await;
    for (endpoint, body) in [
        ("/write?db=d", "cpu"),
        ("/api/v2/write?bucket=d", "cpu v=bad\ncpu v=x"),
        ("/api/v3/write_lp?db=d", "cpu v="),
        ("/api/v3/write_lp?db=d&accept_partial=false", "cpu v=1\ncpu v=bad"),
    ] {
        let answer = node.write(endpoint, body).await;
        assert_eq!(answer.status, 400, "{endpoint}");
        assert!(node.cluster.catalog().databases.is_empty(), "{endpoint}");
    }
    let answer = node.write("/api/v3/write_lp?db=d", "cpu v=1\ncpu v=bad").await;
    assert_eq!(answer.status, 400);
    assert_eq!(node.rows("d", "cpu").await.len(), 1);
}

#[tokio::test]
async fn bad_parameters_are_named() {
    let node = Node::start().await;
    let answer = node.write("/api/v2/write?bucket=d&precision=d", "cpu v=1").await;
    assert_eq!(answer.status, 400);
    let sentence = "parameter 'precision' cannot be 'd': use ns, us, ms, s, m, h, nanosecond, microsecond, millisecond, second or auto";
    assert_eq!(answer.error(), json!({"code": "invalid", "message": sentence, "error": sentence, "line": 0, "data": []}));
    let answer = node.write("/api/v3/write_lp?db=information_schema", "cpu v=1").await;
    assert_eq!((answer.status, &answer.error()["message"]), (400, &json!("database name 'information_schema' is reserved")));
}

#[tokio::test]
async fn points_without_time_get_their_arrival_and_line() {
    let node = Node::start().await;
    node.stored("/write?db=d", "# one\ncpu v=1\n\ncpu v=2").await;
    let rows = ["2023-11-14T22:13:20.000000002 1.0", "2023-11-14T22:13:20.000000004 2.0"];
    assert_eq!(node.rows("d", "cpu").await, rows);
}

#[tokio::test]
async fn overload_is_a_503_that_says_when_to_come_again() {
    let node = Node::start_with(|options| options.max_in_flight_bytes = 100).await;
    node.stored("/write?db=d", "cpu v=1 1").await;
    let in_flight = node.ingest.admission().admit(0).map(|mut admitted| {
        admitted.hold(80).expect("room");
        admitted
    });
    let answer = node.write("/write?db=d", "cpu,device_id=a v=1 1700000000000000000").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    let sentence =
        "the server is overloaded: 100 bytes are in flight already (setting max_in_flight_bytes); send the same body again later";
    assert_eq!(answer.error(), json!({"code": "unavailable", "message": sentence, "error": sentence, "line": 0, "data": []}));
    drop(in_flight);
    node.stored("/write?db=d", "cpu,device_id=a v=1 1700000000000000000").await;
    assert_eq!(node.ingest.admission().in_flight(), 0);
}

#[tokio::test]
async fn a_node_that_stops_takes_no_more_and_says_so() {
    let node = Node::start().await;
    assert_eq!(node.send("GET /ready", &[], b"").await.status, 200);
    node.ingest.drain();
    for endpoint in ENDPOINTS {
        let answer = node.write(endpoint, "cpu v=1").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{endpoint}");
        assert_eq!(answer.error()["message"], "the node is shutting down: send the same body again to another node or later");
    }
    assert_eq!(node.send("GET /ready", &[], b"").await.status, 503);
    assert_eq!(node.send("GET /health", &[], b"").await.status, 200);
}
