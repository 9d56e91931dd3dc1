//! Beyond the window: a resend that comes after its first claim has expired is still a duplicate.
//!
//! A resend keeps its event's time. So only an event that is older than the window can repeat one whose claim has expired:
//! older now, not when its record was made, for a worker may be behind by more than a window. Those few are looked up in
//! the table, by its sorting key, in one query a block: a row of another record makes it a duplicate. An event from the
//! future (its client's clock is ahead) tells nothing of its age, and is looked up, too. No memory is spent on the past, and
//! nothing is asked for a block without such events.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use uuid::Uuid;

use super::super::block::Block;
use super::super::worker::now_ms;
use super::super::{Outcome, Partition};
use crate::clickhouse::{identifier, literal};
use crate::config::DedupBy;
use crate::event::{Decoded, Event};
use crate::telemetry::metrics;

/// How far a client's clock may be ahead without its events being looked up, at the most.
const LONGEST_TOLERANCE_MS: i64 = 600_000;

/// What two events have in common that are one, within their token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Same {
    Id(String),
    /// Name, user and time in ms.
    Content(String, String, i64),
}

/// A row of the table: token, id, name, user, time, and its record's topic, incarnation, partition and offset.
type Row = (String, String, String, String, i64, String, u32, u32, u64);

impl Partition {
    /// Makes duplicates of those events that the table has rows of, from other records, older than any claim.
    pub(super) async fn look_beyond(&self, block: &Block, decoded: &Decoded, outcomes: &mut [Outcome]) {
        let dedup = &self.worker.config.dedup;
        if !dedup.beyond_window {
            return;
        }
        let window_ms = dedup.window_seconds as i64 * 1000;
        let now_ms = now_ms();
        let old: Vec<usize> = (0..outcomes.len())
            .filter(|&i| {
                let event = &decoded.events[i];
                let record_ms = block.record(event.index).timestamp;
                outcomes[i] == Outcome::Pass && may_be_older(window_ms, event.timestamp, record_ms, now_ms)
            })
            .collect();
        if old.is_empty() {
            return;
        }
        metrics().beyond_window_lookups.increment(1);
        metrics().beyond_window_events.increment(old.len() as u64);
        self.look_up(decoded, &old, outcomes).await;
    }

    /// Makes duplicates of those of the events that the table has rows of, from other records.
    pub(in crate::pipeline) async fn look_up(
        &self,
        decoded: &Decoded,
        events: &[usize],
        outcomes: &mut [Outcome],
    ) {
        let by = self.worker.config.dedup.by;
        let sql = self.rows_like(by, decoded, events);
        let rows: Vec<Row> = self
            .worker
            .ask(self.waiter(), "look for the rows of events", &sql)
            .await;
        let by_others = self.by_others(by, rows);
        for &i in events {
            let event = &decoded.events[i];
            let token = &decoded.tokens[event.token as usize];
            let known = by_others.get(token.as_str());
            if let Some(offsets) = known.and_then(|known| known.get(&same(by, decoded, event)))
                && offsets.iter().any(|offset| *offset != Some(event.offset))
            {
                outcomes[i] = Outcome::Duplicate;
            }
        }
    }

    /// What the rows are of: by token, the offsets of this partition, or `None` for a record of elsewhere.
    fn by_others(&self, by: DedupBy, rows: Vec<Row>) -> HashMap<String, HashMap<Same, HashSet<Option<i64>>>> {
        let kafka = &self.worker.config.kafka;
        let mut known: HashMap<String, HashMap<Same, HashSet<Option<i64>>>> = HashMap::new();
        for (token, uuid, event, user, time, topic, incarnation, partition, offset) in rows {
            let same = match by {
                DedupBy::Id => Same::Id(uuid),
                DedupBy::Content => Same::Content(event, user, time),
            };
            let here =
                topic == kafka.topic && incarnation == kafka.incarnation && partition as i32 == self.number;
            let offset = here.then_some(offset as i64);
            known
                .entry(token)
                .or_default()
                .entry(same)
                .or_default()
                .insert(offset);
        }
        known
    }

    /// The query for the rows of the same events. What is asked for comes as a table of its own, which a key
    /// condition takes whole: it says which granules are read. What is read first of these is the one column that
    /// tells nearly all rows apart; comparing whole tuples takes thirty times as long where all of a block are old.
    fn rows_like(&self, by: DedupBy, decoded: &Decoded, old: &[usize]) -> String {
        let mut asked = String::new();
        for &i in old {
            let event = &decoded.events[i];
            tsv(&mut asked, &decoded.tokens[event.token as usize]);
            asked.push('\t');
            tsv(&mut asked, decoded.str(event.event));
            asked.push('\t');
            tsv(&mut asked, decoded.str(event.distinct_id));
            // Writing to a String cannot fail.
            writeln!(asked, "\t{}\t{}", event.timestamp, Uuid::from_u128(event.uuid)).unwrap_or_default();
        }
        let (column, own) = match by {
            DedupBy::Id => ("uuid", "uuid"),
            DedupBy::Content => ("timestamp", "fromUnixTimestamp64Milli(time, 'UTC')"),
        };
        format!(
            "WITH asked AS (SELECT token, toDate(fromUnixTimestamp64Milli(time, 'UTC')) AS day, event, \
             cityHash64(user) AS user_hash, {own} AS own FROM format(\
             TSV, 'token String, event String, user String, time Int64, uuid UUID', {asked})) \
             SELECT toString(token), toString(uuid), toString(event), distinct_id, toUnixTimestamp64Milli(timestamp), \
             toString(kafka_topic), kafka_incarnation, kafka_partition, kafka_offset FROM {db}.events \
             PREWHERE {column} IN (SELECT own FROM asked) \
             WHERE (token, toDate(timestamp), event, cityHash64(distinct_id), {column}) IN (\
             SELECT token, day, event, user_hash, own FROM asked)",
            db = identifier(&self.worker.config.clickhouse.database),
            asked = literal(&asked),
        )
    }
}

/// Whether the claim of an event's first copy may have expired. Times in ms since 1970.
fn may_be_older(window_ms: i64, event_ms: i64, record_ms: i64, now_ms: i64) -> bool {
    // Clients' clocks may be ahead by a little.
    let tolerance = (window_ms / 24).min(LONGEST_TOLERANCE_MS);
    let age = now_ms.max(record_ms).saturating_sub(event_ms);
    age > window_ms - tolerance || event_ms.saturating_sub(record_ms) > tolerance
}

fn same(by: DedupBy, decoded: &Decoded, event: &Event) -> Same {
    match by {
        DedupBy::Id => Same::Id(Uuid::from_u128(event.uuid).to_string()),
        DedupBy::Content => Same::Content(
            decoded.str(event.event).to_owned(),
            decoded.str(event.distinct_id).to_owned(),
            event.timestamp,
        ),
    }
}

/// Text as a field of the format `TSV`.
fn tsv(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_looked_up_once_the_claim_of_its_first_copy_may_be_gone() {
        const DAY: i64 = 86_400_000;
        const MINUTE: i64 = 60_000;
        let now = 100 * DAY;
        let looked_up = |event, record| may_be_older(DAY, event, record, now);
        assert!(!looked_up(now - 1, now), "a new one");
        assert!(!looked_up(now - 23 * 60 * MINUTE, now), "within the window");
        assert!(looked_up(now - DAY - 1, now), "a late resend");
        // The worker is behind: the record was soon after the event, and both are long ago.
        assert!(looked_up(now - 2 * DAY, now - 2 * DAY + MINUTE));
        // A record ahead of the worker's clock counts by itself.
        assert!(looked_up(now - MINUTE, now + DAY));
        assert!(
            !looked_up(now + 5 * MINUTE, now),
            "a clock that is a little ahead"
        );
        assert!(looked_up(now + 11 * MINUTE, now), "a clock that is ahead");
        assert!(
            looked_up(now - DAY + 5 * MINUTE, now),
            "the first copy may have come earlier than its time"
        );
    }
}
