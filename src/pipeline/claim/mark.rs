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
    let secret = mark
        .strip_prefix(PACKED)
        .and_then(|secret| u128::from_str_radix(secret, 16).ok());
    match (dedup.layout, secret) {
        // Each of these claims knows when it ends.
        (Layout::Keys, _) if mark == KEYS => Ok(None),
        (Layout::Packed, Some(secret)) => {
            let window = dedup.window_seconds.to_string();
            let found = first_or_found(waiter, redis, &keys.claims_window(), window.clone()).await;
            if found == window {
                Ok(Some(secret.to_be_bytes()))
            } else {
                Err(StartError::Window {
                    configured: dedup.window_seconds,
                    found,
                    key: keys.claims_window(),
                })
            }
        }
        _ => Err(StartError::Layout {
            configured: dedup.layout,
            // What follows may be a secret.
            found: mark.split(':').next().unwrap_or_default().to_owned(),
            key: keys.layout(),
        }),
    }
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
