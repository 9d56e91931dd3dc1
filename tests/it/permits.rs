//! `permit.lua` against a plain reference, on the real Redis with a clock that the test sets: a log of every permit, and of
//! what was decided of every record.
//!
//! Histories are drawn from a seed. Several partitions ask, as workers do that crash and read again with another cut, go
//! on as zombies, are rewound, wait for permits, and hear of new limits; the clock runs, leaps and is set back.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::{Commands as _, Script};

use crate::harness::Scene;
use crate::harness::any_redis::AnyConnection;

/// As many buckets as the worker has in a window.
const BUCKETS: i64 = 100;
/// Histories drawn; `PERMIT_HISTORIES` overrides it.
const HISTORIES: u64 = 100;
const STEPS: usize = 60;
/// Decisions outlive every history.
const DECISIONS_SECONDS: i64 = 3_600;

/// The script, reading the time from a third key.
fn script() -> Script {
    let source = include_str!("../../src/pipeline/permit.lua");
    let clock = source.replace("redis.call('TIME')", "redis.call('LRANGE', KEYS[3], 0, 1)");
    assert_ne!(clock, source, "the script asks for the time otherwise now");
    Script::new(&clock)
}

/// Events a window of that many ms; `None` is unlimited.
#[derive(Clone, Copy, Debug)]
struct Limit {
    events: Option<usize>,
    window_ms: i64,
}

impl Limit {
    fn drawn(random: &mut StdRng) -> Self {
        Self {
            events: (random.random_range(0..12) > 0).then(|| random.random_range(0..400)),
            // Longer than the history takes by the real clock, by which Redis lets keys expire.
            window_ms: 100 * random.random_range(1_000..50_000),
        }
    }

    fn bucket_ms(self) -> i64 {
        (self.window_ms as u64).div_ceil(BUCKETS as u64) as i64
    }
}

/// One partition, as its owner sees it and as it really is.
#[derive(Debug, Default)]
struct Partition {
    committed: i64,
    /// The commit that Redis has heard of last with something to decide; -1 before the first.
    stored: i64,
    /// Where the owner reads next.
    position: i64,
    /// The offsets that are candidates; fixed, as records are.
    candidates: Vec<i64>,
    /// What was decided, by offset.
    decided: BTreeMap<i64, bool>,
    /// Below this every offset is decided.
    until: i64,
}

/// A token with its keys, and the reference.
struct Token<'a> {
    redis: &'a mut AnyConnection,
    script: &'a Script,
    keys: [String; 3],
    now: i64,
    limit: Limit,
    /// When how many permits were charged, by the clock of then.
    log: Vec<(i64, usize)>,
    /// Those of the log that no limit since has seen leave its window: a longer one that follows counts no others.
    remembered: Vec<(i64, usize)>,
    permits: usize,
    /// When the window's key expires, by the test's clock.
    expires: Option<i64>,
}

/// What the script answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Stale(i64),
    /// Offsets below the first, and not below the segment's before, passed up to the second.
    Segments(Vec<(i64, i64)>),
}

/// One call of the script.
struct Call<'a> {
    partition: usize,
    committed: i64,
    candidates: &'a [i64],
    end: i64,
    rewound: bool,
    wait: bool,
}

impl Token<'_> {
    fn call(&mut self, call: &Call<'_>) -> Answer {
        self.redis.del::<_, ()>(&self.keys[2]).unwrap();
        let time = [self.now / 1000, self.now % 1000 * 1000];
        self.redis.rpush::<_, _, ()>(&self.keys[2], &time[..]).unwrap();
        let first = call.candidates.first().copied().unwrap_or(0);
        let distances: Vec<u8> = call
            .candidates
            .iter()
            .flat_map(|offset| ((offset - first) as u32).to_be_bytes())
            .collect();
        let answer: String = self
            .script
            .key(&self.keys[..])
            .arg(format!("1:{}", call.partition))
            .arg(call.committed)
            .arg(first)
            .arg(call.end)
            .arg(self.limit.events.map_or(-1, |events| events as i64))
            .arg(self.limit.window_ms)
            .arg(self.limit.bucket_ms())
            .arg(DECISIONS_SECONDS)
            .arg(u8::from(call.rewound))
            .arg(u8::from(call.wait))
            .arg(distances)
            .invoke(self.redis)
            .unwrap();
        if let Some(commit) = answer.strip_prefix("stale:") {
            return Answer::Stale(commit.parse().unwrap());
        }
        let pair = |segment: &str| {
            let (to, passed) = segment.split_once(':').unwrap();
            (to.parse().unwrap(), passed.parse().unwrap())
        };
        Answer::Segments(answer.split_terminator(';').map(pair).collect())
    }

    /// All that is charged, whenever that was.
    fn charged(&mut self) -> BTreeMap<String, usize> {
        self.redis.hgetall(&self.keys[0]).unwrap()
    }

    /// How many of the wanted permits may be given, if those of `log` count within `window_ms`.
    fn room(&self, wanted: usize, log: &[(i64, usize)], window_ms: i64) -> usize {
        let counts = log.iter().filter(|(at, _)| *at > self.now - window_ms);
        let used: usize = counts.map(|(_, permits)| permits).sum();
        self.limit
            .events
            .map_or(wanted, |events| events.saturating_sub(used).min(wanted))
    }

    /// Asks for a block, and compares everything that follows from it.
    fn ask(&mut self, number: usize, partition: &mut Partition, end: i64, rewound: bool, wait: bool) {
        let block: Vec<i64> = partition
            .candidates
            .iter()
            .copied()
            .filter(|offset| (partition.position..end).contains(offset))
            .collect();
        let before = self.charged();
        let answer = self.call(&Call {
            partition: number,
            committed: partition.committed,
            candidates: &block,
            end,
            rewound,
            wait,
        });
        let Answer::Segments(segments) = answer else {
            panic!(
                "{answer:?} to the owner, who has committed {}",
                partition.committed
            );
        };
        let passed = |offset: i64| {
            let segment = segments.iter().find(|(to, _)| offset < *to)?;
            Some(offset <= segment.1)
        };
        let (old, new): (Vec<i64>, Vec<i64>) = block.iter().partition(|offset| **offset < partition.until);
        for offset in old {
            assert_eq!(
                passed(offset),
                partition.decided.get(&offset).copied(),
                "{offset} was decided before"
            );
        }
        let permits = new.iter().filter(|offset| passed(**offset) == Some(true)).count();
        for (n, &offset) in new.iter().enumerate() {
            let expected = match (n < permits, wait) {
                (true, _) => Some(true),
                (false, false) => Some(false),
                (false, true) => None,
            };
            assert_eq!(
                passed(offset),
                expected,
                "the first in the order of offsets pass: {offset}"
            );
        }
        let most = self.room(new.len(), &self.remembered, self.limit.window_ms);
        assert!(permits <= most, "{permits} permits, with room for {most}");
        // A bucket counts until its end has left the window; one that was filled under a longer window is wider.
        let widest = before
            .keys()
            .map(|bucket| bucket.split(':').next().unwrap().parse::<i64>().unwrap())
            .fold(self.limit.bucket_ms(), i64::max);
        let least = self.room(new.len(), &self.log, self.limit.window_ms + widest);
        assert!(
            permits >= least,
            "{permits} permits, with room for {least} by any account"
        );
        self.compare_charged(&before, permits);
        self.permits += permits;
        if self.limit.events.is_some() && !new.is_empty() {
            let left = self.now - self.limit.window_ms;
            self.remembered.retain(|(at, _)| *at > left);
            self.remembered.push((self.now, permits));
            self.log.push((self.now, permits));
        }
        if !new.is_empty() {
            partition.stored = partition.committed;
            partition.until = if wait && permits < new.len() {
                new[permits]
            } else {
                end
            };
            for &offset in &new {
                if let Some(passed) = passed(offset) {
                    partition.decided.insert(offset, passed);
                }
            }
        }
        partition.position = partition.until.min(end).max(partition.position);
    }

    /// What is charged has grown by exactly the permits, in the bucket of now.
    fn compare_charged(&mut self, before: &BTreeMap<String, usize>, permits: usize) {
        let after = self.charged();
        let width = self.limit.bucket_ms();
        let bucket = format!("{width}:{}", self.now.div_euclid(width));
        let limited = if self.limit.events.is_some() { permits } else { 0 };
        let had = before.get(&bucket).copied().unwrap_or(0);
        let has = after.get(&bucket).copied().unwrap_or(0);
        assert_eq!(has - had, limited, "charged for {permits} permits");
        let others = after.iter().filter(|(name, _)| **name != bucket);
        assert!(
            others
                .into_iter()
                .all(|(name, permits)| before.get(name) == Some(permits))
        );
        if limited > 0 {
            let ttl: i64 = self.redis.pttl(&self.keys[0]).unwrap();
            assert!(ttl > self.limit.window_ms, "it expires within its window");
            self.expires = Some(self.now + ttl);
        }
    }

    /// Lets time pass, and the window's key expire as Redis would.
    fn pass(&mut self, ms: i64) {
        self.now += ms;
        if self.expires.is_some_and(|at| self.now >= at) {
            self.redis.del::<_, ()>(&self.keys[0]).unwrap();
            self.remembered.clear();
            self.expires = None;
        }
    }

    fn tick(&mut self, random: &mut StdRng) {
        let window = self.limit.window_ms;
        let ms = match random.random_range(0..20) {
            0 => random.random_range(window / 2..3 * window),
            1 => -random.random_range(0..window / 10),
            2..=6 => random.random_range(0..window / 5),
            _ => random.random_range(0..window / 50),
        };
        self.pass(ms);
    }
}

/// One history; answers how many calls it made and how many permits were given.
fn history(redis: &mut AnyConnection, script: &Script, prefix: &str, seed: u64) -> (usize, usize) {
    let random = &mut StdRng::seed_from_u64(seed);
    let keys = ["rate", "decided", "clock"].map(|kind| format!("{prefix}{kind}:{{{seed}}}"));
    let mut token = Token {
        redis,
        script,
        keys,
        now: 1_700_000_000_000,
        limit: Limit::drawn(random),
        log: Vec::new(),
        remembered: Vec::new(),
        permits: 0,
        expires: None,
    };
    let mut partitions: Vec<Partition> = (0..random.random_range(1..=4))
        .map(|_| Partition {
            stored: -1,
            candidates: (0..20_000).filter(|_| random.random_range(0..4) > 0).collect(),
            ..Partition::default()
        })
        .collect();
    let mut calls = 0;
    for _ in 0..STEPS {
        token.tick(random);
        let number = random.random_range(0..partitions.len());
        let partition = &mut partitions[number];
        match random.random_range(0..12) {
            // A crash, or another owner: read again from the commit on.
            0 | 1 => partition.position = partition.committed,
            // A commit; what is below it was decided.
            2 | 3 => {
                partition.committed = random.random_range(partition.committed..=partition.position);
            }
            4 if partition.stored > 0 => {
                // A zombie: it changes nothing.
                let before = (
                    token.charged(),
                    token.redis.hgetall::<_, BTreeMap<String, String>>(&token.keys[1]),
                );
                let committed = random.random_range(0..partition.stored);
                let answer = token.call(&Call {
                    partition: number,
                    committed,
                    candidates: &[committed, committed + 1],
                    end: committed + 2,
                    rewound: false,
                    wait: false,
                });
                assert_eq!(answer, Answer::Stale(partition.stored));
                let after = (token.charged(), token.redis.hgetall(&token.keys[1]));
                assert_eq!(before, after, "a zombie changes nothing");
                calls += 1;
            }
            5 if partition.stored > 0 => {
                // A rewind below what Redis knows: its owner insists, and all is decided anew.
                partition.committed = random.random_range(0..partition.stored);
                partition.position = partition.committed;
                partition.decided.clear();
                partition.until = partition.committed;
                // At least one candidate: without any, Redis is not asked.
                let first = partition
                    .candidates
                    .partition_point(|offset| *offset < partition.position);
                let end = partition.candidates[first] + random.random_range(1..300);
                token.ask(number, partition, end, true, false);
                calls += 1;
            }
            6 => token.limit = Limit::drawn(random),
            _ => {
                let end = partition.position + random.random_range(1..300);
                let wait = random.random_range(0..4) == 0;
                token.ask(number, partition, end, false, wait);
                calls += 1;
            }
        }
    }
    let Token {
        redis, keys, permits, ..
    } = token;
    redis.del::<_, ()>(&keys[..]).unwrap();
    (calls, permits)
}

#[test]
fn permits_agree_with_a_log_of_every_permit() {
    let scene = Scene::new("permits", 1);
    let histories = std::env::var("PERMIT_HISTORIES").map_or(HISTORIES, |n| n.parse().unwrap());
    let (mut calls, mut permits) = (0, 0);
    let (script, mut redis) = (script(), scene.redis());
    for seed in 0..histories {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            history(&mut redis, &script, &scene.key(""), seed)
        }));
        let Ok(done) = done else {
            panic!("seed {seed}: see above");
        };
        calls += done.0;
        permits += done.1;
    }
    eprintln!("{histories} histories, {calls} calls, {permits} permits");
    assert!(permits > 0);
}

#[test]
fn under_steady_overload_nearly_all_of_a_limit_is_used() {
    // Many, so that what passes at the very start counts for little.
    const WINDOWS: i64 = 80;
    let scene = Scene::new("overload", 1);
    let (script, mut redis) = (script(), scene.redis());
    for (events, window_ms) in [(1_000, 60_000)] {
        let mut token = Token {
            redis: &mut redis,
            script: &script,
            keys: ["rate", "decided", "clock"].map(|kind| scene.key(&format!("{kind}:{{{window_ms}}}"))),
            now: 1_700_000_000_000,
            limit: Limit {
                events: Some(events),
                window_ms,
            },
            log: Vec::new(),
            remembered: Vec::new(),
            permits: 0,
            expires: None,
        };
        let start = token.now;
        let mut partition = Partition {
            stored: -1,
            ..Partition::default()
        };
        // Twice what may pass, in steps of half a bucket.
        let step = token.limit.bucket_ms() / 2;
        let block = (events as u64).div_ceil(BUCKETS as u64) as i64;
        while token.now < start + WINDOWS * window_ms {
            let end = partition.position + block;
            partition.candidates = (partition.position..end).collect();
            token.ask(0, &mut partition, end, false, false);
            partition.committed = end;
            partition.decided.clear();
            token.log.retain(|(at, _)| *at > token.now - 2 * window_ms);
            token.pass(step);
        }
        let share = token.permits as f64 / (events as i64 * WINDOWS) as f64;
        eprintln!("{events} in {window_ms} ms: {:.2} % used", share * 100.0);
        assert!(share >= 0.98, "{share}");
    }
}
