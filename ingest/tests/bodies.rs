//! How bodies may come: pieces, gzip, nothing at all, too much, or something else.

mod node;

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use node::{Answer, Node};
use serde_json::json;

const LINE: &[u8] = b"cpu v=1 1";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

fn whole_error(code: &str, sentence: &str) -> serde_json::Value {
    json!({"code": code, "message": sentence, "error": sentence, "line": 0, "data": []})
}

async fn post(node: &Node, headers: &[&str], body: &[u8]) -> Answer {
    node.send("POST /api/v2/write?bucket=d", headers, body).await
}

#[tokio::test]
async fn gzip_of_several_members_is_one_body() {
    let node = Node::start().await;
    let mut body = gzip(b"cpu v=1 1\ncpu v=");
    body.extend(gzip(b"2 2\n"));
    let answer = post(&node, &["Content-Encoding: gzip", "Content-Type: text/plain; charset=utf-8"], &body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 1.0", "1970-01-01T00:00:00.000000002 2.0"]);
}

#[tokio::test]
async fn chunked_bodies_are_fine() {
    let node = Node::start().await;
    let body = b"3\r\ncpu\r\n4\r\n v=1\r\n2\r\n 1\r\n0\r\n\r\n";
    let answer = post(&node, &["Transfer-Encoding: chunked"], body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 1.0"]);
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_before_and_after_inflation() {
    let node = Node::start_with(|options| options.max_body_bytes = 10_000).await;
    let large = b"cpu v=1 1\n".repeat(1_001);
    let as_sent = "the body is larger than 10000 bytes as sent (setting max_body_bytes): send fewer lines at a time";
    let inflated = "the body is larger than 10000 bytes when inflated (setting max_body_bytes): send fewer lines at a time";
    let answer = post(&node, &[], &large).await;
    assert_eq!((answer.status, answer.error()), (413, whole_error("request too large", as_sent)));
    let mut chunked = format!("{:x}\r\n", large.len()).into_bytes();
    chunked.extend_from_slice(&large);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    let answer = post(&node, &["Transfer-Encoding: chunked"], &chunked).await;
    assert_eq!((answer.status, answer.error()), (413, whole_error("request too large", as_sent)));
    let answer = post(&node, &["Content-Encoding: gzip"], &gzip(&large)).await;
    assert_eq!((answer.status, answer.error()), (413, whole_error("request too large", inflated)));
    assert!(node.rows("d", "cpu").await.is_empty());
    let answer = post(&node, &[], &large[..10_000]).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(node.ingest.admission().in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_still_sees_the_413() {
    let node = Node::start_with(|options| options.max_body_bytes = 1_000).await;
    let answer = post(&node, &[], &vec![b'x'; 20 << 20]).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn other_encodings_and_types_are_a_415() {
    let node = Node::start().await;
    let answer = post(&node, &["Content-Encoding: br"], LINE).await;
    let sentence = "content encoding 'br' is not supported: send gzip or no encoding";
    assert_eq!((answer.status, answer.error()), (415, whole_error("unsupported media type", sentence)));
    let answer = post(&node, &["Content-Type: application/json"], b"[{\"values\":[1]}]").await;
    let sentence = "a body of type 'application/json' is not line protocol: send lines like table,tag=value field=1.5 1700000000000000000";
    assert_eq!((answer.status, answer.error()), (415, whole_error("unsupported media type", sentence)));
    let answer = post(&node, &[], b"[{\"values\":[1]}]").await;
    let sentence = "JSON is not line protocol: send lines like table,tag=value field=1.5 1700000000000000000";
    assert_eq!((answer.status, answer.error()), (415, whole_error("unsupported media type", sentence)));
    for kind in ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded"] {
        let answer = post(&node, &[&format!("Content-Type: {kind}")], LINE).await;
        assert_eq!(answer.status, 204, "{kind}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_body_that_does_not_inflate_is_a_400() {
    let node = Node::start().await;
    for body in [LINE.to_vec(), gzip(LINE)[..12].to_vec()] {
        let answer = post(&node, &["Content-Encoding: gzip"], &body).await;
        let message = answer.error()["message"].as_str().expect("a message").to_owned();
        assert_eq!(answer.status, 400);
        assert!(message.starts_with("could not read the body: gzip: "), "{message}");
    }
}

#[tokio::test]
async fn an_empty_body_is_nothing_to_influxdb_1_and_a_mistake_to_2_and_3() {
    let node = Node::start().await;
    for (endpoint, status) in [("/write?db=d", 204), ("/write", 204), ("/api/v2/write?bucket=d", 400), ("/api/v3/write_lp?db=d", 400)] {
        let answer = node.write(endpoint, "").await;
        assert_eq!(answer.status, status, "{endpoint}");
        if status == 400 {
            assert_eq!(answer.error(), whole_error("invalid", "the body is empty: writing requires points"));
        }
        // Compressed nothing is nothing.
        let gzipped = node.send(&format!("POST {endpoint}"), &["Content-Encoding: gzip"], &gzip(b"")).await;
        assert_eq!(gzipped.status, status, "{endpoint}");
        assert_eq!(node.write(endpoint, "# nothing\n\n").await.status, 204, "{endpoint}");
    }
}

#[tokio::test]
async fn a_large_body_is_cut_into_entries_and_all_of_it_is_there() {
    let node = Node::start().await;
    let body: String = (0..60_000).map(|n| format!("cpu,device_id=d{} v={n},text=\"{}\" {n}\n", n % 97, "y".repeat(60))).collect();
    assert!(body.len() > 5 << 20);
    node.stored("/write?db=d", &body).await;
    assert_eq!(node.rows("d", "cpu").await.len(), 60_000);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_to_be_sent_again_and_chunks_that_are_none_are_not() {
    let node = Node::start().await;
    let start = "POST /write?db=d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let answer = node.broken_off(format!("{start}Content-Length: 1000\r\n\r\ncpu v=1 1").as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    let answer = node.exchange(format!("{start}Transfer-Encoding: chunked\r\n\r\nzz\r\ncpu v=1 1").as_bytes()).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(node.rows("d", "cpu").await.is_empty());
}

#[tokio::test]
async fn text_that_is_no_utf_8_is_a_415() {
    let node = Node::start().await;
    let answer = post(&node, &["Content-Type: text/plain; charset=utf-16"], LINE).await;
    let sentence = "a body in the charset 'utf-16' is not read: send line protocol as utf-8";
    assert_eq!((answer.status, answer.error()), (415, whole_error("unsupported media type", sentence)));
}

#[tokio::test]
async fn a_line_beyond_the_setting_is_refused_alone() {
    let node = Node::start_with(|options| options.max_line_bytes = 12).await;
    let answer = post(&node, &[], b"cpu v=1 1\ncpu long=1 2345\n").await;
    assert_eq!(answer.status, 400);
    let told = answer.error()["data"][0]["error_message"].clone();
    assert_eq!(told, "line of 15 bytes is longer than 12 bytes (setting max_line_bytes)");
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 1.0"]);
}

#[tokio::test]
async fn a_name_that_is_no_text_makes_no_database() {
    let node = Node::start().await;
    for request in [
        "POST /write?db=%ff",
        "POST /write?db=%zz",
        "POST /api/v2/write?bucket=%fe",
        "POST /api/v3/write_lp?db=a%",
        "POST /query?q=CREATE+DATABASE+%ff",
        "DELETE /api/v3/configure/database?db=%ff",
    ] {
        let answer = node.send(request, &[], LINE).await;
        let message = answer.error()["message"].as_str().expect("a sentence").to_owned();
        assert!(answer.status == 400 && message.contains("percent-encode"), "{request}: {message}");
    }
    assert!(node.cluster.catalog().databases.is_empty());
}
