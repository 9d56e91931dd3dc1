//! The queue of tasks: done once at a time whoever dies, bounded in attempts and in length, never dropped.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use redis::Commands as _;
use serde_json::{Value, json};

use crate::api_server::{ALPHA, Row, Server, insert};
use crate::harness::Scene;
use crate::harness::wait::{eventually, seen};
use crate::harness::worker::Worker;

const PATIENCE: Duration = Duration::from_mins(1);
/// How long a process goes on waiting for an answer of Redis once it is to end.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Runs `sluice tasks …`, and returns the exit code and what it said on both outputs.
pub(crate) fn tasks(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    let output = scene.sluice(&[&["tasks"], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// The same for a command that must succeed.
pub(crate) fn done(scene: &Scene, arguments: &[&str]) -> String {
    let (code, said) = tasks(scene, arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
    said
}

pub(crate) fn listed(scene: &Scene) -> Value {
    let output = scene.sluice(&["tasks", "list", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Adds a task and returns its id.
pub(crate) fn added(scene: &Scene, arguments: &[&str]) -> String {
    let said = done(scene, &[&["add"], arguments].concat());
    let id = said
        .lines()
        .find_map(|line| line.split_once(" is task ").map(|(_, id)| id.to_owned()));
    id.unwrap_or_else(|| panic!("{said}"))
}

pub(crate) fn shown(scene: &Scene, id: &str) -> Value {
    let output = scene.sluice(&["tasks", "show", id, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

pub(crate) fn state_becomes(scene: &Scene, id: &str, state: &str) -> Value {
    eventually(&format!("task {id} is {state}"), PATIENCE, || {
        let shown = shown(scene, id);
        seen(shown["status"]["state"] == state, &shown).map(|()| shown)
    })
}

/// A table with so many users of each token, and what a rebuild must make of each.
pub(crate) fn people(scene: &Scene, tokens: &[&str], users: usize) {
    let names: Vec<String> = (0..users).map(|n| format!("user {n}")).collect();
    for token in tokens {
        let rows: Vec<Row<'_>> = names
            .iter()
            .map(|user| Row {
                token,
                event: "seen",
                user,
                time: "2026-01-01T00:00:00Z",
                properties: json!({ "$set": { "name": user } }),
            })
            .collect();
        insert(scene, &rows);
    }
}

pub(crate) fn all_rebuilt(scene: &Scene, tokens: &[&str], users: usize) {
    let mut redis = scene.redis();
    for token in tokens {
        for n in 0..users {
            let tag = format!("{{{token}:user {n}}}");
            let name: Option<String> = redis.hget(scene.key(&format!("user:{tag}")), "name").unwrap();
            assert_eq!(name, Some(format!("\"user {n}\"")), "{tag}");
            let events: u32 = redis.zcard(scene.key(&format!("timeline:user:{tag}"))).unwrap();
            assert_eq!(events, 1, "{tag}");
        }
    }
}

/// Which of the processes runs a task, once one does and has come somewhere.
pub(crate) fn runner(scene: &Scene, id: &str, workers: &[&Worker]) -> usize {
    eventually("a process has begun with the task", PATIENCE, || {
        let shown = shown(scene, id);
        let by = shown["task"]["worker"].as_str().unwrap_or_default();
        let begun = shown["task"]["progress"]["users"].as_u64() > Some(0);
        let runs = |worker: &&Worker| by.contains(&format!("-{}-", worker.pid()));
        workers
            .iter()
            .position(|worker| begun && runs(worker))
            .ok_or_else(|| shown.to_string())
    })
}

const TOKENS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[test]
fn a_task_whose_process_is_killed_goes_on_elsewhere_once_its_lease_ends_and_with_one_at_a_time() {
    let scene = Scene::new("killed", 1);
    people(&scene, &TOKENS, 500);
    let settings = [("tasks.lease_seconds", "3"), ("tasks.users_per_second", "300")];
    let mut workers = vec![
        scene.start_tasks(&settings).ready(),
        scene.start_tasks(&settings).ready(),
    ];
    let id = added(&scene, &["rebuild-users", "--all"]);
    for death in 1..=2 {
        let with = runner(&scene, &id, &workers.iter().collect::<Vec<_>>());
        workers.remove(with).kill();
        let killed = Instant::now();
        if death == 1 {
            workers.push(scene.start_tasks(&settings).ready());
        }
        eventually("another process has it", PATIENCE, || {
            let listed = listed(&scene);
            let running = listed["running"].as_array().unwrap();
            assert!(running.len() <= 1, "{listed}");
            let deaths = scene.logged("a tasks worker died with its task");
            seen(deaths == death && running.len() == 1, &listed)
        });
        // The lease was renewed a second before the kill at the most.
        assert!(
            killed.elapsed() > Duration::from_millis(1_900),
            "{:?}",
            killed.elapsed()
        );
    }
    let shown = state_becomes(&scene, &id, "done");
    // Two began where another had ended: users of whole tokens are counted once.
    assert_eq!(
        (&shown["status"]["done"], &shown["status"]["attempts"]),
        (&json!(3_000), &json!(0)),
        "whoever has come further begins to count anew: {shown}"
    );
    all_rebuilt(&scene, &TOKENS, 500);
    let done = workers[0].metric("sluice_tasks_total{kind=\"rebuild-users\",outcome=\"done\"}");
    assert_eq!(done, Some(1.0));
    // Each death was settled once.
    assert_eq!(scene.logged("a tasks worker died with its task"), 2);
    let listed = listed(&scene);
    for place in ["running", "waiting", "later", "parked"] {
        assert_eq!(listed[place], json!([]), "{listed}");
    }
}

/// A process that is told to end gives its task back at once. On every Redis: see `every_redis`.
pub(crate) fn given_back(mut scene: Scene) {
    scene.set("tasks.lease_seconds", "3600");
    scene.set("worker.drain_seconds", "1");
    people(&scene, &TOKENS, 300);
    let slow = scene.start_tasks(&[("tasks.users_per_second", "100")]).ready();
    let id = added(&scene, &["rebuild-users", "--all"]);
    runner(&scene, &id, &[&slow]);
    let other = scene.start_tasks(&[]).ready();
    assert_eq!(slow.terminate().code(), Some(0));
    let shown = state_becomes(&scene, &id, "done");
    assert_eq!(
        shown["status"]["attempts"], 0,
        "giving back is no failure: {shown}"
    );
    all_rebuilt(&scene, &TOKENS, 300);
    // And not to itself, whose other place was free.
    assert_eq!(scene.logged("a tasks worker died with its task"), 0);
    // It waits for nothing but tasks, and that ends at the server as well: else it would be waited for.
    let told = Instant::now();
    assert_eq!(other.terminate().code(), Some(0));
    assert!(told.elapsed() < LAST_WORD, "{:?}", told.elapsed());
}

#[test]
fn a_process_that_was_frozen_finds_that_its_task_is_somebody_elses() {
    let scene = Scene::new("frozen", 1);
    people(&scene, &TOKENS, 300);
    let settings = [("tasks.lease_seconds", "2"), ("tasks.users_per_second", "200")];
    let frozen = scene.start_tasks(&settings).ready();
    let id = added(&scene, &["rebuild-users", "--all"]);
    runner(&scene, &id, &[&frozen]);
    frozen.signal(Signal::SIGSTOP);
    let other = scene.start_tasks(&settings).ready();
    runner(&scene, &id, &[&other]);
    frozen.signal(Signal::SIGCONT);
    let shown = state_becomes(&scene, &id, "done");
    assert_eq!(shown["status"]["done"], 1_800, "{shown}");
    assert!(scene.logged("a tasks worker died with its task") >= 1);
    all_rebuilt(&scene, &TOKENS, 300);
    let done = "sluice_tasks_total{kind=\"rebuild-users\",outcome=\"done\"}";
    assert_eq!((frozen.metric(done), other.metric(done)), (None, Some(1.0)));
}

#[test]
fn a_task_that_fails_is_tried_again_so_often_then_parked_and_done_when_it_is_retried() {
    let scene = Scene::new("failing", 1);
    people(&scene, &["a"], 3);
    let broken = [("clickhouse.database", "nowhere"), ("tasks.max_attempts", "2")];
    let worker = scene.start_tasks(&broken);
    let id = added(&scene, &["rebuild-users", "--token", "a"]);
    let shown = state_becomes(&scene, &id, "parked");
    assert_eq!(shown["place"], "parked", "{shown}");
    assert_eq!(shown["task"]["attempts"], 2, "{shown}");
    assert!(
        shown["task"]["error"].as_str().unwrap().contains("nowhere"),
        "{shown}"
    );
    let attempts = ["retried", "parked"].map(|outcome| {
        worker.metric(&format!(
            "sluice_tasks_total{{kind=\"rebuild-users\",outcome=\"{outcome}\"}}"
        ))
    });
    assert_eq!(attempts, [Some(1.0), Some(1.0)]);
    let table = done(&scene, &["list"]);
    assert!(
        table.contains("parked: ") && table.contains("1 parked"),
        "{table}"
    );
    assert_eq!(worker.terminate().code(), Some(0));

    let _worker = scene.start_tasks(&[]).ready();
    let (code, said) = tasks(&scene, &["retry", "no-such-task"]);
    assert!(
        code == 1 && said.contains("there is no task no-such-task"),
        "{said}"
    );
    assert!(done(&scene, &["retry", &id]).contains("in the queue again"));
    state_becomes(&scene, &id, "done");
    all_rebuilt(&scene, &["a"], 3);
    assert_eq!(listed(&scene)["parked"], json!([]));
}

#[test]
fn what_no_program_knows_is_parked_and_stays_until_it_is_dropped() {
    let scene = Scene::new("unknown", 1);
    let queue = scene.key("{task_queue}");
    let mut redis = scene.redis();
    for text in [
        br#"{"id":"later-1","kind":"paint","arguments":{"colour":1e400}}"#.as_slice(),
        br#"{"version":9,"id":"later-2","kind":"rebuild-users","arguments":{}}"#,
        b"not json",
        b"\xff\xfe",
    ] {
        redis.lpush::<_, _, ()>(&queue, text).unwrap();
    }
    let worker = scene.start_tasks(&[]).ready();
    let listed = eventually("all four are parked", PATIENCE, || {
        let listed = listed(&scene);
        seen(listed["parked"].as_array().unwrap().len() == 4, &listed).map(|()| listed)
    });
    assert!(!redis.exists::<_, bool>(&queue).unwrap());
    let parked = listed["parked"].as_array().unwrap();
    let error = |id: &str| {
        let task = parked.iter().find(|task| task["id"] == id).unwrap();
        task["error"].as_str().unwrap().to_owned()
    };
    assert!(error("later-1").contains("no kind of task that this program knows"));
    assert!(error("later-2").contains("version is 9"));
    for task in parked {
        done(&scene, &["drop", task["id"].as_str().unwrap()]);
    }
    let (code, said) = tasks(&scene, &["drop", "later-1"]);
    assert!(code == 1 && said.contains("there is no task later-1"), "{said}");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_queue_is_bounded_and_the_same_task_waits_once() {
    let mut scene = Scene::new("bounded", 1);
    scene.set("tasks.max_waiting", "2");
    let one = added(&scene, &["rebuild-users", "--token", "a"]);
    let again = done(&scene, &["add", "rebuild-users", "--token", "a"]);
    assert!(
        again.contains(&format!("waits already, as task {one}")),
        "{again}"
    );
    assert!(again.contains("no process has the role tasks"), "{again}");
    let two = added(&scene, &["rebuild-users", "--token", "b"]);
    let (code, said) = tasks(&scene, &["add", "rebuild-users", "--token", "c"]);
    assert!(
        code == 1 && said.contains("the queue is full: 2 tasks wait, tasks.max_waiting = 2"),
        "{said}"
    );
    // The oldest is the next, and what is dropped makes room, also for the same again.
    let waiting = listed(&scene)["waiting"].clone();
    assert_eq!((&waiting[0]["id"], &waiting[1]["id"]), (&json!(one), &json!(two)));
    done(&scene, &["drop", &one]);
    added(&scene, &["rebuild-users", "--token", "a"]);
    for (arguments, part) in [
        (&["add", "rebuild-users"][..], "--token"),
        (
            &["add", "rebuild-users", "--all", "--token", "a"],
            "cannot be used with",
        ),
        (
            &["add", "rebuild-users", "--user", "u", "--all"],
            "cannot be used with",
        ),
        (&["add", "rebuild-users", "--token", ""], "nobody's"),
        (&["retry"], "--all"),
        (&["paint"], "paint"),
    ] {
        let (code, said) = tasks(&scene, arguments);
        assert!(code == 2 && said.contains(part), "{arguments:?}: {code} {said}");
    }
    // What waits is in one slot of a cluster, whatever is asked of it.
    for key in scene.keys().iter().filter(|key| key.contains("task")) {
        assert!(key.starts_with("{task_queue}"), "{key}");
    }
}

#[test]
fn query_results_are_made_anew_before_they_expire_and_when_they_are_gone() {
    let scene = Scene::new("warm", 1);
    insert(
        &scene,
        &[Row {
            token: "alpha",
            event: "view",
            user: "u",
            time: "2026-01-01T05:00:00Z",
            properties: json!({}),
        }],
    );
    let worker = scene.start_tasks(&[]).ready();
    let server = Server::start(&scene, &[]);
    let query = json!({
        "query": "trend", "from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "interval": "day",
    });
    let first = server.query(ALPHA, &query);
    assert_eq!((first.status, first.cache()), (200, "miss"));
    let mut redis = scene.redis();
    let cached = scene
        .keys()
        .into_iter()
        .find(|key| key.starts_with("query_result:"));
    let cached = scene.key(&cached.unwrap());

    // One that ends soon is answered, and made anew for the next.
    redis.expire::<_, ()>(&cached, 100).unwrap();
    let hit = server.query(ALPHA, &query);
    assert_eq!((hit.cache(), &hit.body), ("hit", &first.body));
    eventually("the result is refreshed", PATIENCE, || {
        // The first may have been asked before there was somebody to refresh it.
        assert_eq!(server.query(ALPHA, &query).cache(), "hit");
        let left: i64 = redis.ttl(&cached).unwrap();
        seen(left > 3_000, left)
    });
    let refreshed = "sluice_tasks_total{kind=\"refresh-query\",outcome=\"done\"}";
    eventually("the task is counted", PATIENCE, || {
        // Each look since the first refresh began may have asked for one more.
        let counted = worker.metric(refreshed);
        seen(counted >= Some(1.0), format_args!("{counted:?}"))
    });

    // One that is gone is made by warming.
    redis.del::<_, ()>(&cached).unwrap();
    let said = done(&scene, &["add", "warm-cache", "--token", "alpha", "--wait"]);
    assert!(said.contains("done: 1 queries"), "{said}");
    assert_eq!(redis.get::<_, String>(&cached).unwrap(), first.body);
    let said = done(&scene, &["add", "warm-cache", "--token", "beta", "--wait"]);
    assert!(said.contains("done: 0 queries"), "{said}");
    assert_eq!(worker.terminate().code(), Some(0));

    // With nobody to do it, nothing is put into the queue.
    redis.expire::<_, ()>(&cached, 100).unwrap();
    assert_eq!(server.query(ALPHA, &query).cache(), "hit");
    assert_eq!(listed(&scene)["waiting"], json!([]));
}
