//! The settings of a node, and which of flag, environment, file and default decided each.
//!
//! [`Settings`] is the one list: its fields are the flags, their `env` attributes the variables, their names the keys of
//! `alluvium.toml`, their doc comments the help and the comments of `alluvium config default`. A flag beats the
//! environment beats the file beats the default. A value from the file takes the same way as a flag, so both are
//! understood alike. An unknown key is an error, never ignored: a misspelt setting that silently does nothing is how
//! data directories end up on the wrong disk.

mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use cluster::Roles;

pub use self::values::{Addresses, ByteCount, Maybe, Span};
use self::values::{address, line_bytes, log_filter};
use crate::exit::Exit;
use crate::telemetry::LogFormat;

/// Where settings are read from when `--config` is not given: the first that exists.
pub const DEFAULT_FILES: [&str; 2] = ["alluvium.toml", "/etc/alluvium/alluvium.toml"];

/// Settings whose values are shown to nobody.
const SECRET: [&str; 1] = ["admin_token"];

/// Everything that can be set on a node.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Folder that holds everything; made if it is missing
    #[arg(long, env = "ALLUVIUM_DATA_DIR", value_name = "DIR", default_value = "./alluvium-data")]
    pub data_dir: PathBuf,

    /// Address for HTTP; port 0 picks a free one. Beyond loopback only with an access token
    #[arg(long, env = "ALLUVIUM_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:2558", value_parser = address)]
    pub listen: String,

    /// Certificate for HTTPS, PEM; read again when it changes
    #[arg(long, env = "ALLUVIUM_TLS_CERT", value_name = "FILE", default_value = "", hide_default_value = true)]
    pub tls_cert: Maybe<PathBuf>,

    /// Key of that certificate, PEM
    #[arg(long, env = "ALLUVIUM_TLS_KEY", value_name = "FILE", default_value = "", hide_default_value = true)]
    pub tls_key: Maybe<PathBuf>,

    /// Admin token; better by the variable or the file than by the flag, which other users of the machine can see
    #[arg(
        long,
        env = "ALLUVIUM_ADMIN_TOKEN",
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true,
        help_heading = "Access"
    )]
    pub admin_token: String,

    /// File that holds the admin token
    #[arg(
        long,
        env = "ALLUVIUM_ADMIN_TOKEN_FILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Access"
    )]
    pub admin_token_file: Maybe<PathBuf>,

    /// Name of this node [default: the machine's name]
    #[arg(long, env = "ALLUVIUM_NODE_ID", value_name = "NAME", default_value_t = machine_name(), hide_default_value = true)]
    pub node_id: String,

    /// Shards of a new data directory; an existing one keeps its own [default: number of cores]
    #[arg(
        long, env = "ALLUVIUM_SHARDS", value_name = "N", default_value_t = cores(), hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub shards: u32,

    /// What this node does: any of ingest, storage, query
    #[arg(long, env = "ALLUVIUM_ROLES", value_name = "ROLE,...", default_value = "ingest,storage,query", help_heading = "Cluster")]
    pub roles: Roles,

    /// Nodes to ask for the cluster; a name with several addresses stands for all of them
    #[arg(
        long,
        env = "ALLUVIUM_JOIN",
        value_name = "HOST:PORT,...",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub join: Addresses,

    /// Found a cluster once so many storage nodes have found each other [default: never]
    #[arg(
        long,
        env = "ALLUVIUM_BOOTSTRAP_EXPECT",
        value_name = "N",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub bootstrap_expect: Maybe<NonZeroU32>,

    /// Replicas of each shard of a new cluster [default: 1 alone, 3 once joined]
    #[arg(long, env = "ALLUVIUM_REPLICAS", value_name = "N", default_value = "", hide_default_value = true, help_heading = "Cluster")]
    pub replicas: Maybe<NonZeroU32>,

    /// Address for other nodes; opened only in a cluster
    #[arg(
        long,
        env = "ALLUVIUM_RPC_LISTEN",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:2559",
        help_heading = "Cluster",
        value_parser = address
    )]
    pub rpc_listen: String,

    /// How clients reach this node [default: where it listens]
    #[arg(
        long,
        env = "ALLUVIUM_ADVERTISE",
        value_name = "HOST:PORT",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub advertise: Maybe<String>,

    /// How other nodes reach this one [default: where it listens]
    #[arg(
        long,
        env = "ALLUVIUM_RPC_ADVERTISE",
        value_name = "HOST:PORT",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub rpc_advertise: Maybe<String>,

    /// File with a secret that all nodes of the cluster share
    #[arg(
        long,
        env = "ALLUVIUM_CLUSTER_SECRET_FILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub cluster_secret_file: Maybe<PathBuf>,

    /// Certificate that nodes show each other, PEM; read again when it changes
    #[arg(
        long,
        env = "ALLUVIUM_RPC_TLS_CERT",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub rpc_tls_cert: Maybe<PathBuf>,

    /// Key of that certificate, PEM
    #[arg(
        long,
        env = "ALLUVIUM_RPC_TLS_KEY",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Cluster"
    )]
    pub rpc_tls_key: Maybe<PathBuf>,

    /// Authority that vouches for nodes' certificates, PEM
    #[arg(long, env = "ALLUVIUM_RPC_CA", value_name = "FILE", default_value = "", hide_default_value = true, help_heading = "Cluster")]
    pub rpc_ca: Maybe<PathBuf>,

    /// Logs on standard error as text for eyes or JSON for machines
    #[arg(long, env = "ALLUVIUM_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,

    /// What is logged, such as `debug` or `info,storage=debug`
    #[arg(long, env = "ALLUVIUM_LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,

    /// Whether a write to an unknown database creates it (otherwise it is a 404); the one called default is always created
    #[arg(
        long, env = "ALLUVIUM_AUTO_CREATE_DATABASES", value_name = "true|false", default_value_t = true,
        action = clap::ArgAction::Set, help_heading = "Writing"
    )]
    pub auto_create_databases: bool,

    /// Largest body of a write, before and after inflation; beyond it 413
    #[arg(long, env = "ALLUVIUM_MAX_BODY_BYTES", value_name = "BYTES", default_value = "64MiB", help_heading = "Writing")]
    pub max_body_bytes: ByteCount,

    /// Longest line, up to 8MiB; a longer one is refused, the others of its body are not
    #[arg(
        long,
        env = "ALLUVIUM_MAX_LINE_BYTES",
        value_name = "BYTES",
        default_value = "1MiB",
        help_heading = "Writing",
        value_parser = line_bytes
    )]
    pub max_line_bytes: ByteCount,

    /// Bodies being worked on at once, in bytes; beyond it 503
    #[arg(long, env = "ALLUVIUM_MAX_IN_FLIGHT_BYTES", value_name = "BYTES", default_value = "256MiB", help_heading = "Writing")]
    pub max_in_flight_bytes: ByteCount,

    /// Writes that may wait for one shard, in bytes; beyond it 503
    #[arg(long, env = "ALLUVIUM_MAX_WAITING_BYTES", value_name = "BYTES", default_value = "64MiB", help_heading = "Writing")]
    pub max_waiting_bytes: ByteCount,

    /// Memory of one shard's newest points; beyond it they are flushed to Parquet files
    #[arg(long, env = "ALLUVIUM_FLUSH_BYTES", value_name = "BYTES", default_value = "128MiB", help_heading = "Storage")]
    pub flush_bytes: ByteCount,

    /// Memory of one shard for the newest row of each series
    #[arg(long, env = "ALLUVIUM_LAST_ROWS_BYTES", value_name = "BYTES", default_value = "64MiB", help_heading = "Storage")]
    pub last_rows_bytes: ByteCount,

    /// Memory of all queries together; beyond it they spill to disk, then 507
    #[arg(long, env = "ALLUVIUM_QUERY_MEMORY_BYTES", value_name = "BYTES", default_value = "1GiB", help_heading = "Asking")]
    pub query_memory_bytes: ByteCount,

    /// How long a query may take when it does not say so itself; beyond it 408
    #[arg(long, env = "ALLUVIUM_QUERY_TIMEOUT", value_name = "DURATION", default_value = "60s", help_heading = "Asking")]
    pub query_timeout: Span,

    /// Queries under way at once; beyond it 429
    #[arg(
        long, env = "ALLUVIUM_QUERY_MAX_CONCURRENT", value_name = "N", default_value_t = 256, help_heading = "Asking",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub query_max_concurrent: u32,

    /// Queries under way at once with one token; beyond it 429
    #[arg(
        long, env = "ALLUVIUM_QUERY_MAX_CONCURRENT_PER_TOKEN", value_name = "N", default_value_t = 128, help_heading = "Asking",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub query_max_concurrent_per_token: u32,

    /// Longest statement; beyond it 400
    #[arg(long, env = "ALLUVIUM_QUERY_MAX_SQL_BYTES", value_name = "BYTES", default_value = "1MiB", help_heading = "Asking")]
    pub query_max_sql_bytes: ByteCount,

    /// Room on disk for what queries cannot keep in memory; beyond it 507
    #[arg(long, env = "ALLUVIUM_QUERY_SPILL_BYTES", value_name = "BYTES", default_value = "10GiB", help_heading = "Asking")]
    pub query_spill_bytes: ByteCount,

    /// How long requests that are being answered may take after SIGTERM or Ctrl-C
    #[arg(long, env = "ALLUVIUM_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "15s", help_heading = "Connections")]
    pub drain_timeout: Span,

    /// Open connections; beyond it new ones wait
    #[arg(
        long, env = "ALLUVIUM_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000, help_heading = "Connections",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_connections: u32,
}

impl Settings {
    /// What no setting can tell by itself.
    fn check(&self) -> Result<(), String> {
        let pairs = [
            ("tls_cert", self.tls_cert.0.is_some(), "tls_key", self.tls_key.0.is_some()),
            ("rpc_tls_cert", self.rpc_tls_cert.0.is_some(), "rpc_tls_key", self.rpc_tls_key.0.is_some()),
            ("rpc_tls_cert", self.rpc_tls_cert.0.is_some(), "rpc_ca", self.rpc_ca.0.is_some()),
        ];
        for (one, has_one, other, has_other) in pairs {
            if has_one != has_other {
                let (there, missing) = if has_one { (one, other) } else { (other, one) };
                return Err(format!("{there} is given without {missing}: the two belong together"));
            }
        }
        if let Some(expected) = self.bootstrap_expect.0 {
            if !self.roles.storage {
                return Err(format!(
                    "a node with the roles {} cannot found a cluster: only storage nodes can (bootstrap_expect)",
                    self.roles
                ));
            }
            if expected.get() > 1 && self.join.0.is_empty() {
                return Err(format!("bootstrap_expect = {expected} needs join: how else would {expected} nodes find each other?"));
            }
        }
        if !self.roles.storage && self.join.0.is_empty() {
            return Err(format!("a node with the roles {} keeps no data itself: it needs join to find those that do", self.roles));
        }
        Ok(())
    }

    /// Whether the settings put the node into a cluster of several; its directory may say so too.
    pub fn is_clustered(&self) -> bool {
        !self.join.0.is_empty() || self.bootstrap_expect.0.is_some() || self.roles != Roles::ALL
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(1024) as u32)
}

/// What the machine is called.
pub(crate) fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "node-1".to_owned(),
        name => name.to_owned(),
    }
}

/// Who decided a setting's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The flag on the command line.
    Flag,
    /// The environment variable of this name.
    Environment(String),
    /// This file.
    File(PathBuf),
    /// Nobody.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One setting as it takes effect.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The key in the file.
    pub key: String,
    /// Its value, as it is written after a flag.
    pub value: String,
    /// Who decided it.
    pub origin: Origin,
}

/// Settings with their origins.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub settings: Settings,
    /// Each setting in the order of [`Settings`].
    pub effective: Vec<Effective>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
}

/// Joins flags, environment, file and defaults.
///
/// `argv` are the arguments that `matches` of `command` were made from; `under` names the subcommands in which the
/// settings' flags stand. `file` is what `--config` gave.
pub fn load(command: &Command, argv: &[OsString], under: &[&str], file: Option<&Path>) -> Result<Loaded, Exit> {
    let first = matches_of(command, argv, under)?;
    let file = match file {
        Some(path) => Some(path.to_owned()),
        None => DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.is_file()),
    };
    let keys = keys();
    let mut from_file = BTreeMap::new();
    if let Some(path) = &file {
        let text = std::fs::read_to_string(path).map_err(|e| Exit::Usage(format!("could not read {}: {e}", path.display())))?;
        from_file = parse_file(&text, &keys).map_err(|why| Exit::Usage(format!("{}: {why}", path.display())))?;
    }

    let mut argv = argv.to_vec();
    let mut effective = Vec::new();
    for key in &keys {
        let id = key.id.as_str();
        let origin = match first.value_source(id) {
            Some(ValueSource::CommandLine) => Origin::Flag,
            Some(ValueSource::EnvVariable) => Origin::Environment(key.env.clone()),
            _ => match (from_file.get(id), &file) {
                (Some(value), Some(path)) => {
                    argv.push(format!("--{}={value}", key.flag).into());
                    Origin::File(path.clone())
                }
                _ => Origin::Default,
            },
        };
        effective.push(Effective { key: key.id.clone(), value: String::new(), origin });
    }
    let matches = matches_of(command, &argv, under).map_err(|e| match &file {
        Some(path) if !from_file.is_empty() => Exit::Usage(format!("in {}: {e}", path.display())),
        _ => e,
    })?;
    for setting in &mut effective {
        setting.value = matches.get_raw(&setting.key).into_iter().flatten().map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(",");
        if SECRET.contains(&setting.key.as_str()) && !setting.value.is_empty() {
            setting.value = "***".to_owned();
        }
    }
    let settings = Settings::from_arg_matches(&matches).map_err(|e| Exit::Usage(one_line(&e)))?;
    settings.check().map_err(Exit::Usage)?;
    Ok(Loaded { settings, effective, file })
}

fn matches_of(command: &Command, argv: &[OsString], under: &[&str]) -> Result<ArgMatches, Exit> {
    let mut matches = command.clone().try_get_matches_from(argv).map_err(|e| Exit::Usage(one_line(&e)))?;
    for name in under {
        matches = matches.remove_subcommand().filter(|(found, _)| found == name).map(|(_, inner)| inner).unwrap_or_default();
    }
    Ok(matches)
}

/// clap's message without its `error: ` and its usage lines.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// What a setting is called in the three places.
struct Key {
    id: String,
    flag: String,
    env: String,
    help: String,
    default: String,
}

fn keys() -> Vec<Key> {
    let command = Settings::augment_args(Command::new("settings"));
    let keys = command.get_arguments().filter_map(|arg| {
        Some(Key {
            id: arg.get_id().to_string(),
            flag: arg.get_long()?.to_owned(),
            env: arg.get_env()?.to_string_lossy().into_owned(),
            help: arg.get_help()?.to_string(),
            default: arg.get_default_values().first()?.to_string_lossy().into_owned(),
        })
    });
    keys.collect()
}

/// The file's settings as they would be written after a flag.
fn parse_file(text: &str, keys: &[Key]) -> Result<BTreeMap<String, String>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let mut values = BTreeMap::new();
    for (name, value) in table {
        if !keys.iter().any(|key| key.id == name) {
            return Err(unknown_key(&name, keys));
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(choice) => choice.to_string(),
            other => return Err(format!("setting '{name}' is {} where a plain value is expected", other.type_str())),
        };
        values.insert(name, value);
    }
    Ok(values)
}

fn unknown_key(name: &str, keys: &[Key]) -> String {
    let spelt = name.replace('-', "_").to_lowercase();
    let nearest = keys
        .iter()
        .map(|key| (strsim::jaro_winkler(&spelt, &key.id), key.id.as_str()))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.7);
    match nearest {
        Some((_, near)) => format!("unknown setting '{name}': did you mean '{near}'?"),
        None => format!("unknown setting '{name}': 'alluvium config default' prints all that there are"),
    }
}

/// A file with every setting, commented out, at its default.
pub fn default_file() -> String {
    let mut text = String::from(
        "# Settings of an alluvium node. Each has a flag (--data-dir), an environment variable (ALLUVIUM_DATA_DIR) and the\n\
         # key here; flag beats environment beats file beats default. 'alluvium config show' tells which won.\n",
    );
    for key in keys() {
        let help = key.help.split(" [default:").next().unwrap_or_default().to_owned();
        text.push_str(&format!("\n# {help}.\n# {} = {}\n", key.id, toml_value(&key.default)));
    }
    text
}

/// A value as TOML: bare where it is a number or a truth, quoted otherwise.
pub fn toml_value(value: &str) -> String {
    if value.parse::<i64>().is_ok() || value == "true" || value == "false" {
        value.to_owned()
    } else {
        toml::Value::String(value.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Settings::augment_args(Command::new("alluvium"))
    }

    fn load_with(args: &[&str], file: Option<&str>) -> Result<Loaded, Exit> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alluvium.toml");
        std::fs::write(&path, file.unwrap_or_default()).unwrap();
        let argv: Vec<OsString> = std::iter::once("alluvium").chain(args.iter().copied()).map(OsString::from).collect();
        load(&command(), &argv, &[], Some(&path))
    }

    fn origin_of(loaded: &Loaded, key: &str) -> Origin {
        loaded.effective.iter().find(|e| e.key == key).unwrap().origin.clone()
    }

    #[test]
    fn every_setting_has_the_same_name_as_flag_variable_and_key() {
        let keys = keys();
        assert_eq!(keys.len(), command().get_arguments().count(), "a setting lacks its variable, its help or its default");
        for key in keys {
            assert_eq!(key.flag, key.id.replace('_', "-"));
            assert_eq!(key.env, format!("ALLUVIUM_{}", key.id.to_uppercase()));
        }
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = "listen = \"127.0.0.1:1\"\nshards = 3\nauto_create_databases = false\n";
        let loaded = load_with(&["--listen", "127.0.0.1:2"], Some(file)).unwrap();
        assert_eq!(loaded.settings.listen, "127.0.0.1:2");
        assert_eq!(loaded.settings.shards, 3);
        assert!(!loaded.settings.auto_create_databases);
        assert_eq!(origin_of(&loaded, "listen"), Origin::Flag);
        assert!(matches!(origin_of(&loaded, "shards"), Origin::File(_)));
        assert_eq!(origin_of(&loaded, "flush_bytes"), Origin::Default);
    }

    #[test]
    fn a_secret_is_never_shown() {
        let loaded = load_with(&["--admin-token", "very secret indeed"], None).unwrap();
        assert_eq!(loaded.settings.admin_token, "very secret indeed");
        assert!(!format!("{:?}", loaded.effective).contains("very secret"));
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        for (args, says) in [
            (&["--tls-cert", "a.pem"][..], "tls_cert is given without tls_key"),
            (&["--rpc-ca", "a.pem"], "rpc_ca is given without rpc_tls_cert"),
            (&["--roles", "ingest"], "needs join"),
            (&["--roles", "query", "--join", "a:1", "--bootstrap-expect", "1"], "cannot found a cluster"),
            (&["--bootstrap-expect", "3"], "needs join"),
            (&["--join", "storage-0"], "'storage-0' is no address"),
            (&["--roles", "clerk"], "clerk"),
            (&["--bootstrap-expect", "0"], "bootstrap-expect"),
        ] {
            let error = load_with(args, None).unwrap_err().to_string();
            assert!(error.contains(says), "{args:?}: {error}");
        }
        let loaded = load_with(&["--join", "a:1, b:2", "--roles", "ingest,query"], None).unwrap();
        assert_eq!(loaded.settings.join.0, ["a:1", "b:2"]);
        assert!(loaded.settings.is_clustered());
        assert!(!load_with(&[], None).unwrap().settings.is_clustered());
    }

    #[test]
    fn an_unknown_key_suggests_the_nearest() {
        for (wrong, near) in [("lisen", "listen"), ("data-dir", "data_dir"), ("flush_byte", "flush_bytes"), ("Shards", "shards")] {
            let error = load_with(&[], Some(&format!("{wrong} = 1"))).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown setting '{wrong}': did you mean '{near}'?")), "{error}");
        }
        let error = load_with(&[], Some("zzz = 1")).unwrap_err().to_string();
        assert!(error.contains("alluvium config default"), "{error}");
    }

    #[test]
    fn a_bad_value_in_the_file_is_told_with_the_file() {
        let error = load_with(&[], Some("shards = 0")).unwrap_err().to_string();
        assert!(error.contains("alluvium.toml") && error.contains("--shards"), "{error}");
        let error = load_with(&[], Some("[listen]\nport = 1")).unwrap_err().to_string();
        assert!(error.contains("'listen' is table"), "{error}");
    }

    #[test]
    fn an_address_and_a_filter_that_no_node_starts_with_are_refused_here() {
        for (wrong, says) in [
            ("listen = \"nonsense\"", "'nonsense' for '--listen <HOST:PORT>': no address; write it like 127.0.0.1:2558"),
            ("listen = 1", "'1' for '--listen <HOST:PORT>'"),
            ("listen = \":2558\"", "':2558'"),
            ("listen = \"127.0.0.1:99999\"", "'127.0.0.1:99999'"),
            ("rpc_listen = \"x\"", "--rpc-listen"),
            ("max_line_bytes = \"9MiB\"", "8MiB at most"),
            ("max_line_bytes = 0", "1 byte at least"),
            ("log = \"[\"", "'[' for '--log <FILTER>'"),
        ] {
            let error = load_with(&[], Some(wrong)).unwrap_err();
            assert_eq!(error.code(), 2, "{wrong}");
            assert!(error.to_string().contains(says) && error.to_string().contains("alluvium.toml"), "{wrong}: {error}");
        }
        for fine in ["listen = \"[::1]:0\"", "listen = \"localhost:2558\"", "log = \"info,storage=debug\"", "log = \"\""] {
            assert!(load_with(&[], Some(fine)).is_ok(), "{fine}");
        }
    }

    #[test]
    fn the_default_file_is_valid_and_changes_nothing() {
        let uncommented: String = default_file()
            .lines()
            .map(|line| if line.contains(" = ") { line.trim_start_matches("# ") } else { line })
            .map(|line| format!("{line}\n"))
            .collect();
        let loaded = load_with(&[], Some(&uncommented)).unwrap();
        let plain = load_with(&[], None).unwrap();
        for (a, b) in loaded.effective.iter().zip(&plain.effective) {
            assert_eq!((&a.key, &a.value), (&b.key, &b.value));
        }
    }

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in [("0", 0), ("1048576", 1 << 20), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("500kb", 500_000)] {
            assert_eq!(text.parse::<ByteCount>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "64 MiBs", "99999999999TiB"] {
            assert!(bad.parse::<ByteCount>().is_err(), "{bad}");
        }
        assert_eq!(ByteCount(64 << 20).to_string(), "64MiB");
        assert_eq!(ByteCount(1500).to_string(), "1500");
    }
}
