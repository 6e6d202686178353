//! The real program, as a user starts it. Nothing here sleeps: a node is ready when it says so.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// A command of the program, without settings from the environment of whoever runs the tests.
pub(crate) fn alluvium(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alluvium"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ALLUVIUM_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

/// Runs a command to its end.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    Ran::of(&alluvium(arguments).output().expect("the program starts"))
}

/// Runs a command with a text as its standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> Ran {
    let mut child =
        alluvium(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the program reads");
    Ran::of(&child.wait_with_output().expect("the program ends"))
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: &Output) -> Ran {
        Ran {
            code: output.status.code().expect("no signal ended it"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.out
    }
}

/// A running node on a free port.
pub(crate) struct RunningNode {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    pub(crate) data_dir: PathBuf,
    /// `http://127.0.0.1:PORT`, or `https`
    pub(crate) url: String,
    pub(crate) said: String,
}

impl RunningNode {
    /// Starts a node and waits until it says `ready`.
    pub(crate) fn start(data_dir: &Path, more: &[&str]) -> RunningNode {
        let dir = data_dir.to_str().expect("a plain name");
        let mut arguments = vec!["serve", "--data-dir", dir, "--listen", "127.0.0.1:0", "--shards", "2"];
        arguments.extend(more);
        RunningNode::of(alluvium(&arguments), data_dir)
    }

    /// Starts a node by a command of one's own and waits until it says `ready`.
    pub(crate) fn of(mut command: Command, data_dir: &Path) -> RunningNode {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        let url = loop {
            let before = said.len();
            let read = stderr.read_line(&mut said).expect("it speaks UTF-8");
            assert_ne!(read, 0, "the node ended before it was ready:\n{said}");
            let line = &said[before..];
            if line.contains("ready") {
                let at = line.find("http").unwrap_or_else(|| panic!("no address in {line:?}"));
                break line[at..].split([' ', '"', '\n']).next().expect("split gives one").to_owned();
            }
        };
        RunningNode { child, stderr, data_dir: data_dir.to_owned(), url, said }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; gives the exit status and the rest of what it said.
    pub(crate) fn terminate(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("it speaks UTF-8");
        (self.child.wait().expect("it ends"), rest)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Runs a client command against this node.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Ran {
        let (command, rest) = arguments.split_first().expect("a command");
        let mut all = vec![*command, "--url", &self.url];
        all.extend(rest);
        run(&all)
    }

    /// Writes lines, which must all be stored.
    #[track_caller]
    pub(crate) fn write(&self, lines: &str) {
        let ran = run_with_input(&["write", "--url", &self.url], lines);
        assert_eq!(ran.code, 0, "{ran:#?}");
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        // A test that failed in the middle leaves no node behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
