//! The mark that claims leave in Redis: their layout, the secret of `packed`, and its window.
//!
//! Claims of one layout are not seen by another, and a worker with a shorter window would end others' claims early: the
//! first worker leaves the mark, the others compare. Never changes one that is there.

use super::Secret;
use crate::config::{Dedup, Layout};
use crate::health::Waiter;
use crate::pipeline::retry::until_done;
use crate::pipeline::worker::StartError;
use crate::redis::Redis;
use crate::redis::keys::Keys;
use crate::telemetry::Service;

/// The mark of claims in the layout `keys`.
const KEYS: &str = "keys";
/// The mark of claims in the layout `packed`, version 1; the secret follows in hexadecimal.
const PACKED: &str = "packed:1:";

/// Characters of a mark that is none in an error.
const SHOWN_CHARS: usize = 20;

/// Leaves the mark, or compares with it. Answers the secret of `packed`.
pub(in crate::pipeline) async fn mark_layout(
    waiter: Waiter<'_>,
    redis: &Redis,
    keys: &Keys,
    dedup: &Dedup,
) -> Result<Option<Secret>, StartError> {
    let ours = match dedup.layout {
        Layout::Keys => KEYS.to_owned(),
        Layout::Packed => format!("{PACKED}{:032x}", rand::random::<u128>()),
    };
    let mark = first_or_found(waiter, redis, &keys.layout(), ours).await;
    let secret = compare_layout(keys, dedup, &mark)?;
    if secret.is_some() {
        let window = first_or_found(
            waiter,
            redis,
            &keys.claims_window(),
            dedup.window_seconds.to_string(),
        )
        .await;
        compare_window(keys, dedup, &window)?;
    }
    Ok(secret)
}

/// Compares with the marks of layout and window that were found, without leaving any: what a worker would say to them.
///
/// # Errors
/// One is another than that of the configuration.
pub fn compare(keys: &Keys, dedup: &Dedup, mark: &str, window: Option<&str>) -> Result<(), StartError> {
    match (compare_layout(keys, dedup, mark)?, window) {
        (Some(_), Some(window)) => compare_window(keys, dedup, window),
        _ => Ok(()),
    }
}

fn compare_layout(keys: &Keys, dedup: &Dedup, mark: &str) -> Result<Option<Secret>, StartError> {
    let secret = mark
        .strip_prefix(PACKED)
        .and_then(|secret| u128::from_str_radix(secret, 16).ok());
    match (dedup.layout, secret) {
        // Each of these claims knows when it ends.
        (Layout::Keys, _) if mark == KEYS => Ok(None),
        (Layout::Packed, Some(secret)) => Ok(Some(secret.to_be_bytes())),
        _ => Err(StartError::Layout {
            configured: dedup.layout,
            // What follows may be a secret.
            found: mark
                .split(':')
                .next()
                .unwrap_or_default()
                .chars()
                .take(SHOWN_CHARS)
                .collect(),
            key: keys.layout(),
        }),
    }
}

fn compare_window(keys: &Keys, dedup: &Dedup, window: &str) -> Result<(), StartError> {
    if window == dedup.window_seconds.to_string() {
        return Ok(());
    }
    Err(StartError::Window {
        configured: dedup.window_seconds,
        found: window.chars().take(SHOWN_CHARS).collect(),
        key: keys.claims_window(),
    })
}

/// Sets a key if there is none; answers what it holds.
async fn first_or_found(waiter: Waiter<'_>, redis: &Redis, key: &str, ours: String) -> String {
    let mut mark = ::redis::cmd("SET");
    mark.arg(key).arg(&ours).arg("NX").arg("GET");
    let found: Option<String> =
        until_done(waiter, Service::Redis, "compare the mark of claims", async || {
            redis.command(&mark).await
        })
        .await;
    found.unwrap_or(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_marks_are_refused_with_what_can_be_done_and_without_the_secret() {
        let (keys, secret) = (Keys::new("p:"), "packed:1:000000000000000000000000000000ff");
        let of = |layout, mark: &str, window| {
            let dedup = Dedup {
                layout,
                window_seconds: 60,
                ..Dedup::default()
            };
            compare(&keys, &dedup, mark, window).map_err(|error| error.to_string())
        };
        assert_eq!(of(Layout::Packed, secret, Some("60")), Ok(()));
        assert_eq!(of(Layout::Packed, secret, None), Ok(()));
        assert_eq!(of(Layout::Keys, "keys", Some("61")), Ok(()));
        let told = of(Layout::Keys, secret, None).unwrap_err();
        for part in [
            "p:config:dedup_layout",
            "Set dedup.layout = \"packed\"",
            "docs/redis.md",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("ff"), "{told}");
        let told = of(Layout::Packed, "keys", None).unwrap_err();
        assert!(told.contains("Set dedup.layout = \"keys\""), "{told}");
        let told = of(Layout::Packed, secret, Some("61")).unwrap_err();
        for part in [
            "p:config:dedup_window_seconds",
            "Set dedup.window_seconds = 61",
            "docs/redis.md",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let told = of(Layout::Packed, &"?".repeat(1_000), None).unwrap_err();
        assert!(told.len() < 600, "{told}");
    }
}
