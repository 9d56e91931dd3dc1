//! A trend: how many events in each interval, by event name and, if asked, by the value of a property.
//!
//! Rows are counted as they are, without FINAL: the table holds each event once. The text of the query depends on the
//! kind of interval and on which clauses there are, never on a value.

use std::collections::BTreeMap;

use ::clickhouse::Row;
use ::clickhouse::query::Query;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::events::Events;
use super::interval::Interval;
use super::problem::{Kind, Problem};
use super::query::Trend;

/// Characters of a property's value that count; what differs only behind them is one value.
const MAX_VALUE_CHARS: u32 = 200;

/// One series in one interval.
#[derive(Debug, Row, Deserialize)]
struct Point {
    bucket: i64,
    /// Not among the series that are told apart.
    rest: u8,
    name: String,
    /// Empty where the event has no such property, else `=` and its value.
    value: String,
    events: u64,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    query: &'static str,
    from: Timestamp,
    to: Timestamp,
    interval: Interval,
    breakdown: Option<&'a str>,
    /// Where each interval begins; the first and the last may reach beyond the range, of which alone events count.
    intervals: Vec<Timestamp>,
    series: Vec<Series>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Series {
    /// None for the series of all others.
    event: Option<String>,
    /// The property's value, if a breakdown was asked for; null where an event has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    /// Whether this is the sum of all series that are not told apart.
    other: bool,
    total: u64,
    counts: Vec<u64>,
}

/// The answer as JSON.
pub(super) async fn run(events: &Events, token: &str, trend: &Trend) -> Result<Vec<u8>, Problem> {
    let query = bound(events.query(&sql(events.table(), trend)), token, trend);
    let points = events.run(query.fetch_all::<Point>()).await?;
    let time = |ms| Timestamp::from_millisecond(ms).unwrap_or_default();
    let answer = Answer {
        query: "trend",
        from: time(trend.from),
        to: time(trend.to),
        interval: trend.interval,
        breakdown: trend.breakdown.as_deref(),
        intervals: trend
            .buckets()
            .map(|bucket| trend.interval.start(bucket))
            .collect(),
        series: series(trend, points),
    };
    serde_json::to_vec(&answer).map_err(|_| Problem::new(Kind::Internal, "the answer could not be written"))
}

/// The table is read twice: which series are the largest, then all points, the small series in one. One reading would
/// have to keep every point of every series to know.
fn sql(table: &str, trend: &Trend) -> String {
    let named = if trend.events.is_some() {
        " AND event IN {events:Array(String)}"
    } else {
        ""
    };
    let range = format!(
        "FROM {table} WHERE token = {{token:String}} AND timestamp >= fromUnixTimestamp64Milli({{from:Int64}}, 'UTC') \
         AND timestamp < fromUnixTimestamp64Milli({{to:Int64}}, 'UTC'){named}"
    );
    let value = if trend.breakdown.is_some() {
        format!(
            "multiIf(JSONType(properties, {{breakdown:String}}) = 'Null', '', \
             JSONType(properties, {{breakdown:String}}) = 'String', \
             concat('=', leftUTF8(JSONExtractString(properties, {{breakdown:String}}), {MAX_VALUE_CHARS})), \
             concat('=', leftUTF8(JSONExtractRaw(properties, {{breakdown:String}}), {MAX_VALUE_CHARS})))"
        )
    } else {
        "''".to_owned()
    };
    format!(
        "WITH top AS (SELECT toString(event) AS e, {value} AS v {range} GROUP BY e, v \
         ORDER BY count() DESC, e, v LIMIT {{limit:UInt32}}) \
         SELECT {bucket} AS bucket, toUInt8((toString(event), {value}) NOT IN top) AS rest, \
         if(rest, '', toString(event)) AS name, if(rest, '', {value}) AS value, count() AS events \
         {range} GROUP BY bucket, rest, name, value",
        bucket = trend.interval.sql(),
    )
}

fn bound(query: Query, token: &str, trend: &Trend) -> Query {
    let query = query
        .param("token", token)
        .param("from", trend.from)
        .param("to", trend.to)
        .param("limit", trend.limit);
    let query = match &trend.events {
        Some(events) => query.param("events", events),
        None => query,
    };
    match &trend.breakdown {
        Some(breakdown) => query.param("breakdown", breakdown),
        None => query,
    }
}

/// Series with a zero wherever nothing happened, the largest first, all others last.
fn series(trend: &Trend, points: Vec<Point>) -> Vec<Series> {
    let buckets = trend.buckets();
    let (first, length) = (*buckets.start(), buckets.count());
    let mut found: BTreeMap<(u8, String, String), Vec<u64>> = BTreeMap::new();
    if let (Some(names), None) = (&trend.events, &trend.breakdown) {
        // A name that was asked for is answered, also if nothing happened.
        for name in names.iter().take(trend.limit) {
            found.insert((0, name.clone(), String::new()), vec![0; length]);
        }
    }
    for point in points {
        let counts = found
            .entry((point.rest, point.name, point.value))
            .or_insert_with(|| vec![0; length]);
        if let Some(count) = usize::try_from(point.bucket - first)
            .ok()
            .and_then(|at| counts.get_mut(at))
        {
            *count += point.events;
        }
    }
    let mut all: Vec<Series> = found
        .into_iter()
        .map(|((rest, name, value), counts)| Series {
            event: (rest == 0).then_some(name),
            value: (rest == 0 && trend.breakdown.is_some())
                .then(|| value.strip_prefix('=').map_or(Value::Null, Value::from)),
            other: rest != 0,
            total: counts.iter().sum(),
            counts,
        })
        .collect();
    // Stable: what has the same total stays in the order of names and values.
    all.sort_by_key(|series| (series.other, std::cmp::Reverse(series.total)));
    let shown = all
        .iter()
        .filter(|series| !series.other && series.total > 0)
        .count();
    // Empty series of names that were asked for give way to the ones that count.
    all.retain(|series| series.other || series.total > 0 || shown < trend.limit);
    all
}

impl Trend {
    /// The numbers of the intervals that the range touches.
    pub(super) fn buckets(&self) -> std::ops::RangeInclusive<i64> {
        self.interval.bucket(self.from)..=self.interval.bucket(self.to - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn trend(interval: Interval, from: &str, to: &str) -> Trend {
        Trend {
            events: None,
            from: ms(from),
            to: ms(to),
            interval,
            breakdown: None,
            limit: 2,
        }
    }

    fn point(bucket: i64, rest: u8, name: &str, value: &str, events: u64) -> Point {
        let (name, value) = (name.to_owned(), value.to_owned());
        Point {
            bucket,
            rest,
            name,
            value,
            events,
        }
    }

    #[test]
    fn no_value_is_in_the_text_of_a_query() {
        let mut trend = trend(Interval::Day, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        trend.events = Some(vec!["x'; DROP".to_owned()]);
        trend.breakdown = Some("y'; DROP".to_owned());
        let sql = sql("`d`.events", &trend);
        assert!(
            !sql.contains("DROP") && sql.contains("{breakdown:String}"),
            "{sql}"
        );
        assert!(sql.matches("token = {token:String}").count() == 2, "{sql}");
    }

    #[test]
    fn nothing_is_a_zero_and_the_rest_comes_last() {
        let mut trend = trend(Interval::Day, "1970-01-01T00:00:00Z", "1970-01-04T00:00:00Z");
        let points = vec![
            point(0, 1, "", "", 50),
            point(2, 0, "small", "", 1),
            point(0, 0, "big", "", 3),
            point(2, 0, "big", "", 4),
        ];
        let all = series(&trend, points);
        let shown: Vec<_> = all
            .iter()
            .map(|s| (s.event.as_deref(), s.other, s.total, s.counts.clone()))
            .collect();
        assert_eq!(
            shown,
            [
                (Some("big"), false, 7, vec![3, 0, 4]),
                (Some("small"), false, 1, vec![0, 0, 1]),
                (None, true, 50, vec![50, 0, 0]),
            ]
        );
        trend.events = Some(vec!["never".to_owned()]);
        assert_eq!(series(&trend, Vec::new())[0].counts, [0, 0, 0]);
    }

    #[test]
    fn a_property_that_is_missing_is_not_an_empty_one() {
        let mut trend = trend(Interval::Day, "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z");
        trend.breakdown = Some("plan".to_owned());
        let all = series(&trend, vec![point(0, 0, "e", "", 2), point(0, 0, "e", "=", 1)]);
        assert_eq!(all[0].value, Some(Value::Null));
        assert_eq!(all[1].value, Some(Value::from("")));
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json[0]["value"], serde_json::Value::Null);
    }
}
