//! What tasks may take: of the queue, of time, of Redis; and that nobody waits for what does not come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::Commands as _;
use serde_json::{Value, json};
use sluice::config::Config;
use sluice::redis::Redis;
use sluice::tasks::queue::{Enqueued, Queue, When};
use sluice::tasks::task::{Status, Task, Users, Work};

use crate::api_server::{ALPHA, Server};
use crate::harness::Scene;
use crate::harness::wait::{eventually, seen};
use crate::tasks::{added, all_rebuilt, done, listed, people, shown, tasks};

const PATIENCE: Duration = Duration::from_mins(1);

/// Has the queue believe that somebody runs tasks.
fn somebody_is_there(scene: &Scene) {
    let leases = scene.key("{task_queue}:leases");
    scene
        .redis()
        .zadd::<_, _, _, ()>(leases, "somebody", 4_000_000_000_000_i64)
        .unwrap();
}

fn day(number: u32) -> Value {
    json!({
        "query": "trend", "interval": "day", "from": format!("2026-01-{number:02}T00:00:00Z"), "to": "2026-02-01T00:00:00Z",
    })
}

#[test]
fn the_read_api_fills_neither_the_queue_nor_the_state_with_what_it_is_asked() {
    let mut scene = Scene::new("modest", 1);
    scene.set("tasks.max_waiting", "20");
    somebody_is_there(&scene);
    let server = Server::start(&scene, &[]);
    let mut redis = scene.redis();
    // A long query is answered and cached, and that is all.
    let names: Vec<String> = (0..100).map(|n| format!("{n:060}")).collect();
    let mut long = day(1);
    long["event"] = json!(names);
    let ages = |redis: &mut crate::harness::any_redis::AnyConnection| {
        for key in scene.keys() {
            if key.starts_with("query_result:") {
                redis.expire::<_, ()>(scene.key(&key), 100).unwrap();
            }
        }
    };
    for cache in ["miss", "hit"] {
        let answer = server.query(ALPHA, &long);
        assert_eq!((answer.status, answer.cache()), (200, cache));
        ages(&mut redis);
    }
    // Of five that are old two are made anew: a tenth of what may wait.
    for number in 1..=5 {
        assert_eq!(server.query(ALPHA, &day(number)).status, 200);
    }
    ages(&mut redis);
    for number in 1..=5 {
        assert_eq!(server.query(ALPHA, &day(number)).cache(), "hit");
    }
    let remembered = scene.key("recent_queries:{alpha}");
    eventually("all five are remembered", PATIENCE, || {
        let asked: Vec<String> = redis.zrange(&remembered, 0, -1).unwrap();
        assert!(asked.iter().all(|query| query.len() <= 4096), "{asked:?}");
        seen(asked.len() == 5, asked.len())
    });
    let queue = scene.key("{task_queue}");
    eventually("refreshes wait", PATIENCE, || {
        let waiting: usize = redis.llen(&queue).unwrap();
        seen(waiting == 2, waiting)
    });
    for number in 1..=5 {
        assert_eq!(server.query(ALPHA, &day(number)).cache(), "hit");
    }
    std::thread::sleep(Duration::from_millis(500));
    let waiting = listed(&scene)["waiting"].clone();
    assert_eq!(waiting.as_array().unwrap().len(), 2, "{waiting}");
    // One that is dropped makes room for another.
    done(&scene, &["drop", waiting[0]["id"].as_str().unwrap()]);
    eventually("another one waits", PATIENCE, || {
        for number in 1..=5 {
            assert_eq!(server.query(ALPHA, &day(number)).cache(), "hit");
        }
        let waiting: usize = redis.llen(&queue).unwrap();
        seen(waiting == 2, waiting)
    });
    // Whoever was taken by a worker that died stands in the way of nobody, once it is long ago.
    let mut long_ago = redis::pipe();
    for (id, _) in redis
        .zrange_withscores::<_, Vec<(String, f64)>>(scene.key("{task_queue}:refreshes"), 0, -1)
        .unwrap()
    {
        long_ago.zadd(scene.key("{task_queue}:refreshes"), id, 1);
    }
    long_ago.query::<Vec<i64>>(&mut redis).unwrap();
    eventually("two more wait", PATIENCE, || {
        for number in 1..=5 {
            assert_eq!(server.query(ALPHA, &day(number)).cache(), "hit");
        }
        let waiting: usize = redis.llen(&queue).unwrap();
        seen(waiting == 4, waiting)
    });
    // What operators ask for has the rest, with what is due later.
    for number in 0..8 {
        let task = format!(r#"{{"id":"later-{number}","kind":"rebuild-users","arguments":{{}}}}"#);
        let due = 4_000_000_000_000_i64;
        redis
            .zadd::<_, _, _, ()>(scene.key("{task_queue}:later"), task, due)
            .unwrap();
        added(&scene, &["rebuild-users", "--token", &format!("t{number}")]);
    }
    let (code, said) = tasks(&scene, &["add", "rebuild-users", "--token", "one more"]);
    assert!(code == 1 && said.contains("20 tasks wait"), "{said}");
}

#[test]
fn a_refresh_that_fails_leaves_nothing_behind() {
    let scene = Scene::new("failing_refresh", 1);
    let mut redis = scene.redis();
    let queue = scene.key("{task_queue}");
    for id in ["known", "unknown"] {
        let query = match id {
            "known" => {
                r#"{"events":null,"from":0,"to":86400000,"interval":"day","breakdown":null,"limit":10}"#
            }
            _ => "of a later program",
        };
        let arguments = json!({ "token": "alpha", "query": query });
        let task = json!({ "id": id, "kind": "refresh-query", "arguments": arguments });
        redis.lpush::<_, _, ()>(&queue, task.to_string()).unwrap();
    }
    let worker = scene.start_tasks(&[("clickhouse.database", "nowhere")]);
    eventually("both are dropped", PATIENCE, || {
        let dropped = worker.metric("sluice_tasks_total{kind=\"refresh-query\",outcome=\"dropped\"}");
        seen(dropped == Some(2.0), format_args!("{dropped:?}"))
    });
    let listed = listed(&scene);
    for place in ["running", "waiting", "later", "parked"] {
        assert_eq!(listed[place], json!([]), "{listed}");
    }
    let keys = scene.keys();
    assert!(!keys.iter().any(|key| key.contains(":status:")), "{keys:?}");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_task_is_there_once_however_often_it_is_put_and_one_that_is_gone_is_not_waited_for() {
    let scene = Scene::new("put_twice", 1);
    let mut redis = scene.redis();
    let queue = scene.key("{task_queue}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let command = scene.command();
    let own = command.get_envs();
    let own = own.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let config = Config::load_with(None, own).unwrap();
    runtime.block_on(async {
        let queue = Queue::new(Redis::open(&scene.redis_settings(), 1).unwrap(), &config);
        let users = Users {
            token: Some("a".to_owned()),
            user: None,
        };
        let work = Work::RebuildUsers(users);
        let task = Task::new(&work, 1);
        for _ in 0..2 {
            let put = queue.put(&task, &work, When::Always).await.unwrap();
            assert_eq!(put, Enqueued::Queued(task.id.clone()));
            // It was taken meanwhile, and stands for no others.
            queue.waits_no_longer(&task).await.unwrap();
        }
        // A last word stays: whoever was frozen meanwhile knows less.
        for state in ["running", "done", "running"] {
            let status = Status {
                id: task.id.clone(),
                state: state.to_owned(),
                ..Status::default()
            };
            queue.tell(&status).await.unwrap();
        }
        let told = queue.told(&task.id).await.unwrap();
        assert_eq!(told.unwrap().state, "done");
    });
    assert_eq!(redis.llen::<_, usize>(&queue).unwrap(), 1);
    redis.del::<_, ()>(&queue).unwrap();

    let (code, said) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| tasks(&scene, &["add", "rebuild-users", "--token", "b", "--wait"]));
        eventually("it waits", PATIENCE, || {
            let waiting: usize = redis.llen(&queue).unwrap();
            seen(waiting == 1, waiting)
        });
        redis.del::<_, ()>(&queue).unwrap();
        eventually("nobody waits any more", PATIENCE, || {
            seen(waiting.is_finished(), "it waits")
        });
        waiting.join().unwrap()
    });
    assert!(code == 1 && said.contains("is gone"), "{code}: {said}");
}

#[test]
fn a_slow_rebuild_goes_on_in_short_parts() {
    let scene = Scene::new("slow_parts", 1);
    people(&scene, &["a"], 400);
    let worker = scene.start_tasks(&[("tasks.users_per_second", "16")]).ready();
    let id = added(&scene, &["rebuild-users", "--all"]);
    // All of them take 25 seconds, and a part ends after ten.
    let users = eventually("a part is done", PATIENCE, || {
        let shown = shown(&scene, &id);
        let users = shown["task"]["progress"]["users"].as_u64().unwrap_or_default();
        seen(users > 0 || shown["status"]["state"] == "done", &shown).map(|()| users)
    });
    assert!((100..300).contains(&users), "{users}");
    eventually("it is done", PATIENCE, || {
        let shown = shown(&scene, &id);
        seen(shown["status"]["state"] == "done", &shown)
    });
    assert_eq!(shown(&scene, &id)["status"]["done"], 400);
    all_rebuilt(&scene, &["a"], 400);
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn a_user_that_never_stands_still_is_left_and_named_and_the_others_are_rebuilt() {
    let scene = Scene::new("hot_user", 1);
    people(&scene, &["a", "b"], 50);
    let worker = scene.start_tasks(&[]).ready();
    let hot = scene.key("user:{a:user 50}");
    people(&scene, &["a"], 51);
    let over = AtomicBool::new(false);
    let (code, said) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut redis = scene.redis();
            while !over.load(Ordering::Relaxed) {
                redis.hincr::<_, _, _, ()>(&hot, "\0offset:9:9", 1).unwrap();
            }
        });
        let ended = tasks(&scene, &["add", "rebuild-users", "--all", "--wait"]);
        over.store(true, Ordering::Relaxed);
        ended
    });
    assert!(
        code == 1 && said.contains("done: 100 users") && said.contains("1 users were left"),
        "{code}: {said}"
    );
    assert!(said.contains(r#": "user 50" of "a"; "#), "{said}");
    let id = said.lines().next().unwrap().rsplit(' ').next().unwrap();
    let status = shown(&scene, id)["status"].clone();
    assert_eq!(
        (&status["state"], &status["left"], &status["left_users"]),
        (
            &json!("done"),
            &json!(1),
            &json!([{ "token": "a", "user": "user 50" }])
        ),
        "{status}"
    );
    assert_eq!(worker.metric("sluice_tasks_users_left_total"), Some(1.0));
    let name: Option<String> = scene.redis().hget(&hot, "name").unwrap();
    assert_eq!(name, None, "it is left as it was");
    // Once it stands still it is settled, whatever its partition is.
    let arguments = [
        "add",
        "rebuild-users",
        "--token",
        "a",
        "--user",
        "user 50",
        "--wait",
    ];
    done(&scene, &arguments);
    let name: Option<String> = scene.redis().hget(&hot, "name").unwrap();
    assert_eq!(name.as_deref(), Some("\"user 50\""));
    assert_eq!(worker.terminate().code(), Some(0));
}
