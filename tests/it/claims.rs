//! Claims against an exact oracle, in both layouts, on the real Redis: none is lost before its window has passed, and none
//! is kept beyond it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::Commands as _;
use sluice::pipeline::claim::{Claim, Claims, Wanted};
use sluice::redis::Redis;
use sluice::redis::keys::Keys;
use tokio::runtime::Runtime;

use crate::harness::Scene;
use crate::harness::wait::eventually;

/// `packed` tells seconds: a claim of it may live for up to one more.
const SLACK_MS: i64 = 1_000;
const PATIENCE: Duration = Duration::from_mins(2);

struct Bench {
    scene: Scene,
    runtime: Runtime,
    redis: Redis,
    claims: Claims,
    tokens: Vec<String>,
}

impl Bench {
    fn new(scene: Scene, window_seconds: u64, secret: Option<[u8; 16]>) -> Self {
        let runtime = Runtime::new().unwrap();
        let settings = scene.redis_settings();
        let redis = runtime.block_on(async { Redis::open(&settings, 2).unwrap() });
        Self {
            redis,
            claims: Claims::new(Keys::new(&scene.key("")), window_seconds, secret.as_ref()),
            tokens: (0..3).map(|n| format!("token-{n}")).collect(),
            scene,
            runtime,
        }
    }

    /// Claims, and tells between which times of Redis that was.
    fn claim(&self, wanted: &[Wanted]) -> (i64, Vec<Claim>, i64) {
        self.runtime.block_on(async {
            let before = self.redis.time_ms().await.unwrap();
            let claims = self
                .claims
                .claim(&self.redis, &self.tokens, wanted)
                .await
                .unwrap();
            (before, claims, self.redis.time_ms().await.unwrap())
        })
    }
}

fn want(token: usize, id: u128, coordinate: i64) -> Wanted {
    Wanted {
        token,
        id,
        coordinate,
        takes_over: None,
    }
}

/// Claims of one layout, in scenes of a name each. On every Redis: see `every_redis`.
pub(crate) fn exact_claims(scene: impl Fn(&str) -> Scene, packed: bool) {
    let bench = |name, window_seconds| Bench::new(scene(name), window_seconds, packed.then_some([7; 16]));
    is_taken_over_by_a_replay_of_exactly_what_it_names(&bench("takeover", 60));
    is_one_however_often_it_is_wanted(&bench("flood", 60));
    agrees_with_the_oracle(&bench("oracle", WINDOW as u64));
}

/// What is known of a claim: whose it is, and between which times it was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    coordinate: i64,
    from: i64,
    to: i64,
}

const WINDOW: i64 = 2;

/// Over windows that turn over.
fn agrees_with_the_oracle(bench: &Bench) {
    {
        let mut random = StdRng::seed_from_u64(20);
        let mut made: HashMap<(usize, u128), Made> = HashMap::new();
        let (mut fresh, mut others, mut again, mut expired, mut open) = (0, 0, 0, 0, 0);
        let mut coordinate = 0;
        let start = Instant::now();
        // At least four windows, and until each case was seen often.
        while start.elapsed() < Duration::from_secs(9)
            || (fresh.min(others * 10).min(again * 10).min(expired * 10) < 10_000
                && start.elapsed() < PATIENCE)
        {
            let mut wanted: Vec<Wanted> = (0..4_000)
                .map(|_| {
                    coordinate += 1;
                    // Many are seen once, some within the window, some soon after it.
                    let id = u128::from(random.random_range(0..40_000_u32));
                    want(random.random_range(0..3), id, coordinate)
                })
                .collect();
            if random.random_bool(0.2) {
                // A block that comes again, as after a crash.
                let block = wanted.clone();
                wanted.extend(block);
            }
            let (before, claims, after) = bench.claim(&wanted);
            for (want, claim) in wanted.iter().zip(claims) {
                let key = (want.token, want.id);
                let now = Made {
                    coordinate: want.coordinate,
                    from: before,
                    to: after,
                };
                let Some(known) = made.get(&key).copied() else {
                    assert_eq!(claim, Claim::Ours, "{want:?} was never claimed");
                    made.insert(key, now);
                    fresh += 1;
                    continue;
                };
                let (least, most) = (before - known.to, after - known.from);
                if known.coordinate == want.coordinate {
                    assert_eq!(claim, Claim::Ours, "{want:?} is its own: {known:?}");
                    again += 1;
                } else if most < WINDOW * 1_000 {
                    assert_eq!(
                        claim,
                        Claim::Others,
                        "{want:?} is {known:?}'s, for {most} ms at most"
                    );
                    others += 1;
                } else if least > WINDOW * 1_000 + SLACK_MS {
                    assert_eq!(
                        claim,
                        Claim::Ours,
                        "{want:?}: {known:?} is over for {least} ms at least"
                    );
                    made.insert(key, now);
                    expired += 1;
                } else {
                    if claim == Claim::Ours {
                        made.insert(key, now);
                    }
                    open += 1;
                }
            }
        }
        eprintln!(
            "{fresh} fresh, {others} others', {again} again, {expired} expired, {open} too close to call"
        );
        assert!(fresh >= 10_000 && others >= 1_000 && again >= 1_000 && expired >= 1_000);
    }
}

fn is_taken_over_by_a_replay_of_exactly_what_it_names(bench: &Bench) {
    {
        let replay = |coordinate, rejected| Wanted {
            takes_over: Some(rejected),
            ..want(0, 7, coordinate)
        };
        let claim = |wanted: &[Wanted]| bench.claim(wanted).1;
        assert_eq!(
            claim(&[want(0, 7, 1), want(0, 7, 2)]),
            [Claim::Ours, Claim::Others]
        );
        assert_eq!(claim(&[replay(10, 2)]), [Claim::Others], "2 has no claim");
        assert_eq!(claim(&[replay(11, 1)]), [Claim::Ours]);
        assert_eq!(
            claim(&[want(0, 7, 1), want(0, 7, 11)]),
            [Claim::Others, Claim::Ours]
        );
        assert_eq!(
            claim(&[replay(12, 1)]),
            [Claim::Others],
            "it was taken over already"
        );
        assert_eq!(claim(&[replay(11, 1)]), [Claim::Ours], "the same, after a crash");
        let mixed = [want(1, 8, 20), replay(13, 11), want(0, 7, 14)];
        assert_eq!(claim(&mixed), [Claim::Ours, Claim::Ours, Claim::Others]);
        assert_eq!(
            claim(&[Wanted {
                takes_over: Some(5),
                ..want(2, 9, 30)
            }]),
            [Claim::Ours],
            "none is there"
        );
    }
}

fn is_one_however_often_it_is_wanted(bench: &Bench) {
    {
        let wanted: Vec<Wanted> = (0..20_000).map(|coordinate| want(0, 1, coordinate)).collect();
        let (_, claims, _) = bench.claim(&wanted);
        assert_eq!(claims[0], Claim::Ours);
        assert!(claims[1..].iter().all(|claim| *claim == Claim::Others));
        for key in bench.scene.keys() {
            let lives: i64 = bench.scene.redis().ttl(bench.scene.key(&key)).unwrap();
            assert!(lives > 0, "{key} has no time to live");
        }
    }
}

#[test]
fn a_layout_or_window_that_is_not_that_of_the_claims_refuses_to_start_and_tells_no_secret() {
    let mut scene = Scene::new("layout", 1);
    let marked = |scene: &Scene| -> String {
        let starts = scene.logged("the worker starts");
        let worker = scene.start().ready();
        let mark = eventually("the layout is marked", Duration::from_mins(1), || {
            let mark: Option<String> = scene.redis().get(scene.key("config:dedup_layout")).unwrap();
            mark.filter(|_| scene.logged("the worker starts") > starts)
                .ok_or_else(|| "no mark".to_owned())
        });
        assert_eq!(worker.terminate().code(), Some(0));
        mark
    };
    let mark = marked(&scene);
    let secret = mark.strip_prefix("packed:1:").unwrap();
    assert_eq!(marked(&scene), mark);
    scene.set("dedup.window_seconds", "3600");
    let output = scene.sluice(&["run", "--role", "worker"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("dedup.window_seconds = 3600") && told.contains("86400"),
        "{told}"
    );
    let window = scene.key("config:dedup_window_seconds");
    scene.redis().set::<_, _, ()>(window, 3600).unwrap();
    assert_eq!(marked(&scene), mark, "the window may be changed by hand");
    scene.set("dedup.layout", "keys");
    let output = scene.sluice(&["run", "--role", "worker"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("dedup.layout") && told.contains("packed"), "{told}");
    assert!(!told.contains(secret), "{told}");
}

#[test]
fn packed_claims_are_gone_for_good_however_long_their_bucket_lives() {
    const DAY: u64 = 86_400;
    const WINDOW: u64 = 45 * DAY;
    let scene = Scene::new("longlived", 1);
    let source = include_str!("../../src/pipeline/claim/packed.lua");
    let on_a_clock = source.replace("call('TIME')", "call('LRANGE', KEYS[2], 0, 1)");
    assert_ne!(on_a_clock, source, "the script asks for the time otherwise now");
    let script = redis::Script::new(&on_a_clock);
    let (shard, clock) = (scene.key("shard"), scene.key("clock"));
    let mut redis = scene.redis();
    let mut claim = |day: u64, id: u8| -> String {
        redis.del::<_, ()>(&clock).unwrap();
        redis.lpush::<_, _, ()>(&clock, day * DAY).unwrap();
        let want: Vec<u8> = [[id; 13].as_slice(), &day.to_be_bytes()].concat();
        let mut call = script.key(&shard);
        call.key(&clock).arg(WINDOW).arg("").arg(want);
        call.invoke(&mut redis).unwrap()
    };
    for id in [1, 2] {
        assert_eq!(claim(0, id), "1");
    }
    assert_eq!(claim(36, 3), "1");
    assert_eq!(claim(40, 1), "0", "within its window");
    // The bucket lives on, and is never full. Seconds are told modulo 194 days.
    for (day, id) in [(80, 4), (120, 5)] {
        assert_eq!(claim(day, id), "1");
    }
    assert_eq!(claim(121, 1), "1", "of day 0");
    assert_eq!(
        claim(134, 3),
        "1",
        "of day 36: more than half of what can be told, and still of the past"
    );
    assert_eq!(
        claim(165, 2),
        "1",
        "of day 0: by its age as if it were of the future"
    );
}
