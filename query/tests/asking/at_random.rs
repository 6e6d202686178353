//! Random points, flushes and compactions: the quick ways and the slow one must agree after every step, and
//! `latest(TABLE)` with the SQL that says the same.

use query::{RunOptions, Shortcuts};

use crate::node::Node;

/// A generator that needs no crate: the same numbers from the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn point(&mut self) -> String {
        let mut series = "phone".to_owned();
        if self.below(10) > 0 {
            series += &format!(",device_id=p{}", self.below(6));
        }
        if self.below(3) > 0 {
            series += &format!(",os={}", ["a", "b"][self.below(2) as usize]);
        }
        // Few instants, so that rows are written again; two days, so that files are cut.
        let time = self.below(40) as i64 * 3_600_000_000_000 - 3_600_000_000_000;
        let fields = [format!("v={}", self.below(100)), format!("n={}i", self.below(100)), format!("s=\"x{}\"", self.below(9))];
        let keep = 1 + self.below(7);
        let fields: Vec<String> = fields.into_iter().enumerate().filter(|(i, _)| keep >> i & 1 == 1).map(|(_, f)| f).collect();
        format!("{series} {} {time}", fields.join(","))
    }
}

const QUESTIONS: [&str; 12] = [
    "SELECT * FROM phone ORDER BY device_id, os, time",
    "SELECT * FROM latest(phone) ORDER BY device_id, os",
    "SELECT count(*), count(v), sum(n), min(time), max(s) FROM phone",
    "SELECT * FROM phone WHERE device_id = 'p3' AND time > '1970-01-01T05:00:00Z' ORDER BY os, time",
    "SELECT * FROM phone WHERE device_id IS NULL OR os = 'a' ORDER BY device_id, os, time",
    "SELECT * FROM phone ORDER BY time DESC, device_id, os LIMIT 5",
    "SELECT time, v FROM phone WHERE v > 20 ORDER BY time DESC, device_id, os LIMIT 7",
    "SELECT * FROM phone WHERE device_id = 'p3' ORDER BY time DESC, os LIMIT 3",
    "SELECT device_id, time FROM phone WHERE time > '1970-01-01T05:00:00Z' ORDER BY time, device_id, os LIMIT 4",
    "SELECT (SELECT max(time) FROM phone WHERE n > 5) AS newest, (SELECT min(time) FROM phone WHERE device_id = 'p1') AS oldest",
    "SELECT device_id, os, time_bucket('5h', time) AS t, count(*), sum(n), last_value(v ORDER BY time) FROM phone GROUP BY device_id, os, t ORDER BY device_id, os, t",
    "SELECT * FROM (SELECT time, device_id, os, v FROM phone WHERE time BETWEEN '1970-01-01T03:00:00Z' AND '1970-01-02T02:00:00Z') WHERE v > 20 ORDER BY device_id, os, time",
];

const LATEST: &str = "SELECT time, device_id, os, v, n, s FROM latest(phone) ORDER BY device_id, os";
const LATEST_IN_SQL: &str = "SELECT time, device_id, os, v, n, s FROM (SELECT *, row_number() OVER (PARTITION BY device_id, os ORDER BY \
                             time DESC) AS k FROM phone) WHERE k = 1 ORDER BY device_id, os";

#[tokio::test(flavor = "multi_thread")]
async fn quick_and_slow_ways_agree_after_every_step() {
    for seed in [1, 2] {
        let node = Node::start().await;
        let mut chance = Chance(seed);
        node.write("phone,device_id=p0,os=a v=0,n=0i,s=\"x\" 0").await;
        for step in 0..6 {
            let points: Vec<String> = (0..1 + chance.below(30)).map(|_| chance.point()).collect();
            node.write(&points.join("\n")).await;
            match chance.below(8) {
                0 | 1 => drop(node.ask("FLUSH").await),
                2 => drop(node.ask("COMPACT").await),
                _ => {}
            }
            for sql in QUESTIONS {
                let slow = RunOptions { shortcuts: Shortcuts::Off, ..RunOptions::default() };
                let (quick, slow) = (node.ask(sql).await, node.csv(sql, slow).await.unwrap());
                assert_eq!(quick, slow, "seed {seed}, step {step}: {sql}");
            }
            assert_eq!(node.ask(LATEST).await, node.ask(LATEST_IN_SQL).await, "seed {seed}, step {step}");
        }
        node.cluster.shutdown().await;
    }
}
