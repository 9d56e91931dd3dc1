//! Redis servers of a test's own: with sentinels, as a Cluster, or alone with TLS and users.
//!
//! Each server has a keeper, which kills it when this is dropped and also when the test process is.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::cluster::{ClusterClient, ClusterConnection};
use redis::{Connection, ConnectionLike, RedisResult, Value};

use super::free_port;
use super::wait::{eventually, seen};

const UP_WITHIN: Duration = Duration::from_mins(1);
/// How long a server is missed before the others act. Short for production, long for a machine that compiles beside it.
const DOWN_AFTER_MS: u32 = 2_000;
pub(crate) const SLOTS: u16 = 16_384;

/// How a Redis is found: `redis.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Sentinel,
    Cluster,
}

/// A server process.
#[derive(Debug)]
pub(crate) struct Server {
    keeper: Child,
    pid: Pid,
    pub(crate) port: u16,
    bus: u16,
}

impl Server {
    /// Starts one in a folder of its own, with further words of its command line.
    pub(crate) fn start(parent: &Path, words: &[&str]) -> Self {
        let (port, bus) = (free_port(), free_port());
        let folder = parent.join(port.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let port_text = port.to_string();
        let port_word = if words.contains(&"--tls-port") {
            "0"
        } else {
            &port_text
        };
        let all: Vec<String> = ["--port", port_word, "--bind", "127.0.0.1", "--save", "", "--dir"]
            .into_iter()
            .map(str::to_owned)
            .chain([folder.to_str().unwrap().to_owned()])
            .chain(["--repl-diskless-sync-delay", "0"].map(str::to_owned))
            .chain(words.iter().map(|word| match *word {
                "PORT" => port_text.clone(),
                "BUS" => bus.to_string(),
                word => word.to_owned(),
            }))
            .collect();
        Self::run(&folder, (port, bus), &all)
    }

    /// A sentinel that watches the primary at a port.
    fn sentinel(parent: &Path, primary: u16) -> Self {
        let port = free_port();
        let folder = parent.join(port.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds mymaster {DOWN_AFTER_MS}\nsentinel failover-timeout mymaster 10000\n\
             sentinel parallel-syncs mymaster 2\n",
            folder.display()
        );
        std::fs::write(&file, text).unwrap();
        let words = [file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        Self::run(&folder, (port, 0), &words)
    }

    fn run(folder: &Path, (port, bus): (u16, u16), words: &[String]) -> Self {
        let mut keeper = Command::new("sh")
            .args([
                "-c",
                "redis-server \"$@\" >\"$0\" 2>&1 & echo $!; read _; kill -9 $! 2>/dev/null",
            ])
            .arg(folder.join("log"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self {
            keeper,
            pid: Pid::from_raw(line.trim().parse().unwrap()),
            port,
            bus,
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection, once it answers.
    pub(crate) fn connect(&self) -> Connection {
        let client = redis::Client::open(format!("redis://{}", self.address())).unwrap();
        eventually("Redis answers", UP_WITHIN, || {
            let mut connection = client.get_connection().map_err(|error| error.to_string())?;
            let pong: RedisResult<Value> = redis::cmd("PING").query(&mut connection);
            pong.map(|_| connection).map_err(|error| error.to_string())
        })
    }

    pub(crate) fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connect())
    }

    fn tell(&self, words: &[&str]) {
        self.ask::<()>(words).unwrap();
    }

    fn tells(&self, section: &[&str], line: &str) -> Result<(), String> {
        let text: String = self.ask(section).map_err(|error| error.to_string())?;
        seen(text.lines().any(|told| told.trim() == line), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input is what the keeper waits for.
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("a Redis of a test may not be down: {error}");
        }
    }
}

/// Servers that are one Redis.
#[derive(Debug)]
pub(crate) struct Redises {
    pub(crate) mode: Mode,
    /// Data servers: the primaries first.
    pub(crate) servers: Vec<Server>,
    sentinels: Vec<Server>,
    /// Removed after the servers.
    _folder: tempfile::TempDir,
}

impl Redises {
    /// A primary with two replicas and three sentinels.
    pub(crate) fn sentinel() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = vec![Server::start(folder.path(), &["--min-replicas-to-write", "1"])];
        let primary = servers[0].port;
        for _ in 0..2 {
            let words = [
                "--min-replicas-to-write",
                "1",
                "--replicaof",
                "127.0.0.1",
                &primary.to_string(),
            ];
            servers.push(Server::start(folder.path(), &words));
        }
        for replica in &servers[1..] {
            eventually("a replica follows", UP_WITHIN, || {
                replica.tells(&["INFO", "replication"], "master_link_status:up")
            });
        }
        let sentinels: Vec<Server> = (0..3).map(|_| Server::sentinel(folder.path(), primary)).collect();
        for sentinel in &sentinels {
            eventually(
                "the sentinels know each other and all replicas",
                UP_WITHIN,
                || {
                    let quorum: RedisResult<String> = sentinel.ask(&["SENTINEL", "CKQUORUM", "mymaster"]);
                    let quorum = quorum.map_err(|error| error.to_string())?;
                    seen(quorum.contains("OK 3 usable"), &quorum)?;
                    let replicas: RedisResult<Vec<Value>> =
                        sentinel.ask(&["SENTINEL", "REPLICAS", "mymaster"]);
                    let replicas = replicas.map_err(|error| error.to_string())?.len();
                    seen(replicas == 2, replicas)
                },
            );
        }
        Self {
            mode: Mode::Sentinel,
            servers,
            sentinels,
            _folder: folder,
        }
    }

    /// A Cluster of so many primaries with so many replicas each.
    pub(crate) fn cluster(primaries: usize, replicas: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let timeout = DOWN_AFTER_MS.to_string();
        let words = [
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            "BUS",
            "--cluster-node-timeout",
            &timeout,
            "--cluster-replica-validity-factor",
            "0",
        ];
        let servers: Vec<Server> = (0..primaries * (1 + replicas))
            .map(|_| Server::start(folder.path(), &words))
            .collect();
        let redises = Self {
            mode: Mode::Cluster,
            servers,
            sentinels: Vec::new(),
            _folder: folder,
        };
        let share = usize::from(SLOTS).div_ceil(primaries);
        for (n, server) in redises.servers.iter().enumerate() {
            let epoch = (n + 1).to_string();
            server.tell(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
            if n < primaries {
                let (first, last) = (n * share, ((n + 1) * share).min(usize::from(SLOTS)) - 1);
                let words = ["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()];
                server.tell(&words);
            }
            let first = &redises.servers[0];
            let words = [
                "CLUSTER",
                "MEET",
                "127.0.0.1",
                &first.port.to_string(),
                &first.bus.to_string(),
            ];
            if n > 0 {
                server.tell(&words);
            }
        }
        let all = format!("cluster_known_nodes:{}", redises.servers.len());
        for server in &redises.servers {
            eventually("every node knows all", UP_WITHIN, || {
                server.tells(&["CLUSTER", "INFO"], &all)
            });
        }
        for (n, replica) in redises.servers.iter().enumerate().skip(primaries) {
            let id: String = redises.servers[n % primaries].ask(&["CLUSTER", "MYID"]).unwrap();
            replica.tell(&["CLUSTER", "REPLICATE", &id]);
        }
        for (n, server) in redises.servers.iter().enumerate() {
            eventually("the Cluster is up", UP_WITHIN, || {
                server.tells(&["CLUSTER", "INFO"], "cluster_state:ok")?;
                if n < primaries {
                    return Ok(());
                }
                server.tells(&["INFO", "replication"], "master_link_status:up")
            });
        }
        redises
    }

    /// What to set `redis.url` to.
    pub(crate) fn url(&self) -> String {
        let asked = match self.mode {
            Mode::Sentinel => &self.sentinels,
            Mode::Cluster => &self.servers,
        };
        let addresses: Vec<String> = asked.iter().take(3).map(Server::address).collect();
        format!("redis://{}", addresses.join(","))
    }

    /// What to set `redis.mode` to.
    pub(crate) fn mode(&self) -> &'static str {
        match self.mode {
            Mode::Sentinel => "sentinel",
            Mode::Cluster => "cluster",
        }
    }

    /// Makes a user with a password and that rule, on all data servers.
    pub(crate) fn allow(&self, user: &str, password: &str, rule: &[String]) {
        for server in &self.servers {
            let mut command = redis::cmd("ACL");
            command
                .arg("SETUSER")
                .arg(user)
                .arg("on")
                .arg(format!(">{password}"));
            command.arg(rule).exec(&mut server.connect()).unwrap();
        }
    }

    /// What the data servers refused a user for, as their logs tell.
    pub(crate) fn refused(&self) -> Vec<String> {
        let logs = self.servers.iter().map(|server| {
            let entries: Vec<Value> = server.ask(&["ACL", "LOG"]).unwrap();
            entries
                .iter()
                .map(|entry| format!("{entry:?}"))
                .collect::<Vec<_>>()
        });
        logs.flatten().collect()
    }

    /// Those of the servers that are primaries now.
    pub(crate) fn primaries(&self) -> Vec<&Server> {
        let is_primary = |server: &&Server| {
            let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
            let role = client
                .get_connection()
                .and_then(|mut connection| redis::cmd("ROLE").query::<Vec<Value>>(&mut connection));
            role.is_ok_and(|role| matches!(&role[0], Value::BulkString(role) if role == b"master"))
        };
        self.servers.iter().filter(is_primary).collect()
    }

    /// A connection for whatever a test wants to know.
    pub(crate) fn connect(&self) -> AnyConnection {
        match self.mode {
            Mode::Cluster => {
                let nodes = self
                    .servers
                    .iter()
                    .map(|server| format!("redis://{}", server.address()));
                let client = ClusterClient::new(nodes.collect::<Vec<_>>()).unwrap();
                AnyConnection::Cluster(Box::new(client.get_connection().unwrap()))
            }
            Mode::Sentinel => AnyConnection::One(self.primaries()[0].connect()),
        }
    }

    /// Moves a slot from one server to another, a key at a time in the given order's sense: `order` sorts the keys. Between
    /// two keys `pause` is called.
    pub(crate) fn move_slot(
        &self,
        slot: u16,
        (from, to): (&Server, &Server),
        mut order: impl FnMut(&mut Vec<Vec<u8>>),
        mut pause: impl FnMut(),
    ) {
        let text = slot.to_string();
        let (mut source, mut target) = (from.connect(), to.connect());
        let ask = |connection: &mut Connection, words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]).exec(connection).unwrap();
        };
        let id = |server: &Server| server.ask::<String>(&["CLUSTER", "MYID"]).unwrap();
        let (from_id, to_id) = (id(from), id(to));
        ask(&mut target, &["CLUSTER", "SETSLOT", &text, "IMPORTING", &from_id]);
        ask(&mut source, &["CLUSTER", "SETSLOT", &text, "MIGRATING", &to_id]);
        loop {
            let mut keys: Vec<Vec<u8>> = redis::cmd("CLUSTER")
                .arg("GETKEYSINSLOT")
                .arg(slot)
                .arg(100_000)
                .query(&mut source)
                .unwrap();
            if keys.is_empty() {
                break;
            }
            order(&mut keys);
            for key in keys {
                let mut migrate = redis::cmd("MIGRATE");
                migrate.arg("127.0.0.1").arg(to.port).arg(key).arg(0).arg(5_000);
                if std::env::var_os("FAILPOINTS").is_some() {
                    // A guard is taken out: what is at both servers then must not end the experiment.
                    migrate.arg("REPLACE");
                }
                migrate.exec(&mut source).unwrap();
                pause();
            }
        }
        ask(&mut target, &["CLUSTER", "SETSLOT", &text, "NODE", &to_id]);
        ask(&mut source, &["CLUSTER", "SETSLOT", &text, "NODE", &to_id]);
        for server in self.primaries() {
            server.tell(&["CLUSTER", "SETSLOT", &text, "NODE", &to_id]);
        }
    }
}

/// A connection to a Redis of any kind. On a Cluster the commands of a pipeline go one by one.
pub(crate) enum AnyConnection {
    One(Connection),
    Cluster(Box<ClusterConnection>),
}

impl ConnectionLike for AnyConnection {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => {
                let commands = commands_of(cmd).into_iter().skip(offset).take(count);
                commands
                    .map(|command| connection.req_packed_command(command))
                    .collect()
            }
        }
    }

    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// The commands of a packed pipeline, each in its packed form.
fn commands_of(mut packed: &[u8]) -> Vec<&[u8]> {
    /// The number in a line like `*3` at a place, and where the next line begins.
    fn line(bytes: &[u8], at: usize) -> (usize, usize) {
        let end = at + bytes[at..].iter().position(|byte| *byte == b'\r').unwrap();
        (
            std::str::from_utf8(&bytes[at + 1..end]).unwrap().parse().unwrap(),
            end + 2,
        )
    }
    let mut commands = Vec::new();
    while !packed.is_empty() {
        let (arguments, mut at) = line(packed, 0);
        for _ in 0..arguments {
            let (length, begin) = line(packed, at);
            at = begin + length + 2;
        }
        let (command, rest) = packed.split_at(at);
        commands.push(command);
        packed = rest;
    }
    commands
}
