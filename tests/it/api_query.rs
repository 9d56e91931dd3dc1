//! Trends: counted right, bounded, cached.

use redis::Commands as _;
use serde_json::{Value, json};

use crate::api_server::{ALPHA, Row, Server, insert};
use crate::harness::Scene;

const ODD: &str = "o'dd \\ \"näme\"\t`{x:String}`\n?? 日本";

fn row<'a>(event: &'a str, time: &'a str, properties: Value) -> Row<'a> {
    Row {
        token: "alpha",
        event,
        user: "u",
        time,
        properties,
    }
}

fn trend(from: &str, to: &str, interval: &str, more: &Value) -> Value {
    let mut query = json!({ "query": "trend", "from": from, "to": to, "interval": interval });
    for (name, value) in more.as_object().unwrap() {
        query[name] = value.clone();
    }
    query
}

/// Event, value and counts of each series.
fn series(answer: &Value) -> Vec<(Value, Value, Vec<u64>)> {
    let series = answer["series"].as_array().unwrap().iter();
    series
        .map(|series| {
            let counts = series["counts"].as_array().unwrap().iter();
            let counts: Vec<u64> = counts.map(|n| n.as_u64().unwrap()).collect();
            assert_eq!(series["total"], counts.iter().sum::<u64>());
            assert_eq!(series["other"], series["event"].is_null());
            (series["event"].clone(), series["value"].clone(), counts)
        })
        .collect()
}

#[test]
fn events_are_counted_in_every_kind_of_interval() {
    let scene = Scene::new("intervals", 1);
    let server = Server::start(&scene, &[]);
    let times = [
        "1969-12-28T23:59:59.999Z", // a Sunday
        "1969-12-29T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "1970-01-01T00:00:59.999Z",
        "1970-01-01T00:59:00Z",
        "1970-01-04T12:00:00Z",
        "1970-02-28T23:00:00Z",
    ];
    let rows: Vec<Row<'_>> = times.iter().map(|time| row("e", time, json!({}))).collect();
    insert(&scene, &rows);
    let counts = |from, to, interval| {
        let answer = server
            .query(ALPHA, &trend(from, to, interval, &json!({})))
            .expect(200);
        assert_eq!(
            answer["intervals"].as_array().unwrap().len(),
            answer["series"][0]["counts"].as_array().unwrap().len()
        );
        (answer["intervals"][0].clone(), series(&answer)[0].2.clone())
    };
    let new_year = "1970-01-01T00:00:00Z";
    assert_eq!(
        counts(new_year, "1970-01-01T00:03:00Z", "minute"),
        (json!(new_year), vec![2, 0, 0])
    );
    assert_eq!(
        counts(new_year, "1970-01-01T02:00:00Z", "hour"),
        (json!(new_year), vec![3, 0])
    );
    assert_eq!(
        counts("1969-12-28T12:00:00Z", "1970-01-02T00:00:00Z", "day"),
        (json!("1969-12-28T00:00:00Z"), vec![1, 1, 0, 0, 3])
    );
    assert_eq!(
        counts("1969-12-28T00:00:00Z", "1970-01-05T00:00:00Z", "week"),
        (json!("1969-12-22T00:00:00Z"), vec![1, 5])
    );
    assert_eq!(
        counts("1969-12-01T00:00:00+00:00", "1970-03-01T00:00:00Z", "month"),
        (json!("1969-12-01T00:00:00Z"), vec![2, 4, 1])
    );
    // The end is not included, the start is.
    assert_eq!(
        counts("1969-12-28T23:59:59.999Z", "1969-12-29T00:00:00Z", "day"),
        (json!("1969-12-28T00:00:00Z"), vec![1])
    );
}

#[test]
fn a_breakdown_tells_the_largest_apart_and_sums_the_rest() {
    let scene = Scene::new("breakdown", 1);
    let server = Server::start(&scene, &[]);
    let (one, two) = ("2026-01-01T05:00:00Z", "2026-01-02T05:00:00Z");
    insert(
        &scene,
        &[
            row("view", one, json!({ "plan": "pro" })),
            row("view", one, json!({ "plan": "pro" })),
            row("view", two, json!({ "plan": "pro" })),
            row("view", two, json!({ "plan": "" })),
            row("view", two, json!({ "plan": "" })),
            row("view", one, json!({ "plan": null })),
            row("view", one, json!({})),
            row("view", one, json!({ "plan": 7 })),
            row("view", two, json!({ "plan": true })),
            row(ODD, one, json!({ ODD: ODD })),
        ],
    );
    let ask = |more: Value| {
        let query = trend("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z", "day", &more);
        server.query(ALPHA, &query).expect(200)
    };
    let none = Value::Null;
    assert_eq!(
        series(&ask(json!({ "breakdown": "plan", "limit": 3, "event": "view" }))),
        [
            (json!("view"), json!("pro"), vec![2, 1]),
            (json!("view"), none.clone(), vec![2, 0]),
            (json!("view"), json!(""), vec![0, 2]),
            (none.clone(), none.clone(), vec![1, 1]),
        ]
    );
    let all = series(&ask(json!({ "breakdown": "plan" })));
    assert!(all.contains(&(json!("view"), json!("7"), vec![1, 0])), "{all:?}");
    assert!(
        all.contains(&(json!("view"), json!("true"), vec![0, 1])),
        "{all:?}"
    );
    assert_eq!(
        series(&ask(json!({ "event": [ODD, "never"] }))),
        [
            (json!(ODD), none.clone(), vec![1, 0]),
            (json!("never"), none.clone(), vec![0, 0])
        ]
    );
    assert_eq!(
        series(&ask(json!({ "event": ODD, "breakdown": ODD }))),
        [(json!(ODD), json!(ODD), vec![1, 0])]
    );
    assert_eq!(
        series(&ask(json!({ "limit": 1 }))),
        [
            (json!("view"), none.clone(), vec![5, 4]),
            (none.clone(), none, vec![1, 0])
        ]
    );
}

#[test]
fn an_answer_is_cached_for_those_who_ask_the_same() {
    let scene = Scene::new("query_cache", 1);
    let server = Server::start(&scene, &[]);
    let mut redis = scene.redis();
    insert(&scene, &[row("e", "2026-01-01T00:00:00Z", json!({}))]);
    let (from, to) = ("2026-01-01T00:00:00Z", "2026-01-08T00:00:00Z");
    let first = server.query(ALPHA, &trend(from, to, "day", &json!({ "event": ["e", "f"] })));
    assert_eq!((first.status, first.cache()), (200, "miss"));
    // Written another way, asked of another process; and it is the cache that answers.
    insert(&scene, &[row("e", "2026-01-01T00:00:00Z", json!({}))]);
    let other = Server::start(&scene, &[]);
    let same = trend(
        "2026-01-01T01:00:00+01:00",
        to,
        "day",
        &json!({ "event": ["f", "e", "f"], "limit": null }),
    );
    let again = other.query(&other.session(ALPHA), &same);
    assert_eq!((again.cache(), &again.body), ("hit", &first.body));
    let ttl_of =
        |connection: &mut crate::harness::any_redis::AnyConnection, known: &[String]| -> (String, u64) {
            let keys = scene.keys();
            let new = keys
                .iter()
                .find(|key| key.starts_with("query_result:{") && !known.contains(key));
            let name = new.unwrap().clone();
            let ttl = connection.ttl(scene.key(&name)).unwrap();
            (name, ttl)
        };
    let (name, ttl) = ttl_of(&mut redis, &[]);
    assert!((3_200..=3_600).contains(&ttl), "{ttl}");

    // A range that is still being filled is kept for seconds.
    let now = jiff::Timestamp::now().to_string();
    let moving = trend(from, &now, "month", &json!({}));
    assert_eq!(server.query(ALPHA, &moving).cache(), "miss");
    assert_eq!(server.query(ALPHA, &moving).cache(), "hit");
    let (_, ttl) = ttl_of(&mut redis, &[name]);
    assert!(ttl <= 15, "{ttl}");
}
