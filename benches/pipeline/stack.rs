//! The bench's own local services, and what they and the worker have used of the processors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The topic that everybody reads.
pub(crate) const TOPIC: &str = "bench";
/// Clock ticks a second in /proc: 100 on Linux for user space.
const TICKS: f64 = 100.0;

/// CPU seconds by process.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) worker: f64,
    pub(crate) kafka: f64,
    pub(crate) redis: f64,
    pub(crate) clickhouse: f64,
}

impl Cpu {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            worker: self.worker,
            kafka: self.kafka - before.kafka,
            redis: self.redis - before.redis,
            clickhouse: self.clickhouse - before.clickhouse,
        }
    }
}

/// A running stack; taken down when dropped.
pub(crate) struct Stack {
    script: PathBuf,
    name: String,
    env: HashMap<String, String>,
}

impl Stack {
    pub(crate) fn up() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/stack");
        let name = format!("bench-{}", std::process::id());
        // Taken down also where bringing it up fails half way.
        let mut stack = Self {
            script,
            name,
            env: HashMap::new(),
        };
        stack.call("up");
        stack.env = stack
            .call("env")
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        stack
    }

    fn call(&self, verb: &str) -> String {
        let output = Command::new(&self.script)
            .args([verb, &self.name])
            .output()
            .expect("deploy/local/stack runs");
        assert!(
            output.status.success(),
            "stack {verb}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        self.env
            .get(name)
            .unwrap_or_else(|| panic!("deploy/local/stack env lacks {name}"))
    }

    /// The binary, told of this stack and of `run`'s own names, so that no run sees another's state.
    pub(crate) fn sluice(&self, run: &str, topic: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        for name in [
            "SLUICE_KAFKA__BROKERS",
            "SLUICE_REDIS__URL",
            "SLUICE_CLICKHOUSE__URL",
        ] {
            command.env(name, self.get(name));
        }
        command
            .env("SLUICE_KAFKA__TOPIC", topic)
            .env("SLUICE_KAFKA__OVERFLOW_TOPIC", format!("{topic}_overflow"))
            .env("SLUICE_KAFKA__DEAD_LETTER_TOPIC", format!("{topic}_dead_letter"))
            .env("SLUICE_KAFKA__GROUP_ID", run)
            .env("SLUICE_REDIS__KEY_PREFIX", format!("{run}:"))
            .env("SLUICE_CLICKHOUSE__DATABASE", run);
        command
    }

    /// Makes a topic with its backlog; `late` is the share of events that are older than the window of claims.
    pub(crate) fn generate(&self, topic: &str, events: u64, late: f64) {
        let (events, late) = (events.to_string(), late.to_string());
        let arguments = [
            "generate",
            "--late",
            &late,
            "--count",
            &events,
            "--seed",
            "1",
            "--create-topics",
            "8",
            "--bad",
            "0",
            "--tokens",
            "50",
            "--users",
            "100000",
            "--duplicates",
            "0.1",
        ];
        let status = self
            .sluice("generate", topic)
            .args(arguments)
            .status()
            .expect("sluice generate runs");
        assert!(status.success(), "sluice generate failed");
    }

    /// Runs a statement and gives the answer as text.
    pub(crate) fn query(&self, sql: &str) -> String {
        let answer = ureq::post(self.get("SLUICE_CLICKHOUSE__URL")).send(sql);
        let mut answer = answer.unwrap_or_else(|error| panic!("{error}: {sql}"));
        answer
            .body_mut()
            .read_to_string()
            .expect("ClickHouse answers text")
            .trim()
            .to_owned()
    }

    pub(crate) fn forget_redis(&self) {
        let client = redis::Client::open(self.get("SLUICE_REDIS__URL")).expect("the URL is one");
        let mut connection = client.get_connection().expect("Redis answers");
        redis::cmd("FLUSHALL")
            .exec(&mut connection)
            .expect("Redis forgets");
    }

    /// CPU used so far, `worker` being a process of the bench.
    pub(crate) fn cpu(&self, worker: Option<u32>) -> Cpu {
        let service = |name: &str| seconds(self.get(name));
        Cpu {
            worker: worker.map_or(0.0, |pid| seconds(&pid.to_string())),
            kafka: service("STACK_KAFKA_PID"),
            redis: service("STACK_REDIS_PID"),
            clickhouse: service("STACK_CLICKHOUSE_PID"),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        Command::new(&self.script)
            .args(["down", &self.name])
            .output()
            .expect("deploy/local/stack runs");
    }
}

fn seconds(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name, in parentheses, may hold spaces; user and system time are the 12th and 13th fields behind it.
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 1..]
        .split_whitespace()
        .collect();
    let ticks = |i: usize| fields[i].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / TICKS
}

/// Peak memory of a process in bytes.
pub(crate) fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .expect("a number")
        << 10
}
