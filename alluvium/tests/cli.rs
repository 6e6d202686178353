//! What a user of the command line may rely on: names, exit codes, what goes to which stream, what survives a kill.

mod program;

use std::io::{Read, Write};
use std::process::Stdio;

use program::{RunningNode, alluvium, run, run_with_input};

const COMMANDS: [&str; 11] =
    ["serve", "demo", "sql", "write", "simulate", "cluster", "inspect", "doctor", "token", "config", "completions"];

#[test]
fn help_lists_every_command_and_none_that_is_not_there_yet() {
    let help = run(&["--help"]).done();
    assert!(help.contains("Examples:"));
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A description that is wrapped goes on further to the right.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, COMMANDS);
    for command in ["backup", "restore"] {
        assert_eq!(run(&[command]).code, 2, "{command}");
    }
}

#[test]
fn help_of_every_command_has_examples() {
    for command in COMMANDS.iter().filter(|c| **c != "config") {
        let help = run(&[command, "--help"]).done();
        assert!(help.contains("Examples:\n  alluvium"), "{help}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_on_standard_error() {
    for arguments in
        [&["sql", "--format", "xml", "SELECT 1"][..], &["nonsense"], &["serve", "--shards", "0"], &["sql", "--url", "ftp://x", "x"]]
    {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:#?}");
        assert!(ran.err.starts_with("error:"), "{ran:#?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_exit_code_3_with_a_way_out() {
    // Port 1 is never listened on by users' programs.
    for arguments in [&["sql", "--url", "http://127.0.0.1:1", "SELECT 1"][..], &["write", "--url", "127.0.0.1:1"]] {
        let ran = run_with_input(arguments, "m v=1\n");
        assert_eq!(ran.code, 3, "{ran:#?}");
        assert!(ran.err.contains("could not reach http://127.0.0.1:1") && ran.err.contains("alluvium serve"), "{ran:#?}");
    }
}

#[test]
fn an_unknown_setting_names_its_nearest_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alluvium.toml");
    std::fs::write(&file, "lisen = \"127.0.0.1:0\"\n").unwrap();
    let file = file.to_str().unwrap();
    for arguments in [&["serve", "--config", file][..], &["config", "check", file], &["config", "show", "--config", file]] {
        let ran = run(arguments);
        assert_eq!(ran.code, 2, "{ran:#?}");
        assert!(ran.err.contains("unknown setting 'lisen': did you mean 'listen'?"), "{ran:#?}");
    }
}

#[test]
fn config_show_tells_who_decided() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alluvium.toml");
    std::fs::write(&file, "shards = 3\nlog = \"debug\"\nquery_timeout = \"5s\"\n").unwrap();
    let mut show = alluvium(&["config", "show", "--format", "json", "--listen", "127.0.0.1:7", "--config", file.to_str().unwrap()]);
    let output = show.env("ALLUVIUM_SHARDS", "5").output().unwrap();
    let shown: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |key: &str| {
        let setting = shown.iter().find(|s| s["key"] == key).unwrap();
        (setting["value"].as_str().unwrap().to_owned(), setting["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("listen"), ("127.0.0.1:7".to_owned(), "flag".to_owned()));
    assert_eq!(of("shards"), ("5".to_owned(), "environment ALLUVIUM_SHARDS".to_owned()));
    assert_eq!(of("query_timeout"), ("5s".to_owned(), format!("file {}", file.display())));
    assert_eq!(of("data_dir").1, "default");
}

#[test]
fn the_default_file_passes_its_own_check() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alluvium.toml");
    std::fs::write(&file, run(&["config", "default"]).done()).unwrap();
    run(&["config", "check", file.to_str().unwrap()]).done();
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).done();
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
    }
}

#[test]
fn a_simulation_has_the_same_bytes_for_the_same_seed() {
    let lines = |seed: &str| run(&["simulate", "--points", "500", "--devices", "20", "--seed", seed, "--out", "-"]).done();
    assert_eq!(lines("7"), lines("7"));
    assert_ne!(lines("7"), lines("8"));
    assert_eq!(lines("7").lines().count(), 500);
}

#[test]
fn a_node_says_ready_leaves_node_json_and_ends_with_0_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let node = RunningNode::start(&data_dir, &["--node-id", "n1"]);
    let file = data_dir.join("node.json");
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(told["node_id"], "n1");
    assert_eq!(told["pid"], node.pid());
    assert_eq!(format!("http://{}", told["http"].as_str().unwrap()), node.url);
    assert!(told["rpc"].is_null());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&data_dir).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    let (status, rest) = node.terminate();
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(!file.exists());
}

/// A request that never ends, no patience for it, and then again with all of the log to read.
#[test]
fn a_node_that_loses_patience_with_a_request_ends_with_0_as_well() {
    let dir = tempfile::tempdir().unwrap();
    for patience in ["0", "1ms", "200ms"] {
        let node = RunningNode::start(dir.path(), &["--drain-timeout", patience]);
        let mut slow = std::net::TcpStream::connect(node.url.trim_start_matches("http://")).unwrap();
        slow.write_all(b"POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nm v=").unwrap();
        let (status, rest) = node.terminate();
        assert_eq!(status.code(), Some(0), "{patience}: {rest}");
        assert!(!rest.contains("panicked"), "{patience}: {rest}");
        assert!(!dir.path().join("node.json").exists(), "{patience}");
    }
}

#[test]
fn a_node_can_be_started_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &["--log-format", "json"]);
    let said = node.said.clone();
    let (status, rest) = node.terminate();
    assert_eq!(status.code(), Some(0));
    for line in said.lines().chain(rest.lines()) {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "{line}");
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &[]);
    let second = run(&["serve", "--data-dir", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 1, "{second:#?}");
    assert!(second.err.contains("is in use by another process: stop it, or choose another --data-dir"), "{second:#?}");
    node.write("phone,device_id=p v=1 1\n");
}

#[test]
fn a_port_in_use_names_listen() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(&dir.path().join("one"), &[]);
    let address = node.url.trim_start_matches("http://");
    let second = run(&["serve", "--data-dir", dir.path().join("two").to_str().unwrap(), "--listen", address]);
    assert_eq!(second.code, 1, "{second:#?}");
    assert!(second.err.contains(address) && second.err.contains("--listen"), "{second:#?}");
}

#[test]
fn listening_beyond_loopback_is_refused_with_the_ways_out() {
    let dir = tempfile::tempdir().unwrap();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let ran = run(&["serve", "--data-dir", dir.path().to_str().unwrap(), "--listen", listen]);
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert!(ran.err.contains("refusing to listen") && ran.err.contains("ways out"), "{ran:#?}");
    }
}

#[test]
fn kill_9_keeps_every_acknowledged_row() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let node = RunningNode::start(dir.path(), &[]);
        let lines: String = (0..1_000).map(|i| format!("phone,device_id=p{} round={round}i {}\n", i % 7, round * 1_000 + i + 1)).collect();
        node.write(&lines);
        if round == 1 {
            node.ask(&["sql", "FLUSH"]).done();
        }
        node.kill();
    }
    let node = RunningNode::start(dir.path(), &[]);
    let counted = node.ask(&["sql", "SELECT round, count(*) AS n FROM phone GROUP BY round ORDER BY round"]).done();
    assert_eq!(counted, "round,n\n0,1000\n1,1000\n2,1000\n");
}

#[test]
fn rows_come_in_every_format_and_the_footer_goes_to_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &[]);
    node.write("phone,device_id=a v=1.5 1\nphone,device_id=b v=2.5,s=\"two\nlines\" 2\n");
    let ask = |format: &str| node.ask(&["sql", "--format", format, "SELECT device_id, v FROM phone ORDER BY v;"]);
    assert_eq!(node.ask(&["sql", "SELECT device_id, v FROM phone ORDER BY v"]).done(), "device_id,v\na,1.5\nb,2.5\n");
    let rows: serde_json::Value = serde_json::from_str(&ask("json").done()).unwrap();
    assert_eq!(rows, serde_json::json!([{"device_id": "a", "v": 1.5}, {"device_id": "b", "v": 2.5}]));
    assert_eq!(ask("jsonl").done().lines().count(), 2);
    let table = ask("table");
    assert!(table.err.starts_with("2 rows · "), "{table:#?}");
    assert_eq!(
        table.done(),
        "┌───────────┬─────┐\n│ device_id │   v │\n├───────────┼─────┤\n│ a         │ 1.5 │\n│ b         │ 2.5 │\n└───────────┴─────┘\n"
    );
    let url = &node.url;
    for (format, magic) in [("parquet", &b"PAR1"[..]), ("arrow", &b"\xff\xff\xff\xff"[..])] {
        let output = alluvium(&["sql", "--url", url, "--format", format, "SELECT * FROM phone"]).output().unwrap();
        assert!(output.status.success() && output.stdout.starts_with(magic), "{format}");
    }
}

#[test]
fn a_wrong_query_is_exit_code_1_with_the_servers_words() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &[]);
    let ran = node.ask(&["sql", "SELECT * FROM nowhere"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:#?}");
    assert!(ran.err.contains("nowhere"), "{ran:#?}");
}

#[test]
fn refused_lines_are_named_with_file_and_line_and_the_others_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(&dir.path().join("data"), &[]);
    let file = dir.path().join("lines.lp");
    std::fs::write(&file, "phone,device_id=a v=1 1\n# a note\nphone,device_id=b v= 2\nphone,device_id=c v=3 3\nphone v\n").unwrap();
    let file = file.to_str().unwrap();
    for batch in ["5000", "2", "1"] {
        let ran = node.ask(&["write", "--batch", batch, file]);
        assert_eq!(ran.code, 4, "{ran:#?}");
        assert!(ran.err.contains(&format!("{file}:3: ")) && ran.err.contains(&format!("{file}:5: ")), "{ran:#?}");
        assert!(ran.err.contains("stored 2 lines"), "{ran:#?}");
    }
    assert_eq!(node.ask(&["sql", "SELECT count(*) AS n FROM phone"]).done(), "n\n2\n");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &[]);
    let mut child = alluvium(&["sql", "--url", &node.url, "SELECT * FROM generate_series(1, 3000000)"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_fleet_is_read_back_whole_after_flush_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let node = RunningNode::start(dir.path(), &["--flush-bytes", "1MiB"]);
    let arguments = ["--devices", "200", "--points", "20000", "--late", "5", "--duplicate", "2", "--offline", "10", "--gzip", "--verify"];
    let report = dir.path().join("report.json");
    let mut all = vec!["simulate", "--report", report.to_str().unwrap()];
    all.extend(arguments);
    let out = node.ask(&all).done();
    assert!(out.ends_with("lost 0 · invented 0 · altered 0 · doubled 0\n"), "{out}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["acknowledged"], 20_000);
    let count = |node: &RunningNode| node.ask(&["sql", "SELECT (SELECT count(*) FROM phone) + (SELECT count(*) FROM watch) AS n"]).done();
    let before = count(&node);
    node.ask(&["sql", "COMPACT"]).done();
    assert_eq!(count(&node), before);
}

#[test]
fn all_refused_lines_of_a_batch_are_counted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = RunningNode::start(dir.path(), &[]);
    // The answer lists the first 1,000 only.
    let lines: String = (0..1_500).map(|n| format!("m bad {n}\n")).chain(["m v=1 1\n".to_owned()]).collect();
    let ran = run_with_input(&["write", "--url", &node.url], &lines);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(ran.err.contains("stored 1 lines") && ran.err.contains("1,500 lines were refused"), "{}", ran.err);
}

#[test]
fn a_demo_that_is_told_to_end_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let mut command = alluvium(&["demo"]);
    let mut demo =
        command.env("TMPDIR", temporary.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let mut first = [0; 1];
    demo.stdout.as_mut().expect("piped").read_exact(&mut first).expect("it begins to tell");
    assert_eq!(std::fs::read_dir(temporary.path()).expect("a folder").count(), 1);
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    let _rest = demo.wait_with_output().expect("it ends");
    assert_eq!(std::fs::read_dir(temporary.path()).expect("a folder").count(), 0);
}

#[test]
fn a_cluster_that_cannot_be_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path().join("c");
    let dev = ["cluster", "dev", "--data-dir", folder.to_str().expect("a plain name")];
    let ran = run(&[&dev[..], &["--storage", "2", "--replicas", "3"]].concat());
    assert!(ran.code == 2 && ran.err.contains("2 storage nodes cannot keep 3 replicas"), "{ran:#?}");
    let ran = run(&[&dev[..], &["--restart", "storage-1"]].concat());
    assert!(ran.code == 3 && ran.err.contains("start it first"), "{ran:#?}");
    let ran = run(&[&dev[..], &["--restart", "storage-1", "--base-port", "4000"]].concat());
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(!folder.exists());
}

#[test]
fn a_database_that_another_node_has_made_can_be_written_to_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rpc = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("an address").to_string()
    };
    let start = |name: &str, more: &[&str]| {
        let data_dir = dir.path().join(name);
        let mut arguments = vec!["--node-id", name, "--join", &rpc, "--auto-create-databases", "false"];
        arguments.extend(more);
        RunningNode::start(&data_dir, &arguments)
    };
    let first = start("first", &["--rpc-listen", &rpc, "--bootstrap-expect", "1"]);
    let second = start("second", &["--rpc-listen", "127.0.0.1:0", "--roles", "ingest"]);
    for i in 0..20 {
        let database = format!("d{i}");
        first.ask(&["sql", &format!("CREATE DATABASE {database}")]).done();
        let file = dir.path().join("lines");
        std::fs::write(&file, "m v=1 1\n").expect("a file");
        second.ask(&["write", "--db", &database, file.to_str().expect("a plain name")]).done();
    }
    let ran = second.ask(&["write", "--db", "nowhere", dir.path().join("lines").to_str().expect("a plain name")]);
    assert!(ran.code != 0 && ran.err.contains("nowhere"), "{ran:#?}");
}

#[test]
fn a_query_may_be_given_its_time_at_the_command_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = RunningNode::start(dir.path(), &["--query-timeout", "1ms"]);
    assert_eq!(node.ask(&["sql", "--timeout", "1m", "SELECT count(*) AS n FROM generate_series(1, 9)"]).done(), "n\n9\n");
    let endless = "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE value < 0";
    let ran = node.ask(&["sql", "--timeout", "50ms", endless]);
    assert!(ran.code == 1 && ran.err.contains("408") && ran.err.contains("50ms"), "{ran:#?}");
    // Upkeep takes as long as there is to do.
    node.ask(&["sql", "FLUSH"]).done();
}

#[test]
fn a_slow_simulation_keeps_its_rate_and_ends_with_its_duration() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = RunningNode::start(&dir.path().join("data"), &[]);
    let report = dir.path().join("report.json");
    for (arguments, points) in [(["--duration", "1s", "--rate", "100"], 100), (["--points", "80", "--rate", "100"], 80)] {
        let all = [&["simulate", "--devices", "20", "--report", report.to_str().expect("a plain name")][..], &arguments].concat();
        node.ask(&all).done();
        let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
        let seconds = told["seconds"].as_f64().expect("a number");
        // 80 lines go out in steps of 10, the last of them after 0.7 s.
        assert!(seconds > 0.65 && seconds < 10.0, "{arguments:?}: {told}");
        let made = told["points"].as_u64().expect("a number");
        // A machine that is busy may reach the end before the last of its steps.
        assert!(made <= points && (arguments[0] != "--points" || made == points), "{arguments:?}: {told}");
    }
}

#[test]
fn settings_with_which_no_node_starts_fail_the_check_and_are_wrong_usage() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("alluvium.toml");
    let path = file.to_str().expect("a plain name");
    for (wrong, says) in [("listen = \"nonsense\"", "--listen"), ("listen = 1", "--listen"), ("log = \"[\"", "--log")] {
        std::fs::write(&file, wrong).expect("a file");
        for arguments in [&["config", "check", path][..], &["serve", "--config", path]] {
            let ran = run(arguments);
            assert!(ran.code == 2 && ran.err.contains(says) && ran.err.contains(path), "{arguments:?}: {ran:#?}");
        }
    }
    let ran = run(&["serve", "--listen", "nonsense"]);
    assert!(ran.code == 2 && ran.err.contains("write it like 127.0.0.1:2558"), "{ran:#?}");
}

#[test]
fn commands_print_csv_into_a_pipe_and_any_other_format_when_asked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    let node = RunningNode::start(&data, &["--node-id", "n1"]);
    node.write("phone,device_id=a v=1.5 1\n");
    node.ask(&["sql", "FLUSH"]).done();
    let data = data.to_str().expect("a plain name");
    let status = |more: &[&str]| run(&[&["cluster", "status", "--url", &node.url][..], more].concat());

    let address = node.url.trim_start_matches("http://");
    let csv = status(&[]).done();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "node,roles,state,leads,holds,http,rpc,version");
    assert!(lines[1].contains("\"ingest,storage,query\",ready,2,2") && lines[1].contains(address), "{csv}");
    assert_eq!((lines[2], lines[3]), ("", "shard,leader,replicas,term,applied,rows_in_memory,state"), "{csv}");
    assert_eq!(lines.len(), 6, "{csv}");
    assert!(status(&["--format", "table"]).done().starts_with('┌'));
    assert_eq!(status(&["--format", "jsonl"]).done().lines().count(), 3);
    let json: serde_json::Value = serde_json::from_str(&status(&["--format", "json"]).done()).expect("JSON");
    assert_eq!(json["nodes"][0]["http"], address);
    let ran = status(&["--format", "parquet"]);
    assert!(ran.code == 2 && ran.err.contains("system.shards"), "{ran:#?}");

    let manifest = run(&["inspect", "manifest", data]).done();
    assert!(manifest.starts_with("shard,database,table,rows,bytes,min_time,max_time,file,checksum,"), "{manifest}");
    assert_eq!(manifest.lines().count(), 2, "{manifest}");
    let listed: Vec<serde_json::Value> =
        serde_json::from_str(&run(&["inspect", "manifest", data, "--format", "json"]).done()).expect("JSON");
    let file = listed[0]["path"].as_str().expect("a path");
    assert!(run(&["inspect", "wal", data]).done().starts_with("segment,first,last,records,marks,used_bytes,bytes,state,format,"));
    let columns = run(&["inspect", "parquet", file]);
    assert!(columns.err.contains("it is what the manifest names"), "{columns:#?}");
    assert!(columns.done().starts_with("column,type,compressed_bytes,plain_bytes,nulls,encodings\n"));
    for what in ["manifest", "wal", "parquet"] {
        let path = if what == "parquet" { file } else { data };
        assert!(run(&["inspect", what, path, "--format", "table"]).done().starts_with('┌'), "{what}");
        run(&["inspect", what, path, "--format", "arrow"]).done();
    }
}

#[test]
fn answers_of_several_statements_stand_on_lines_of_their_own() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = RunningNode::start(dir.path(), &[]);
    assert_eq!(node.ask(&["sql", "--format", "json", "SELECT 1 AS a; SELECT 2 AS b"]).done(), "[{\"a\":1}]\n[{\"b\":2}]\n");
}

#[test]
fn ctrl_c_ends_a_write_that_waits_for_its_input_and_tells_what_was_not_sent() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = RunningNode::start(dir.path(), &[]);
    let mut write = alluvium(&["write", "--url", &node.url, "--batch", "2"]);
    let mut write = write.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    // It stays open: the program waits for more.
    let mut input = write.stdin.take().expect("piped");
    input.write_all(b"m v=1 1\nm v=2 2\nm v=3 3\nm v=4").expect("the program reads");
    while node.ask(&["sql", "SELECT count(*) AS n FROM m"]).out != "n\n2\n" {}
    node.ask(&["sql", "SELECT 1"]).done();
    let pid = rustix::process::Pid::from_child(&write);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let output = write.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("2 lines were read and not sent") && told.contains("stored 2 lines"), "{told}");
    drop(input);
}

#[test]
fn a_shard_that_is_not_there_or_is_split_outside_of_its_range_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = RunningNode::start(dir.path(), &["--node-id", "n1"]);
    let asked = |arguments: &[&str]| {
        let ran = run(&[&["cluster"], arguments, &["--url", &node.url]].concat());
        assert_eq!(ran.code, 1, "{arguments:?}: {ran:#?}");
        ran.err
    };
    for arguments in [&["split", "99"][..], &["recover", "--accept-loss", "99"], &["move", "99", "n1"]] {
        assert_eq!(asked(arguments), "error: there is no shard 99\n", "{arguments:?}");
    }
    let told = asked(&["split", "1", "--at", "5"]);
    assert!(told.contains("shard 1 cannot be split at 5: its routing hashes are 9223372036854775808 to 18446744073709551615"), "{told}");
}

#[test]
fn a_simulation_at_the_end_of_time_is_wrong_usage() {
    for start in ["9223372036854775000", "9223372036854775807"] {
        for points in ["100", "1000000"] {
            let ran = run(&["simulate", "--start", start, "--points", points, "--out", "-"]);
            assert!(ran.code == 2 && ran.err.contains("let it start earlier"), "{ran:#?}");
        }
    }
}

#[test]
fn an_error_tells_its_cause_once_and_in_peoples_words() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = dir.path().join("data");
    let data_dir = data_dir.to_str().expect("a plain name");
    for arguments in [
        &["serve", "--listen", "127.0.0.1:0", "--data-dir", data_dir, "--admin-token-file", "/nope"][..],
        &["serve", "--listen", "127.0.0.1:0", "--data-dir", "/proc/x"],
    ] {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.err.matches("No such file or directory").count()), (1, 1), "{ran:#?}");
    }
    let ran = run(&["simulate", "--url", "127.0.0.1:1", "--points", "10", "--patience", "1ms"]);
    assert!(ran.code == 3 && ran.err.contains("could not reach http://127.0.0.1:1: Connection refused"), "{ran:#?}");
    assert!(ran.err.contains("is a server running there?"), "{ran:#?}");
}

#[test]
fn a_wrong_value_of_a_variable_names_the_variable() {
    for (value, arguments, named) in [
        ("", &["serve"][..], "the environment variable ALLUVIUM_SHARDS"),
        ("x", &[], "the environment variable ALLUVIUM_SHARDS"),
        ("3", &["serve", "--shards", "x"], "'--shards <N>'"),
    ] {
        let output = alluvium(arguments).env("ALLUVIUM_SHARDS", value).output().expect("the program starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains(named), "{value:?} {arguments:?}: {told}");
    }
}
