//! The transport against servers that are made up: what each answers is written here, the rest it leaves unanswered.

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::config::Config;

const SHORT: Duration = Duration::from_millis(200);
/// Longer than a caller's patience must be for its going to count.
const IMPATIENT: Duration = Duration::from_millis(500);
const MASTER: &str = "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
const READONLY: &str = "-READONLY You can't write against a read only replica.\r\n";

/// A server that answers what `answer` says, given the number of the connection and what came. Its port.
async fn server(answer: impl Fn(usize, &str) -> Option<String> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut bytes = vec![0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                    let text = String::from_utf8_lossy(&bytes[..n]);
                    let greetings = text.matches("CLIENT").count() + text.matches("HELLO").count();
                    let mut out = "+OK\r\n".repeat(greetings);
                    if greetings == 0 {
                        out.push_str(&answer(number, &text).unwrap_or_default());
                    }
                    stream.write_all(out.as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

/// A server that answers commands in which these words stand.
async fn answering(answers: &'static [(&'static str, &'static str)]) -> u16 {
    server(move |_, text| {
        let found = answers.iter().find(|(word, _)| text.contains(word));
        found.map(|(_, answer)| (*answer).to_owned())
    })
    .await
}

fn open(mode: &str, ports: &[u16], response_timeout: Duration) -> Redis {
    let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let set = |key: &str, value: String| (OsString::from(key), OsString::from(value));
    let variables = [
        set("SLUICE_REDIS__MODE", mode.to_owned()),
        set("SLUICE_REDIS__URL", format!("redis://{}", addresses.join(","))),
    ];
    let config = Config::load_with(None, variables).unwrap();
    let settings = Settings::state(&config.redis).unwrap();
    Redis::open_with(&settings, 1, response_timeout, 8).unwrap()
}

fn incr() -> Pipeline {
    let mut pipe = ::redis::pipe();
    pipe.cmd("INCR").arg("n");
    pipe
}

/// A failover behind one address: whoever connected before it keeps meeting `old`, everybody else the new server.
async fn failed_over(old: Option<&'static str>) -> u16 {
    server(move |connection, _| match connection {
        0 => old.map(str::to_owned),
        _ => Some(":1\r\n".to_owned()),
    })
    .await
}

#[tokio::test]
async fn a_failover_behind_the_same_address_is_followed() {
    let redis = open("standalone", &[failed_over(Some(READONLY)).await], SHORT);
    assert!(redis.pipeline(&incr()).await.is_err());
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
}

#[tokio::test]
async fn a_server_that_is_gone_without_a_word_is_left() {
    let redis = open("standalone", &[failed_over(None).await], SHORT);
    assert!(redis.pipeline(&incr()).await.is_err());
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
}

#[tokio::test]
async fn so_it_is_by_a_caller_with_little_patience() {
    let answered = AtomicUsize::new(0);
    let port = server(move |connection, _| {
        let before = answered.fetch_add(1, Ordering::Relaxed);
        (connection > 0 || before == 0).then(|| ":1\r\n".to_owned())
    })
    .await;
    let redis = open("standalone", &[port], RESPONSE_TIMEOUT);
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
    assert!(timeout(IMPATIENT, redis.pipeline(&incr())).await.is_err());
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
}

/// A sentinel, and the port of the primary that it names.
async fn sentinel(primary: u16) -> (u16, Arc<AtomicUsize>) {
    static ID: AtomicUsize = AtomicUsize::new(1_000);
    let id = ID.fetch_add(1, Ordering::Relaxed);
    let named = Arc::new(AtomicUsize::new(usize::from(primary)));
    let told = Arc::clone(&named);
    let port = server(move |_, _| {
        let port = told.load(Ordering::Relaxed).to_string();
        let named = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
        Some(format!("{named}$4\r\n{id}\r\n"))
    })
    .await;
    (port, named)
}

#[tokio::test]
async fn another_primary_is_asked_for_as_soon_as_the_old_one_refuses_or_is_given_up() {
    for old in [
        Some(READONLY),
        Some("-LOADING\r\n"),
        Some("-NOREPLICAS\r\n"),
        None,
    ] {
        let old = server(move |_, text| {
            if text.contains("ROLE") {
                return Some(MASTER.to_owned());
            }
            old.map(str::to_owned)
        })
        .await;
        let new = answering(&[("ROLE", MASTER), ("INCR", ":1\r\n")]).await;
        let (port, named) = sentinel(old).await;
        let redis = open("sentinel", &[port], RESPONSE_TIMEOUT);
        let first = timeout(IMPATIENT, redis.pipeline(&incr())).await;
        assert!(first.is_err() || first.unwrap().is_err());
        named.store(usize::from(new), Ordering::Relaxed);
        assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
    }
}

#[tokio::test]
async fn a_server_that_is_named_and_is_no_primary_gets_nothing() {
    let replica = answering(&[("ROLE", "*1\r\n$5\r\nslave\r\n"), ("INCR", ":1\r\n")]).await;
    let redis = open("sentinel", &[sentinel(replica).await.0], SHORT);
    let error = redis.pipeline(&incr()).await.unwrap_err().to_string();
    assert!(
        error.contains("no primary") && error.contains(&replica.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn servers_are_those_of_now() {
    let old = answering(&[("ROLE", MASTER)]).await;
    let new = answering(&[("ROLE", MASTER)]).await;
    let (port, named) = sentinel(old).await;
    let redis = open("sentinel", &[port], SHORT);
    for now in [old, new] {
        named.store(usize::from(now), Ordering::Relaxed);
        let servers = redis.servers().await.unwrap();
        assert!(servers[0].address().ends_with(&format!(":{now}")), "{servers:?}");
    }
}

#[tokio::test]
async fn most_sentinels_are_believed() {
    let old = answering(&[("ROLE", MASTER), ("INCR", ":0\r\n")]).await;
    let new = answering(&[("ROLE", MASTER), ("INCR", ":1\r\n")]).await;
    let sentinels = [
        sentinel(old).await.0,
        sentinel(new).await.0,
        sentinel(new).await.0,
    ];
    let redis = open("sentinel", &sentinels, SHORT);
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
}

#[tokio::test]
async fn a_sentinel_that_has_two_names_has_one_voice() {
    let old = answering(&[("ROLE", MASTER), ("INCR", ":0\r\n")]).await;
    let new = answering(&[("ROLE", MASTER), ("INCR", ":1\r\n")]).await;
    let of_old = sentinel(old).await.0;
    let sentinels = [
        of_old,
        of_old,
        of_old,
        sentinel(new).await.0,
        sentinel(new).await.0,
    ];
    let redis = open("sentinel", &sentinels, SHORT);
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
    assert_eq!(redis.topology().await.unwrap().sentinels, Some((3, 3)));
}

#[tokio::test]
async fn a_primary_that_is_found_again_keeps_its_connections() {
    let calls = AtomicUsize::new(0);
    let connections = Arc::new(Mutex::new(Vec::new()));
    let used = Arc::clone(&connections);
    let primary = server(move |connection, text| {
        if text.contains("ROLE") {
            return Some(MASTER.to_owned());
        }
        used.lock().unwrap().push(connection);
        let refuses = calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        Some(if refuses { "-NOREPLICAS\r\n" } else { ":1\r\n" }.to_owned())
    })
    .await;
    let redis = open("sentinel", &[sentinel(primary).await.0], SHORT);
    for _ in 0..5 {
        assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
    }
    let mut connections = connections.lock().unwrap().clone();
    assert_eq!(connections.len(), 10);
    connections.dedup();
    assert_eq!(connections.len(), 1, "{connections:?}");
}

#[tokio::test]
async fn a_primary_behind_an_old_address_is_found_though_old_connections_lead_to_a_replica() {
    // Connections of before the failover, for calls and for questions, meet the old server for as long as they live.
    let failed_over = Arc::new(AtomicUsize::new(usize::MAX));
    let opened = Arc::new(AtomicUsize::new(0));
    let (first_new, latest) = (Arc::clone(&failed_over), Arc::clone(&opened));
    let primary = server(move |connection, text| {
        latest.fetch_max(connection, Ordering::Relaxed);
        let since = first_new.load(Ordering::Relaxed);
        let is_old = since != usize::MAX && connection < since;
        let answer = match (text.contains("ROLE"), is_old) {
            (true, true) => "*1\r\n$5\r\nslave\r\n",
            (true, false) => MASTER,
            (false, true) => READONLY,
            (false, false) => ":1\r\n",
        };
        Some(answer.to_owned())
    })
    .await;
    let redis = open("sentinel", &[sentinel(primary).await.0], SHORT);
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
    // The connection for questions is open, too.
    redis.topology().await.unwrap();
    failed_over.store(opened.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    assert!(
        redis.pipeline(&incr()).await.is_err(),
        "the old server says what it is"
    );
    assert_eq!(redis.pipeline(&incr()).await.unwrap(), [Value::Int(1)]);
}

/// Two nodes of a Cluster, with half of the slots each. `answer` says what the first and the second one answers to
/// everything but the question for the slots.
async fn cluster(answer: impl Fn(usize, &str) -> String + Send + Sync + 'static) -> Redis {
    cluster_that_tells(usize::MAX, answer).await
}

/// The same, where the nodes tell only so many times which slots are where.
async fn cluster_that_tells(
    times: usize,
    answer: impl Fn(usize, &str) -> String + Send + Sync + 'static,
) -> Redis {
    let ports = Arc::new(Mutex::new([0_u16; 2]));
    let answer = Arc::new(answer);
    let told = Arc::new(AtomicUsize::new(0));
    for node in 0..2 {
        let (known, answer, told) = (Arc::clone(&ports), Arc::clone(&answer), Arc::clone(&told));
        let port = server(move |_, text| {
            if !text.contains("SLOTS") {
                let [a, b] = *known.lock().unwrap();
                let told = answer(node, text);
                return Some(
                    told.replace("FIRST", &a.to_string())
                        .replace("SECOND", &b.to_string()),
                );
            }
            if told.fetch_add(1, Ordering::Relaxed) >= times {
                return Some("-ERR\r\n-ERR\r\n".to_owned());
            }
            let [a, b] = *known.lock().unwrap();
            let range = |first, last, port| {
                format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n")
            };
            let (first, second) = (range(0, 8_191, a), range(8_192, 16_383, b));
            Some(format!("*2\r\n{first}{second}$1\r\n{node}\r\n"))
        })
        .await;
        ports.lock().unwrap()[node] = port;
    }
    let ports = *ports.lock().unwrap();
    open("cluster", &ports, RESPONSE_TIMEOUT)
}

/// `foo` is in slot 12,182, the second's; `bar` in 5,061, the first's.
fn pipe_of(commands: &[(&str, &str)]) -> Pipeline {
    let mut pipe = ::redis::pipe();
    for (name, key) in commands {
        match *name {
            "EVALSHA" => pipe.cmd(name).arg("sha").arg(1).arg(key),
            _ => pipe.cmd(name).arg(key),
        };
    }
    pipe
}

#[tokio::test]
async fn commands_go_to_their_nodes_and_the_answers_come_in_order() {
    let redis = cluster(|node, text| format!(":{node}\r\n").repeat(text.matches("GET").count())).await;
    let pipe = pipe_of(&[("GET", "foo"), ("GET", "bar"), ("GET", "bar"), ("GET", "foo")]);
    let expected = [1, 0, 0, 1].map(Value::Int);
    assert_eq!(redis.pipeline(&pipe).await.unwrap(), expected);
}

#[tokio::test]
async fn a_plain_command_follows_where_it_is_sent_and_a_script_waits_for_its_slot() {
    let scripts = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&scripts);
    let redis = cluster(move |node, text| match node {
        1 if text.contains("EVALSHA") && asked.fetch_add(1, Ordering::Relaxed) > 2 => ":7\r\n".to_owned(),
        1 if text.contains("EVALSHA") => "-ASK 12182 127.0.0.1:FIRST\r\n".to_owned(),
        1 if text.contains("GET") => "-ASK 12182 127.0.0.1:FIRST\r\n".to_owned(),
        1 => "-MOVED 12182 127.0.0.1:FIRST\r\n".to_owned(),
        _ if text.contains("ASKING") => "+OK\r\n:2\r\n".to_owned(),
        _ if text.contains("EVALSHA") => "-ERR half of the keys\r\n".to_owned(),
        _ => ":3\r\n".to_owned(),
    })
    .await;
    let answers = async |name| redis.pipeline(&pipe_of(&[(name, "foo")])).await.unwrap();
    assert_eq!(answers("GET").await, [Value::Int(2)]);
    assert_eq!(answers("EVALSHA").await, [Value::Int(7)]);
    assert_eq!(answers("INCR").await, [Value::Int(3)]);
    // The slot is known to have moved now.
    assert_eq!(answers("INCR").await, [Value::Int(3)]);
    assert_eq!(scripts.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_script_of_one_key_follows_it_while_its_slot_moves() {
    let redis = cluster(|node, text| match node {
        1 => "-ASK 12182 127.0.0.1:FIRST\r\n".to_owned(),
        _ if text.contains("ASKING") => "+OK\r\n:2\r\n".to_owned(),
        _ => "-ERR not asked for\r\n".to_owned(),
    })
    .await;
    let script = Script::of_one_key("return redis.call('INCR', KEYS[1])");
    let mut pipe = ::redis::pipe();
    let mut call = script.call(1);
    call.arg("foo");
    pipe.add_command(call);
    assert_eq!(redis.scripted(&[&script], &pipe).await.unwrap(), [Value::Int(2)]);
}

#[tokio::test]
async fn slots_are_told_by_nodes_whose_turns_are_all_taken() {
    let redis = cluster(|_, _| String::new()).await;
    redis.topology().await.unwrap();
    let calls: Vec<_> = (0..16)
        .map(|n| {
            let (redis, key) = (redis.clone(), ["foo", "bar"][n % 2]);
            tokio::spawn(async move { redis.pipeline(&pipe_of(&[("GET", key)])).await })
        })
        .collect();
    tokio::time::sleep(SHORT).await;
    let told = timeout(Duration::from_secs(1), redis.topology()).await;
    assert_eq!(told.expect("in time").unwrap().slots, Some(Topology::SLOTS));
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_waits_for_its_slot_goes_on_where_nobody_tells_which_slots_are_where() {
    let calls = AtomicUsize::new(0);
    let redis = cluster_that_tells(2, move |_, _| {
        let answer = if calls.fetch_add(1, Ordering::Relaxed) < 3 {
            "-TRYAGAIN\r\n"
        } else {
            ":7\r\n"
        };
        answer.to_owned()
    })
    .await;
    let answers = redis.pipeline(&pipe_of(&[("GET", "foo")])).await;
    assert_eq!(answers.unwrap(), [Value::Int(7)]);
}

#[tokio::test]
async fn a_node_that_does_not_know_a_script_is_told_and_one_that_cannot_work_is_asked_again() {
    let calls = AtomicUsize::new(0);
    let redis = cluster(move |_, text| {
        if text.contains("LOAD") {
            return "$1\r\nx\r\n".to_owned();
        }
        let answers = ["-NOSCRIPT\r\n", "-CLUSTERDOWN\r\n", "-TRYAGAIN\r\n", ":1\r\n"];
        answers[calls.fetch_add(1, Ordering::Relaxed)].to_owned()
    })
    .await;
    let script = Script::new("return 1");
    let mut pipe = ::redis::pipe();
    let mut call = script.call(1);
    call.arg("foo");
    pipe.add_command(call);
    assert_eq!(redis.scripted(&[&script], &pipe).await.unwrap(), [Value::Int(1)]);
}

#[tokio::test]
async fn nodes_that_send_a_slot_to_one_another_are_left_after_a_while() {
    let redis = cluster(|node, _| {
        let other = ["SECOND", "FIRST"][node];
        format!("-MOVED 12182 127.0.0.1:{other}\r\n")
    })
    .await;
    let error = redis
        .pipeline(&pipe_of(&[("GET", "foo")]))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("disagree who serves a slot"), "{error}");
}
