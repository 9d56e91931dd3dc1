//! A Redis server of a test's own.
//!
//! It has a keeper, which kills it when this is dropped and also when the test process is.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::{Connection, RedisResult, Value};

use super::free_port;
use super::wait::{eventually, seen};

pub(super) const UP_WITHIN: Duration = Duration::from_mins(1);
/// How long a server is missed before the others act. Short for production, long for a machine that compiles beside it.
pub(super) const DOWN_AFTER_MS: u32 = 2_000;

/// A server process.
#[derive(Debug)]
pub(crate) struct Server {
    keeper: Child,
    pid: Pid,
    pub(crate) port: u16,
    pub(super) bus: u16,
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
    pub(super) fn sentinel(parent: &Path, primary: u16) -> Self {
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

    /// Holds it up: connections stay open, and nothing answers.
    pub(crate) fn freeze(&self) {
        kill(self.pid, Signal::SIGSTOP).unwrap();
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        kill(self.pid, Signal::SIGCONT).unwrap();
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

    pub(super) fn tell(&self, words: &[&str]) {
        self.ask::<()>(words).unwrap();
    }

    pub(super) fn tells(&self, section: &[&str], line: &str) -> Result<(), String> {
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
