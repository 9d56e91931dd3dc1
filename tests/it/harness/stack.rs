//! Where the services are: the stack that `make test` started, or one of a test's own.

use std::collections::HashMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::unistd::Pid;

/// Stacks of tests' own that run at the same time: each is a JVM and a `ClickHouse`.
const MOST_PRIVATE: usize = 2;

const HOW_TO_RUN: &str = "the services' addresses are not in the environment: run the tests by `make test` (one of \
                          them: `make test ARGS=its_name`), which starts Kafka, Redis and ClickHouse";

/// The addresses of one stack.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) brokers: String,
    pub(crate) redis: String,
    pub(crate) clickhouse: String,
}

impl Addresses {
    fn from(value: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| value(name).unwrap_or_else(|| panic!("{name}: {HOW_TO_RUN}"));
        Self {
            brokers: get("SLUICE_KAFKA__BROKERS"),
            redis: get("SLUICE_REDIS__URL"),
            clickhouse: get("SLUICE_CLICKHOUSE__URL"),
        }
    }

    /// Those of the stack that all tests share.
    pub(crate) fn shared() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }
}

/// A service of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Kafka,
    /// The brokers of a stack of three.
    FirstBroker,
    SecondBroker,
    ThirdBroker,
    Redis,
    ClickHouse,
}

impl Service {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::FirstBroker => "kafka-1",
            Self::SecondBroker => "kafka-2",
            Self::ThirdBroker => "kafka-3",
            Self::Redis => "redis",
            Self::ClickHouse => "clickhouse",
        }
    }
}

/// A stack of a test's own, whose services may be stopped.
///
/// A guardian process takes it down: when this is dropped, and also when the test process is killed.
#[derive(Debug)]
pub(crate) struct PrivateStack {
    name: String,
    pub(crate) addresses: Addresses,
    guardian: Child,
    _turn: Turn,
}

impl PrivateStack {
    /// Waits for its turn, then starts a stack with that many brokers.
    pub(crate) fn up(brokers: u32) -> Self {
        Self::up_with(&["--kafka-brokers", &brokers.to_string()])
    }

    /// The same with options of `stack up`.
    pub(crate) fn up_with(options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let turn = Turn::take();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("it-{}-{n}", std::process::id());
        let guardian = Command::new("sh")
            .args(["-c", "read _; exec \"$0\" down \"$1\"", &program(), &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        // The guardian is there before the stack, which may fail half-way.
        let mut stack = Self {
            name,
            addresses: Addresses {
                brokers: String::new(),
                redis: String::new(),
                clickhouse: String::new(),
            },
            guardian,
            _turn: turn,
        };
        stack.command("up", options);
        let lines = stack.command("env", &[]);
        let values: HashMap<&str, &str> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        stack.addresses =
            Addresses::from(|name| values.get(name).map(|value| value.trim_matches('\'').to_owned()));
        stack
    }

    /// Stops a service in good order.
    pub(crate) fn stop(&self, service: Service) {
        self.command("stop", &[service.name()]);
    }

    /// Starts a service on its old port and data, and waits until it serves.
    pub(crate) fn start(&self, service: Service) {
        self.command("start", &[service.name()]);
    }

    /// Freezes a service: its connections stay open, and nothing answers.
    pub(crate) fn pause(&self, service: Service) {
        self.command("pause", &[service.name()]);
    }

    /// Wakes a frozen service.
    pub(crate) fn resume(&self, service: Service) {
        self.command("resume", &[service.name()]);
    }

    /// The process of a service (one broker, where it is Kafka). It changes with each start.
    pub(crate) fn pid(&self, service: Service) -> Pid {
        let label = format!("STACK_{}_PID=", service.name().to_uppercase().replace('-', "_"));
        let lines = self.command("env", &[]);
        let pid = lines.lines().find_map(|line| line.strip_prefix(&label));
        Pid::from_raw(pid.unwrap().trim_matches('\'').parse().unwrap())
    }

    /// Where its services have their data and logs.
    pub(crate) fn folder(&self) -> PathBuf {
        let lines = self.command("env", &[]);
        let folder = lines.lines().find_map(|line| line.strip_prefix("STACK_DIR="));
        PathBuf::from(folder.unwrap().trim_matches('\''))
    }

    fn command(&self, command: &str, services: &[&str]) -> String {
        let output = Command::new(program())
            .arg(command)
            .arg(&self.name)
            .args(services)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "stack {command} {} {services:?}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for PrivateStack {
    fn drop(&mut self) {
        // The end of its input is what the guardian waits for.
        drop(self.guardian.stdin.take());
        if let Err(error) = self.guardian.wait() {
            eprintln!("stack {} may not be down: {error}", self.name);
        }
    }
}

fn program() -> String {
    std::env::var("SLUICE_LOCAL_STACK").unwrap_or_else(|_| panic!("SLUICE_LOCAL_STACK: {HOW_TO_RUN}"))
}

/// One of the few places for private stacks.
#[derive(Debug)]
struct Turn(Arc<(Mutex<usize>, Condvar)>);

impl Turn {
    fn take() -> Self {
        static TURNS: std::sync::LazyLock<Arc<(Mutex<usize>, Condvar)>> =
            std::sync::LazyLock::new(Arc::default);
        let turns = Arc::clone(&TURNS);
        let (taken, freed) = &*turns;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= MOST_PRIVATE {
            taken = freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        drop(taken);
        Self(turns)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (taken, freed) = &*self.0;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        freed.notify_one();
    }
}
