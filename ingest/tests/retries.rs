//! A body that is sent again: harmless with its own times, and with a key even without them.

mod node;

use std::sync::atomic::Ordering::Relaxed;

use node::{NOW, Node};

async fn send(node: &Node, key: &str, body: &str) {
    let answer = node.send("POST /write?db=d", &[&format!("Idempotency-Key: {key}")], body.as_bytes()).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
}

#[tokio::test]
async fn the_same_points_twice_change_nothing() {
    let node = Node::start().await;
    for _ in 0..2 {
        node.stored("/write?db=d", "cpu,device_id=a v=1 1\ncpu,device_id=b v=2 1\ncpu,device_id=a v=1 1").await;
    }
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 a 1.0", "1970-01-01T00:00:00.000000001 b 2.0"]);
}

#[tokio::test]
async fn a_retry_with_a_key_does_not_undo_a_newer_write() {
    let node = Node::start().await;
    send(&node, "k1", "cpu,device_id=a v=1 1").await;
    node.stored("/write?db=d", "cpu,device_id=a v=2 1").await;
    send(&node, "k1", "cpu,device_id=a v=1 1").await;
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 a 2.0"]);
    // Another key is another request.
    send(&node, "k2", "cpu,device_id=a v=1 1").await;
    assert_eq!(node.rows("d", "cpu").await, ["1970-01-01T00:00:00.000000001 a 1.0"]);
}

#[tokio::test]
async fn points_without_time_are_stored_once_for_each_key() {
    let node = Node::start().await;
    let body = "cpu,device_id=a v=1\ncpu,device_id=b v=1\ncpu,device_id=c v=1";
    send(&node, "k", body).await;
    let first = node.rows("d", "cpu").await;
    assert_eq!(first.len(), 3);
    node.clock.store(NOW + 5_000_000_000, Relaxed);
    send(&node, "k", body).await;
    assert_eq!(node.rows("d", "cpu").await, first);
    // Without a key a retry makes new points.
    node.stored("/write?db=d", body).await;
    assert_eq!(node.rows("d", "cpu").await.len(), 6);
}

#[tokio::test]
async fn the_same_key_with_another_body_loses_nothing() {
    let node = Node::start().await;
    send(&node, "k", "cpu,device_id=a v=1 1").await;
    send(&node, "k", "cpu,device_id=a v=1 2").await;
    assert_eq!(node.rows("d", "cpu").await.len(), 2);
}

#[tokio::test]
async fn a_retry_answers_the_first_refusal_again() {
    let node = Node::start().await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        let answer = node.send("POST /write?db=d", &["Idempotency-Key: k"], b"cpu v=1\nbad\n").await;
        answers.push((answer.status, answer.error()));
    }
    assert_eq!(answers[0].0, 400);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(node.rows("d", "cpu").await.len(), 1);
}

#[tokio::test]
async fn a_key_that_is_no_text_is_refused_and_not_forgotten() {
    let node = Node::start().await;
    let answer = node.send("POST /write?db=d", &["Idempotency-Key: k\u{e9}"], b"cpu v=1 1").await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.error()["message"].as_str().is_some_and(|m| m.contains("Idempotency-Key")), "{}", answer.text());
    assert!(node.rows("d", "cpu").await.is_empty());
}

#[tokio::test]
async fn a_body_of_several_entries_is_stored_once_for_each_key() {
    let node = Node::start().await;
    let text = "x".repeat(1_000);
    let body: String = (0..4_000).map(|n| format!("log,device_id=d{} text=\"{n}{text}\"\n", n % 50)).collect();
    for _ in 0..2 {
        send(&node, "large", &body).await;
    }
    assert_eq!(node.rows("d", "log").await.len(), 4_000);
}
