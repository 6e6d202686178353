//! Replays what fuzzing has kept (`fuzz/corpus`): no input that once taught something is forgotten.

use std::path::Path;

#[path = "../../fuzz/checks/http_body.rs"]
mod http_body;
#[path = "../../fuzz/checks/line_protocol.rs"]
mod line_protocol;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = folder.read_dir().expect("the corpus is there").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds inputs", folder.display());
    for file in files {
        // The test's output names the input that fails.
        println!("{}", file.display());
        check(&std::fs::read(&file).expect("an input can be read"));
    }
}

#[test]
fn kept_inputs_of_line_protocol_hold() {
    replay("line_protocol", line_protocol::check);
}

#[test]
fn kept_inputs_of_http_body_hold() {
    replay("http_body", http_body::check);
}
