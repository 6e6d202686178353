//! TLS as clients and nodes meet it: the real program, certificates that are renewed while it runs.

mod program;

use std::path::{Path, PathBuf};

use program::{RunningNode, alluvium, run};

/// Tries until a renewed certificate must have been taken; each takes a new process and a handshake.
const TRIES: usize = 200;

fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name).to_str().expect("a plain name").to_owned()
}

fn start(arguments: &[&str]) -> RunningNode {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    let mut all = vec!["serve", "--data-dir", dir.to_str().expect("a plain name"), "--listen", "127.0.0.1:0", "--shards", "1"];
    all.extend(arguments);
    RunningNode::of(alluvium(&all), &dir)
}

/// Removes a node's directory.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ask(url: &str, authority: &str) -> program::Ran {
    run(&["sql", "SELECT 1 AS one", "--url", url, "--ca-file", &file(authority)])
}

#[test]
fn a_renewed_certificate_is_taken_without_a_restart() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let (cert, key) = (keys.path().join("tls.crt"), keys.path().join("tls.key"));
    let put = |name: &str| {
        std::fs::copy(file(&format!("{name}.key")), &key).expect("a key");
        std::fs::copy(file(&format!("{name}.pem")), &cert).expect("a certificate");
    };
    put("node");
    let node = start(&["--tls-cert", cert.to_str().expect("a plain name"), "--tls-key", key.to_str().expect("a plain name")]);
    let _folder = Folder(node.data_dir.clone());
    assert!(node.url.starts_with("https://"), "{}", node.said);
    assert_eq!(ask(&node.url, "authority.pem").done(), "one\n1\n");
    let stranger = ask(&node.url, "other-authority.pem");
    assert!(stranger.code == 3 && stranger.err.contains("UnknownIssuer") && stranger.err.contains("--ca-file"), "{stranger:#?}");
    let plain = run(&["sql", "SELECT 1", "--url", &node.url.replace("https", "http")]);
    assert_ne!(plain.code, 0, "what is not encrypted is not answered");
    put("renewed");
    let taken = (0..TRIES).any(|_| ask(&node.url, "other-authority.pem").code == 0);
    assert!(taken, "the renewed certificate was never taken");
    assert_ne!(ask(&node.url, "authority.pem").code, 0);
}

#[test]
fn a_fleet_writes_and_is_read_back_over_tls() {
    let node = start(&["--tls-cert", &file("node.pem"), "--tls-key", &file("node.key")]);
    let _folder = Folder(node.data_dir.clone());
    let ca = file("authority.pem");
    let played = run(&["simulate", "--url", &node.url, "--ca-file", &ca, "--devices", "20", "--points", "2000", "--verify"]).done();
    assert!(played.contains("lost 0 · invented 0 · altered 0 · doubled 0"), "{played}");
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = dir.path().join("data");
    for (cert, key, says) in [
        (file("nowhere.pem"), file("node.key"), "nowhere.pem"),
        (file("node.key"), file("node.key"), "there is none in it"),
        (file("node.pem"), file("renewed.key"), "cannot be used"),
    ] {
        let start = [
            "serve",
            "--data-dir",
            data_dir.to_str().expect("a plain name"),
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ];
        let ran = run(&start);
        assert!(ran.code == 1 && ran.err.contains(says), "{ran:#?}");
    }
}

#[test]
fn nodes_find_each_other_by_certificates_of_one_authority() {
    let secured = [
        "--rpc-tls-cert",
        &file("node.pem"),
        "--rpc-tls-key",
        &file("node.key"),
        "--rpc-ca",
        &file("authority.pem"),
        "--rpc-listen",
        "127.0.0.1:0",
    ]
    .map(str::to_owned);
    let secured: Vec<&str> = secured.iter().map(String::as_str).collect();
    let first = start(&[&["--node-id", "storage", "--bootstrap-expect", "1"], &secured[..]].concat());
    let _first_folder = Folder(first.data_dir.clone());
    let text = std::fs::read_to_string(first.data_dir.join("node.json")).expect("it is there once the node is ready");
    let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let rpc = told["rpc"].as_str().expect("it has peers").to_owned();
    let second = start(&[&["--node-id", "asker", "--roles", "query", "--join", &rpc], &secured[..]].concat());
    let _second_folder = Folder(second.data_dir.clone());
    first.write("m,device_id=d v=1 1\n");
    assert_eq!(second.ask(&["sql", "SELECT v FROM m"]).done(), "v\n1.0\n");
    let shown = second.ask(&["sql", "SELECT node_id, roles FROM system.nodes ORDER BY node_id"]).done();
    assert_eq!(shown, "node_id,roles\nasker,query\nstorage,\"ingest,storage,query\"\n");
}

#[test]
fn a_certificate_that_vouches_for_itself_is_fine_unless_it_is_an_authority() {
    let good = start(&["--tls-cert", &file("selfsigned.pem"), "--tls-key", &file("selfsigned.key")]);
    let _good_folder = Folder(good.data_dir.clone());
    assert_eq!(ask(&good.url, "selfsigned.pem").done(), "one\n1\n");
    let bad = start(&["--tls-cert", &file("selfsigned-authority.pem"), "--tls-key", &file("selfsigned-authority.key")]);
    let _bad_folder = Folder(bad.data_dir.clone());
    let ca = file("selfsigned-authority.pem");
    let simulate = ["simulate", "--url", &bad.url, "--ca-file", &ca, "--points", "10", "--patience", "1ms"];
    for ran in [ask(&bad.url, "selfsigned-authority.pem"), run(&simulate)] {
        assert_eq!(ran.code, 3, "{ran:#?}");
        let told = format!("could not trust {}: ", bad.url);
        assert!(ran.err.contains(&told) && ran.err.contains("CaUsedAsEndEntity") && ran.err.contains("CA:FALSE"), "{ran:#?}");
        assert!(!ran.err.contains("is a server running there?"), "{ran:#?}");
    }
}
