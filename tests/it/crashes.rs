//! Workers that are killed, told to end, or frozen under load: the table is as if nothing had happened.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nix::sys::signal::Signal;
use redis::Commands as _;

use crate::harness::Scene;
use crate::harness::events::{Ledger, Load, check_remembered};
use crate::harness::load::under_load;
use crate::harness::proxy::{Manner, Proxy};
use crate::harness::wait::{eventually, seen};
use crate::harness::worker::Worker;

const PARTITIONS: i32 = 6;
/// A dead member is missed after this; the broker of the local stack allows it.
const SESSION_MS: u64 = 2_000;
const PATIENCE: Duration = Duration::from_mins(1);

const CLASSIC: &str = r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#;
const CONSUMER: &str = r#"{"group.protocol":"consumer"}"#;

fn scene(name: &str, options: &str) -> Scene {
    let mut scene = Scene::new(name, PARTITIONS);
    scene.set("kafka.options", options);
    scene
}

/// Waits until some blocks were written, or settled without a row.
fn progress(scene: &Scene) {
    let so_far = || -> Result<usize, String> {
        let committed = scene
            .kafka
            .committed(&scene.group, &scene.topic, scene.partitions)?;
        let settled: i64 = committed.iter().flatten().map(|(offset, _)| offset).sum();
        Ok(scene.clickhouse.count(&scene.database) + settled as usize)
    };
    let before = eventually("the group's offsets can be read", PATIENCE, so_far);
    eventually("blocks are written and settled", PATIENCE, || {
        let now = so_far()?;
        seen(now >= before + 400, format_args!("{before}, then {now}"))
    });
}

/// Two workers under load, of which one after the other goes by `end` and is replaced, `times` times and then until
/// there is `enough`.
fn one_goes_after_the_other(
    scene: &Scene,
    times: u64,
    end: impl Fn(Worker),
    enough: impl Fn() -> bool,
) -> Ledger {
    let mut workers = VecDeque::from([scene.start().ready(), scene.start().ready()]);
    let sent = under_load(scene, || {
        for time in 0.. {
            if time >= times && enough() {
                break;
            }
            assert!(
                time < times * 10,
                "what was awaited did not happen in so many times"
            );
            progress(scene);
            // Not always just after an insert: a block has many moments in which its worker may go.
            std::thread::sleep(Duration::from_millis(time * 67 % 190));
            end(workers.pop_front().unwrap());
            workers.push_back(scene.start());
        }
        progress(scene);
    });
    scene.settled();
    for worker in workers {
        assert_eq!(worker.terminate().code(), Some(0));
    }
    let ledger = Ledger::check(&sent, scene);
    check_remembered(scene, &scene.rows());
    ledger
}

fn recoveries(scene: &Scene) -> usize {
    scene.logged("a block was recovered")
}

#[test]
fn ten_kills_under_load_leave_the_table_of_an_undisturbed_run() {
    let scene = scene("kill", CLASSIC);
    // Else no kill has met a block between its announcement and its end, and the test has tested nothing.
    one_goes_after_the_other(&scene, 10, Worker::kill, || recoveries(&scene) > 0);
}

/// All that Redis holds of a scene but what depends on the clock or on chance: claims, limits, and the register.
fn remembered(scene: &Scene) -> BTreeMap<String, String> {
    let mut redis = scene.redis();
    let kinds = ["applied:", "counter:", "recent_actions:", "timeline:", "user:"];
    let mut keys = scene.keys();
    keys.retain(|key| kinds.iter().any(|kind| key.starts_with(kind)));
    let content = |key: String| {
        let name = scene.key(&key);
        let kind: String = redis::cmd("TYPE").arg(&name).query(&mut redis).unwrap();
        let content = match kind.as_str() {
            "string" => redis.get::<_, String>(name).unwrap(),
            "list" => redis.lrange::<_, Vec<String>>(name, 0, -1).unwrap().join("\n"),
            "zset" => {
                let members: Vec<(String, f64)> = redis.zrange_withscores(name, 0, -1).unwrap();
                format!("{members:?}")
            }
            "hash" => format!(
                "{:?}",
                redis.hgetall::<_, BTreeMap<String, String>>(name).unwrap()
            ),
            other => panic!("{key} is a {other}"),
        };
        (key, content)
    };
    keys.into_iter().map(content).collect()
}

#[test]
fn twenty_kills_leave_redis_as_an_undisturbed_run_does() {
    // In one partition, where the order of everything is given.
    let of_one = |name: &str| {
        let mut scene = Scene::new(name, 1);
        scene.set("kafka.options", CLASSIC);
        scene
    };
    let (killed, calm) = (of_one("kill20"), of_one("calm"));
    let mut worker = Some(killed.start().ready());
    let sent = under_load(&killed, || {
        for time in 0..20 {
            progress(&killed);
            std::thread::sleep(Duration::from_millis(time * 67 % 190));
            worker.take().unwrap().kill();
            worker = Some(killed.start());
        }
        progress(&killed);
    });
    killed.settled();
    Ledger::check(&sent, &killed);
    calm.produce(sent);
    let other = calm.start().ready();
    calm.settled();
    for worker in [worker.unwrap(), other] {
        assert_eq!(worker.terminate().code(), Some(0));
    }
    assert!(recoveries(&killed) > 0, "no kill has met a block under way");
    let (killed, calm) = (remembered(&killed), remembered(&calm));
    assert!(calm.len() > 50, "{} keys", calm.len());
    for (key, content) in &calm {
        assert_eq!(killed.get(key), Some(content), "{key}");
    }
    assert_eq!(killed.len(), calm.len());
}

#[test]
fn kills_leave_the_table_of_an_undisturbed_run_under_the_new_group_protocol_too() {
    let scene = scene("kill848", CONSUMER);
    one_goes_after_the_other(&scene, 4, Worker::kill, || recoveries(&scene) > 0);
}

#[test]
fn kills_charge_nobody_twice_and_each_event_is_either_written_or_in_overflow() {
    let mut scene = scene("killlimit", CLASSIC);
    // Each token runs into it on the way.
    scene.set("rate_limit.limit", "700");
    let used_up = || scene.clickhouse.count(&scene.database) >= 3 * 700;
    let ledger = one_goes_after_the_other(&scene, 5, Worker::kill, used_up);
    assert!(ledger.limited > 0, "{ledger:?}");
    assert_eq!(
        ledger.written,
        3 * 700,
        "{ledger:?}: every token has used up its limit"
    );
}

#[test]
fn ten_sigterms_under_load_end_with_0_and_leave_the_table_of_an_undisturbed_run() {
    let scene = scene("term", CLASSIC);
    let terminate = |worker: Worker| assert_eq!(worker.terminate().code(), Some(0));
    one_goes_after_the_other(&scene, 10, terminate, || true);
}

#[test]
fn sigterms_leave_the_table_of_an_undisturbed_run_under_the_new_group_protocol_too() {
    let scene = scene("term848", CONSUMER);
    let terminate = |worker: Worker| assert_eq!(worker.terminate().code(), Some(0));
    one_goes_after_the_other(&scene, 4, terminate, || true);
}

#[test]
fn workers_frozen_past_their_session_and_woken_leave_the_table_of_an_undisturbed_run() {
    let scene = scene("frozen", CLASSIC);
    frozen_and_woken(&scene);
}

#[test]
fn frozen_workers_change_nothing_under_the_new_group_protocol_either() {
    let scene = scene("frozen848", CONSUMER);
    frozen_and_woken(&scene);
}

fn signal(workers: &[Worker], signal: Signal) {
    for worker in workers {
        worker.signal(signal);
    }
}

fn frozen_and_woken(scene: &Scene) {
    let frozen = [scene.start().ready(), scene.start().ready()];
    let sent = under_load(scene, || {
        // First with nobody to take over, then with one who does.
        for takes_over in [false, true] {
            progress(scene);
            signal(&frozen, Signal::SIGSTOP);
            let third = takes_over.then(|| scene.start().ready());
            match &third {
                Some(third) => eventually("another worker has all partitions", PATIENCE, || {
                    let assigned = third.metric("sluice_assigned_partitions");
                    seen(
                        assigned == Some(f64::from(PARTITIONS)),
                        format_args!("{assigned:?}"),
                    )
                }),
                // The new protocol's members are told by nothing but their commits: a fixed time it is.
                None => std::thread::sleep(Duration::from_millis(SESSION_MS * 4)),
            }
            if third.is_some() {
                progress(scene);
            }
            signal(&frozen, Signal::SIGCONT);
            progress(scene);
            if let Some(third) = third {
                assert_eq!(third.terminate().code(), Some(0));
            }
            progress(scene);
        }
    });
    scene.settled();
    for worker in frozen {
        assert_eq!(worker.terminate().code(), Some(0));
    }
    Ledger::check(&sent, scene);
    check_remembered(scene, &scene.rows());
}

#[test]
fn a_commit_of_a_generation_that_has_just_passed_is_sent_again() {
    let scene = scene("outofturn", CLASSIC);
    let sent = scene.produce(Load::new(PARTITIONS).take(500));
    let worker = scene
        .start_failing("commit-out-of-turn=3*return->5*off->2*return", &[])
        .ready();
    scene.settled();
    Ledger::check(&sent, &scene);
    assert_eq!(scene.logged("the partition is dropped"), 0);
    assert_eq!(worker.metric("sluice_consumer_restarts_total"), Some(0.0));
    assert_eq!(worker.terminate().code(), Some(0));
}

/// The rebalance waits for what is held up; the partitions that stay have blocks that are closed when it goes on, just
/// as the broker makes a new generation of it.
#[test]
fn partitions_that_stay_go_on_when_a_rebalance_was_held_up() {
    let scene = scene("stays", "{}");
    let proxy = Proxy::to(scene.clickhouse.url());
    let mut load = Load::new(PARTITIONS);
    let mut sent = scene.produce(load.take(200));
    let first = scene.start_with(&[("clickhouse.url", proxy.url())]).ready();
    scene.settled();
    proxy.set(Manner::HoldsInserts);
    sent.extend(scene.produce(load.take(200)));
    eventually("inserts are held up", PATIENCE, || {
        seen(proxy.held() > 3, proxy.held())
    });
    let second = scene.start();
    eventually("a rebalance waits", PATIENCE, || {
        seen(scene.logged("partitions are given away") > 0, "none")
    });
    proxy.set(Manner::Open);
    sent.extend(scene.produce(load.take(2_000)));
    scene.settled();
    Ledger::check(&sent, &scene);
    assert_eq!(scene.logged("the partition is dropped"), 0);
    for worker in [first, second] {
        assert_eq!(worker.metric("sluice_consumer_restarts_total"), Some(0.0));
        assert_eq!(worker.terminate().code(), Some(0));
    }
}
