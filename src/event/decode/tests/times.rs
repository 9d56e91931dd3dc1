//! Which time counts, and which is refused. How a time is read is tested with its reader.

use super::*;

const DAY: i64 = 86_400_000;
const NOW: &str = r#""now":"2024-05-01T11:00:00Z""#;
/// What `NOW` is.
const AT_NOW: i64 = RECORD_TIME - 3_600_000;

fn time(seen: Result<Seen, Reason>) -> Result<i64, Reason> {
    seen.map(|seen| seen.timestamp)
}

fn plain_time(members: &str) -> Result<i64, Reason> {
    time(plain(members))
}

#[test]
fn a_plain_events_timestamp_is_taken_as_it_is() {
    let of = |text: &str| {
        plain_time(&format!(
            r#""timestamp":"{text}","sent_at":"2024-05-01T10:00:00Z","offset":5,{NOW}"#
        ))
    };
    assert_eq!(of("2024-05-01T12:00:00.123Z"), Ok(RECORD_TIME + 123));
    assert_eq!(of("2024-05-01T14:00:00+02:00"), Ok(RECORD_TIME));
}

#[test]
fn a_plain_event_may_tell_an_offset_before_now() {
    assert_eq!(plain_time(&format!(r#""offset":2500,{NOW}"#)), Ok(AT_NOW - 2500));
    assert_eq!(plain_time(&format!(r#""offset":-1,{NOW}"#)), Ok(AT_NOW + 1));
    assert_eq!(
        plain_time(&format!(r#""offset":2500.9,{NOW}"#)),
        Ok(AT_NOW - 2500)
    );
    assert_eq!(
        plain_time(&format!(r#""offset":"2500",{NOW}"#)),
        Ok(AT_NOW),
        "no number, no offset"
    );
    assert_eq!(
        plain_time(&format!(r#""offset":1e300,{NOW}"#)),
        Err(Reason::BadTimestamp)
    );
    let event = br#"{"token":"t","event":"e","distinct_id":"u","offset":23456788901234567890}"#;
    let beyond = decode_bytes(Some(event), i64::MAX, &[]);
    assert_eq!(time(beyond), Err(Reason::BadTimestamp), "not 1970");
    assert_eq!(
        plain_time(r#""offset":2500"#),
        Ok(RECORD_TIME - 2500),
        "the record's time stands in for now"
    );
}

#[test]
fn without_any_time_the_records_own_counts() {
    assert_eq!(plain_time(""), Ok(RECORD_TIME));
    assert_eq!(time(captured("", "")), Ok(RECORD_TIME));
    for nothing in [r#""""#, "null", r#"" ""#] {
        assert_eq!(
            plain_time(&format!(r#""timestamp":{nothing}"#)),
            Ok(RECORD_TIME),
            "{nothing}"
        );
    }
    let event = br#"{"token":"t","event":"e","distinct_id":"u"}"#;
    assert_eq!(
        time(decode_bytes(Some(event), -1, &[])),
        Err(Reason::BadTimestamp),
        "not even that"
    );
}

#[test]
fn the_header_counts_before_the_records_time() {
    let of = |value| {
        time(seen_with(
            r#"{"token":"t","event":"e","distinct_id":"u"}"#,
            &[("timestamp", Some(value))],
        ))
    };
    assert_eq!(of("1714560000123"), Ok(1_714_560_000_123));
    assert_eq!(of("-1"), Ok(-1));
    for bad in ["x", "1.5", "2024-05-01T12:00:00Z", "99999999999999999999"] {
        assert_eq!(of(bad), Err(Reason::BadTimestamp), "{bad}");
    }
}

#[test]
fn a_captured_timestamp_is_final() {
    let outer = format!(r#""timestamp":"2024-05-01T10:00:00Z","sent_at":"2024-05-01T09:00:00Z",{NOW}"#);
    for inner in [
        r#""timestamp":"2024-04-01T00:00:00Z""#,
        r#""timestamp":"garbage""#,
        r#""offset":1000"#,
    ] {
        assert_eq!(
            time(captured(inner, &outer)),
            Ok(RECORD_TIME - 2 * 3_600_000),
            "{inner}"
        );
    }
}

#[test]
fn without_a_captured_timestamp_the_clients_is_moved_by_what_its_clock_is_off() {
    let of = |inner: &str, outer: &str| time(captured(inner, outer));
    let inner = r#""timestamp":"2024-05-01T10:30:00Z""#;
    let hour_behind = format!(r#""sent_at":"2024-05-01T10:00:00Z","timestamp":null,{NOW}"#);
    assert_eq!(of(inner, &hour_behind), Ok(RECORD_TIME - 30 * 60_000));
    for no_sent_at in [
        r#""sent_at":"""#,
        r#""sent_at":null"#,
        r#""sent_at":"x""#,
        r#""sent_at":1"#,
    ] {
        let as_it_is = of(inner, &format!("{no_sent_at},{NOW}"));
        assert_eq!(as_it_is, Ok(RECORD_TIME - 90 * 60_000), "{no_sent_at}");
    }
    let told_within = format!(r#"{inner},"sent_at":"2024-05-01T10:00:00Z""#);
    for empty in [r#""sent_at":"","#, ""] {
        assert_eq!(
            of(&told_within, &format!("{empty}{NOW}")),
            Ok(RECORD_TIME - 30 * 60_000),
            "an empty outer one is none"
        );
    }
    assert_eq!(
        of(inner, r#""sent_at":"2024-05-01T10:00:00Z""#),
        Ok(RECORD_TIME - 90 * 60_000),
        "no now"
    );
    assert_eq!(of(r#""offset":1500"#, NOW), Ok(AT_NOW - 1500));
    assert_eq!(of("", NOW), Ok(AT_NOW));
    assert_eq!(of(r#""timestamp":"garbage""#, NOW), Err(Reason::BadTimestamp));
}

#[test]
fn a_clocks_error_is_taken_off_before_digits_are() {
    let of = |ts: &str, sent_at: &str, now: &str| {
        let inner = format!(r#""timestamp":"2024-05-01T11:00:00.{ts}Z""#);
        let outer =
            format!(r#""sent_at":"2024-05-01T11:00:00.{sent_at}Z","now":"2024-05-01T11:00:00.{now}Z""#);
        time(captured(&inner, &outer)).unwrap() - AT_NOW
    };
    assert_eq!(of("0006", "0000", "0006"), 1);
    assert_eq!(of("0020", "0011", "0010"), 1);
    assert_eq!(of("0000", "0000001", "000"), -1);
}

#[test]
fn a_timestamp_that_is_no_time_refuses_the_record() {
    let bad = [
        "1714564800000",
        "1.5",
        "true",
        "{}",
        r#""yesterday""#,
        r#""1714564800000""#,
        r#""2024-02-30""#,
    ];
    for bad in bad.map(|bad| format!(r#""timestamp":{bad}"#)) {
        assert_eq!(plain_time(&bad), Err(Reason::BadTimestamp), "{bad}");
        assert_eq!(time(captured("", &bad)), Err(Reason::BadTimestamp), "{bad}");
    }
}

#[test]
fn a_time_more_than_a_day_ahead_of_the_record_is_refused() {
    let event = br#"{"token":"t","event":"e","distinct_id":"u","timestamp":"2024-05-01T12:00:00Z"}"#;
    let of = |record| time(decode_bytes(Some(event), record, &[]));
    assert_eq!(of(RECORD_TIME - DAY), Ok(RECORD_TIME));
    assert_eq!(of(RECORD_TIME - DAY - 1), Err(Reason::BadTimestamp));
    assert_eq!(
        of(RECORD_TIME + 100 * DAY),
        Ok(RECORD_TIME),
        "the past is welcome"
    );
    assert_eq!(of(-1), Ok(RECORD_TIME), "nothing to be ahead of");
}

#[test]
fn a_time_outside_the_column_is_refused() {
    let of = |text: &str| {
        let event = format!(r#"{{"token":"t","event":"e","distinct_id":"u","timestamp":"{text}"}}"#);
        time(decode_bytes(Some(event.as_bytes()), -1, &[]))
    };
    assert_eq!(of("1900-01-01T00:00:00Z"), Ok(-2_208_988_800_000));
    assert_eq!(of("1899-12-31T23:59:59.999Z"), Err(Reason::BadTimestamp));
    assert_eq!(of("1900-01-01T00:00:00+00:01"), Err(Reason::BadTimestamp));
    assert_eq!(of("2299-12-31T23:59:59.9999Z"), Ok(10_413_791_999_999));
    assert_eq!(of("2300-01-01T00:00:00Z"), Err(Reason::BadTimestamp));
    assert_eq!(of("2299-12-31T23:59:59-00:01"), Err(Reason::BadTimestamp));
}
