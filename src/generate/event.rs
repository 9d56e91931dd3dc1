//! What an event says: fields, properties and sizes like those of real clients, in either shape.
//!
//! Written by hand into buffers that are used again: at a million events a second no serializer keeps up.

use std::io::Write as _;

use uuid::Uuid;

use super::{Generator, LATE_MS, Shape};

/// Event names; the first are drawn more often, because real projects are mostly page views.
const NAMES: [&str; 16] = [
    "$pageview",
    "$pageview",
    "$pageview",
    "$pageview",
    "$pageview",
    "$autocapture",
    "$autocapture",
    "$autocapture",
    "$pageleave",
    "$pageleave",
    "button clicked",
    "search performed",
    "file uploaded",
    "purchase completed",
    "signed up",
    "$identify",
];
const BROWSERS: [&str; 5] = ["Chrome", "Safari", "Firefox", "Microsoft Edge", "Chrome iOS"];
const SYSTEMS: [&str; 5] = ["Mac OS X", "Windows", "Linux", "Android", "iOS"];
const PATHS: [&str; 8] = [
    "/",
    "/pricing",
    "/docs/install",
    "/login",
    "/projects",
    "/settings",
    "/blog/why",
    "/checkout",
];
const PLANS: [&str; 4] = ["free", "team", "business", "enterprise"];
/// Values that a reader of JSON may trip over or may not keep as they are.
const ODD: [&str; 8] = [
    "9007199254740993",
    "1e-7",
    "-0.0",
    r#""caf\u00e9 \ud83d\ude00""#,
    r#""line\nbreak and \"quotes\"""#,
    r#""ünïcödé 名前""#,
    r#"[1,[2,{"deep":null}]]"#,
    "null",
];

/// Filler, 64 slots of eight bytes: a slot costs one copy of a fixed length.
const FILLER: &[u8; 512] = b"\
    account address amounts balance banners browser buttons capture \
    changed chapter charges columns confirm contact content control \
    created cursors default deleted details display dragged editing \
    emailed enabled expired exports feature filters folders foreign \
    general history hovered imports invited invoice journey keyword \
    landing layouts library limited managed members message mobiles \
    monthly network noticed options ordered payment pending preview \
    private product profile project receipt removed reports scrolls \
";

/// What both shapes have.
struct Facts {
    uuid: Uuid,
    token: String,
    name: &'static str,
    user: u64,
    time_ms: i64,
}

/// Text into memory: it cannot fail.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {
        write!($out, $($text)*).unwrap_or_default()
    };
}

impl Generator {
    /// Writes the event at the current draws into key and payload. Answers whether it is of the hot token.
    pub(super) fn event(&mut self) -> bool {
        let hot = self
            .plan
            .hot
            .as_ref()
            .filter(|hot| self.draw.chance(hot.share))
            .map(|hot| hot.token.clone());
        let is_hot = hot.is_some();
        let token = hot.unwrap_or_else(|| self.token());
        let busy = self.draw.share();
        let mut ago_ms = self.draw.below(self.plan.span_ms.max(1));
        if self.plan.late > 0.0 && self.draw.chance(self.plan.late) {
            ago_ms += self.draw.below(LATE_MS);
        }
        let time_ms = self.plan.until_ms - ago_ms as i64;
        let facts = Facts {
            uuid: uuid_v7(time_ms, self.draw.long(), self.draw.long()),
            token,
            name: self.draw.of(&NAMES),
            user: (busy * busy * f64::from(self.plan.users.max(1))) as u64,
            time_ms,
        };
        put!(self.key, "{}:user-{}", facts.token, facts.user);
        let captured = match self.plan.shape {
            Shape::Plain => false,
            Shape::Captured => true,
            Shape::Mixed => self.draw.bits() & 1 == 1,
        };
        // Taken out, so that they can be written to while draws are made.
        let mut payload = std::mem::take(&mut self.payload);
        if captured {
            self.captured(&facts, &mut payload);
        } else {
            self.plain(&facts, &mut payload);
        }
        self.payload = payload;
        is_hot
    }

    fn plain(&mut self, facts: &Facts, out: &mut Vec<u8>) {
        // Several SDKs name the token so.
        let token = if self.draw.bits().is_multiple_of(8) {
            "api_key"
        } else {
            "token"
        };
        put!(
            out,
            r#"{{"{token}":"{}","uuid":"{}","timestamp":""#,
            facts.token,
            facts.uuid
        );
        put_time(out, facts.time_ms);
        out.push(b'"');
        self.rest(facts, out, 0);
    }

    fn captured(&mut self, facts: &Facts, out: &mut Vec<u8>) {
        /// From behind `data` to the end, but for the token: see below.
        const TAIL: usize = 215;
        let ip = self.draw.bits();
        put!(
            out,
            r#"{{"uuid":"{}","distinct_id":"user-{}","ip":"203.0.{}.{}","data":""#,
            facts.uuid,
            facts.user,
            ip >> 8 & 0xff,
            ip & 0xff
        );
        let mut inner = std::mem::take(&mut self.inner);
        inner.clear();
        // Sent within a few seconds, by a clock that is a little off.
        let sent_ms = facts.time_ms + i64::from(ip >> 20);
        put!(inner, r#"{{"uuid":"{}","offset":{}"#, facts.uuid, ip >> 20);
        self.rest(facts, &mut inner, out.len() + TAIL);
        for byte in &inner {
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        self.inner = inner;
        out.extend_from_slice(br#"","now":""#);
        put_time(out, sent_ms + 40);
        out.extend_from_slice(br#"","sent_at":""#);
        put_time(out, sent_ms);
        put!(
            out,
            r#"","token":"{}","event":"{}","timestamp":""#,
            facts.token,
            facts.name
        );
        put_time(out, facts.time_ms);
        out.extend_from_slice(br#"","is_cookieless_mode":false,"historical_migration":false}"#);
    }

    /// Name, user, person and properties, up to the closing brace; `around` bytes come around the object.
    fn rest(&mut self, facts: &Facts, out: &mut Vec<u8>, around: usize) {
        put!(
            out,
            r#","event":"{}","distinct_id":"user-{}""#,
            facts.name,
            facts.user
        );
        let person = self.draw.bits();
        let at_top = person & 1 == 0;
        if at_top {
            self.person(person >> 1, facts, out);
        }
        let draws = self.draw.long();
        put!(
            out,
            r#","properties":{{"$lib":"web","$lib_version":"1.{}.{}","$browser":"{}","$os":"{}","$session_id":"{:016x}""#,
            draws & 0xff,
            draws >> 8 & 7,
            BROWSERS[(draws >> 16) as usize % BROWSERS.len()],
            SYSTEMS[(draws >> 24) as usize % SYSTEMS.len()],
            // A session is some events of one user.
            facts.user << 16 | draws >> 32 & 0xf,
        );
        put!(
            out,
            r#","$current_url":"https://app.example.com{}?id={}","$screen_width":{}"#,
            PATHS[(draws >> 40) as usize % PATHS.len()],
            draws >> 44 & 0xffff,
            1024 + (draws >> 60) * 64,
        );
        if facts.name == "purchase completed" {
            put!(out, r#","amount":{}.{:02}"#, draws >> 50 & 0x1ff, draws & 0x3f);
        }
        if person >> 28 == 0 {
            put!(out, r#","value":{}"#, self.draw.of(&ODD));
        }
        if !at_top {
            self.person(person >> 1, facts, out);
        }
        // Each quote within `data` costs a backslash.
        let escapes = if around > 0 {
            out.iter().map(|byte| usize::from(*byte == b'"')).sum::<usize>() + 8
        } else {
            0
        };
        let name = br#","$el_text":""#;
        let so_far = around + out.len() + escapes + name.len() + 3;
        if let Some(room) = self.plan.size.checked_sub(so_far).filter(|room| *room > 0) {
            out.extend_from_slice(name);
            self.words(room, out);
            out.push(b'"');
        }
        out.extend_from_slice(b"}}");
    }

    /// Person properties, of some events.
    fn person(&mut self, draws: u32, facts: &Facts, out: &mut Vec<u8>) {
        if draws.is_multiple_of(8) || facts.name == "$identify" {
            put!(
                out,
                r#","$set":{{"email":"user-{}@example.com","plan":"{}"}}"#,
                facts.user,
                self.draw.of(&PLANS)
            );
        }
        if (draws >> 3).is_multiple_of(16) {
            put!(
                out,
                r#","$set_once":{{"$initial_path":"{}"}}"#,
                self.draw.of(&PATHS)
            );
        }
        if (draws >> 7).is_multiple_of(32) {
            out.extend_from_slice(br#","$unset":["trial_ends"]"#);
        }
    }

    fn words(&mut self, room: usize, out: &mut Vec<u8>) {
        let end = out.len() + room;
        while out.len() < end {
            let mut bits = self.draw.bits();
            for _ in 0..5 {
                let at = (bits & 63) as usize * 8;
                out.extend_from_slice(&FILLER[at..at + 8]);
                bits >>= 6;
            }
        }
        out.truncate(end);
    }
}

/// A UUID that begins with its time, as most SDKs make them.
fn uuid_v7(time_ms: i64, high: u64, low: u64) -> Uuid {
    let high = (time_ms as u64) << 16 | 0x7000 | high & 0x0fff;
    let low = 1 << 63 | low >> 2;
    Uuid::from_u64_pair(high, low)
}

/// RFC 3339 with milliseconds.
fn put_time(out: &mut Vec<u8>, ms: i64) {
    let (day, ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Civil days, counted in years that begin in March.
    let era_day = day + 719_468;
    let era = era_day.div_euclid(146_097);
    let of_era = era_day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year + era * 400 + i64::from(month <= 2);
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut digits = |at: usize, len: usize, mut number: i64| {
        for place in text[at..at + len].iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    digits(0, 4, year);
    digits(5, 2, month);
    digits(8, 2, day);
    digits(11, 2, ms / 3_600_000);
    digits(14, 2, ms / 60_000 % 60);
    digits(17, 2, ms / 1000 % 60);
    digits(20, 3, ms % 1000);
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_others_write_them() {
        for ms in (0..4_000_000_000_000).step_by(86_399_123_457 / 7) {
            let mut out = Vec::new();
            put_time(&mut out, ms);
            let expected = format!("{:.3}", jiff::Timestamp::from_millisecond(ms).unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn uuids_are_of_version_7_and_begin_with_their_time() {
        let uuid = uuid_v7(0x0123_4567_89ab, u64::MAX, u64::MAX);
        assert_eq!(uuid.get_version_num(), 7);
        assert!(uuid.to_string().starts_with("01234567-89ab-7"));
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
    }
}
