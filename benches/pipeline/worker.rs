//! The worker: the release binary as a process of its own.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Run;
use crate::stack::{Stack, TOPIC, peak};

/// Ended, whatever becomes of the bench.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.0.kill().expect("a child can be ended");
        }
        self.0.wait().expect("a child can be waited for");
    }
}

/// Starts it on the full topic with a group, a database and keys of its own, until every record is settled.
pub(crate) fn run(stack: &Stack, events: u64, round: usize) -> Run {
    let name = format!("worker_{round}");
    let run = run_into(stack, &name, TOPIC, events, |_| ());
    stack.query(&format!("DROP DATABASE {name} SYNC"));
    run
}

/// The same of any topic, into a database that stays. `set_up` may add what the worker is told.
pub(crate) fn run_into(
    stack: &Stack,
    name: &str,
    topic: &str,
    events: u64,
    set_up: impl FnOnce(&mut Command),
) -> Run {
    stack.forget_redis();
    let migrated = stack
        .sluice(name, topic)
        .arg("migrate")
        .stdout(Stdio::null())
        .status()
        .expect("sluice migrate runs");
    assert!(migrated.success(), "sluice migrate failed");
    let admin = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = admin.local_addr().expect("an address").to_string();
    drop(admin);

    let (before, start) = (stack.cpu(None), Instant::now());
    let mut command = stack.sluice(name, topic);
    set_up(&mut command);
    let child = command
        .args(["run", "--role", "worker", "--log-level", "warn"])
        .env("SLUICE_HTTP__ADMIN_LISTEN", &address)
        // No token is limited: the permits are decided and remembered all the same.
        .env("SLUICE_RATE_LIMIT__LIMIT", "1000000000")
        .spawn()
        .expect("sluice run starts");
    let mut running = Running(child);
    let most = Duration::from_mins(15);
    while settled(&address) != Some(events) {
        assert!(
            start.elapsed() < most,
            "the worker did not finish within {most:?}"
        );
        assert!(
            running.0.try_wait().expect("a child").is_none(),
            "the worker ended"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let seconds = start.elapsed().as_secs_f64();
    let pid = running.0.id();
    let run = Run {
        seconds,
        cpu: stack.cpu(Some(pid)).since(before),
        peak: peak(pid),
    };
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).expect("a child can be told to end");
    assert!(
        running.0.wait().expect("a child").success(),
        "the worker did not drain"
    );

    let rows = stack.query(&format!(
        "SELECT count(), uniqExact(uuid) FROM {name}.events WHERE kafka_topic = '{topic}' FORMAT TSV"
    ));
    let (count, ids) = rows.split_once('\t').expect("two numbers");
    assert_eq!(count, ids, "an event has two rows");
    run
}

fn settled(address: &str) -> Option<u64> {
    let mut answer = ureq::get(format!("http://{address}/metrics")).call().ok()?;
    let text = answer.body_mut().read_to_string().ok()?;
    let of = |line: &str| line.rsplit_once(' ')?.1.parse::<u64>().ok();
    Some(
        text.lines()
            .filter(|line| line.starts_with("sluice_events_total{"))
            .filter_map(of)
            .sum(),
    )
}
