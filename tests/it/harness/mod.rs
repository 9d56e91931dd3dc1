//! What every test stands on: a [`Scene`] of its own, workers, and looks at all destinations.

pub(crate) mod any_redis;
pub(crate) mod clickhouse;
pub(crate) mod events;
pub(crate) mod kafka;
pub(crate) mod load;
pub(crate) mod monitor;
pub(crate) mod proxy;
pub(crate) mod raw_kafka;
pub(crate) mod redis_by_file;
pub(crate) mod redis_server;
pub(crate) mod redises;
pub(crate) mod stack;
pub(crate) mod told;
pub(crate) mod wait;
pub(crate) mod worker;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redis::Commands as _;

use self::any_redis::AnyConnection;
use self::clickhouse::{ClickHouse, Row};
use self::kafka::{Kafka, Record};
use self::redises::Redises;
use self::stack::{Addresses, PrivateStack};
use self::wait::eventually;
use self::worker::Worker;

/// Below the ports that the kernel and the local stacks hand out.
const PORTS: std::ops::Range<u16> = 12_000..20_000;
/// How long a group without trouble may take to settle.
pub(crate) const SETTLED_WITHIN: Duration = Duration::from_secs(90);

/// One test's part of the world. Dropped, all of it is removed; after a failure the workers' logs stay.
pub(crate) struct Scene {
    pub(crate) name: String,
    pub(crate) topic: String,
    pub(crate) overflow: String,
    pub(crate) dead_letters: String,
    pub(crate) group: String,
    pub(crate) database: String,
    pub(crate) prefix: String,
    pub(crate) partitions: i32,
    pub(crate) kafka: Kafka,
    pub(crate) clickhouse: ClickHouse,
    settings: Vec<(String, String)>,
    redis_url: String,
    folder: PathBuf,
    workers: AtomicU32,
    began: Instant,
    /// A Redis of its own, which is not a single server.
    pub(crate) redises: Option<Arc<Redises>>,
    /// Last, so that it is taken down after everything above is removed.
    pub(crate) stack: Option<PrivateStack>,
}

impl Scene {
    /// A scene on the shared stack. `name` is the test's, shortened.
    pub(crate) fn new(name: &str, partitions: i32) -> Self {
        Self::on(Addresses::shared(), None, name, partitions, 1)
    }

    /// A scene on a stack that others will use after it. Its topics are replicated that often.
    pub(crate) fn beside(stack: &PrivateStack, name: &str, partitions: i32, replicas: i32) -> Self {
        Self::on(stack.addresses.clone(), None, name, partitions, replicas)
    }

    /// A scene on a stack of its own, whose services may be stopped.
    pub(crate) fn private(name: &str, partitions: i32) -> Self {
        Self::private_of(name, partitions, 1)
    }

    /// The same with several brokers. A topic has each partition on one of them alone.
    pub(crate) fn private_of(name: &str, partitions: i32, brokers: u32) -> Self {
        let stack = PrivateStack::up(brokers);
        Self::on(stack.addresses.clone(), Some(stack), name, partitions, 1)
    }

    /// A scene on the shared stack, but for its Redis.
    pub(crate) fn with_redis(name: &str, partitions: i32, redises: impl Into<Arc<Redises>>) -> Self {
        let redises = redises.into();
        let mut scene = Self::new(name, partitions);
        scene.set("redis.url", &redises.url());
        scene.set("redis.mode", redises.mode());
        scene.redises = Some(redises);
        scene
    }

    fn on(
        addresses: Addresses,
        stack: Option<PrivateStack>,
        name: &str,
        partitions: i32,
        replicas: i32,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Two tests may have chosen the same name.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("it_{name}_{}_{number}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&unique);
        std::fs::create_dir_all(&folder).unwrap();
        let topic = format!("{unique}_events");
        let mut scene = Self {
            overflow: format!("{topic}_overflow"),
            dead_letters: format!("{topic}_dead_letter"),
            group: format!("{unique}_group"),
            database: unique.clone(),
            prefix: format!("{unique}:"),
            kafka: Kafka::at(&addresses.brokers, replicas),
            clickhouse: ClickHouse::at(&addresses.clickhouse),
            settings: Vec::new(),
            redis_url: addresses.redis.clone(),
            workers: AtomicU32::new(0),
            began: Instant::now(),
            redises: None,
            name: unique,
            topic,
            partitions,
            folder,
            stack,
        };
        for (key, value) in [
            ("kafka.brokers", addresses.brokers),
            ("kafka.group_id", scene.group.clone()),
            ("kafka.topic", scene.topic.clone()),
            ("kafka.overflow_topic", scene.overflow.clone()),
            ("kafka.dead_letter_topic", scene.dead_letters.clone()),
            ("redis.url", addresses.redis),
            ("redis.key_prefix", scene.prefix.clone()),
            ("clickhouse.url", addresses.clickhouse),
            ("clickhouse.database", scene.database.clone()),
            // Small blocks: more of them, and so more that can go wrong.
            ("batch.max_age_ms", "200".to_owned()),
            ("clickhouse.max_inserts_per_second", "100".to_owned()),
            ("rate_limit.limit", "1000000000".to_owned()),
        ] {
            scene.set(key, &value);
        }
        scene.kafka.create_topics(&[
            (&scene.topic, partitions),
            (&scene.overflow, partitions),
            (&scene.dead_letters, 1),
        ]);
        scene.migrate();
        scene
    }

    /// Sets a configuration key for everything that is started from here on.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// Makes the table anew with another `clickhouse.insert_deadline_seconds`.
    pub(crate) fn set_deadline(&mut self, seconds: u32) {
        self.set("clickhouse.insert_deadline_seconds", &seconds.to_string());
        self.clickhouse
            .run(&format!("DROP DATABASE {} SYNC", self.database));
        self.migrate();
    }

    /// Creates the table and keeps it from merging the evidence away.
    pub(crate) fn migrate(&self) {
        let output = self.sluice(&["migrate"]);
        assert!(
            output.status.success(),
            "sluice migrate: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.clickhouse
            .run(&format!("SYSTEM STOP MERGES {}.events", self.database));
    }

    /// The binary with this scene's configuration and nothing else's.
    pub(crate) fn command(&self) -> Command {
        let mut command = bare_command();
        for (key, value) in &self.settings {
            command.env(variable(key), value);
        }
        command
    }

    /// Runs a subcommand to its end.
    pub(crate) fn sluice(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Starts a worker; see [`Worker::ready`].
    pub(crate) fn start(&self) -> Worker {
        self.start_with(&[])
    }

    /// Starts a worker with some settings of its own.
    pub(crate) fn start_with(&self, settings: &[(&str, &str)]) -> Worker {
        self.start_failing("", settings)
    }

    /// Starts a worker that has `faults`, in the language of `src/faults.rs`; and those that the tests were started with,
    /// so that `FAILPOINTS=without-token=return make test ARGS=some_test` shows whether a test misses that guard.
    pub(crate) fn start_failing(&self, faults: &str, settings: &[(&str, &str)]) -> Worker {
        self.start_as("worker", faults, settings)
    }

    /// Starts a process that runs tasks.
    pub(crate) fn start_tasks(&self, settings: &[(&str, &str)]) -> Worker {
        self.start_as("tasks", "", settings)
    }

    /// The same with faults in it.
    pub(crate) fn start_failing_tasks(&self, faults: &str) -> Worker {
        self.start_as("tasks", faults, &[])
    }

    fn start_as(&self, role: &str, faults: &str, settings: &[(&str, &str)]) -> Worker {
        let number = self.workers.fetch_add(1, Ordering::Relaxed);
        let (http, admin) = (free_port(), free_port());
        let mut command = self.command();
        for (key, value) in settings {
            command.env(variable(key), value);
        }
        command
            .args(["run", "--role", role])
            .env("FAILPOINTS", with_inherited(faults))
            .env("SLUICE_HTTP__LISTEN", format!("127.0.0.1:{http}"))
            .env("SLUICE_HTTP__ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        Worker::spawn(
            command,
            self.folder.join(format!("{role}-{number:02}.log")),
            admin,
        )
    }

    /// Sends records to the topic and returns them with their offsets.
    pub(crate) fn produce(&self, records: Vec<Record>) -> Vec<Record> {
        self.kafka.produce(&self.topic, records)
    }

    /// Waits until the group's committed offsets are the ends of the topic.
    pub(crate) fn settled(&self) {
        self.settled_within(SETTLED_WITHIN);
    }

    pub(crate) fn settled_within(&self, patience: Duration) {
        self.group_settled(&self.group, &self.topic, patience);
    }

    /// Waits until a group's committed offsets are the ends of a topic.
    pub(crate) fn group_settled(&self, group: &str, topic: &str, patience: Duration) {
        let bounds = self.kafka.bounds(topic);
        eventually("the group has settled", patience, || {
            let committed = self.kafka.committed(group, topic, bounds.len() as i32)?;
            let open: Vec<String> = committed
                .iter()
                .zip(&bounds)
                .enumerate()
                .filter(|(_, (committed, (low, high)))| {
                    low != high && committed.as_ref().is_none_or(|(offset, _)| offset != high)
                })
                .map(|(partition, (committed, (_, high)))| format!("{partition}: {committed:?} of {high}"))
                .collect();
            if open.is_empty() {
                Ok(())
            } else {
                Err(open.join(", "))
            }
        });
    }

    /// All rows of the table, without FINAL.
    pub(crate) fn rows(&self) -> Vec<Row> {
        self.clickhouse.rows(&self.database)
    }

    /// Waits until the table has rows at all.
    pub(crate) fn some_rows(&self) {
        eventually("the table has rows", SETTLED_WITHIN, || {
            match self.clickhouse.count(&self.database) {
                0 => Err("none".to_owned()),
                n => Ok(n),
            }
        });
    }

    /// What was rejected to `topic`, each coordinate once: after a crash a reject may be sent again.
    pub(crate) fn rejects(&self, topic: &str) -> Vec<Record> {
        let mut seen = std::collections::HashSet::new();
        let all = self.kafka.read(topic).into_iter();
        all.filter(|record| {
            let of = |name| {
                record
                    .header_text(name)
                    .unwrap_or_else(|| panic!("{name} is missing: {record:?}"))
                    .to_owned()
            };
            seen.insert([
                of("sluice-topic"),
                of("sluice-incarnation"),
                of("sluice-partition"),
                of("sluice-offset"),
            ])
        })
        .collect()
    }

    /// A connection to this scene's Redis.
    pub(crate) fn redis(&self) -> AnyConnection {
        if let Some(redises) = &self.redises {
            return redises.connect();
        }
        let client = redis::Client::open(self.redis_url.as_str()).unwrap();
        AnyConnection::One(client.get_connection().unwrap())
    }

    /// Where this scene's Redis is.
    pub(crate) fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// Where this scene's Redis is, as the transport takes it.
    pub(crate) fn redis_settings(&self) -> sluice::redis::Settings {
        let of_redis = self.settings.iter().filter(|(key, _)| key.starts_with("redis."));
        let variables = of_redis.map(|(key, value)| {
            let name = format!("SLUICE_{}", key.replace('.', "__").to_uppercase());
            (name.into(), value.into())
        });
        let config = sluice::config::Config::load_with(None, variables).unwrap();
        sluice::redis::Settings::state(&config.redis).unwrap()
    }

    /// The Redis keys of this scene, without its prefix.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut connections = match &self.redises {
            Some(redises) => {
                let primaries = redises.primaries().into_iter();
                primaries
                    .map(|server| AnyConnection::One(server.connect()))
                    .collect()
            }
            None => vec![self.redis()],
        };
        let pattern = format!("{}*", self.prefix);
        let mut found: Vec<String> = Vec::new();
        for connection in &mut connections {
            found.extend(connection.scan_match(&pattern).unwrap().map(Result::unwrap));
        }
        let mut keys: Vec<String> = found
            .iter()
            .map(|key| key[self.prefix.len()..].to_owned())
            .collect();
        keys.sort();
        keys
    }

    /// A key with this scene's prefix.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// How long ago it was set up.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Where the workers' logs are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Logs of all workers so far, by their start.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        logs.sort();
        logs
    }

    /// How many lines of all workers' logs hold that text.
    pub(crate) fn logged(&self, text: &str) -> usize {
        let lines = |log: &PathBuf| {
            std::fs::read_to_string(log)
                .unwrap()
                .lines()
                .filter(|line| line.contains(text))
                .count()
        };
        self.logs().iter().map(lines).sum()
    }

    fn tell_of_failure(&self) {
        eprintln!(
            "{} failed after {:.1} s; logs stay in {}",
            self.name,
            self.began.elapsed().as_secs_f64(),
            self.folder.display()
        );
        for log in self.logs().iter().rev().take(3).rev() {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- the end of {}", log.display());
            for line in &lines[lines.len().saturating_sub(25)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_of_failure();
            return;
        }
        eprintln!("{} took {:.1} s", self.name, self.began.elapsed().as_secs_f64());
        drop(std::fs::remove_dir_all(&self.folder));
        if self.stack.is_none() {
            self.kafka
                .delete_topics(&[&self.topic, &self.overflow, &self.dead_letters]);
            self.clickhouse
                .run(&format!("DROP DATABASE IF EXISTS {} SYNC", self.database));
            if self.redises.is_some() {
                return;
            }
            let keys: Vec<String> = self.keys().iter().map(|key| self.key(key)).collect();
            let mut connection = self.redis();
            for some in keys.chunks(10_000) {
                connection.unlink::<_, ()>(some).unwrap();
            }
        }
    }
}

fn with_inherited(faults: &str) -> String {
    let inherited = std::env::var("FAILPOINTS").unwrap_or_default();
    format!("{inherited};{faults}").trim_matches(';').to_owned()
}

/// The variable of a configuration key.
pub(crate) fn variable(key: &str) -> String {
    format!("SLUICE_{}", key.replace('.', "__").to_uppercase())
}

/// The binary without any configuration of ours.
pub(crate) fn bare_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLUICE_") {
            command.env_remove(name);
        }
    }
    command
}

/// A port that nobody listens on, never given twice by this process.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two test processes begin at different places.
    let begin = (std::process::id() as u16).wrapping_mul(101);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(begin);
        let port = PORTS.start + n % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
