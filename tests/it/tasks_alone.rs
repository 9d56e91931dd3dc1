//! Rebuilds of the same users: one waits at the most, one runs at a time, and a later one takes in what was changed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::Commands as _;
use serde_json::json;
use sluice::config::Config;
use sluice::redis::Redis;
use sluice::tasks::queue::{Enqueued, Queue, When};
use sluice::tasks::task::{Users, Work};

use crate::api_server::{Row, insert};
use crate::harness::Scene;
use crate::harness::wait::{eventually, seen};
use crate::harness::worker::Worker;
use crate::tasks::{added, all_rebuilt, done, listed, people, runner, shown, state_becomes};
use crate::tasks_rebuild::EndOnDrop;

const PATIENCE: Duration = Duration::from_mins(1);
const DONE: &str = "sluice_tasks_total{kind=\"rebuild-users\",outcome=\"done\"}";

/// Adds the same from several processes' connections at the same moment.
fn all_at_once(scene: &Scene, work: &Work) -> Vec<Enqueued> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let command = scene.command();
    let own = command.get_envs();
    let own = own.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let config = Config::load_with(None, own).unwrap();
    runtime.block_on(async {
        let adding = (0..16).map(|_| {
            let queue = Queue::new(Redis::open(&scene.redis_settings(), 1).unwrap(), &config);
            let work = work.clone();
            tokio::spawn(async move { queue.enqueue(&work, When::Always).await.unwrap() })
        });
        let adding: Vec<_> = adding.collect();
        let mut answers = Vec::new();
        for one in adding {
            answers.push(one.await.unwrap());
        }
        answers
    })
}

fn ids(answers: &[Enqueued]) -> HashSet<&String> {
    let ids = answers.iter().map(|answer| match answer {
        Enqueued::Queued(id) | Enqueued::Waiting(id) => id,
        other => panic!("{other:?}"),
    });
    ids.collect()
}

/// How many rebuilds the process is at, as often as it can be asked, until `over`: the most there were.
fn most_at_once(worker: &Worker, over: &AtomicBool) -> f64 {
    let mut most: f64 = 0.0;
    while !over.load(Ordering::Relaxed) {
        most = most.max(worker.metric("sluice_tasks_running").unwrap_or_default());
    }
    most
}

#[test]
fn of_many_that_are_added_at_once_one_waits_and_one_that_is_lost_stands_for_none() {
    let scene = Scene::new("alone_added", 1);
    let work = Work::RebuildUsers(Users {
        token: None,
        user: None,
    });
    let answers = all_at_once(&scene, &work);
    assert_eq!(ids(&answers).len(), 1, "{answers:?}");
    let queued = answers
        .iter()
        .filter(|answer| matches!(answer, Enqueued::Queued(_)));
    assert_eq!(queued.count(), 1, "{answers:?}");
    assert_eq!(listed(&scene)["waiting"].as_array().unwrap().len(), 1);

    // Longer than a refresh would stand for others.
    let mut redis = scene.redis();
    let names = scene.keys();
    let names: Vec<&String> = names.iter().filter(|key| key.contains(":waiting:")).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let left: i64 = redis.ttl(scene.key(names[0])).unwrap();
    assert!(left > 80_000, "{left}");

    // It is taken away by hand, and holds up nobody.
    redis.del::<_, ()>(scene.key("{task_queue}")).unwrap();
    let again = all_at_once(&scene, &work);
    assert_eq!(ids(&again).len(), 1, "{again:?}");
    assert!(ids(&again).is_disjoint(&ids(&answers)), "{answers:?} {again:?}");
}

#[test]
fn what_is_added_while_the_same_runs_waits_for_its_end_and_takes_in_what_was_changed() {
    let scene = Scene::new("alone_behind", 1);
    people(&scene, &["a", "b"], 200);
    let worker = scene
        .start_tasks(&[("tasks.users_per_second", "100"), ("tasks.lease_seconds", "3")])
        .ready();
    let first = added(&scene, &["rebuild-users", "--all"]);
    runner(&scene, &first, &[&worker]);
    // It has read this token's users already.
    let row = Row {
        token: "a",
        event: "seen",
        user: "late",
        time: "2026-01-01T00:00:00Z",
        properties: json!({ "$set": { "name": "late" } }),
    };
    insert(&scene, &[row]);
    let said = done(&scene, &["add", "rebuild-users", "--all"]);
    assert!(
        said.contains(&format!("task {first} does the same just now, on ")),
        "{said}"
    );
    let second = said.lines().next().unwrap().rsplit(' ').next().unwrap();
    assert_ne!(second, first);
    // It is taken, and put back, more than once before the first has ended.
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let most = scope.spawn(|| most_at_once(&worker, &over));
        let end = EndOnDrop(&over);
        let behind = eventually("it is behind", PATIENCE, || {
            let list = done(&scene, &["list"]);
            seen(list.contains("waits until the same has been done"), &list).map(|()| list)
        });
        assert!(behind.contains("1 running"), "{behind}");
        // A third is the same as the second, which has read nothing yet, also where it is now.
        let third = done(&scene, &["add", "rebuild-users", "--all"]);
        assert!(
            third.contains(&format!("waits already, as task {second}")),
            "{third}"
        );
        let shown_ = shown(&scene, second);
        assert_eq!(
            (&shown_["status"]["state"], &shown_["task"]["attempts"]),
            (&json!("waiting"), &json!(0)),
            "{shown_}"
        );
        state_becomes(&scene, &first, "done");
        state_becomes(&scene, second, "done");
        drop(end);
        most.join().unwrap()
    });
    assert!((1.0..2.0).contains(&most), "{most} at once");
    assert_eq!(shown(&scene, &first)["status"]["done"], 400);
    assert_eq!(shown(&scene, second)["status"]["done"], 401);
    let late: Option<String> = scene.redis().hget(scene.key("user:{a:late}"), "name").unwrap();
    assert_eq!(late.as_deref(), Some("\"late\""));
    let keys = scene.keys();
    assert!(!keys.iter().any(|key| key.contains(":running:")), "{keys:?}");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn twins_of_another_program_run_one_after_the_other_also_under_one_id() {
    let scene = Scene::new("alone_twins", 1);
    people(&scene, &["a"], 150);
    let worker = scene.start_tasks(&[("tasks.users_per_second", "100")]).ready();
    let mut redis = scene.redis();
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let most = scope.spawn(|| most_at_once(&worker, &over));
        let end = EndOnDrop(&over);
        for id in ["nightly", "nightly", "other"] {
            let task = json!({ "id": id, "kind": "rebuild-users", "arguments": { "token": "a" } });
            redis
                .lpush::<_, _, ()>(scene.key("{task_queue}"), task.to_string())
                .unwrap();
        }
        eventually("all three are done", PATIENCE, || {
            let counted = worker.metric(DONE);
            seen(counted == Some(3.0), format_args!("{counted:?}"))
        });
        drop(end);
        most.join().unwrap()
    });
    assert!((1.0..2.0).contains(&most), "{most} at once");
    all_rebuilt(&scene, &["a"], 150);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn one_that_dies_with_its_process_goes_on_before_another_and_holds_up_none_for_ever() {
    let scene = Scene::new("alone_dead", 1);
    people(&scene, &["a", "b", "c"], 200);
    let settings = [("tasks.lease_seconds", "3"), ("tasks.users_per_second", "100")];
    let dying = scene.start_tasks(&settings).ready();
    let first = added(&scene, &["rebuild-users", "--all"]);
    runner(&scene, &first, &[&dying]);
    let second = added(&scene, &["rebuild-users", "--all"]);
    let mut redis = scene.redis();
    let running: Vec<String> = scene.keys();
    let running: Vec<&String> = running.iter().filter(|key| key.contains(":running:")).collect();
    assert_eq!(running.len(), 1, "{running:?}");
    let left: i64 = redis.pttl(scene.key(running[0])).unwrap();
    assert!((1..=3_000).contains(&left), "{left} ms");
    dying.kill();
    let worker = scene.start_tasks(&settings).ready();
    let shown = state_becomes(&scene, &first, "done");
    // What was done by the dead one is no part of the pace of the other.
    let status = &shown["status"];
    let before = status["before"].as_u64().unwrap();
    assert!((200..600).contains(&before), "{status}");
    assert_eq!(status["done"], 600, "{status}");
    let seconds = (status["at"].as_i64().unwrap() - status["since"].as_i64().unwrap()) as f64 / 1000.0;
    let per_second = (600 - before) as f64 / seconds;
    assert!((30.0..=130.0).contains(&per_second), "{per_second}: {status}");
    state_becomes(&scene, &second, "done");
    // One whose worker is gone, with nothing in its list, is passed over at once.
    redis
        .set_ex::<_, _, ()>(scene.key(running[0]), "gone/nobody.0", 3_600)
        .unwrap();
    let third = added(&scene, &["rebuild-users", "--all"]);
    state_becomes(&scene, &third, "done");
    assert_eq!(worker.terminate().code(), Some(0));
}
