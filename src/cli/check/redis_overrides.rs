//! Tokens' own limits in Redis: which are in force, which cannot be read, and which keys are no token's.
//!
//! Owns what is told of them; they are found by a [walk](redis_walk). Changes none.

use percent_encoding::percent_decode_str;
use redis::{Pipeline, RedisResult, Value};

use super::Finding;
use super::redis_walk::{self, Walk};
use crate::config::Config;
use crate::event::is_token;
use crate::pipeline::Limit;
use crate::redis::{Redis, keys::Keys};

const SUBJECT: &str = "overrides";
/// Those that are in force, and those that are amiss, that are told by name.
const SHOWN: usize = 5;
const SHOWN_AMISS: usize = 10;
/// Characters of a foreign name.
const SHOWN_CHARS: usize = 80;

/// Whose limit a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Token(String),
    /// Nobody's, and the key that may have been meant.
    Nobody(Option<String>),
}

/// All findings. A user that may not look is told so.
pub(super) async fn check(redis: &Redis, config: &Config) -> Vec<Finding> {
    match look(redis, config).await {
        Ok(findings) => findings,
        Err(error) if error.code() == Some("NOPERM") => vec![Finding::warning(
            SUBJECT,
            "which tokens have a limit of their own is not known: SCAN may not be asked",
            "allow the user SCAN and DBSIZE, or check as another user",
        )],
        Err(error) => vec![Finding::warning(
            SUBJECT,
            format!("which tokens have a limit of their own is not known: {error}"),
            "check once more",
        )],
    }
}

async fn look(redis: &Redis, config: &Config) -> RedisResult<Vec<Finding>> {
    let keys = Keys::new(&config.redis.key_prefix);
    let beginning = beginning(&keys);
    let walk = redis_walk::walk(redis, &beginning).await?;
    let mut tokens = Vec::new();
    let mut nobodys = Vec::new();
    for key in &walk.met {
        match name_of(&keys, &beginning, key) {
            Name::Token(token) => tokens.push(token),
            Name::Nobody(meant) => nobodys.push(nobodys_finding(&beginning, key, meant)),
        }
    }
    tokens.sort();
    let limits = read(redis, &keys, tokens, config).await?;
    let mut findings = vec![in_force(&limits, &walk, config)];
    findings.extend(some_of(unreadable(&keys, &limits)));
    findings.extend(some_of(nobodys));
    Ok(findings)
}

/// How the key of every token's own limit begins.
fn beginning(keys: &Keys) -> String {
    let key = keys.rate_limit_override("");
    key.strip_suffix("{}").unwrap_or(&key).to_owned()
}

/// Whose limit a key is, going by what follows the beginning.
fn name_of(keys: &Keys, beginning: &str, key: &[u8]) -> Name {
    let rest = key.strip_prefix(beginning.as_bytes()).unwrap_or_default();
    let Ok(rest) = str::from_utf8(rest) else {
        return Name::Nobody(None);
    };
    let inner = rest.strip_prefix('{').unwrap_or(rest);
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let token = percent_decode_str(inner)
        .decode_utf8()
        .map_or_else(|_| inner.to_owned(), |token| token.trim().to_owned());
    if !is_token(&token) {
        return Name::Nobody(None);
    }
    let read = keys.rate_limit_override(&token);
    if read.as_bytes() == key {
        Name::Token(token)
    } else {
        Name::Nobody(Some(read))
    }
}

/// What tokens' own limits say, as a worker reads them.
async fn read(
    redis: &Redis,
    keys: &Keys,
    tokens: Vec<String>,
    config: &Config,
) -> RedisResult<Vec<(String, Result<Limit, String>)>> {
    if tokens.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = Pipeline::new();
    for token in &tokens {
        pipe.cmd("GET").arg(keys.rate_limit_override(token));
    }
    let values = redis.look_up(&pipe).await?;
    let configured = Limit::configured(&config.rate_limit);
    let read = tokens.into_iter().zip(values);
    // Gone since it was met: nobody's limit any more.
    let read = read.filter(|(_, value)| *value != Value::Nil);
    Ok(read
        .map(|(token, value)| (token, configured.overridden(value)))
        .collect())
}

fn in_force(limits: &[(String, Result<Limit, String>)], walk: &Walk, config: &Config) -> Finding {
    let named = limits.iter().filter_map(|(token, limit)| {
        let limit = limit.as_ref().ok()?;
        Some(format!("{}: {}", shown(token.as_bytes()), meaning(limit)))
    });
    let named: Vec<String> = named.collect();
    let some = named[..named.len().min(SHOWN)].join("; ");
    let mut detail = vec![match named.len() {
        0 if walk.ended => "no token has a limit of its own".to_owned(),
        0 => "none was found of tokens' own limits".to_owned(),
        1 => format!("1 token has a limit of its own: {some}"),
        count => format!("{count} tokens have a limit of their own: {some}"),
    }];
    if named.len() > SHOWN {
        detail.push(format!("; and {} more", named.len() - SHOWN));
    }
    if !walk.ended {
        let of = walk.of.map_or(String::new(), |of| format!(" of {of}"));
        let looked_at = walk.looked_at;
        detail.push(format!(
            ". There may be more: it looked at {looked_at}{of} keys and stopped; GET {}{{TOKEN}} tells of one",
            beginning(&Keys::new(&config.redis.key_prefix))
        ));
    }
    if !config.rate_limit.enabled {
        detail.push(". None is in force, by rate_limit.enabled = false".to_owned());
    }
    Finding::good(SUBJECT, detail.concat())
}

fn meaning(limit: &Limit) -> String {
    match limit.events {
        None => "unlimited".to_owned(),
        Some(0) => "blocked".to_owned(),
        Some(events) => format!("{events} in {} s", limit.window_seconds),
    }
}

/// Limits that workers ignore, and count (`sluice_bad_overrides_total`).
fn unreadable(keys: &Keys, limits: &[(String, Result<Limit, String>)]) -> Vec<Finding> {
    let amiss = limits.iter().filter_map(|(token, limit)| {
        let value = limit.as_ref().err()?;
        Some(Finding::warning(
            SUBJECT,
            format!(
                "{} holds no limit, and is ignored: {}",
                keys.rate_limit_override(token),
                shown(value.as_bytes())
            ),
            "SET it to LIMIT, LIMIT/SECONDS (a window of 2592000 s at the most), 0 (blocked) or `unlimited`",
        ))
    });
    amiss.collect()
}

/// A key that no worker ever reads, and the one that may have been meant.
fn nobodys_finding(beginning: &str, key: &[u8], meant: Option<String>) -> Finding {
    let remedy = match meant {
        Some(meant) => format!("SET {meant} instead, if that is what was meant, and DEL this one"),
        None => format!(
            "DEL this one; the key is {beginning}{{TOKEN}}: the braces are part of it, and the token has 1 to 64 characters \
             of ASCII"
        ),
    };
    Finding::warning(
        SUBJECT,
        format!("{} is no token's limit: nothing reads it", shown(key)),
        remedy,
    )
}

/// The first of them, and how many more there are.
fn some_of(mut findings: Vec<Finding>) -> Vec<Finding> {
    let more = findings.len().saturating_sub(SHOWN_AMISS);
    findings.truncate(SHOWN_AMISS);
    if more > 0
        && let Some(last) = findings.last_mut()
    {
        last.detail = format!("{}; and {more} more like it", last.detail);
    }
    findings
}

/// A name or value that others have chosen, for people: on one line, and not too long.
fn shown(bytes: &[u8]) -> String {
    let escaped: String = match str::from_utf8(bytes) {
        Ok(text) => text.chars().flat_map(escaped).collect(),
        Err(_) => bytes.escape_ascii().to_string(),
    };
    let mut shown: String = escaped.chars().take(SHOWN_CHARS).collect();
    if shown.len() < escaped.len() {
        shown.push('…');
    }
    shown
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let as_it_is = matches!(c, '\'' | '"').then_some(c);
    as_it_is
        .into_iter()
        .chain(c.escape_debug().filter(move |_| as_it_is.is_none()))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn name(key: &[u8]) -> Name {
        let keys = Keys::new("p:");
        name_of(&keys, &beginning(&keys), &[b"p:config:rate_limit:", key].concat())
    }

    #[test]
    fn a_key_is_a_tokens_or_names_the_one_that_was_meant() {
        for (key, token) in [
            ("{shop}", "shop"),
            ("{shop%3Aeu}", "shop:eu"),
            ("{100%25}", "100%"),
        ] {
            assert_eq!(name(key.as_bytes()), Name::Token(token.to_owned()), "{key}");
        }
        for (key, instead) in [
            ("shop", "{shop}"),
            ("{shop", "{shop}"),
            ("shop:eu", "{shop%3Aeu}"),
            ("{shop:eu}", "{shop%3Aeu}"),
            ("{shop%3aeu}", "{shop%3Aeu}"),
            ("{100%}", "{100%25}"),
            ("{ shop }", "{shop}"),
        ] {
            let instead = format!("p:config:rate_limit:{instead}");
            assert_eq!(name(key.as_bytes()), Name::Nobody(Some(instead)), "{key}");
        }
        let long = "x".repeat(65);
        for key in [
            &b""[..],
            b"{}",
            "{caf\u{e9}}".as_bytes(),
            b"{\xff}",
            long.as_bytes(),
        ] {
            assert_eq!(name(key), Name::Nobody(None), "{}", key.escape_ascii());
        }
    }

    #[test]
    fn foreign_text_is_shown_on_one_line_and_shortened() {
        assert_eq!(shown(b"o'brien"), "o'brien");
        assert_eq!(shown(b"a\n\x1b[31mb"), "a\\n\\u{1b}[31mb");
        assert_eq!(shown("\u{202e}".as_bytes()), "\\u{202e}");
        assert_eq!(shown(b"\xff"), "\\xff");
        assert_eq!(shown(&[b'x'; 1_000]).chars().count(), SHOWN_CHARS + 1);
    }

    #[test]
    fn some_are_told_by_name_and_all_are_counted() {
        let config = Config::default();
        let limit = |events, window_seconds| {
            Ok(Limit {
                events,
                window_seconds,
                ..Limit::configured(&config.rate_limit)
            })
        };
        let limits = [
            ("a", limit(Some(5), 60)),
            ("b", limit(Some(0), 60)),
            ("c", limit(None, 60)),
            ("d", Err("many".to_owned())),
        ];
        let mut limits = limits.map(|(token, limit)| (token.to_owned(), limit)).to_vec();
        let mut walk = Walk {
            looked_at: 1_000,
            of: Some(9_000),
            ended: true,
            ..Walk::default()
        };
        let told = in_force(&limits, &walk, &config).detail;
        assert_eq!(
            told,
            "3 tokens have a limit of their own: a: 5 in 60 s; b: blocked; c: unlimited"
        );
        walk.ended = false;
        let none = in_force(&[], &walk, &config).detail;
        assert!(none.starts_with("none was found"), "{none}");
        limits.extend((0..20).map(|n| (format!("e{n}"), limit(Some(n), 60))));
        let told = in_force(&limits, &walk, &config).detail;
        for part in ["23 tokens", "and 18 more", "1000 of 9000 keys and stopped"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let amiss = unreadable(&Keys::new("p:"), &limits);
        assert_eq!(amiss.len(), 1);
        assert_eq!(amiss[0].verdict, Verdict::Warning);
        let text = &amiss[0].detail;
        assert!(
            text == "p:config:rate_limit:{d} holds no limit, and is ignored: many",
            "{text}"
        );
        let many = (0..30).map(|_| Finding::warning(SUBJECT, "x", "y")).collect();
        let many = some_of(many);
        assert_eq!(many.len(), SHOWN_AMISS);
        assert!(many[SHOWN_AMISS - 1].detail.contains("20 more"));
    }
}
