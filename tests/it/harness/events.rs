//! Load whose outcome is known beforehand, and the ledger that checks it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use redis::Commands as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Scene;
use super::clickhouse::Row;
use super::kafka::Record;

/// Tokens of the load.
pub(crate) const TOKENS: [&str; 3] = ["alpha", "beta", "gamma"];
/// When its first event happened: 2024-01-31 23:50 UTC, so that soon a new month begins.
const BEGIN: i64 = 1_706_745_000_000;
const MONTH: i64 = 31 * 24 * 3_600_000;

/// Makes records, always the same ones: a tenth comes again in its partition, every fiftieth in another one, and
/// every fortieth is no event.
#[derive(Debug)]
pub(crate) struct Load {
    partitions: u64,
    next: u64,
    months: u64,
}

impl Load {
    pub(crate) fn new(partitions: i32) -> Self {
        Self {
            partitions: partitions as u64,
            next: 0,
            months: 1,
        }
    }

    /// Spreads the events over so many months, and so over as many partitions of the table.
    pub(crate) fn over_months(mut self, months: u64) -> Self {
        self.months = months;
        self
    }

    /// The next records.
    pub(crate) fn take(&mut self, count: u64) -> Vec<Record> {
        let from = self.next;
        self.next += count;
        (from..self.next).map(|n| self.record(n)).collect()
    }

    fn record(&self, n: u64) -> Record {
        let partition = (n % self.partitions) as i32;
        let id = self.id(n);
        let payload = if n % 40 == 17 {
            format!("no event {n}")
        } else {
            self.payload(id)
        };
        Record {
            key: Some(format!("key-{id}").into_bytes()),
            ..Record::of(partition, payload)
        }
    }

    /// Which event the `n`th record is a copy of.
    fn id(&self, n: u64) -> u64 {
        let back = self.partitions * (1 + n / 10 % 5);
        match n % 50 {
            25 => n - 1,
            9 | 19 | 29 | 39 | 49 if n >= back => self.id(n - back),
            _ => n,
        }
    }

    fn time(&self, id: u64) -> i64 {
        BEGIN + id as i64 * 40 + (id % self.months) as i64 * MONTH
    }

    fn payload(&self, id: u64) -> String {
        // Its copies come in another partition, and between partitions there is no order.
        let goes_abroad = id % 50 == 24;
        let person = if goes_abroad {
            String::new()
        } else {
            format!(r#","$set":{{"latest":{id}}},"$set_once":{{"first":{id}}}"#)
        };
        format!(
            r#"{{"token":"{token}","event":"event {kind}","distinct_id":"user-{home}-{user}","uuid":"{uuid}","timestamp":"{time}","properties":{{"id":{id},"exact":{id}.10e2,"text":"\u00e9\ud83d"{person}}}}}"#,
            token = TOKENS[(id % 3) as usize],
            kind = id % 7,
            home = if goes_abroad {
                "abroad".to_owned()
            } else {
                (id % self.partitions).to_string()
            },
            user = id / 7 % 20,
            uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, &id.to_le_bytes()),
            time = jiff::Timestamp::from_millisecond(self.time(id)).unwrap(),
        )
    }
}

/// What the oracle reads of a plain event.
#[derive(Deserialize)]
struct Plain<'a> {
    token: &'a str,
    event: &'a str,
    distinct_id: &'a str,
    uuid: &'a str,
    timestamp: &'a str,
    #[serde(borrow)]
    properties: &'a RawValue,
}

/// How many records ended where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) written: usize,
    pub(crate) duplicates: usize,
    pub(crate) limited: usize,
    pub(crate) dead_letters: usize,
}

impl Ledger {
    /// Checks that every record of the load ended in exactly one place, and in the right one; and that each row says
    /// what its record said.
    pub(crate) fn check(sent: &[Record], scene: &Scene) -> Self {
        Self::check_in(
            sent,
            &scene.rows(),
            &scene.rejects(&scene.overflow),
            &scene.rejects(&scene.dead_letters),
        )
    }

    /// The same of destinations that were read already.
    pub(crate) fn check_in(sent: &[Record], rows: &[Row], overflow: &[Record], dead: &[Record]) -> Self {
        let mut problems = Problems::default();
        let by_place: HashMap<(i32, i64), &Record> =
            sent.iter().map(|record| (record.place(), record)).collect();
        assert_eq!(by_place.len(), sent.len(), "records have places of their own");
        let written = once(rows.iter().map(Row::place), "rows", &mut problems);
        let limited = once(overflow.iter().map(origin), "overflow", &mut problems);
        let rejected = once(dead.iter().map(origin), "dead letters", &mut problems);

        let mut copies: HashMap<(&str, &str), Vec<(i32, i64)>> = HashMap::new();
        let mut ledger = Self::default();
        for record in sent {
            let place = record.place();
            let found = [&written, &limited, &rejected]
                .iter()
                .filter(|places| places.contains(&place))
                .count();
            match event_of(record) {
                Some(event) => {
                    copies.entry((event.token, event.uuid)).or_default().push(place);
                    if rejected.contains(&place) {
                        problems.add("an event among the dead letters", place);
                    }
                }
                None if !rejected.contains(&place) => problems.add("no event, yet no dead letter", place),
                None => {}
            }
            if found > 1 {
                problems.add("in more than one destination", place);
            }
        }
        for places in copies.values() {
            let settled: Vec<_> = places
                .iter()
                .filter(|p| written.contains(p) || limited.contains(p))
                .collect();
            match settled[..] {
                [] => problems.add("lost", places[0]),
                [settled] => {
                    let earlier = places.iter().find(|p| p.0 == settled.0 && p.1 < settled.1);
                    if earlier.is_some() {
                        problems.add("a later copy won", *settled);
                    }
                }
                [_, second, ..] => problems.add("twice", *second),
            }
            ledger.duplicates += places.len() - settled.len().min(places.len());
        }
        for row in rows {
            match by_place.get(&row.place()) {
                None => problems.add("a row without a record", row.place()),
                Some(record) => {
                    if let Some(difference) = difference(record, row) {
                        problems.add(&format!("a row with another {difference}"), row.place());
                    }
                }
            }
        }
        for reject in overflow.iter().chain(dead) {
            let same = by_place
                .get(&origin(reject))
                .is_some_and(|r| r.payload == reject.payload && r.key == reject.key);
            if !same {
                problems.add("a reject that is not its record", origin(reject));
            }
        }
        problems.none();
        ledger.written = written.len();
        ledger.limited = limited.len();
        ledger.dead_letters = rejected.len();
        assert_eq!(
            ledger.written + ledger.duplicates + ledger.limited + ledger.dead_letters,
            sent.len(),
            "{ledger:?} adds up"
        );
        ledger
    }
}

/// Collected, so that a failure shows the pattern and not just the first.
#[derive(Default)]
struct Problems(BTreeMap<String, Vec<(i32, i64)>>);

impl Problems {
    fn add(&mut self, what: &str, place: (i32, i64)) {
        self.0.entry(what.to_owned()).or_default().push(place);
    }

    fn none(mut self) {
        let told: Vec<String> = self
            .0
            .iter_mut()
            .map(|(what, places)| {
                places.sort_unstable();
                let some = &places[..places.len().min(12)];
                format!("{what}: {} times, at (partition, offset) {some:?}", places.len())
            })
            .collect();
        assert!(
            told.is_empty(),
            "the ledger does not add up:\n  {}",
            told.join("\n  ")
        );
    }
}

fn once(
    places: impl Iterator<Item = (i32, i64)>,
    what: &str,
    problems: &mut Problems,
) -> HashSet<(i32, i64)> {
    let mut seen = HashSet::new();
    for place in places {
        if !seen.insert(place) {
            problems.add(&format!("the same record twice in {what}"), place);
        }
    }
    seen
}

/// The partition and offset at which a reject stood.
pub(crate) fn origin(reject: &Record) -> (i32, i64) {
    let number = |name| reject.header_text(name).and_then(|text| text.parse::<i64>().ok());
    match (number("sluice-partition"), number("sluice-offset")) {
        (Some(partition), Some(offset)) => (partition as i32, offset),
        _ => panic!("a reject without its coordinate: {reject:?}"),
    }
}

/// How many different events of a token were sent.
pub(crate) fn ids_of(sent: &[Record], token: &str) -> usize {
    let events = sent
        .iter()
        .filter_map(event_of)
        .filter(|event| event.token == token);
    events.map(|event| event.uuid).collect::<HashSet<_>>().len()
}

fn event_of(record: &Record) -> Option<Plain<'_>> {
    serde_json::from_slice(record.payload.as_deref()?).ok()
}

fn difference(record: &Record, row: &Row) -> Option<&'static str> {
    let Some(event) = event_of(record) else {
        return Some("record");
    };
    [
        (event.token == row.token, "token"),
        (event.event == row.event, "event"),
        (event.distinct_id == row.distinct_id, "distinct_id"),
        (event.uuid == row.uuid, "uuid"),
        (milliseconds(event.timestamp) == row.timestamp, "timestamp"),
        (event.properties.get() == row.properties, "properties"),
    ]
    .iter()
    .find(|(same, _)| !same)
    .map(|(_, what)| *what)
}

fn milliseconds(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Checks what Redis remembers of the load against the rows: counters, recent actions, timelines and properties.
pub(crate) fn check_remembered(scene: &Scene, rows: &[Row]) {
    let mut redis = scene.redis();
    for token in TOKENS {
        let of_token: Vec<&Row> = rows.iter().filter(|row| row.token == token).collect();
        let counted: usize = redis
            .get(scene.key(&format!("counter:events:{{{token}}}")))
            .unwrap();
        assert_eq!(counted, of_token.len(), "counter of {token}");
        let actions: Vec<String> = redis
            .lrange(scene.key(&format!("recent_actions:{{{token}}}")), 0, -1)
            .unwrap();
        let ids: Vec<String> = actions
            .iter()
            .map(|action| {
                serde_json::from_str::<serde_json::Value>(action).unwrap()["uuid"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(ids.len(), of_token.len().min(100), "recent actions of {token}");
        let different: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(
            different.len(),
            ids.len(),
            "recent actions of {token} come once each"
        );
        let written: HashSet<&str> = of_token.iter().map(|row| row.uuid.as_str()).collect();
        assert!(
            ids.iter().all(|id| written.contains(id.as_str())),
            "recent actions of {token} were written"
        );
    }
    let mut by_user: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_user
            .entry((&row.token, &row.distinct_id))
            .or_default()
            .push(row);
    }
    let mut ask = redis::pipe();
    for (token, user) in by_user.keys() {
        ask.zrange_withscores(scene.key(&format!("timeline:user:{{{token}:{user}}}")), 0, -1);
        ask.hgetall(scene.key(&format!("user:{{{token}:{user}}}")));
    }
    let answers: Vec<redis::Value> = ask.query(&mut redis).unwrap();
    for ((user, mut rows), answer) in by_user.into_iter().zip(answers.chunks(2)) {
        let (timeline, person): (Vec<(String, f64)>, HashMap<String, String>) = (
            redis::from_redis_value(answer[0].clone()).unwrap(),
            redis::from_redis_value(answer[1].clone()).unwrap(),
        );
        rows.sort_by_key(|row| row.offset);
        if user.1.contains("abroad") {
            assert_eq!(person.len(), 0, "{user:?} has no properties");
        } else {
            let id = |row: &Row| {
                serde_json::from_str::<serde_json::Value>(&row.properties.replace("\\ud83d", "")).unwrap()["id"].to_string()
            };
            assert_eq!(person.get("first"), Some(&id(rows[0])), "$set_once of {user:?}");
            assert_eq!(
                person.get("latest"),
                Some(&id(rows[rows.len() - 1])),
                "$set of {user:?}"
            );
        }
        rows.sort_by_key(|row| row.timestamp);
        let newest = &rows[rows.len().saturating_sub(100)..];
        let expected: Vec<(String, f64)> = newest
            .iter()
            .map(|row| (format!("{}:{}", row.uuid, row.event), row.timestamp as f64))
            .collect();
        assert_eq!(timeline, expected, "timeline of {user:?}");
    }
}
