//! What `sluice tasks` tells operators: of names that nobody has, of what it passes over, and of a Redis that is away.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use redis::Commands as _;
use serde_json::json;

use crate::harness::wait::{eventually, seen};
use crate::harness::{Scene, free_port, variable};
use crate::tasks::{added, done, listed, people, state_becomes, tasks};

const PATIENCE: Duration = Duration::from_mins(1);
const SECRET: &str = "s3cret-of-redis";

#[test]
fn a_token_or_user_that_the_table_does_not_know_is_told_and_not_done() {
    let scene = Scene::new("unknown_token", 1);
    people(&scene, &["shop"], 2);
    let worker = scene.start_tasks(&[]).ready();
    for (scope, why) in [
        (
            &["--token", "shopp"][..],
            "no user of token \"shopp\" in the table",
        ),
        (
            &["--token", "shop", "--user", "anne"],
            "no user \"anne\" of token \"shop\" in the table",
        ),
    ] {
        let (code, said) = tasks(&scene, &[&["add", "rebuild-users", "--wait"], scope].concat());
        assert!(code == 1 && said.contains(why), "{code}: {said}");
        let id = said.lines().next().unwrap().rsplit(' ').next().unwrap();
        let list = done(&scene, &["list"]);
        assert!(list.contains(why) && list.contains("parked: "), "{list}");
        let show = done(&scene, &["show", id]);
        assert!(show.contains(why) && show.contains("given up at"), "{show}");
        // Not tried in vain.
        assert_eq!(listed(&scene)["parked"][0]["attempts"], 1);
    }
    // Once it has come, what was given up can be done.
    people(&scene, &["shopp"], 1);
    let id = listed(&scene)["parked"][1]["id"].as_str().unwrap().to_owned();
    done(&scene, &["retry", &id]);
    state_becomes(&scene, &id, "done");
    let said = done(
        &scene,
        &[
            "add",
            "rebuild-users",
            "--token",
            "shop",
            "--user",
            "user 1",
            "--wait",
        ],
    );
    assert!(said.contains("done: 1 users"), "{said}");
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn retrying_all_names_what_cannot_be_read_and_a_long_error_is_shown_whole() {
    let scene = Scene::new("retry_all", 1);
    let mut redis = scene.redis();
    let parked = scene.key("{task_queue}:parked");
    let error = format!("{}, and that is the end of it", "it is long ".repeat(20));
    let good = json!({ "id": "good", "kind": "rebuild-users", "arguments": { "token": "a" }, "attempts": 5 });
    for task in ["not json", "{\"id\":\"a b\"}", &good.to_string()] {
        let text = json!({ "task": task, "error": error, "parked_at": 1_767_225_600_000_i64 });
        redis.lpush::<_, _, ()>(&parked, text.to_string()).unwrap();
    }
    let list = done(&scene, &["list"]);
    assert!(
        !list.contains("the end of it") && list.contains("`sluice tasks show ID` has it whole"),
        "{list}"
    );
    let show = done(&scene, &["show", "good"]);
    assert!(show.contains(&error) && !show.contains('{'), "{show}");
    assert!(show.contains("users of token \"a\""), "{show}");
    let json: serde_json::Value = serde_json::from_str(&done(&scene, &["show", "good", "--json"])).unwrap();
    assert_eq!(json["task"]["error"], error);

    let (code, said) = tasks(&scene, &["retry", "--all"]);
    assert!(
        code == 1 && said.contains("1 tasks are in the queue again") && said.contains("2 cannot be read"),
        "{code}: {said}"
    );
    let left = listed(&scene)["parked"].clone();
    assert_eq!(left.as_array().unwrap().len(), 2, "{left}");
    for task in left.as_array().unwrap() {
        let id = task["id"].as_str().unwrap();
        assert!(said.contains(id), "{id}: {said}");
        done(&scene, &["drop", id]);
    }
    let (code, said) = tasks(&scene, &["retry", "--all"]);
    assert!(code == 0 && said.contains("0 tasks"), "{code}: {said}");

    // A task that waits is told in lines, too, and one that has ended, by what was told last of it.
    let id = added(&scene, &["rebuild-users", "--all"]);
    let show = done(&scene, &["show", &id]);
    assert!(
        show.contains("all users of all tokens") && show.contains("waiting for its turn"),
        "{show}"
    );
    done(&scene, &["drop", &id]);
    let show = done(&scene, &["show", &id]);
    assert!(show.contains("state      dropped"), "{show}");
    let (code, said) = tasks(&scene, &["add", "rebuild-users"]);
    assert_eq!(code, 2, "{said}");
    for choice in ["--token TOKEN)", "--user DISTINCT_ID)", "--all)"] {
        assert!(said.contains(choice), "{choice}: {said}");
    }
}

#[test]
fn a_redis_that_is_away_is_named_without_its_password_and_with_what_to_do() {
    let scene = Scene::new("redis_away", 1);
    // Nobody listens at the first; at the second nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [free_port(), silent.local_addr().unwrap().port()];
    for port in addresses {
        for arguments in [
            &["list"][..],
            &["show", "x"],
            &["retry", "--all"],
            &["add", "rebuild-users", "--all", "--wait"],
        ] {
            let begun = Instant::now();
            let output = scene
                .command()
                .env(
                    variable("redis.url"),
                    format!("redis://me:{SECRET}@127.0.0.1:{port}"),
                )
                .arg("tasks")
                .args(arguments)
                .output()
                .unwrap();
            let took = begun.elapsed();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(output.status.code(), Some(1), "{said}");
            for part in [
                format!("redis.url = redis://me:***@127.0.0.1:{port}"),
                "sluice check".to_owned(),
            ] {
                assert!(said.contains(&part), "{part}: {said}");
            }
            assert!(!said.contains(SECRET), "{said}");
            assert!(took < Duration::from_secs(8), "{took:?}: {said}");
        }
    }
    // And nothing was put anywhere.
    eventually("Redis is as it was", PATIENCE, || {
        let keys = scene.keys();
        seen(
            !keys.iter().any(|key| key.contains("task")),
            format_args!("{keys:?}"),
        )
    });
}
