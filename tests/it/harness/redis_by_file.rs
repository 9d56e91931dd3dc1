//! Redis servers of a test's own, started with the files of `deploy/redis`.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use redis::{Connection, RedisResult};

use super::free_port;
use super::wait::eventually;

const UP_WITHIN: Duration = Duration::from_secs(20);

/// A server in a folder of its own below `under`. Dropped, it is killed.
pub(crate) struct RedisByFile {
    child: Child,
    pub(crate) port: u16,
    log: PathBuf,
}

impl RedisByFile {
    /// Starts a server with one of the files of `deploy/redis` and further settings.
    pub(crate) fn with_file(file: &str, under: &Path, settings: &[&str]) -> Self {
        let port = free_port();
        let folder = under.join(port.to_string());
        copy_files(&folder);
        let mut command = Command::new("redis-server");
        command
            .arg(file)
            .args(["--port", &port.to_string(), "--dir"])
            .arg(&folder);
        command.args(settings);
        Self::spawn(command, &folder, port)
    }

    /// Starts a Sentinel with `sentinel.conf`, which watches the master on that port.
    pub(crate) fn sentinel(under: &Path, master: u16) -> Self {
        let port = free_port();
        let folder = under.join(port.to_string());
        copy_files(&folder);
        // Sentinel takes these from its file alone.
        let file = folder.join("sentinel.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        let moved = text.replace(" 127.0.0.1 6379 ", &format!(" 127.0.0.1 {master} "));
        assert_ne!(moved, text);
        let moved = moved.replace("port 26379", &format!("port {port}"));
        std::fs::write(&file, moved).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["sentinel.conf", "--sentinel"]);
        Self::spawn(command, &folder, port)
    }

    fn spawn(mut command: Command, folder: &Path, port: u16) -> Self {
        let log = folder.join("log");
        let output = File::create(&log).unwrap();
        let child = command
            .current_dir(folder)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut server = Self { child, port, log };
        eventually("Redis is up", UP_WITHIN, || {
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!(
                    "it ended with {status}: {}",
                    std::fs::read_to_string(&server.log).unwrap()
                );
            }
            let mut connection = server.try_connect().map_err(|error| error.to_string())?;
            let ping: RedisResult<String> = redis::cmd("PING").query(&mut connection);
            match ping {
                // A replica without its master serves nothing yet, and is up.
                Err(error) if error.code() != Some("MASTERDOWN") => Err(error.to_string()),
                _ => Ok(()),
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn try_connect(&self) -> RedisResult<Connection> {
        redis::Client::open(self.url())?.get_connection()
    }

    pub(crate) fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }

    /// All settings as they are in effect.
    pub(crate) fn settings(&self) -> HashMap<String, String> {
        let mut get = redis::cmd("CONFIG");
        get.arg("GET").arg("*").query(&mut self.connect()).unwrap()
    }

    /// A number of `INFO`.
    pub(crate) fn info(&self, name: &str) -> f64 {
        let text: String = redis::cmd("INFO")
            .arg("everything")
            .query(&mut self.connect())
            .unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("INFO has no {name}"))
            .trim()
            .parse()
            .unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for RedisByFile {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

fn copy_files(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis");
    for file in ["state.conf", "cache.conf", "replica.conf", "sentinel.conf"] {
        std::fs::copy(from.join(file), folder.join(file)).unwrap();
    }
}
