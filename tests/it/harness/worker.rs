//! Workers: processes of the real binary.

use std::fs::{File, read_to_string};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::wait::{eventually, seen};

/// How long a worker may take to end after SIGTERM.
pub(crate) const TERM_WITHIN: Duration = Duration::from_secs(30);
/// How long a worker may take to be ready, on a machine that is compiling beside it.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// A running `sluice run`. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    pub(crate) log: PathBuf,
    pub(crate) admin_port: u16,
    agent: ureq::Agent,
}

impl Worker {
    /// Starts `command`, whose logs go to `log`.
    pub(super) fn spawn(mut command: Command, log: PathBuf, admin_port: u16) -> Self {
        let file = File::create(&log).unwrap();
        let child = command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(5)))
            .build();
        Self {
            child,
            log,
            admin_port,
            agent: config.new_agent(),
        }
    }

    /// Status and body of a path of the admin port.
    pub(crate) fn admin(&self, path: &str) -> Result<(u16, String), String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin_port);
        let mut response = self.agent.get(url).call().map_err(|error| error.to_string())?;
        let body = response
            .body_mut()
            .read_to_string()
            .map_err(|error| error.to_string())?;
        Ok((response.status().as_u16(), body))
    }

    /// Waits until it is ready.
    pub(crate) fn ready(mut self) -> Self {
        eventually("the worker is ready", READY_WITHIN, || {
            if let Some(status) = self.ended() {
                panic!(
                    "the worker ended with {status} before it was ready:\n{}",
                    self.log_tail(40)
                );
            }
            let (status, body) = self.admin("/readyz")?;
            seen(status == 200, format_args!("{status} {body}"))
        });
        self
    }

    /// The answer of `/readyz`.
    pub(crate) fn readiness(&self) -> Result<(u16, Value), String> {
        let (status, body) = self.admin("/readyz")?;
        Ok((
            status,
            serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?,
        ))
    }

    /// Waits until `/readyz` shows a wait of a partition for such a reason, with these words; answers its status.
    pub(crate) fn waits(&self, partition: i32, why: &str, words: &str) -> u16 {
        let mut last = 0;
        eventually("the wait is shown", READY_WITHIN, || {
            let (status, body) = self.readiness()?;
            last = status;
            let waiting = body["waiting"].as_array().into_iter().flatten();
            let found = waiting
                .filter(|wait| wait["partition"] == partition && wait["why"] == why)
                .any(|wait| wait["what"].as_str().is_some_and(|what| what.contains(words)));
            seen(found, body)
        });
        last
    }

    /// The value of a series in `/metrics`, by its full name with labels.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.admin("/metrics").ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    /// The exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The most memory that it had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// `kill -9`, and waits for its end.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has died by a fault of its own.
    pub(crate) fn dies(mut self) {
        let status = eventually("the worker dies", TERM_WITHIN, || {
            self.ended()
                .ok_or_else(|| format!("it runs; its log ends:\n{}", self.log_tail(20)))
        });
        assert_eq!(
            status.signal(),
            Some(Signal::SIGABRT as i32),
            "{status}:\n{}",
            self.log_tail(20)
        );
    }

    /// SIGTERM, and the exit status that must come in time.
    pub(crate) fn terminate(self) -> ExitStatus {
        self.terminate_within(TERM_WITHIN)
    }

    pub(crate) fn terminate_within(mut self, patience: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        eventually("the worker ends after SIGTERM", patience, || {
            self.ended()
                .ok_or_else(|| format!("it runs; its log ends:\n{}", self.log_tail(20)))
        })
    }

    /// The log's last lines.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        tail(&read_to_string(&self.log).unwrap_or_default(), lines).to_owned()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

fn tail(text: &str, lines: usize) -> &str {
    let start = text
        .trim_end()
        .rmatch_indices('\n')
        .nth(lines - 1)
        .map_or(0, |(at, _)| at + 1);
    &text[start..]
}
