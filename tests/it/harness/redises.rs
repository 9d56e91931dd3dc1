//! Redis servers of a test's own that are one Redis: behind sentinels, or as a Cluster.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use redis::cluster::ClusterClient;
use redis::{Connection, RedisResult, Value};

use super::any_redis::AnyConnection;
use super::redis_server::{DOWN_AFTER_MS, Server, UP_WITHIN};
use super::wait::{eventually, seen};

/// How many slots a Cluster has.
pub(crate) const SLOTS: u16 = 16_384;

/// How a Redis is found: `redis.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Sentinel,
    Cluster,
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
    /// The servers that all tests share which change nothing about them; there for as long as one of these runs.
    pub(crate) fn shared(mode: Mode) -> Arc<Self> {
        static SHARED: [Mutex<Weak<Redises>>; 2] = [const { Mutex::new(Weak::new()) }; 2];
        let mut shared = SHARED[mode as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let redises = Arc::new(match mode {
                Mode::Sentinel => Self::sentinel(),
                Mode::Cluster => Self::cluster(3, 0),
            });
            *shared = Arc::downgrade(&redises);
            redises
        })
    }

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
