//! Several nodes in one process, with real HTTP/2 between them on loopback, on disks that can lose power.

mod founding;
mod leaders;
mod places;
mod splits;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use arrow::array::{AsArray, Float64Array, TimestampNanosecondArray};
use cluster::peer::{PeerDoor, PeerSecurity, serve};
use cluster::shard_map::ShardRange;
use cluster::{Cluster, ClusterOptions, Outcome, PeerOptions, Roles};
use model::point::routing_hash_of_tag;
use model::schema::NewColumn;
use model::{ColumnType, FieldColumn, PointBatch, SeriesKey, ShardId, TableSchema, Timestamp, Values};
use storage::disk::{Disk, FaultyDisk};
use storage::entry::{RetryWindow, WritePart};
use storage::{ScanColumn, ScanRequest, View};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The time of day in these tests.
const NOW: Timestamp = Timestamp(1_780_000_000_000_000_000);
const DATABASE: &str = "fleet";
const TABLE: &str = "phone";
/// Nothing here takes so long unless it never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows by device and time.
type Rows = BTreeMap<(String, i64), f64>;

/// A place for a node: its disk and its address outlive it.
struct Host {
    name: String,
    roles: Roles,
    disk: FaultyDisk,
    listener: std::net::TcpListener,
    address: String,
    starts: u64,
    running: Option<Running>,
}

struct Running {
    node: Arc<Cluster>,
    door: Arc<PeerDoor>,
    closing: watch::Sender<bool>,
}

/// Some hosts that know each other's addresses.
struct World {
    hosts: Vec<Host>,
    shards: u32,
    secret: Option<Arc<str>>,
    gone_after: Duration,
    replicas: Option<u32>,
    cuts: Cuts,
}

/// Who is not heard: the asker's number, as its requests say it, and the host that it asks.
type Cuts = Arc<RwLock<HashSet<(String, usize)>>>;

impl World {
    fn new(roles: &[&str], shards: u32) -> World {
        // `RUST_LOG=cluster=debug` and `--nocapture` show what happens.
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
        let host = |(i, roles): (usize, &&str)| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            Host {
                name: format!("n{}", i + 1),
                roles: roles.parse().unwrap(),
                disk: FaultyDisk::new(i as u64 + 1),
                address: listener.local_addr().unwrap().to_string(),
                listener,
                starts: 0,
                running: None,
            }
        };
        World {
            hosts: roles.iter().enumerate().map(host).collect(),
            shards,
            secret: Some("of the cluster".into()),
            gone_after: cluster::GONE_AFTER,
            replicas: None,
            cuts: Cuts::default(),
        }
    }

    fn options(&self, i: usize, expect: Option<u32>) -> ClusterOptions {
        let host = &self.hosts[i];
        ClusterOptions {
            node: host.name.clone(),
            data_dir: PathBuf::from("/data"),
            disk: Arc::new(host.disk.clone()),
            shards: self.shards,
            clock: Arc::new(|| NOW),
            seed: 1_000 * (i as u64 + 1) + host.starts,
            flush_bytes: 16 << 20,
            last_rows_bytes: 1 << 20,
            max_waiting_bytes: 16 << 20,
            peers: Some(PeerOptions {
                roles: host.roles,
                http: format!("{}:1", host.name),
                rpc: host.address.clone(),
                join: self.hosts.iter().map(|host| host.address.clone()).collect(),
                bootstrap_expect: expect,
                replicas: self.replicas,
                gone_after: self.gone_after,
                door: PeerDoor::new(PeerSecurity { secret: self.secret.clone(), tls: None }),
            }),
        }
    }

    /// Starts some hosts' nodes at once.
    async fn start(&mut self, which: &[usize], expect: Option<u32>) {
        let mut starting = Vec::new();
        for &i in which {
            self.hosts[i].starts += 1;
            let options = self.options(i, expect);
            let door = options.peers.as_ref().unwrap().door.clone();
            let closing = self.listen(i, door.clone());
            starting.push(async move { (i, door, closing, Cluster::start(options).await.expect("the node starts")) });
        }
        let started = tokio::time::timeout(PATIENCE, futures::future::join_all(starting)).await.expect("they find each other");
        for (i, door, closing, node) in started {
            self.hosts[i].running = Some(Running { node, door, closing });
        }
    }

    /// Has a host's door answer; until what is given back says no.
    fn listen(&self, i: usize, door: Arc<PeerDoor>) -> watch::Sender<bool> {
        let listener = TcpListener::from_std(self.hosts[i].listener.try_clone().unwrap()).unwrap();
        let (closing, closed) = watch::channel(false);
        let cuts = self.cuts.clone();
        let answer = move |request: http::Request<hyper::body::Incoming>| {
            let (door, cuts) = (door.clone(), cuts.clone());
            async move {
                let asker = request.headers().get("alluvium-node").and_then(|n| n.to_str().ok()).unwrap_or_default().to_owned();
                if cuts.read().unwrap().contains(&(asker, i)) {
                    // Lost on its way, and nobody is told.
                    return std::future::pending().await;
                }
                door.answer(request).await
            }
        };
        tokio::spawn(serve::serve(listener, None, answer, closed));
        closing
    }

    /// Cuts the network: hosts hear only those on their own side. What was under way breaks off.
    fn partition(&mut self, sides: &[&[usize]]) {
        let side_of = |i: usize| sides.iter().position(|side| side.contains(&i)).expect("every host is on a side");
        let running: Vec<usize> = (0..self.hosts.len()).filter(|i| self.hosts[*i].running.is_some()).collect();
        let pairs = running.iter().flat_map(|&from| running.iter().map(move |&to| (from, to)));
        let cuts = pairs.filter(|(from, to)| side_of(*from) != side_of(*to));
        *self.cuts.write().unwrap() = cuts.map(|(from, to)| (self.node(from).node_id().to_string(), to)).collect();
        for i in running {
            let door = self.hosts[i].running.as_ref().expect("it runs").door.clone();
            let closing = self.listen(i, door);
            let before = std::mem::replace(&mut self.hosts[i].running.as_mut().expect("it runs").closing, closing);
            before.send(true).unwrap();
        }
    }

    /// Everybody hears everybody again.
    fn heal(&mut self) {
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        self.partition(&[&all]);
    }

    fn node(&self, i: usize) -> &Arc<Cluster> {
        &self.hosts[i].running.as_ref().expect("it runs").node
    }

    /// The node is gone from one moment to the next, as far as the others can see.
    fn kill(&mut self, i: usize) {
        let Running { node, closing, .. } = self.hosts[i].running.take().expect("it runs");
        closing.send(true).unwrap();
        drop(node);
    }

    /// The host that leads a shard, once all that have a replica agree on one.
    async fn leader(&self, shard: ShardId) -> usize {
        wait("a leader", || async {
            let running = self.hosts.iter().filter_map(|host| host.running.as_ref());
            let mut leaders = running.filter(|r| r.node.read_stale(shard).is_ok()).map(|r| r.node.leader(shard));
            let first = leaders.next()??;
            let leader = self.hosts.iter().position(|h| h.running.as_ref().is_some_and(|r| r.node.node_id() == first))?;
            leaders.all(|other| other == Some(first)).then_some(leader)
        })
        .await
    }

    /// A table of one tag and one field.
    async fn table(&self) -> Arc<TableSchema> {
        let node = self.node(0);
        node.create_database(DATABASE, None, None).await.unwrap();
        let columns =
            vec![NewColumn { name: "device_id".into(), field: None }, NewColumn { name: "celsius".into(), field: Some(ColumnType::F64) }];
        let agreed = node.add_columns(DATABASE, vec![(TABLE.into(), columns)]).await.unwrap();
        // Everybody knows it: a node that routes knows of a table only what it has heard.
        for running in self.hosts.iter().filter_map(|host| host.running.as_ref()) {
            running.node.refresh().await.expect("the metadata is led");
        }
        agreed.catalog.database(DATABASE).unwrap().tables[TABLE].clone()
    }

    /// Everything that queries of the leaders would see.
    async fn rows(&self, table: &Arc<TableSchema>) -> Rows {
        let mut rows = Rows::new();
        for shard in self.hosts.iter().find_map(|h| h.running.as_ref()).unwrap().node.shards() {
            let view = wait("a view of the leader's", || async {
                let leader = self.leader(shard).await;
                self.node(leader).read(shard).await.ok()
            })
            .await;
            rows.extend(rows_of(&view, table));
        }
        rows
    }
}

/// Returns when a node's own replicas hold exactly these rows.
async fn has_all(node: &Cluster, table: &Arc<TableSchema>, rows: &Rows) {
    wait("a node to have all rows", || async {
        let mut here = Rows::new();
        for shard in node.shards() {
            here.extend(rows_of(&node.read_stale(shard).ok()?.0, table));
        }
        (here == *rows).then_some(())
    })
    .await;
}

/// Asks until there is an answer, or for too long.
async fn wait<T, F, Fut>(what: &str, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

/// One device's points, and the range that they belong to.
fn part(node: &Cluster, table: &TableSchema, sequence: u64, device: &str, points: &[(i64, f64)]) -> (ShardRange, WritePart) {
    let mut batch = PointBatch::new(table.id, table.version);
    let series = batch.push_series(SeriesKey::new([Some(device)]).as_bytes());
    batch.row_series = vec![series; points.len()];
    batch.times = points.iter().map(|p| NOW.0 + p.0).collect();
    let id = table.column("celsius").unwrap().id;
    batch.columns = vec![FieldColumn { id, values: Values::F64(points.iter().map(|p| p.1).collect()), valid: None }];
    let database = node.catalog().database(DATABASE).unwrap().id;
    let range = node.shard_map().range_of(routing_hash_of_tag(database, device)).clone();
    let range_version = range.version;
    (range, WritePart { origin: 99, sequence, arrived: NOW, range_version, retry_window: RetryWindow::Day, batches: vec![batch] })
}

/// Writes one point of each of `devices` through a node, and takes note of them.
async fn write(node: &Arc<Cluster>, table: &TableSchema, round: i64, devices: std::ops::Range<i64>, rows: &mut Rows) {
    let writes = devices.clone().map(|device| {
        let name = format!("phone-{device}");
        async move {
            loop {
                let (range, part) = part(node, table, (round * 1_000 + device) as u64, &name, &[(round, device as f64)]);
                match node.write(range.shard, part).await.expect("the write is kept").outcome() {
                    Outcome::WrongRange { .. } => assert!(node.wait_for_other_ranges(&[range], PATIENCE).await, "the map has changed"),
                    stored => break assert_eq!(*stored, Outcome::Stored { rows: 1 }),
                }
            }
        }
    });
    futures::future::join_all(writes).await;
    rows.extend(devices.map(|device| ((format!("phone-{device}"), NOW.0 + round), device as f64)));
}

fn rows_of(view: &View, table: &Arc<TableSchema>) -> Rows {
    let (device, celsius) = (table.column("device_id").unwrap().id, table.column("celsius").unwrap().id);
    let request = ScanRequest {
        table: table.clone(),
        projection: vec![ScanColumn::Time, ScanColumn::Column(device), ScanColumn::Column(celsius)],
        times: i64::MIN..=i64::MAX,
        tags: Vec::new(),
        batch_rows: 1_000,
    };
    let mut rows = Rows::new();
    for batch in view.scan(&request).expect("the view can be read") {
        let batch = batch.expect("a batch");
        let times: &TimestampNanosecondArray = batch.column(0).as_primitive();
        let devices = arrow::compute::cast(batch.column(1), &arrow::datatypes::DataType::Utf8).unwrap();
        let values: &Float64Array = batch.column(2).as_primitive();
        for i in 0..batch.num_rows() {
            let before = rows.insert((devices.as_string::<i32>().value(i).to_owned(), times.value(i)), values.value(i));
            assert!(before.is_none(), "no row is doubled");
        }
    }
    rows
}
