//! Waiting for what is to be seen, instead of sleeping.

use std::time::{Duration, Instant};

/// How often the world is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until there is something to return. Panics after `patience` with what was seen last.
pub(crate) fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(instead) if start.elapsed() > patience => {
                panic!(
                    "{what}: not within {} s; last seen: {instead}",
                    patience.as_secs()
                );
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// `Ok` if it is so, else `Err` of what is instead: the answer of a look.
pub(crate) fn seen(is_so: bool, instead: impl std::fmt::Display) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(instead.to_string()) }
}
