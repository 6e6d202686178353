//! The commands of the README do what the README shows.
//!
//! Each `$ command` of a `console` block is run; the lines below it must be in its output. The server of the README is
//! the test's own, on a free port; the release binary is the one under test.

mod program;

use std::process::Command;

use program::{RunningNode, run};

struct Shown {
    command: String,
    output: Vec<String>,
}

fn shown_in_readme() -> Vec<Shown> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("the README is there");
    let mut shown: Vec<Shown> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside {
            match line.strip_prefix("$ ") {
                Some(command) => shown.push(Shown { command: command.to_owned(), output: Vec::new() }),
                None => shown.last_mut().expect("output follows a command").output.push(line.to_owned()),
            }
        }
    }
    shown
}

#[test]
fn the_readme_shows_what_happens() {
    let shown = shown_in_readme();
    assert!(shown.len() >= 4, "the README shows how to start, write and ask");
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &[]);
    let program = env!("CARGO_BIN_EXE_alluvium");
    for Shown { command, output } in shown.iter().filter(|s| !s.command.starts_with("cargo ")) {
        let here = command.replace("target/release/alluvium", program).replace("http://127.0.0.1:2558", &node.url);
        let ran = Command::new("sh").args(["-c", &here]).env("ALLUVIUM_URL", &node.url).output().unwrap();
        let out = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{command}\n{out}{}", String::from_utf8_lossy(&ran.stderr));
        for line in output {
            assert!(out.lines().any(|l| l.trim_end() == line), "{command}\nshould print {line:?} and printed\n{out}");
        }
    }
}

#[test]
fn the_demo_answers_three_questions_and_nothing_is_lost() {
    let out = run(&["demo", "--once"]).done();
    assert_eq!(out.matches('┌').count(), 3, "{out}");
    assert!(out.lines().last() == Some("lost 0 · invented 0 · altered 0 · doubled 0"), "{out}");
}
