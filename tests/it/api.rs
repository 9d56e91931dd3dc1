//! Who may read, how often, and what is told to those who may not.

use std::time::{Duration, Instant};

use redis::Commands as _;
use serde_json::json;

use crate::api_server::{ALPHA, BETA, NOBODY, Row, Server, insert, sha256};
use crate::harness::Scene;

#[test]
fn a_session_is_opened_with_a_key_kept_alive_by_use_and_ended() {
    let scene = Scene::new("session", 1);
    let server = Server::start(&scene, &[]);
    let mut redis = scene.redis();
    let opened = server.send("POST", "/v1/sessions", ALPHA, "").expect(201);
    let session = opened["session"].as_str().unwrap();
    assert_eq!(opened["expires_in_seconds"], 86_400);
    assert!(session.len() >= 64);

    // Redis knows it by its hash and holds its token, never the session itself.
    let name = scene.key(&format!("session:{{{}}}", sha256(session)));
    let value: String = redis.get(&name).unwrap();
    assert!(
        value.contains("alpha") && !value.contains(&session[4..]),
        "{value}"
    );
    redis.expire::<_, ()>(&name, 100).unwrap();
    server.get("/v1/recent-actions", session).expect(200);
    let ttl: u64 = redis.ttl(&name).unwrap();
    assert!(ttl > 86_000, "sliding: {ttl}");

    // One call by key, one by session so far; each authenticated request is one more.
    let counter = scene.key("counter:api_calls:{alpha}");
    assert_eq!(redis.get::<_, u64>(&counter).unwrap(), 2);
    for _ in 0..3 {
        server.get("/v1/recent-actions", session).expect(200);
    }
    server.get("/v1/recent-actions", "wrong").problem(401);
    assert_eq!(redis.get::<_, u64>(&counter).unwrap(), 5);

    assert!(
        server
            .send("POST", "/v1/sessions", session, "")
            .problem(401)
            .contains("API key")
    );
    assert!(
        server
            .send("DELETE", "/v1/sessions", ALPHA, "")
            .problem(401)
            .contains("session")
    );
    let ended = server.send("DELETE", "/v1/sessions", session, "");
    assert_eq!((ended.status, ended.body.as_str()), (204, ""));
    assert!(
        server
            .get("/v1/recent-actions", session)
            .problem(401)
            .contains("has ended")
    );
    assert!(!redis.exists::<_, bool>(&name).unwrap());
}

#[test]
fn a_session_ends_with_the_key_that_opened_it_and_counts_in_every_process() {
    let scene = Scene::new("revoked", 1);
    let server = Server::start(&scene, &[]);
    let session = server.session(ALPHA);
    let other = Server::start(&scene, &[]);
    other.get("/v1/recent-actions", &session).expect(200);
    let moved = json!([{ "key_sha256": sha256(ALPHA), "token": "beta" }]).to_string();
    let without = json!([{ "key_sha256": sha256(BETA), "token": "alpha" }]).to_string();
    for keys in [moved, without, "[]".to_owned()] {
        let server = Server::start(&scene, &[("api.keys", &keys)]);
        server.get("/v1/recent-actions", &session).problem(401);
    }
    // Ended in one process, it is ended in the other, though that has seen it alive.
    assert_eq!(server.send("DELETE", "/v1/sessions", &session, "").status, 204);
    other.get("/v1/recent-actions", &session).problem(401);
}

#[test]
fn nobody_reads_what_belongs_to_another_token() {
    let scene = Scene::new("tenants", 1);
    let server = Server::start(&scene, &[]);
    let mut redis = scene.redis();
    let row = |token, user| Row {
        token,
        event: "secret of",
        user,
        time: "2026-01-01T00:00:00Z",
        properties: json!({ "$set": { "owner": token } }),
    };
    insert(
        &scene,
        &[
            row("alpha", "shared"),
            row("alpha", "only"),
            row("beta", "shared"),
        ],
    );
    redis
        .zadd::<_, _, _, ()>(
            scene.key("timeline:user:{alpha:only}"),
            "0190a0b0-0000-7000-8000-000000000001:secret",
            1,
        )
        .unwrap();
    redis
        .lpush::<_, _, ()>(
            scene.key("recent_actions:{alpha}"),
            r#"{"uuid":"u","event":"secret","distinct_id":"only","timestamp":1}"#,
        )
        .unwrap();
    let trend = json!({
        "query": "trend", "from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "interval": "day",
    });
    let (a, b) = (server.session(ALPHA), server.session(BETA));
    for (alpha, beta) in [(ALPHA, BETA), (&a, &b)] {
        // Alpha first, so that its answers are in the caches.
        let profile = server.get("/v1/users/shared", alpha).expect(200);
        assert_eq!(profile["properties"]["owner"], "alpha");
        assert_eq!(server.get("/v1/users/only", alpha).status, 200);
        assert_eq!(server.query(alpha, &trend).expect(200)["series"][0]["total"], 2);
        let timeline = server.get("/v1/users/only/timeline", alpha).expect(200);
        assert_eq!(timeline["events"][0]["event"], "secret");
        let actions = server.get("/v1/recent-actions", alpha).expect(200);
        assert_eq!(actions["actions"][0]["event"], "secret");

        let profile = server.get("/v1/users/shared", beta).expect(200);
        assert_eq!(profile["properties"]["owner"], "beta");
        server.get("/v1/users/only", beta).problem(404);
        assert_eq!(server.query(beta, &trend).expect(200)["series"][0]["total"], 1);
        let timeline = server.get("/v1/users/only/timeline", beta).expect(200);
        assert_eq!(timeline["events"], json!([]));
        assert_eq!(
            server.get("/v1/recent-actions", beta).expect(200)["actions"],
            json!([])
        );
    }
    // Texts that try to leave the place they are given.
    for user in [
        "alpha:only",
        "%7D%7Balpha:only",
        "..%2Falpha%3Aonly",
        "only'%20OR%20'1'='1",
        "only%00",
    ] {
        server.get(&format!("/v1/users/{user}"), BETA).problem(404);
        let timeline = server
            .get(&format!("/v1/users/{user}/timeline"), BETA)
            .expect(200);
        assert_eq!(timeline["events"], json!([]), "{user}");
    }
    let mut stolen = trend.clone();
    stolen["token"] = "alpha".into();
    assert!(server.query(BETA, &stolen).problem(400).contains("`token`"));
    server
        .get("/v1/users/only/timeline?token=alpha", BETA)
        .problem(400);
    stolen = trend.clone();
    stolen["event"] = "x') OR token IN ('alpha".into();
    assert_eq!(server.query(BETA, &stolen).expect(200)["series"][0]["total"], 0);
}

#[test]
fn every_refusal_is_a_problem_that_says_what_to_do() {
    let scene = Scene::new("refusals", 1);
    let server = Server::start(&scene, &[]);
    for (path, method) in [
        ("/v1/sessions", "POST"),
        ("/v1/sessions", "DELETE"),
        ("/v1/query", "POST"),
        ("/v1/users/u", "GET"),
        ("/v1/users/u/timeline", "GET"),
        ("/v1/recent-actions", "GET"),
    ] {
        for credential in ["", "nonsense", &format!("sls_{}", "0".repeat(64)), ""] {
            let answer = server.send(method, path, credential, "");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            answer.problem(401);
        }
    }
    for path in [
        "/",
        "/v1",
        "/v1/users/",
        "/v1/users/a/b/timeline",
        "/v2/query",
        "/metrics",
    ] {
        server.get(path, ALPHA).problem(404);
    }
    for (method, path, allow) in [
        ("PUT", "/v1/sessions", "POST"),
        ("GET", "/v1/query", "POST"),
        ("POST", "/v1/recent-actions", "GET"),
    ] {
        let answer = server.send(method, path, ALPHA, "");
        assert!(answer.header("allow").unwrap().contains(allow), "{answer:?}");
        answer.problem(405);
    }
    let large = format!("{{\"query\":\"{}\"}}", "x".repeat(64 << 10));
    assert!(
        server
            .send("POST", "/v1/query", ALPHA, &large)
            .problem(413)
            .contains("65536")
    );
    for body in [
        "",
        "{",
        "[]",
        "nonsense",
        r#"{"query":"trend"}"#,
        r#"{"query":5}"#,
    ] {
        server.send("POST", "/v1/query", ALPHA, body).problem(400);
    }
    server.get("/v1/users/%ff", ALPHA).problem(400);
    assert!(
        server
            .get("/v1/users/u/timeline?limit=101", ALPHA)
            .problem(400)
            .contains("1 to 100")
    );
    assert!(
        server
            .get("/v1/users/nobody", ALPHA)
            .problem(404)
            .contains("distinct_id")
    );
}

#[test]
fn a_client_that_asks_too_often_waits_and_its_sessions_with_it() {
    let scene = Scene::new("often", 1);
    let server = Server::start(&scene, &[("api.requests_per_second", "3")]);
    let sessions = [server.session(ALPHA), server.session(ALPHA)];
    // Two were used to open them, one is left; until the next second three at most are added.
    let answers: Vec<_> = (0..10)
        .map(|n| server.get("/v1/recent-actions", &sessions[n % 2]))
        .collect();
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    assert!(refused >= 5, "{answers:?}");
    for answer in answers {
        if answer.status == 429 {
            assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
            answer.problem(429);
        }
    }
    // Another client is not concerned; and who guesses is slowed down by address.
    server.get("/v1/recent-actions", BETA).expect(200);
    let guesses: Vec<u16> = (0..10)
        .map(|n| server.get("/v1/recent-actions", &format!("guess {n}")).status)
        .collect();
    assert!(guesses.contains(&401) && guesses.contains(&429), "{guesses:?}");
}

#[test]
fn with_a_service_gone_what_needs_it_names_it_and_the_rest_is_answered() {
    let scene = Scene::new("gone", 1);
    let row = Row {
        token: "alpha",
        event: "e",
        user: "u",
        time: "2026-01-01T00:00:00Z",
        properties: json!({ "$set": { "plan": "pro" } }),
    };
    insert(&scene, &[row]);
    let trend = json!({
        "query": "trend", "from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "interval": "day",
    });
    let session = Server::start(&scene, &[]).session(ALPHA);
    let (redis, clickhouse) = (format!("redis://{NOBODY}"), format!("http://{NOBODY}"));

    let server = Server::start(&scene, &[("redis.cache_url", &redis)]);
    for _ in 0..2 {
        let answer = server.query(&session, &trend);
        assert_eq!((answer.status, answer.cache()), (200, "miss"));
        let answer = server.get("/v1/users/u", &session);
        assert_eq!((answer.status, answer.cache()), (200, "miss"));
    }

    let server = Server::start(&scene, &[("redis.url", &redis)]);
    let answer = server.get("/v1/users/u", &session);
    assert_eq!(answer.json()["service"], "redis");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert!(answer.problem(503).contains("redis"));
    assert!(
        server
            .send("POST", "/v1/sessions", ALPHA, "")
            .problem(503)
            .contains("redis")
    );
    assert!(
        server
            .get("/v1/recent-actions", ALPHA)
            .problem(503)
            .contains("redis")
    );
    assert!(
        server
            .get("/v1/users/u/timeline", ALPHA)
            .problem(503)
            .contains("redis")
    );
    let profile = server.get("/v1/users/u", ALPHA).expect(200);
    assert_eq!(profile["properties"], json!({ "plan": "pro" }));
    assert_eq!(server.query(ALPHA, &trend).status, 200);

    let server = Server::start(&scene, &[("clickhouse.url", &clickhouse)]);
    let mut other = trend.clone();
    other["interval"] = "hour".into();
    assert!(server.query(&session, &other).problem(503).contains("clickhouse"));
    assert!(
        server
            .get("/v1/users/other", &session)
            .problem(503)
            .contains("clickhouse")
    );
    assert_eq!(server.get("/v1/recent-actions", &session).status, 200);
    // What the worker has written is shown, and that it may not be all.
    let mut connection = scene.redis();
    connection
        .hset::<_, _, _, ()>(scene.key("user:{alpha:new}"), "plan", "\"free\"")
        .unwrap();
    for _ in 0..2 {
        let answer = server.get("/v1/users/new", &session);
        assert_eq!(answer.cache(), "miss");
        let profile = answer.expect(200);
        assert_eq!(
            (&profile["properties"]["plan"], &profile["complete"]),
            (&json!("free"), &json!(false))
        );
    }

    let server = Server::start(&scene, &[("clickhouse.database", "nothing_here")]);
    assert!(server.query(&session, &other).problem(503).contains("clickhouse"));
}

#[test]
fn it_ends_when_asked_though_a_connection_is_kept_open() {
    let scene = Scene::new("ends", 1);
    let server = Server::start(&scene, &[]);
    server.get("/v1/recent-actions", ALPHA).expect(200);
    let began = Instant::now();
    server.end().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
}
