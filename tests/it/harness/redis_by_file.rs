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
    /// `user:password@`, or nothing.
    as_whom: String,
    folder: PathBuf,
    log: PathBuf,
}

/// Whether what the files have commented out, to secure a set-up, is in effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secured {
    No,
    Yes,
}

/// The password of these tests in place of one of the files: `CHANGE-<of>`.
pub(crate) fn password(of: &str) -> String {
    format!("s3cret-{of}")
}

impl RedisByFile {
    /// Starts a server with one of the files of `deploy/redis` and further settings.
    pub(crate) fn with_file(file: &str, under: &Path, settings: &[&str]) -> Self {
        Self::with(Secured::No, file, under, settings)
    }

    /// The same, secured or not.
    pub(crate) fn with(secured: Secured, file: &str, under: &Path, settings: &[&str]) -> Self {
        let port = free_port();
        let folder = under.join(port.to_string());
        copy_files(&folder, secured);
        Self::start(secured, file, &folder, port, settings)
    }

    /// Starts the server anew in its folder, with what is there by now.
    pub(crate) fn again(folder: &Path, secured: Secured, file: &str, port: u16) -> Self {
        Self::start(secured, file, folder, port, &[])
    }

    fn start(secured: Secured, file: &str, folder: &Path, port: u16, settings: &[&str]) -> Self {
        let mut command = Command::new("redis-server");
        command
            .arg(file)
            .args(["--port", &port.to_string(), "--dir"])
            .arg(folder);
        command.args(settings);
        let as_whom = match secured {
            Secured::No => String::new(),
            Secured::Yes => format!("admin:{}@", password("ADMIN")),
        };
        Self::spawn(command, folder, (port, as_whom))
    }

    /// Starts a Sentinel with `sentinel.conf`, which watches the master on that port.
    pub(crate) fn sentinel(secured: Secured, under: &Path, master: u16) -> Self {
        let port = free_port();
        let folder = under.join(port.to_string());
        copy_files(&folder, secured);
        // Sentinel takes these from its file alone.
        let file = folder.join("sentinel.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        let moved = text.replace(" 127.0.0.1 6379 ", &format!(" 127.0.0.1 {master} "));
        assert_ne!(moved, text);
        let moved = moved.replace("port 26379", &format!("port {port}"));
        std::fs::write(&file, moved).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["sentinel.conf", "--sentinel"]);
        let as_whom = match secured {
            Secured::No => String::new(),
            Secured::Yes => format!(":{}@", password("SENTINELS")),
        };
        Self::spawn(command, &folder, (port, as_whom))
    }

    fn spawn(mut command: Command, folder: &Path, (port, as_whom): (u16, String)) -> Self {
        let log = folder.join("log");
        let output = File::create(&log).unwrap();
        let child = command
            .current_dir(folder)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            port,
            as_whom,
            folder: folder.to_owned(),
            log,
        };
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
        format!("redis://{}127.0.0.1:{}", self.as_whom, self.port)
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// What somebody without a password is told.
    pub(crate) fn told_to_strangers(&self) -> RedisResult<String> {
        let mut connection =
            redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?.get_connection()?;
        redis::cmd("INFO").query(&mut connection)
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

    /// `INFO`.
    pub(crate) fn text_of_info(&self) -> String {
        redis::cmd("INFO")
            .arg("everything")
            .query(&mut self.connect())
            .unwrap()
    }

    /// A number of `INFO`.
    pub(crate) fn info(&self, name: &str) -> f64 {
        let text = self.text_of_info();
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
    pub(crate) fn stop(&mut self) {
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

/// Secured: settings without their `#`, and passwords of our own; prose has a blank after it.
fn copy_files(folder: &Path, secured: Secured) {
    std::fs::create_dir_all(folder).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis");
    for file in [
        "state.conf",
        "cache.conf",
        "replica.conf",
        "sentinel.conf",
        "users.acl",
    ] {
        let text = std::fs::read_to_string(from.join(file)).unwrap();
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(setting)
                if secured == Secured::Yes && setting.starts_with(|c: char| c.is_ascii_lowercase()) =>
            {
                setting.replace("CHANGE-", &password(""))
            }
            None if secured == Secured::Yes => line.replace("CHANGE-", &password("")),
            _ => line.to_owned(),
        });
        let lines: Vec<String> = lines.collect();
        std::fs::write(folder.join(file), lines.join("\n") + "\n").unwrap();
    }
}
